//! The rules of one network: a table of its own, made and removed in one transaction. Pure but for [`apply`] and [`remove`].
//!
//! What is dropped here is dropped whatever other tables say; what is accepted here can still be dropped by others (see
//! [`firewall`](super::firewall)). The policy of every chain is accept: traffic of others passes untouched.

use std::{fmt::Write, io};

use super::exec;
use crate::control::spec::{
    Cidr, NetworkSpec,
    network::{ForwardMode, PortForward, Protocol},
};

/// The longest name that is used as it is; the kernel allows 255 bytes.
const PREFIX: &str = "vswitch-";

/// The name of a network's table. `@` is not for names of tables; two networks cannot end up with one table, because what
/// stands for it is in no other network's name.
#[must_use]
pub fn table_name(network: &str) -> String {
    format!("{PREFIX}{}", network.replace('@', "/"))
}

/// Whether a table is some network's of a switch.
#[must_use]
pub fn is_ours(table: &str) -> bool {
    table.starts_with(PREFIX)
}

/// Has nft carry out a script, whole or not at all.
///
/// # Errors
/// nft is missing or refuses.
pub fn script(text: &str) -> io::Result<()> {
    exec::run("nft", "nftables", &["-f", "-"], text).map(drop)
}

/// Removes a table, whether or not it is there.
///
/// # Errors
/// nft is missing or refuses.
pub fn remove(table: &str) -> io::Result<()> {
    script(&removal(table))
}

/// Makes a table what it should be, in one transaction.
///
/// # Errors
/// nft is missing or refuses; what was there is still there.
pub fn apply(table: &str, rules: &str) -> io::Result<()> {
    script(&format!("{}{rules}", removal(table)))
}

/// A table as nft prints it, without counters; `None` if it is not there.
///
/// # Errors
/// nft is missing or does not end.
pub fn current(table: &str) -> io::Result<Option<String>> {
    match exec::run("nft", "nftables", &["-s", "list", "table", "inet", table], "") {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.to_string().contains("No such file") => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a network that starts can have this table: what this switch left after a crash is gone by then.
///
/// # Errors
/// [`AlreadyExists`](io::ErrorKind::AlreadyExists): somebody else has it; the error says what to do. Or nft does not end.
pub fn check_free(table: &str) -> io::Result<()> {
    match current(table) {
        Ok(None) => Ok(()),
        // Without nft there is none that we could see, nor replace.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(Some(_)) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!(
                "there is an nftables table \"{table}\" already: another switch has a network of this name here, or had it \
                 and lost its state directory. Give the network another name; if no switch is left: \
                 nft delete table inet {table}"
            ),
        )),
    }
}

fn removal(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// `ip` or `ip6`, as nft says it.
fn family(net: &Cidr) -> &'static str {
    if net.is_ipv4() { "ip" } else { "ip6" }
}

/// The network's rules; `None`: it needs none.
#[must_use]
pub fn rules(spec: &NetworkSpec) -> Option<String> {
    if !spec.has_host() {
        return None;
    }
    let mut text = format!(
        "table inet {table} {{\n\tcomment \"network {name} of vswitch\"\n",
        table = table_name(&spec.name),
        name = spec.name
    );
    match spec.forward.mode {
        ForwardMode::Nat | ForwardMode::Routed => {
            forward_chains(&mut text, spec);
        }
        ForwardMode::Isolated => closed_chain(&mut text, spec.device()),
        _ if spec.forward.port_forwards.is_empty() => return None,
        _ => {}
    }
    nat_chains(&mut text, spec);
    text.push_str("}\n");
    Some(text)
}

/// Nothing but what the host itself sends reaches the network, and nothing leaves it.
fn closed_chain(text: &mut String, device: &str) {
    let _ = write!(
        text,
        "\tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         \t\tiifname \"{device}\" oifname \"{device}\" accept\n\
         \t\tiifname \"{device}\" reject with icmpx port-unreachable\n\
         \t\toifname \"{device}\" reject with icmpx port-unreachable\n\
         \t}}\n"
    );
}

/// Names of the devices that traffic may leave by, as the right side of a match; `None`: all.
fn uplinks(spec: &NetworkSpec) -> Option<String> {
    let names: Vec<String> =
        spec.forward.dev.iter().chain(&spec.forward.interfaces).map(|name| format!("\"{name}\"")).collect();
    (!names.is_empty()).then(|| format!("{{ {} }}", names.join(", ")))
}

