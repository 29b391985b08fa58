//! DHCP, DNS and router advertisements of one network, by a dnsmasq of its own: its files (pure) and its process.
//!
//! It binds to the host port alone, so that it and a dnsmasq of the host's do not meet. What names and reservations change
//! is in files of their own that it reads again on SIGHUP; anything else needs a new one.

use std::{
    fmt::Write,
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    control::spec::{
        Cidr, NetworkSpec,
        network::{DhcpHost, IpSpec, RaMode},
    },
    durable,
};

/// Seconds that a lease lasts unless the range says otherwise.
const LEASE_S: u32 = 3600;
/// The most leases that one network keeps.
const MAX_LEASES: u128 = 65_536;
/// Leases beside those of ranges: reservations, of which a new one must not need a new dnsmasq.
const ROOM: u128 = 1024;
/// How long it may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);
/// The program, and what to install where it is missing.
pub const MISSING: &str = "dnsmasq is missing: DHCP, DNS and router advertisements need it; install dnsmasq-base (Debian, Ubuntu) or dnsmasq, or set dns.enable = false and leave out dhcp";

/// Whether a network needs one.
#[must_use]
pub fn needed(spec: &NetworkSpec) -> bool {
    let addressed = spec.has_host() && !spec.ip.is_empty();
    addressed && (spec.dns.enable || spec.has_dhcp() || spec.ip.iter().any(|ip| ip.ra() != RaMode::Off))
}

/// Whether the program is in the path.
#[must_use]
pub fn installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join("dnsmasq").is_file())
}

/// What dnsmasq reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Its configuration: a change needs a new dnsmasq.
    pub config: String,
    /// Reservations, one a line.
    pub reservations: String,
    /// Addresses and names, one a line.
    pub names: String,
}

fn seconds(lease_s: Option<u32>) -> String {
    match lease_s {
        Some(0) => "infinite".to_owned(),
        other => other.unwrap_or(LEASE_S).to_string(),
    }
}

impl Files {
    /// The files of a network that lie in `directory`.
    #[must_use]
    pub fn new(spec: &NetworkSpec, directory: &Path) -> Files {
        let mut reservations = String::new();
        for host in spec.ip.iter().filter_map(|ip| ip.dhcp.as_ref()).filter(|d| d.enable).flat_map(|d| &d.host) {
            reservation(&mut reservations, host);
        }
        let names = spec.dns.host.iter().map(|h| format!("{}\t{}\n", h.ip, h.hostnames.join(" "))).collect();
        Files { config: config(spec, directory), reservations, names }
    }

    /// Writes them, readable for the user that dnsmasq becomes.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot make {}: {e}", directory.display())))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        for (name, text) in
            [("dnsmasq.conf", &self.config), ("reservations", &self.reservations), ("names", &self.names)]
        {
            let path = directory.join(name);
            durable::replace(&path, text.as_bytes())?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        Ok(())
    }
}

/// `MAC,[IPv6] or IPv4,NAME,LEASE`, each if given.
fn reservation(text: &mut String, host: &DhcpHost) {
    let mut parts = Vec::new();
    parts.extend(host.mac.map(|mac| mac.to_string()));
    parts.extend(host.id.as_ref().map(|id| format!("id:{id}")));
    if parts.is_empty() {
        parts.extend(host.name.clone());
    }
    parts.extend(host.ip.map(|ip| if ip.is_ipv4() { ip.to_string() } else { format!("[{ip}]") }));
    if host.mac.is_some() || host.id.is_some() {
        parts.extend(host.name.clone());
    }
    if host.lease_s.is_some() {
        parts.push(seconds(host.lease_s));
    }
    text.push_str(&parts.join(","));
    text.push('\n');
}

