//! A host with a switch, a world outside, and guests.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use vswitch_benches::netns::{Namespace, exec, unique, wait_for};
use vswitch_tests::{Daemon, PATIENCE};

/// The host's and the outside's addresses between them.
pub const HOST: &str = "192.0.2.1";
pub const OUTSIDE: &str = "192.0.2.2";
pub const OUTSIDE6: &str = "2001:db8::2";
/// A NAT network with everything.
pub const NAT: &str = r#"
name = "lab"
forward = { mode = "nat", nat = { ipv6 = true }, port_forwards = [{ port = 8080, to = "10.7.0.5", to_port = 80 }] }
domain = { name = "lab.example", local_only = true }
[[ip]]
address = "10.7.0.1/24"
[ip.dhcp]
range = [{ start = "10.7.0.100", end = "10.7.0.199", lease_s = 600 }]
host = [{ mac = "52:54:00:00:00:05", name = "www", ip = "10.7.0.5" }]
[[ip]]
address = "fd07::1/64"
"#;

pub struct Lab {
    pub daemon: Daemon,
    pub host: Namespace,
    pub outside: Namespace,
}

impl Lab {
    pub fn new() -> Lab {
        Lab::with(&[])
    }

    /// One whose switch has further arguments.
    pub fn with(arguments: &[&str]) -> Lab {
        let (host, outside) = (Namespace::new("vnh").expect("host"), Namespace::new("vno").expect("outside"));
        let names = [host.name(), outside.name()];
        exec(&["ip", "-n", names[0], "link", "add", "wan", "type", "veth", "peer", "name", "wan", "netns", names[1]])
            .expect("a wire");
        host.configure("wan", &["192.0.2.1/24", "2001:db8::1/64"]).expect("configured");
        outside.configure("wan", &["192.0.2.2/24", "2001:db8::2/64"]).expect("configured");
        host.exec(&["ip", "route", "add", "default", "via", OUTSIDE]).expect("a route");
        // Counts what comes from guests' own addresses.
        feed(
            &outside,
            "table inet count {\nchain in {\ntype filter hook prerouting priority -300\nip saddr 10.0.0.0/8 counter\n\
             ip6 saddr fd00::/8 counter\nip saddr 192.0.2.1 counter\n}\n}\n",
        );
        let daemon = Daemon::start_in(Some(host.name()), arguments).expect("starts");
        Lab { daemon, host, outside }
    }

    pub fn define(&self, text: &str) -> anyhow::Result<String> {
        let path = self.daemon.file("network.toml");
        std::fs::write(&path, text)?;
        self.daemon.cli(&["network", "define", path.to_str().expect("text")])
    }