/// What guests send must have an address of the network; what is sent to them is let in as the mode says.
fn forward_chains(text: &mut String, spec: &NetworkSpec) {
    let device = spec.device();
    let (out_by, in_by) = match uplinks(spec) {
        Some(names) => (format!("oifname {names} "), format!("iifname {names} ")),
        None => (String::new(), String::new()),
    };
    let _ = write!(
        text,
        "\tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         \t\tiifname \"{device}\" oifname \"{device}\" accept\n\
         \t\tiifname \"{device}\" jump from_guests\n\
         \t\toifname \"{device}\" jump to_guests\n\
         \t}}\n"
    );
    // Networks behind guests belong to the network.
    let nets: Vec<Cidr> = spec.addresses().map(|a| a.network()).chain(spec.route.iter().map(|r| r.to)).collect();
    text.push_str("\tchain from_guests {\n");
    for net in &nets {
        let _ = writeln!(text, "\t\t{out_by}{} saddr {net} accept", family(net));
    }
    text.push_str("\t\treject with icmpx port-unreachable\n\t}\n\tchain to_guests {\n");
    if !spec.forward.port_forwards.is_empty() {
        text.push_str("\t\tct status dnat accept\n");
    }
    for net in &nets {
        let translated = translates(spec, net);
        let state = if translated { "ct state established,related " } else { "" };
        let _ = writeln!(text, "\t\t{in_by}{state}{} daddr {net} accept", family(net));
    }
    text.push_str("\t\treject with icmpx port-unreachable\n\t}\n");
}

/// Whether a network's addresses are hidden behind the host's.
fn translates(spec: &NetworkSpec, net: &Cidr) -> bool {
    let ipv6 = spec.forward.nat.as_ref().is_some_and(|nat| nat.ipv6);
    spec.forward.mode == ForwardMode::Nat && (net.is_ipv4() || ipv6)
}

fn nat_chains(text: &mut String, spec: &NetworkSpec) {
    let device = spec.device();
    let forwards = &spec.forward.port_forwards;
    let nets: Vec<Cidr> = spec
        .addresses()
        .map(|a| a.network())
        .chain(spec.route.iter().map(|r| r.to))
        .filter(|net| translates(spec, net))
        .collect();
    if !forwards.is_empty() {
        text.push_str("\tchain prerouting {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n");
        forwards.iter().for_each(|rule| destination(text, rule));
        text.push_str("\t}\n\tchain output {\n\t\ttype nat hook output priority -100; policy accept;\n");
        text.push_str("\t\tip daddr 127.0.0.0/8 return\n\t\tip6 daddr ::1 return\n");
        forwards.iter().for_each(|rule| destination(text, rule));
        text.push_str("\t}\n");
    }
    if nets.is_empty() && forwards.is_empty() {
        return;
    }
    text.push_str("\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n");
    // A guest that calls a forwarded port from inside must get its answers by way of the host.
    for net in spec.addresses().map(|a| a.network()).filter(|_| !forwards.is_empty()) {
        let family = family(&net);
        let _ = writeln!(text, "\t\toifname \"{device}\" ct status dnat {family} saddr {net} masquerade");
    }
    let _ = writeln!(text, "\t\toifname \"{device}\" return");
    for net in &nets {
        source(text, spec, net);
    }
    text.push_str("\t}\n");
}

/// One network's source translation.
fn source(text: &mut String, spec: &NetworkSpec, net: &Cidr) {
    let nat = spec.forward.nat.clone().unwrap_or_default();
    let family = family(net);
    let out_by = uplinks(spec).map(|names| format!("oifname {names} ")).unwrap_or_default();
    let guests = format!("{out_by}{family} saddr {net}");
    let local: &[&str] = if net.is_ipv4() { &["224.0.0.0/24", "255.255.255.255"] } else { &["ff00::/8", "fe80::/10"] };
    for group in local {
        let _ = writeln!(text, "\t\t{guests} {family} daddr {group} return");
    }
    let ports = nat.port.map_or((1024, u16::MAX), |range| (range.start, range.end));
    let what = match nat.address.filter(|range| range.start.is_ipv4() == net.is_ipv4()) {
        Some(range) if range.start == range.end => format!("snat {family} to {}", bracketed(range.start)),
        Some(range) => format!("snat {family} to {}-{}", bracketed(range.start), bracketed(range.end)),
        None => "masquerade".to_owned(),
    };
    let before_ports = if what == "masquerade" { " to " } else { "" };
    let _ = writeln!(
        text,
        "\t\t{guests} {family} daddr != {net} meta l4proto {{ tcp, udp }} {what}{before_ports}:{}-{}",
        ports.0, ports.1
    );
    let _ = writeln!(text, "\t\t{guests} {family} daddr != {net} {what}");
}