fn config(spec: &NetworkSpec, directory: &Path) -> String {
    let file = |name: &str| directory.join(name).display().to_string();
    let device = spec.device();
    let mut text = String::from("# Written by vswitch; changes are lost.\n");
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(format!("interface={device}\nexcept-interface=lo\nbind-dynamic"));
    line(format!("pid-file={}\nlog-facility={}", file("pid"), file("log")));
    line("quiet-dhcp\nquiet-dhcp6\nquiet-ra\nno-hosts".to_owned());
    if spec.dns.enable {
        dns(spec, &file("names"), &mut line);
    } else {
        line("port=0".to_owned());
    }
    let closed = !spec.by_host();
    if spec.has_dhcp() {
        line(format!(
            "dhcp-authoritative\ndhcp-no-override\ndhcp-hostsfile={}\ndhcp-leasefile={}\ndhcp-lease-max={}",
            file("reservations"),
            file("leases"),
            lease_count(spec)
        ));
        if closed {
            line("dhcp-option=option:router".to_owned());
        }
    }
    if spec.ip.iter().any(|ip| ip.ra() != RaMode::Off) {
        line("enable-ra".to_owned());
        if closed {
            // Nobody is to send to others by way of this gateway.
            line(format!("ra-param={device},0,0"));
        }
    }
    for ip in &spec.ip {
        ranges(ip, &mut line);
        if let Some(root) = &ip.tftp_root {
            line(format!("enable-tftp\ntftp-root={root}"));
        }
        if let Some(file) = ip.dhcp.as_ref().and_then(|d| d.bootp_file.as_ref()) {
            let server = ip.dhcp.as_ref().and_then(|d| d.bootp_server.as_ref());
            line(format!("dhcp-boot={file}{}", server.map(|s| format!(",,{s}")).unwrap_or_default()));
        }
    }
    spec.dnsmasq_options.iter().for_each(|option| line(option.clone()));
    text
}

fn dns(spec: &NetworkSpec, names: &str, line: &mut impl FnMut(String)) {
    let dns = &spec.dns;
    line(format!("addn-hosts={names}"));
    let general = dns.forwarder.iter().any(|f| f.address.is_some() && f.domain.is_none());
    if general || (!spec.by_host() && dns.forwarder.is_empty()) {
        line("no-resolv".to_owned());
    } else if let Some(name) = &spec.netns {
        // The namespace's own servers, as `ip netns exec` has it.
        let own = PathBuf::from("/etc/netns").join(name.trim_start_matches('/')).join("resolv.conf");
        if own.is_file() {
            line(format!("resolv-file={}", own.display()));
        }
    }
    for forwarder in &dns.forwarder {
        let domain = forwarder.domain.as_ref().map(|d| format!("/{d}/")).unwrap_or_default();
        let server = forwarder.address.map_or("#".to_owned(), |a| a.to_string());
        let port = forwarder.port.map(|p| format!("#{p}")).unwrap_or_default();
        line(format!("server={domain}{server}{port}"));
    }
    if !dns.forward_plain_names {
        line("domain-needed\nlocal=//".to_owned());
    }
    if let Some(domain) = &spec.domain {
        line(format!("domain={}\nexpand-hosts", domain.name));
        if domain.local_only {
            line(format!("local=/{}/", domain.name));
        }
    }
    for ip in spec.ip.iter().filter(|ip| ip.local_ptr) {
        line(format!("local=/{}/", reverse_zone(&ip.address)));
    }
    for record in &dns.txt {
        line(format!("txt-record={},\"{}\"", record.name, record.value));
    }
    for record in &dns.srv {
        let domain = record.domain.as_ref().map(|d| format!(".{d}")).unwrap_or_default();
        let mut text = format!("srv-host=_{}._{}{domain}", record.service, record.protocol);
        if let Some(target) = &record.target {
            let _ = write!(text, ",{target},{}", record.port.unwrap_or(1));
            if record.priority.is_some() || record.weight.is_some() {
                let _ = write!(text, ",{},{}", record.priority.unwrap_or(0), record.weight.unwrap_or(0));
            }
        }
        line(text);
    }
    if let Some(ttl) = dns.ttl_s {
        line(format!("local-ttl={ttl}\ndhcp-ttl={ttl}"));
    }
}

