use super::*;
use crate::control::spec::DressSpec;

const FULL: &str = r#"
name = "web"
uuid = "3e3fce45-4f53-4fa7-bb32-11f34168b82b"
netns = "gate"
mac = "52:54:00:00:00:01"
mtu = 1400
[forward]
mode = "nat"
dev = "eth0"
nat = { ipv6 = true, address = { start = "192.0.2.1", end = "192.0.2.4" }, port = { start = 2000, end = 3000 } }
port_forwards = [{ port = 8080, to = "10.1.0.5", to_port = 80 }, { protocol = "udp", port = 53, to = "fd00:1::5" }]
[bridge]
name = "vsbr0"
[domain]
name = "web.example"
local_only = true
[dns]
forwarder = [{ address = "192.0.2.53", domain = "corp.example" }]
host = [{ ip = "10.1.0.1", hostnames = ["gateway"] }]
txt = [{ name = "t.web.example", value = "hello" }]
srv = [{ service = "ldap", protocol = "tcp", domain = "web.example", target = "gateway", port = 389 }]
[[ip]]
address = "10.1.0.1/24"
[ip.dhcp]
range = [{ start = "10.1.0.100", end = "10.1.0.199", lease_s = 600 }]
host = [{ mac = "52:54:00:00:00:05", name = "www", ip = "10.1.0.5" }]
[[ip]]
address = "fd00:1::1/64"
ra = "slaac"
dhcp = { range = [{ start = "fd00:1::100", end = "fd00:1::1ff" }], host = [{ id = "0:1:2", ip = "fd00:1::5" }] }
[[route]]
to = "10.2.0.0/16"
gateway = "10.1.0.5"
[[portgroup]]
name = "fast"
default = true
vlan = { trunk = true, tags = [{ id = 4, native_mode = "untagged" }] }
bandwidth = { inbound = { average = 1000, peak = 5000, burst = 64, floor = 100 } }
"#;

fn read(text: &str) -> NetworkSpec {
    toml::from_str(text).expect("understood")
}

#[test]
fn what_is_said_survives_json() {
    let spec = read(FULL);
    spec.check().expect("valid");
    let json = serde_json::to_string(&spec).expect("text");
    assert_eq!(serde_json::from_str::<NetworkSpec>(&json).expect("read back"), spec);
    assert_eq!((spec.device(), spec.has_host(), spec.has_dhcp()), ("vsbr0", true, true));
    assert_eq!(spec.ip[1].ra(), RaMode::Slaac);
    let closed = read("name = \"closed\"");
    closed.check().expect("valid");
    assert!(!closed.has_host() && closed.has_domain());
    assert_eq!(serde_json::to_value(&closed.dns).expect("text"), serde_json::json!({}));
}

