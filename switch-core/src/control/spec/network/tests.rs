use super::*;

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
            "name = \"n\"\nforward = { mode = \"macvtap\" }\nip = [{ address = \"10.0.0.1/8\" }]",
            "others have the gateway",
        ),
    ] {
        let error = read(text).check().expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn what_cannot_be_done_yet_is_said() {
    let error = read(FULL).supported().expect_err("bandwidth").to_string();
    assert_eq!(error, "network \"web\": bandwidth of a portgroup is not supported yet");
    let error = read("name = \"m\"\nforward = { mode = \"macvtap\", interfaces = [\"eth0\"] }")
        .supported()
        .expect_err("macvtap");
    assert!(error.to_string().contains("macvtap"), "{error}");
}