/// The zone in which reverse look-ups of a network are.
fn reverse_zone(net: &Cidr) -> String {
    let prefix = usize::from(net.prefix);
    match net.address {
        IpAddr::V4(v4) => {
            let parts: Vec<String> = v4.octets()[..prefix / 8].iter().rev().map(ToString::to_string).collect();
            format!("{}.in-addr.arpa", parts.join("."))
        }
        IpAddr::V6(v6) => {
            let nibbles: Vec<String> =
                v6.octets().iter().flat_map(|o| [o >> 4, o & 15]).map(|n| format!("{n:x}")).collect();
            let parts: Vec<&str> = nibbles[..prefix / 4].iter().rev().map(String::as_str).collect();
            format!("{}.ip6.arpa", parts.join("."))
        }
    }
}

fn lease_count(spec: &NetworkSpec) -> u128 {
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let dhcp = || spec.ip.iter().filter_map(|ip| ip.dhcp.as_ref());
    let leased = dhcp()
        .flat_map(|d| &d.range)
        .map(|r| number(r.end) - number(r.start))
        .fold(0u128, |sum, n| sum.saturating_add(n).saturating_add(1));
    leased.saturating_add(ROOM).min(MAX_LEASES)
}

/// `dhcp-range` lines of one address: what may be leased, and what router advertisements tell.
fn ranges(ip: &IpSpec, line: &mut impl FnMut(String)) {
    let net = ip.address.network();
    let (ranges, hosts) = match ip.dhcp.as_ref().filter(|d| d.enable) {
        Some(dhcp) => (dhcp.range.as_slice(), !dhcp.host.is_empty()),
        None => (&[][..], false),
    };
    if ip.address.is_ipv4() {
        let mask = net.netmask();
        for range in ranges {
            line(format!("dhcp-range={},{},{mask},{}", range.start, range.end, seconds(range.lease_s)));
        }
        if ranges.is_empty() && hosts {
            line(format!("dhcp-range={},static,{mask},{LEASE_S}", net.address));
        }
        return;
    }
    let mode = match ip.ra() {
        RaMode::RaOnly => return line(format!("dhcp-range={},ra-only,{}", net.address, net.prefix)),
        RaMode::Stateless => return line(format!("dhcp-range={},ra-stateless,{}", net.address, net.prefix)),
        RaMode::Slaac => ",slaac",
        RaMode::Off | RaMode::Dhcpv6 => "",
    };
    for range in ranges {
        let (start, end, lease) = (range.start, range.end, seconds(range.lease_s));
        line(format!("dhcp-range={start},{end}{mode},{},{lease}", net.prefix));
    }
    if ranges.is_empty() && hosts {
        line(format!("dhcp-range={},static{mode},{},{LEASE_S}", net.address, net.prefix));
    } else if ranges.is_empty() && !mode.is_empty() {
        line(format!("dhcp-range={}{mode},{}", net.address, net.prefix));
    }
}

/// A process, known by more than its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it was started, in ticks since boot.
    pub start: u64,
}

impl Process {
    /// The process of that number now.
    #[must_use]
    pub fn find(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, can have anything in it; the state follows it, and 19 fields later the time.
        let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
        let state = rest.next()?;
        let start = rest.nth(18)?.parse().ok()?;
        (state != "Z" && state != "X").then_some(Process { pid, start })
    }

    /// Ends it, and waits for that; another one of the same number is left alone.
    pub fn end(&self) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let deadline = Instant::now() + PATIENCE;
            if Process::find(self.pid) != Some(*self) || kill(Pid::from_raw(self.pid), signal).is_err() {
                return;
            }
            while Process::find(self.pid) == Some(*self) && Instant::now() < deadline {
                std::thread::sleep(LOOK);
            }
        }
    }

    /// Has it read its files again.
    pub fn reload(&self) {
        if Process::find(self.pid) == Some(*self) {
            // It may end between the two; then it is started again.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGHUP);
        }
    }
}

