//! Ports that join a network by its name: what portgroups give, what goes before what, VLANs, bandwidth.

use serde_json::{Value, json};
use vswitch_benches::netns::Namespace;

use super::lab::{Lab, ping, reaches};

const GROUPS: &str = r#"
name = "lab"
[[portgroup]]
name = "slow"
default = true
bandwidth = { inbound = { average = 1000, peak = 2000, burst = 512 }, outbound = { average = 300 } }
[[portgroup]]
name = "shut"
port_isolated = true
"#;

/// What a port has, wherever from.
fn effective(lab: &Lab, port: &str) -> Value {
    let view = lab.daemon.port(port);
    if view["effective"].is_null() { view["spec"].clone() } else { view["effective"].clone() }
}

fn refused(lab: &Lab, words: &[&str]) -> String {
    lab.daemon.cli(words).expect_err("refused").to_string()
}

/// Sends frames of some 1000 bytes and waits for no answer.
fn shower(from: &Namespace, to: &str, count: u32) {
    // It fails, because hardly anything is answered.
    let _ = from.output(&["ping", "-c", &count.to_string(), "-i", "0.002", "-s", "1000", "-W", "1", to]);
}

#[test]
fn a_port_has_what_its_portgroup_gives_unless_it_says_otherwise() {
    let lab = Lab::new();
    lab.start(GROUPS);
    let one = lab.plug("one", "network=lab", &["10.7.0.1/24"]).expect("joined");
    let two = lab.plug("two", "network=lab,rate-to=9,portgroup=slow", &["10.7.0.2/24"]).expect("joined");
    let three = lab.plug("three", "network=lab,portgroup=none", &["10.7.0.3/24"]).expect("joined");
    reaches(&one, "10.7.0.2");
    reaches(&one, "10.7.0.3");
    let of = |port: &str| {
        let spec = effective(&lab, port);
        (spec["portgroup"].clone(), spec["rate_to"].clone(), spec["rate_from"].clone())
    };
    assert_eq!(of("one"), (json!("slow"), json!("1000:2000:512"), json!("300")));
    assert_eq!(of("two"), (json!("slow"), json!("9"), json!("300")));
    assert_eq!(of("three"), (json!("none"), Value::Null, Value::Null));
    // What was asked for is still to be seen.
    assert_eq!(lab.daemon.port("one")["spec"]["domains"], json!([]));
    let shown = lab.daemon.cli(&["port", "show", "one"]).expect("shown");
    for line in ["network                 lab", "portgroup               slow", "rate-to                 1000:2000:512"]
    {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let shown = lab.daemon.cli(&["network", "show", "lab"]).expect("shown");
    for line in [
        "  portgroup slow, default, rate-to 1000:2000:512, rate-from 300\n",
        "  portgroup shut, isolated\n",
        "  member    one, portgroup slow, lab, rate-to 1000:2000:512, rate-from 300\n",
        "  member    three, lab\n",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let members = lab.view()["members"].clone();
    assert_eq!(members[0]["port"], "one", "{members}");
    assert_eq!(members[2]["rate_to"], "9", "{members}");

    // Another group, while everything runs: isolated ports do not reach each other, and reach the others.
    for port in ["one", "two"] {
        lab.daemon.cli(&["port", "set", port, "portgroup=shut"]).expect("set");
    }
    assert_eq!(effective(&lab, "one")["domains"], json!(["lab:isolated"]));
    assert!(!ping(&one, "10.7.0.2"));
    reaches(&one, "10.7.0.3");
    // Its own words go before the group's.
    lab.daemon.cli(&["port", "attach", "two", "lab:promiscuous"]).expect("attached");
    reaches(&one, "10.7.0.2");

    // A changed network changes its members; one that lacks a group that is in use is refused.
    let error = lab.define(&GROUPS.replace("\"shut\"", "\"closed\"")).expect_err("in use").to_string();
    assert!(error.contains("has no portgroup \"shut\"; known: slow, closed"), "{error}");
    lab.define(&GROUPS.replace("port_isolated = true", "bandwidth = { inbound = { average = 77 } }")).expect("defined");
    assert_eq!(effective(&lab, "one")["rate_to"], "77");
    reaches(&two, "10.7.0.1");
    let error = refused(&lab, &["port", "set", "three", "portgroup=fast"]);
    assert!(error.contains("known: slow, shut"), "{error}");
    assert!(refused(&lab, &["port", "add", "x=tap,network=nobody"]).contains("vswitch network list"));
    assert!(refused(&lab, &["port", "detach", "three", "lab"]).contains("vswitch port set three network=none"));
    lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");
    assert!(!ping(&three, "10.7.0.1"));
    let error = refused(&lab, &["network", "undefine", "lab"]);
    assert!(error.contains("vswitch port set one network=none"), "{error}");
    for port in ["one", "two", "three"] {
        lab.daemon.cli(&["port", "set", port, "network=none"]).expect("left");
    }
    lab.daemon.cli(&["port", "detach", "two", "lab"]).expect("detached");
    lab.daemon.cli(&["network", "undefine", "lab"]).expect("undefined");
}

#[test]
fn a_group_s_bandwidth_is_held_to() {
    let lab = Lab::new();
    lab.start("name = \"lab\"\n[[portgroup]]\nname = \"slow\"\nbandwidth = { inbound = { average = 1, burst = 2 } }\n");
    let one = lab.plug("one", "network=lab", &["10.7.0.1/24"]).expect("joined");
    let _two = lab.plug("two", "network=lab", &["10.7.0.2/24"]).expect("joined");
    reaches(&one, "10.7.0.2");
    lab.daemon.cli(&["port", "set", "two", "portgroup=slow"]).expect("set");
    shower(&one, "10.7.0.2", 200);
    let drops = lab.daemon.port("two")["drops"]["rate_to"].as_u64().unwrap_or(0);
    assert!(drops > 0, "{}", lab.daemon.port("two"));
}

#[test]
fn a_network_s_bandwidth_is_its_host_port_s_or_its_domain_s() {
    let lab = Lab::new();
    let bandwidth = "bandwidth = { inbound = { average = 1, burst = 2 }, outbound = { average = 5000 } }";
    let with_host =
        format!("name = \"lab\"\n{bandwidth}\nip = [{{ address = \"10.7.0.1/24\" }}]\ndns = {{ enable = false }}");
    lab.start(&with_host);
    let guest = lab.guest("one", &["10.7.0.5/24"], None);
    let other = lab.guest("two", &["10.7.0.6/24"], None);
    let host = lab.daemon.port("lab")["spec"].clone();
    assert_eq!((&host["rate_from"], &host["rate_to"]), (&json!("1::2"), &json!("5000")));
    let shown = lab.daemon.cli(&["network", "show", "lab"]).expect("shown");
    assert!(shown.contains("  bandwidth rate-to 1::2\n  bandwidth rate-from 5000\n"), "{shown}");
    // As with libvirt, guests among themselves are not bounded.
    reaches(&guest, "10.7.0.6");
    shower(&guest, "10.7.0.6", 100);
    assert_eq!(lab.daemon.port("two")["drops"]["rate_to"], Value::Null);
    lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");

    // Without a host port there is nothing but guests among themselves.
    let closed = "name = \"lab\"\nbandwidth = { outbound = { average = 1, burst = 2 } }";
    lab.start(closed);
    let domains = lab.daemon.json(&["domain", "show", "lab"]).expect("shown");
    assert_eq!(domains[0]["spec"]["rate"], "1::2");
    shower(&other, "10.7.0.5", 200);
    let drops = lab.daemon.port("two")["drops"].clone();
    assert!(drops["rate_domain"].as_u64() > Some(0), "{drops}");
}

#[test]
fn pinned_addresses_are_known_without_being_learned() {
    let lab = Lab::new();
    lab.start("name = \"lab\"\nbridge = { mac_table_manager = \"libvirt\" }");
    let error = lab.plug("one", "network=lab", &[]).expect_err("who is it").to_string();
    assert!(error.contains("station=52:54:00:12:34:56"), "{error}");
    let one = lab.plug("one", "network=lab,mac=52:54:00:00:00:01", &["10.7.0.1/24"]).expect("joined");
    let two = lab.plug("two", "network=lab,station=52:54:00:00:00:02", &["10.7.0.2/24"]).expect("joined");
    let entries = |port: &str| -> Vec<(String, String)> {
        let all = lab.daemon.json(&["fdb", "show"]).expect("shown");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        all.as_array()
            .expect("a list")
            .iter()
            .filter(|e| e["port"] == port)
            .map(|e| (text(&e["mac"]), text(&e["kind"])))
            .collect()
    };
    assert_eq!(entries("one"), [("52:54:00:00:00:01".to_owned(), "static".to_owned())]);
    // The second has another address than it says: it is not learned, so nothing reaches it.
    assert!(!ping(&two, "10.7.0.1") && !ping(&one, "10.7.0.2"));
    assert_eq!(entries("two"), [("52:54:00:00:00:02".to_owned(), "static".to_owned())]);
    two.exec(&["ip", "link", "set", "eth0", "address", "52:54:00:00:00:02"]).expect("set");
    reaches(&two, "10.7.0.1");
    // A machine's device has the address that its port is pinned to.
    let socket = lab.daemon.file("vm.sock");
    let spec = format!("vm=vhost-user,path={},network=lab,station=52:54:00:00:00:03", socket.display());
    lab.daemon.cli(&["port", "add", &spec]).expect("added");
    let words = lab.daemon.cli(&["qemu-args", "vm", "--qemu", "8.0"]).expect("printed");
    assert!(words.contains("mac=52:54:00:00:00:03"), "{words}");
    let shown = lab.daemon.cli(&["network", "show", "lab"]).expect("shown");
    assert!(shown.contains("member    one, lab, pinned to 52:54:00:00:00:01"), "{shown}");
}

#[test]
fn vlans_of_a_bridged_network_leave_by_its_uplink() {
    let lab = Lab::new();
    lab.wire("nic");
    let network = r#"
name = "lab"
forward = { mode = "bridge", dev = "nic" }
vlan = { tags = [{ id = 42 }] }
[[portgroup]]
name = "trunk"
vlan = { trunk = true, tags = [{ id = 42, native_mode = "untagged" }, { id = 43 }] }
[[portgroup]]
name = "other"
vlan = { tags = [{ id = 43 }] }
"#;
    lab.start(network);
    lab.daemon.wait_state("lab.uplink", "up").expect("up");
    // Beyond the uplink the tags are those of two more domains.
    for domain in ["v42", "v43"] {
        lab.daemon.cli(&["domain", "add", domain]).expect("added");
    }
    let far = format!("far=packet,device=nic,netns={},domain=v42:tag=42,domain=v43:tag=43", lab.outside.name());
    lab.daemon.cli(&["port", "add", &far]).expect("added");
    lab.daemon.wait_state("far", "up").expect("up");
    let beyond42 = lab.plug("b42", "domain=v42", &["10.7.0.42/24"]).expect("added");
    let beyond43 = lab.plug("b43", "domain=v43", &["10.7.0.43/24"]).expect("added");
    let access = lab.plug("one", "network=lab", &["10.7.0.1/24"]).expect("joined");
    let other = lab.plug("two", "network=lab,portgroup=other", &["10.7.0.2/24"]).expect("joined");
    let trunk = lab.plug("three", "network=lab,portgroup=trunk", &["10.7.0.3/24"]).expect("joined");
    assert_eq!(effective(&lab, "three")["domains"], json!(["lab.42", "lab.43:tag=43"]));
    assert_eq!(effective(&lab, "lab.uplink")["domains"], json!(["lab", "lab.42:tag=42", "lab.43:tag=43"]));
    let shown = lab.daemon.cli(&["network", "show", "lab"]).expect("shown");
    assert!(shown.contains("  vlan      42\n  portgroup trunk, trunk 42,43\n"), "{shown}");
    reaches(&access, "10.7.0.42");
    reaches(&access, "10.7.0.3");
    reaches(&trunk, "10.7.0.42");
    reaches(&other, "10.7.0.43");
    assert!(!ping(&access, "10.7.0.43") && !ping(&other, "10.7.0.42") && !ping(&access, "10.7.0.2"));
    let error = lab.define("name = \"lab.43\"").expect_err("in the way").to_string();
    assert!(error.contains("has the name of its VLAN 43"), "{error}");
    // A stopped network carries nothing, in its VLANs neither.
    lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");
    assert!(!ping(&access, "10.7.0.3") && !ping(&beyond43, "10.7.0.2") && !ping(&beyond42, "10.7.0.1"));
}

#[test]
fn a_network_of_open_vswitch_is_on_a_bridge_as_ovs_vsctl_makes_it() {
    let lab = Lab::new();
    lab.wire("nic");
    lab.daemon.cli(&["ovs-vsctl", "add-br", "ovsbr", "--", "add-port", "ovsbr", "nic"]).expect("made");
    let xml = lab.daemon.file("ovs.xml");
    let recorded = include_str!("../network-xml/ovs.xml").replace("<name>ovs<", "<name>lab<");
    std::fs::write(&xml, recorded).expect("written");
    lab.daemon.cli(&["network", "define", xml.to_str().expect("text")]).expect("defined");
    lab.daemon.cli(&["network", "start", "lab"]).expect("started");
    assert_eq!(lab.view()["state"], "up");
    // The trunk that there is carries what the network names.
    let trunk =
        json!(["ovsbr", "ovsbr.10:tag=10", "ovsbr.20:tag=20", "ovsbr.30:tag=30", "ovsbr.42:tag=42", "ovsbr.47:tag=47"]);
    assert_eq!(effective(&lab, "nic")["domains"], trunk);
    let one = lab.plug("one", "network=lab", &["10.7.0.1/24"]).expect("joined");
    let port = effective(&lab, "one");
    assert_eq!((&port["domains"], &port["rate_to"]), (&json!(["ovsbr.10"]), &json!("1000:5000:5120")));
    assert_eq!(port["labels"]["ovs.interface.external_ids:port-profile"], "red");
    let _blue = lab.plug("blue", "network=lab,portgroup=blue", &[]).expect("joined");
    assert_eq!(effective(&lab, "blue")["domains"], json!(["ovsbr.20:tag=20", "ovsbr.30:tag=30:native"]));
    let _bare = lab.plug("bare", "network=lab,portgroup=none", &[]).expect("joined");
    assert_eq!(effective(&lab, "bare")["domains"], json!(["ovsbr.42:tag=42", "ovsbr.47"]));
    // What ovs-vsctl plugs into the same VLAN reaches it: a machine's TAP is one.
    let two = Namespace::new("vng").expect("guest");
    let made = [
        "ip",
        "-n",
        lab.host.name(),
        "link",
        "add",
        "vnet0",
        "up",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        two.name(),
    ];
    vswitch_benches::netns::exec(&made).expect("a wire");
    two.configure("eth0", &["10.7.0.2/24"]).expect("configured");
    lab.daemon.cli(&["ovs-vsctl", "add-port", "ovsbr", "vnet0", "tag=10"]).expect("added");
    reaches(&one, "10.7.0.2");
    assert_eq!(effective(&lab, "nic")["domains"], trunk, "nobody's VLANs are lost");
    assert!(refused(&lab, &["ovs-vsctl", "del-br", "ovsbr"]).contains("there is no bridge \"ovsbr\""));
    lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");
    assert!(!ping(&two, "10.7.0.1"));
    let again = lab.daemon.cli(&["network", "show", "lab", "--xml"]).expect("written");
    assert!(again.contains("<tag id='30' nativeMode='tagged'/>") && again.contains("profileid='red'"), "{again}");
    for port in ["one", "blue", "bare"] {
        lab.daemon.cli(&["port", "del", port]).expect("deleted");
    }
    lab.daemon.cli(&["network", "undefine", "lab"]).expect("undefined");
    lab.daemon.cli(&["ovs-vsctl", "del-br", "ovsbr"]).expect("removed");
}

#[test]
fn a_file_has_networks_and_their_members() {
    let lab = Lab::new();
    let file = lab.daemon.file("c.toml");
    let path = file.to_str().expect("text").to_owned();
    let guest = Namespace::new("vng").expect("guest");
    let port = format!(
        "[[port]]\nname = \"one\"\nkind = \"tap\"\ndevice = \"eth0\"\nnetns = \"{}\"\nnetwork = \"lab\"\nportgroup = \"shut\"\n",
        guest.name()
    );
    let network = GROUPS.replace("[[portgroup]]", "[[network.portgroup]]");
    std::fs::write(&file, format!("{port}[[network]]{network}")).expect("written");
    let would = lab.daemon.cli(&["apply", &path, "--dry-run"]).expect("planned");
    assert!(would.contains("would add network lab") && would.contains("would add port one"), "{would}");
    lab.daemon.cli(&["apply", &path]).expect("applied");
    assert_eq!(effective(&lab, "one")["domains"], json!(["lab:isolated"]));
    assert_eq!(lab.daemon.cli(&["apply", &path]).expect("applied"), "nothing to do\n");
    std::fs::write(&file, port).expect("written");
    let error = refused(&lab, &["apply", &path]);
    assert!(error.contains("there is no network \"lab\""), "{error}");
}