#[test]
fn mistakes_are_named() {
    for (from, to, part) in [
        ("\"web\"", "\"a b\"", "network name"),
        ("mtu = 1400", "mtu = 20", "mtu 20"),
        ("vsbr0", "a-very-long-bridge", "device name"),
        ("vsbr0", "default", "device name"),
        ("10.1.0.1/24", "10.1.0.0/24", "that is the network"),
        ("10.1.0.100", "10.0.0.100", "not in 10.1.0.0/24"),
        ("10.1.0.100", "10.1.0.200", "not a range"),
        ("lease_s = 600", "lease_s = 6", "120 seconds"),
        ("\"www\"", "\"w w\"", "DNS name"),
        ("web.example\"\nlocal", "web\\nuser=root\"\nlocal", "DNS name"),
        ("value = \"hello\"", "value = \"a\\nb\"", "one line"),
        ("address = \"10.1.0.1/24\"", "address = \"10.1.0.1/24\"\nra = \"off\"", "ra is for IPv6"),
        ("to = \"10.1.0.5\"", "to = \"10.3.0.5\"", "not in the network"),
        ("port = 8080", "port = 8080, end = 1", "not a range of ports"),
        ("gateway = \"10.1.0.5\"", "gateway = \"10.2.0.5\"", "gateway 10.2.0.5"),
        ("mode = \"nat\"", "mode = \"routed\"", "for mode \"nat\""),
        ("id = 4,", "id = 4095,", "1 to 4094"),
        ("tags = [", "tags = [{ id = 4 }, ", "there twice"),
        ("tags = [", "tags = [{ id = 5, native_mode = \"tagged\" }, ", "only one tag"),
        ("average = 1000, peak", "average = 9000, peak", "peak is less"),
        ("average = 1000, peak", "peak", "average is missing"),
        ("average = 1000, peak", "average = 0, peak", "1 to 4294967295"),
        ("name = \"fast\"", "name = \"none\"", "portgroup name"),
        ("3e3fce45-", "zz", "uuid"),
    ] {
        let text = FULL.replacen(from, to, 1);
        assert_ne!(text, FULL, "{from}");
        let error = read(&text).check().expect_err(to).to_string();
        assert!(error.contains(part), "{to}: {error}");
    }
    for (text, part) in [
        ("name = \"n\"\nforward = { mode = \"bridge\" }", "dev"),
        ("name = \"n\"\nforward = { mode = \"openvswitch\" }", "bridge.name"),
        (
            "name = \"n\"\nforward = { mode = \"openvswitch\", dev = \"eth1\" }\nbridge = { name = \"b\" }",
            "ovs-vsctl add-port b eth1",
        ),
        ("name = \"n\"\nforward = { mode = \"macvtap\" }", "interfaces"),
        ("name = \"n\"\nforward = { mode = \"macvtap\", pf = \"eth0\" }", "passthrough"),
        ("name = \"n\"\nforward = { mode = \"macvtap\", interfaces = [\"a\", \"a\"] }", "there twice"),
        ("name = \"n\"\nforward = { mode = \"hostdev\" }", "either pf"),
        ("name = \"n\"\nforward = { mode = \"hostdev\", addresses = [\"4:1\"] }", "no PCI address"),
        ("name = \"n\"\nforward = { mode = \"hostdev\", interfaces = [\"a\"] }", "use pf or addresses"),
        ("name = \"n\"\nforward = { pf = \"eth0\" }", "are for modes"),
        ("name = \"n\"\nforward = { macvtap = \"vepa\" }", "for mode \"macvtap\""),
        ("name = \"n\"\nforward = { managed = true }", "for mode \"hostdev\""),
        (
            "name = \"n\"\nforward = { mode = \"macvtap\", interfaces = [\"a\"] }\nip = [{ address = \"10.0.0.1/8\" }]",
            "others have the gateway",
        ),
    ] {
        let error = read(text).check().expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn what_cannot_be_done_is_said_with_what_to_do_instead() {
    let with = |mode: &str, more: &str| {
        let forward = match mode {
            "macvtap" => "mode = \"macvtap\", interfaces = [\"eth0\"]",
            "hostdev" => "mode = \"hostdev\", pf = \"eth0\"",
            "bridge" => "mode = \"bridge\", dev = \"eth0\"",
            "openvswitch" => "mode = \"openvswitch\"",
            _ => "mode = \"isolated\"",
        };
        let bridge = if mode == "openvswitch" { "bridge.name = \"ovsbr\"\n" } else { "" };
        let spec = read(&format!("name = \"n\"\n{bridge}forward = {{ {forward} }}\n{more}"));
        spec.check().unwrap_or_else(|e| panic!("{mode} {more}: {e}"));
        spec.supported().err().map(|e| e.to_string())
    };
    let vlan = "vlan = { tags = [{ id = 42 }] }";
    let group = |inner: &str| format!("[[portgroup]]\nname = \"g\"\n{inner}");
    for (mode, more, part) in [
        ("isolated", "bandwidth = { inbound = { average = 9, floor = 1 } }".to_owned(), "their average"),
        ("isolated", group("bandwidth = { inbound = { floor = 1 } }"), "portgroup \"g\": bandwidth floor"),
        (
            "isolated",
            "bandwidth = { inbound = { average = 9 }, outbound = { average = 8 } }".into(),
            "give one of them",
        ),
        ("openvswitch", "bandwidth = { inbound = { average = 9 } }".into(), "vswitch domain set ovsbr rate="),
        ("macvtap", "bandwidth = { inbound = { average = 9 } }".into(), "give it to a portgroup"),
        ("hostdev", group("bandwidth = { inbound = { average = 9 } }"), "max_tx_rate"),
        ("openvswitch", "mtu = 1400".into(), "vswitch domain set ovsbr mtu=1400"),
        ("hostdev", "mtu = 1400".into(), "at the NIC"),
        (
            "openvswitch",
            "trust_guest_rx_filters = true\n".to_owned() + &group("mac_table_manager = \"libvirt\""),
            "leave one of them out",
        ),
        ("isolated", "bridge.zone = \"lab\"".into(), "firewall-cmd --zone=lab"),
        ("isolated", "domain = { name = \"lab\", register = true }".into(), "resolvectl"),
        ("isolated", vlan.to_owned(), "define one for each VLAN"),
        ("macvtap", vlan.to_owned(), "type vlan id 42"),
        ("hostdev", "vlan = { trunk = true, tags = [{ id = 42 }] }".into(), "give one tag"),
        ("macvtap", "port_isolated = true".into(), "\"private\""),
        ("macvtap", "bridge.mac_table_manager = \"libvirt\"".into(), "leave it out"),
        ("macvtap", "trust_guest_rx_filters = true".into(), "passthrough"),
        ("hostdev", "trust_guest_rx_filters = true".into(), "trust on"),
        ("bridge", "virtual_port = { kind = \"802.1Qbg\" }".into(), "802.1Qbg"),
        ("bridge", "virtual_port = { kind = \"openvswitch\" }".into(), "forward mode \"openvswitch\""),
    ] {
        let error = with(mode, &more).unwrap_or_else(|| panic!("{mode} {more}"));
        assert!(error.starts_with("network \"n\": ") && error.contains(part), "{mode} {more}: {error}");
    }
    for (mode, more) in [
        ("isolated", "bandwidth = { inbound = { average = 9 } }".to_owned()),
        ("isolated", "bandwidth = { inbound = { average = 9 } }\nbridge.host = true".into()),
        ("bridge", "bandwidth = { inbound = { average = 9 }, outbound = { average = 8 } }".into()),
        ("bridge", vlan.to_owned()),
        ("hostdev", vlan.to_owned()),
        ("openvswitch", "virtual_port = { kind = \"openvswitch\" }\ntrust_guest_rx_filters = true".into()),
        ("macvtap", group("bandwidth = { inbound = { average = 9 } }")),
    ] {
        assert_eq!(with(mode, &more), None, "{mode} {more}");
    }
}

#[test]
fn a_portgroup_goes_before_its_network() {
    let spec = read(
        r#"
name = "n"
forward = { mode = "openvswitch" }
bridge = { name = "ovsbr", mac_table_manager = "libvirt" }
vlan = { tags = [{ id = 42 }] }
virtual_port = { kind = "openvswitch", parameters = { profileid = "all", interfaceid = "x" } }
[[portgroup]]
name = "slow"
default = true
bandwidth = { inbound = { average = 10, peak = 20, burst = 5 }, outbound = { average = 7 } }
virtual_port = { parameters = { profileid = "slow" } }
[[portgroup]]
name = "trunk"
port_isolated = true
mac_table_manager = "kernel"
vlan = { trunk = true, tags = [{ id = 4, native_mode = "untagged" }, { id = 5 }] }
"#,
    );
    spec.supported().expect("all of it");
    let slow = spec.terms(None).expect("the default one");
    let vids = |terms: &Terms<'_>| terms.vlan.map(|vlan| vlan.dresses().collect::<Vec<_>>()).unwrap_or_default();
    assert_eq!((slow.group, slow.isolated, slow.pinned), (Some("slow"), false, true));
    assert_eq!(vids(&slow), [(42, DressSpec::Untagged)]);
    let rates = (slow.rate_to.expect("a rate").to_string(), slow.rate_from.expect("a rate").to_string());
    assert_eq!(rates, ("10:20:5".to_owned(), "7".to_owned()));
    assert_eq!((slow.parameters["profileid"], slow.parameters["interfaceid"]), ("slow", "x"));
    let trunk = spec.terms(Some("trunk")).expect("there");
    assert_eq!((trunk.isolated, trunk.pinned, trunk.rate_to), (true, false, None));
    assert_eq!(vids(&trunk), [(4, DressSpec::Untagged), (5, DressSpec::Tag { vid: 5, tpid: 0x8100 })]);
    assert_eq!(spec.terms(Some(NO_GROUP)).expect("none").group, None);
    assert!(spec.terms(Some("fast")).expect_err("none").to_string().contains("known: slow, trunk"));
    assert_eq!(spec.vids().into_iter().collect::<Vec<_>>(), [4, 5, 42]);
    let mut native = spec.vlan.expect("one");
    native.tags[0].native_mode = Some(NativeMode::Tagged);
    assert_eq!(native.dresses().next(), Some((42, DressSpec::Native { vid: 42, tpid: 0x8100 })));
}