/// Starts one in the calling thread's namespace; returns when it serves.
///
/// # Errors
/// It is missing or ends at once (the error is the last line of its log).
pub fn start(directory: &Path, on_spawn: impl FnOnce(Process) -> io::Result<()>) -> io::Result<Child> {
    let pid_file = directory.join("pid");
    let log = directory.join("log");
    for old in [&pid_file, &log] {
        match fs::remove_file(old) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let errors = File::create(directory.join("errors"))?;
    let mut child = Command::new("dnsmasq")
        .arg("--keep-in-foreground")
        .arg(format!("--conf-file={}", directory.join("dnsmasq.conf").display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => io::Error::new(e.kind(), MISSING),
            _ => io::Error::new(e.kind(), format!("cannot run dnsmasq: {e}")),
        })?;
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    let ready = (|| {
        if let Some(process) = Process::find(pid) {
            on_spawn(process)?;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!(
                    "dnsmasq ends at once: {}",
                    complaint(directory, &status.to_string())
                )));
            }
            if pid_file.exists() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("dnsmasq does not come up"));
            }
            std::thread::sleep(LOOK);
        }
    })();
    match ready {
        Ok(()) => Ok(child),
        Err(e) => {
            stop(&mut child);
            Err(e)
        }
    }
}

/// Ends our own, and reaps it.
pub fn stop(child: &mut Child) {
    if let Some(process) = Process::find(i32::try_from(child.id()).unwrap_or(i32::MAX)) {
        process.end();
    }
    // It has ended, or is not to be ended by any means.
    let _ = child.try_wait();
}

/// What a dnsmasq that has ended said last.
#[must_use]
pub fn complaint(directory: &Path, otherwise: &str) -> String {
    let last = |name: &str| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        text.lines().rfind(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
    };
    last("errors").or_else(|| last("log")).unwrap_or_else(|| otherwise.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> Files {
        let spec: NetworkSpec = toml::from_str(text).expect("understood");
        spec.check().expect("valid");
        Files::new(&spec, Path::new("/run/x"))
    }

    #[test]
    fn reservations_and_ranges_are_what_the_spec_says() {
        let files = files(
            "name = \"n\"\nforward = { mode = \"nat\" }\nip = [\n\
             { address = \"10.0.0.1/24\", local_ptr = true, dhcp = { range = [{ start = \"10.0.0.9\", end = \"10.0.0.19\", lease_s = 0 }], host = [{ mac = \"52:54:00:00:00:01\", name = \"a\", ip = \"10.0.0.2\" }, { name = \"b\", ip = \"10.0.0.3\" }] } },\n\
             { address = \"fd00::1/64\", dhcp = { host = [{ id = \"0:1\", ip = \"fd00::5\", lease_s = 600 }] } },\n\
             { address = \"fd01::1/64\" }, { address = \"fd02::1/64\", ra = \"stateless\" }, { address = \"fd03::1/48\" }]",
        );
        assert_eq!(files.reservations, "52:54:00:00:00:01,10.0.0.2,a\nb,10.0.0.3\nid:0:1,[fd00::5],600\n");
        let ranges: Vec<&str> = files.config.lines().filter_map(|line| line.strip_prefix("dhcp-range=")).collect();
        assert_eq!(
            ranges,
            [
                "10.0.0.9,10.0.0.19,255.255.255.0,infinite",
                "fd00::,static,64,3600",
                "fd01::,ra-only,64",
                "fd02::,ra-stateless,64"
            ]
        );
        assert!(files.config.contains("\nlocal=/0.0.10.in-addr.arpa/\n"), "{}", files.config);
        assert!(files.config.contains("\nenable-ra\n") && !files.config.contains("ra-param"), "{}", files.config);
    }

    #[test]
    fn a_closed_network_names_no_router_and_asks_nobody() {
        let files =
            files("name = \"n\"\nip = [{ address = \"10.0.0.1/24\", dhcp = {} }, { address = \"fd00::1/64\" }]");
        for line in ["dhcp-option=option:router", "no-resolv", "ra-param=n,0,0", "interface=n"] {
            assert!(files.config.lines().any(|l| l == line), "{line}: {}", files.config);
        }
        assert_eq!(reverse_zone(&"fd00:1::1/32".parse().expect("valid")), "1.0.0.0.0.0.d.f.ip6.arpa");
    }

    #[test]
    fn a_process_is_known_by_more_than_its_number() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let this = Process::find(pid).expect("running");
        let other = Process { start: this.start + 1, ..this };
        // Nothing becomes of a process that only has the number.
        other.end();
        assert_eq!(Process::find(pid), Some(this));
        assert_eq!(Process::find(i32::MAX), None);
    }
}