    pub fn start(&self, text: &str) {
        self.define(text).expect("defined");
        self.daemon.cli(&["network", "start", "lab"]).unwrap_or_else(|e| panic!("{e}\n{}", self.log()));
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.daemon.file("log")).unwrap_or_default()
    }

    /// A guest with an address of its own choice, or none.
    pub fn guest(&self, name: &str, addresses: &[&str], gateway: Option<&str>) -> Namespace {
        let guest = self.plug(name, "domain=lab", addresses).expect("added");
        if let Some(gateway) = gateway {
            guest.exec(&["ip", "route", "add", "default", "via", gateway]).expect("a route");
        }
        guest
    }

    /// A guest whose port says more; no guest if the port is refused.
    pub fn plug(&self, name: &str, more: &str, addresses: &[&str]) -> anyhow::Result<Namespace> {
        let guest = Namespace::new("vng")?;
        self.daemon.cli(&["port", "add", &format!("{name}=tap,device=eth0,netns={},{more}", guest.name())])?;
        self.daemon.wait_state(name, "up")?;
        guest.configure("eth0", addresses)?;
        Ok(guest)
    }

    /// A veth `DEVICE` of the host, whose far end has the same name outside.
    pub fn wire(&self, device: &str) {
        let names = [self.host.name(), self.outside.name()];
        exec(&[
            "ip", "-n", names[0], "link", "add", device, "up", "type", "veth", "peer", "name", device, "netns",
            names[1],
        ])
        .expect("a wire");
        self.outside.exec(&["ip", "link", "set", device, "up"]).expect("up");
    }

    pub fn view(&self) -> serde_json::Value {
        self.daemon.json(&["network", "show", "lab"]).expect("shown")[0].clone()
    }

    /// Everything outside the switch that networks touch.
    pub fn host_state(&self) -> (String, String, String) {
        let settings = "cd /proc/sys/net; grep -H . ipv4/ip_forward ipv4/conf/*/forwarding ipv6/conf/*/forwarding ipv6/conf/*/accept_ra";
        (
            self.host.exec(&["nft", "list", "ruleset"]).expect("listed"),
            self.host.exec(&["sh", "-c", settings]).expect("read"),
            self.host.exec(&["ip", "address"]).expect("listed"),
        )
    }

    /// Processes named dnsmasq whose configuration is this switch's.
    pub fn dnsmasqs(&self) -> Vec<u32> {
        let ours = self.daemon.file("state");
        let ours = ours.to_str().expect("text").to_owned();
        let is_ours = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.starts_with("dnsmasq") && line.contains(&ours)
        };
        let entries = std::fs::read_dir("/proc").expect("listed");
        entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }

    /// Has a real client ask for an address; returns it.
    pub fn lease(&self, guest: &Namespace) -> anyhow::Result<String> {
        let script = self.script();
        let path = script.to_str().expect("text");
        guest.exec(&[
            "busybox",
            "udhcpc",
            "-i",
            "eth0",
            "-f",
            "-n",
            "-q",
            "-t",
            "10",
            "-T",
            "1",
            "-x",
            "hostname:guest",
            "-s",
            path,
        ])?;
        let shown = guest.exec(&["ip", "-4", "-o", "address", "show", "dev", "eth0"])?;
        let words: Vec<&str> = shown.split_whitespace().collect();
        Ok(words[3].split('/').next().expect("an address").to_owned())
    }

    fn script(&self) -> PathBuf {
        let path = self.daemon.file("udhcpc.sh");
        let text = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip address flush dev $interface scope global\n\
                    ip address add $ip/$mask dev $interface\n[ -z \"$router\" ] || ip route replace default via $router\n";
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("permitted");
        path
    }

    /// Packets that came out with guests' own addresses (IPv4, IPv6), and with the host's.
    pub fn seen_outside(&self) -> [u64; 3] {
        let text = self.outside.exec(&["nft", "list", "table", "inet", "count"]).expect("listed");
        let mut counts = text.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = words.iter().position(|w| *w == "packets")?;
            words[at + 1].parse().ok()
        });
        std::array::from_fn(|_| counts.next().expect("three counters"))
    }
}

/// Gives nft a script in a namespace.
pub fn feed(namespace: &Namespace, script: &str) {
    let path = std::env::temp_dir().join(unique("vswitch-nft-"));
    std::fs::write(&path, script).expect("written");
    let fed = namespace.exec(&["nft", "-f", path.to_str().expect("text")]);
    std::fs::remove_file(&path).expect("removed");
    fed.expect("taken");
}

pub fn ping(from: &Namespace, to: &str) -> bool {
    from.exec(&["ping", "-c", "1", "-W", "1", to]).is_ok()
}

/// Pings until there is an answer: neighbours are looked up, addresses become ready.
pub fn reaches(from: &Namespace, to: &str) {
    wait_for(&format!("an answer of {to}"), PATIENCE, || ping(from, to)).expect("an answer");
}

/// One line over TCP to where it is forwarded to.
pub fn calls(from: &Namespace, address: &str, to: &Namespace, listen: &str) -> anyhow::Result<String> {
    let mut listener = None;
    // A process that another test is just making may still hold the one before.
    wait_for("a place to listen at", PATIENCE, || {
        listener = to.run(|| TcpListener::bind(listen)).ok().and_then(Result::ok);
        listener.is_some()
    })?;
    let listener = listener.ok_or_else(|| anyhow::anyhow!("nowhere to listen"))?;
    let answering =
        std::thread::spawn(move || listener.accept().map(|(mut s, peer)| s.write_all(b"hello").map(|()| peer)));
    let address = address.parse()?;
    let mut stream = from.run(|| TcpStream::connect_timeout(&address, PATIENCE))??;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let peer = answering.join().expect("answers")??;
    anyhow::ensure!(said == "hello", "it said {said:?}");
    Ok(peer.ip().to_string())
}