fn bracketed(address: std::net::IpAddr) -> String {
    if address.is_ipv4() { address.to_string() } else { format!("[{address}]") }
}

/// Connections to a port of the host's become a guest's.
fn destination(text: &mut String, rule: &PortForward) {
    let protocol = match rule.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let (family, version) = if rule.to.is_ipv4() { ("ip", "ipv4") } else { ("ip6", "ipv6") };
    let here = match rule.address {
        Some(address) => format!("{family} daddr {address}"),
        None => format!("meta nfproto {version} fib daddr type local"),
    };
    let (last, to) = (rule.end.unwrap_or(rule.port), rule.to_port.unwrap_or(rule.port));
    if to == rule.port {
        let _ = writeln!(text, "\t\t{here} {protocol} dport {}-{last} dnat {family} to {}", rule.port, rule.to);
        return;
    }
    for (index, port) in (rule.port..=last).enumerate() {
        let target = usize::from(to) + index;
        let _ = writeln!(text, "\t\t{here} {protocol} dport {port} dnat {family} to {}:{target}", bracketed(rule.to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> NetworkSpec {
        let spec: NetworkSpec = toml::from_str(text).expect("understood");
        spec.check().expect("valid");
        spec
    }

    #[test]
    fn closed_and_open_networks_have_no_more_rules_than_they_need() {
        assert_eq!(rules(&spec("name = \"a\"")), None);
        assert_eq!(
            rules(&spec("name = \"a\"\nforward = { mode = \"open\" }\nip = [{ address = \"10.0.0.1/24\" }]")),
            None
        );
        let closed = rules(&spec("name = \"a@b\"\nbridge = { name = \"br\", host = true }")).expect("rules");
        assert!(closed.starts_with("table inet vswitch-a/b {"), "{closed}");
        assert_eq!(closed.matches("reject").count(), 2, "{closed}");
    }

    #[test]
    fn translation_is_what_the_spec_says() {
        let text = rules(&spec(
            "name = \"n\"\nforward = { mode = \"nat\", dev = \"up\", nat = { address = { start = \"192.0.2.1\", end = \"192.0.2.4\" } } }\n\
             ip = [{ address = \"10.0.0.1/24\" }, { address = \"fd00::1/64\" }]",
        ))
        .expect("rules");
        let one = "oifname { \"up\" } ip saddr 10.0.0.0/24 ip daddr != 10.0.0.0/24 meta l4proto { tcp, udp } snat ip to 192.0.2.1-192.0.2.4:1024-65535\n";
        assert!(text.contains(one), "{text}");
        assert!(text.contains("iifname { \"up\" } ct state established,related ip daddr 10.0.0.0/24 accept"), "{text}");
        // IPv6 is routed unless it is asked for.
        assert!(text.contains("iifname { \"up\" } ip6 daddr fd00::/64 accept"), "{text}");
        assert!(!text.contains("ip6 saddr fd00::/64 ip6 daddr != fd00::/64"), "{text}");
    }

    #[test]
    fn forwarded_ports_keep_their_order() {
        let text = rules(&spec(
            "name = \"n\"\nforward = { mode = \"nat\", port_forwards = [{ port = 80, end = 81, to = \"10.0.0.5\", to_port = 8080 }, { port = 53, protocol = \"udp\", to = \"fd00::5\" }] }\n\
             ip = [{ address = \"10.0.0.1/24\" }, { address = \"fd00::1/64\" }]",
        ))
        .expect("rules");
        assert!(text.contains("tcp dport 81 dnat ip to 10.0.0.5:8081\n"), "{text}");
        assert!(text.contains("udp dport 53-53 dnat ip6 to fd00::5\n"), "{text}");
        assert!(text.contains("oifname \"n\" ct status dnat ip6 saddr fd00::/64 masquerade\n"), "{text}");
    }
}
