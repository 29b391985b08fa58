//! Networks whose members have a macvtap each: the four modes, pools of devices, virtual functions of a recorded tree.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use serde_json::json;
use vswitch_benches::netns::{unique, wait_for};
use vswitch_tests::PATIENCE;

use super::lab::{Lab, ping, reaches};

fn network(mode: &str, devices: &str) -> String {
    format!("name = \"lab\"\nforward = {{ mode = \"macvtap\", macvtap = \"{mode}\", interfaces = {devices} }}\n")
}

fn mac(number: u8) -> String {
    format!("mac=52:54:00:00:00:0{number}")
}

#[test]
fn members_have_a_macvtap_each_and_see_each_other_as_the_mode_says() {
    for (mode, together) in [("bridge", true), ("private", false), ("vepa", false)] {
        let lab = Lab::new();
        lab.wire("nic");
        lab.outside.configure("nic", &["10.7.0.9/24"]).expect("configured");
        lab.start(&network(mode, "[\"nic\"]"));
        let error = lab.plug("one", "network=lab", &[]).expect_err("whose address").to_string();
        assert!(error.contains("station="), "{error}");
        let one = lab.plug("one", &format!("network=lab,{}", mac(1)), &["10.7.0.1/24"]).expect("joined");
        let two = lab.plug("two", &format!("network=lab,{}", mac(2)), &["10.7.0.2/24"]).expect("joined");
        for port in ["one.mvt", "two.mvt"] {
            lab.daemon.wait_state(port, "up").unwrap_or_else(|e| panic!("{mode}: {e}: {}", lab.daemon.port(port)));
        }
        reaches(&one, "10.7.0.9");
        reaches(&two, "10.7.0.9");
        if together {
            reaches(&one, "10.7.0.2");
        } else {
            assert!(!ping(&one, "10.7.0.2"), "{mode}");
        }
        let link = lab.host.exec(&["ip", "-d", "link", "show", "one.mvt"]).expect("there");
        assert!(link.contains(&format!("mode {mode}")) && link.contains("52:54:00:00:00:01"), "{link}");
        let view = lab.view();
        assert_eq!(view["pool"], json!([{ "device": "nic", "members": ["one", "two"] }]));
        assert_eq!((&view["state"], &view["members"][0]["domains"]), (&json!("up"), &json!(["lab.one"])));
        let shown = lab.daemon.cli(&["network", "show", "lab"]).expect("shown");
        assert!(shown.contains("  pool      nic one two\n"), "{shown}");
        assert!(shown.contains("  member    one, macvtap on nic, lab.one\n"), "{shown}");
        lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");
        assert!(!ping(&one, "10.7.0.9"));
        assert!(lab.host.exec(&["ip", "link", "show", "one.mvt"]).is_err(), "taken down");
    }
}

#[test]
fn a_device_has_one_guest_in_passthrough_mode() {
    let mut lab = Lab::new();
    for (device, address) in [("nic0", "10.7.0.9/24"), ("nic1", "10.8.0.9/24")] {
        lab.wire(device);
        lab.outside.configure(device, &[address]).expect("configured");
    }
    lab.start(&network("passthrough", "[\"nic0\", \"nic1\"]"));
    // Whoever joins first has the first device, whatever his name; a name that is long for a device is no trouble.
    let long = "a-guest-with-a-long-name";
    let one = lab.plug("zoe", &format!("network=lab,{}", mac(1)), &["10.7.0.1/24"]).expect("joined");
    let two = lab.plug(long, "network=lab", &["10.8.0.1/24"]).expect("joined");
    reaches(&one, "10.7.0.9");
    reaches(&two, "10.8.0.9");
    let error = lab.plug("bob", "network=lab", &[]).expect_err("none is left").to_string();
    assert!(error.contains("has no device left (taken: nic0 by zoe; nic1 by a-guest-with"), "{error}");
    assert!(error.contains("add devices to forward.interfaces"), "{error}");
    let pool = json!([{ "device": "nic0", "members": ["zoe"] }, { "device": "nic1", "members": [long] }]);
    assert_eq!(lab.view()["pool"], pool);
    // Who has a device keeps it, also after a crash.
    lab.daemon.kill().expect("killed");
    lab.daemon.restart().expect("starts again");
    assert_eq!(lab.view()["pool"], pool);
    // The guest's device is another one now.
    lab.daemon.wait_state("zoe", "up").expect("up");
    one.configure("eth0", &["10.7.0.1/24"]).expect("configured");
    reaches(&one, "10.7.0.9");
    // A change of the mode that cannot be is refused, and nothing has changed.
    let error = lab.define(&network("passthrough", "[\"nic0\"]")).expect_err("too few").to_string();
    assert!(error.contains("has no device left"), "{error}");
    lab.daemon.cli(&["port", "del", long]).expect("deleted");
    assert_eq!(lab.view()["pool"][1], json!({ "device": "nic1", "members": [] }));
    // libvirt's words for the same.
    let xml = lab.daemon.cli(&["network", "show", "lab", "--xml"]).expect("written");
    assert!(xml.contains("<forward mode='passthrough'>") && xml.contains("<interface dev='nic1'/>"), "{xml}");
}

#[test]
fn members_of_other_modes_share_devices_evenly() {
    let lab = Lab::new();
    lab.wire("nic0");
    lab.wire("nic1");
    lab.start(&format!("mtu = 1400\n{}", network("bridge", "[\"nic0\", \"nic1\"]")));
    for number in 1..=4 {
        lab.plug(&format!("g{number}"), &format!("network=lab,{}", mac(number)), &[]).expect("joined");
    }
    let pool = json!([{ "device": "nic0", "members": ["g1", "g3"] }, { "device": "nic1", "members": ["g2", "g4"] }]);
    assert_eq!(lab.view()["pool"], pool);
    let link = lab.host.exec(&["ip", "link", "show", "g1.mvt"]).expect("there");
    assert!(link.contains("mtu 1400"), "{link}");
    let error = lab.daemon.cli(&["port", "add", "m=macvtap,device=nic0,network=lab"]).expect_err("refused").to_string();
    assert!(error.contains("it is a macvtap already"), "{error}");
    for words in [&["port", "del", "g1.mvt"][..], &["port", "set", "g1.mvt", "link=down"]] {
        let error = lab.daemon.cli(words).expect_err("nobody asked for it").to_string();
        assert!(error.contains("is a network's"), "{error}");
    }
    lab.daemon.cli(&["domain", "add", "g5.mvt"]).expect("added");
    let error = lab.plug("g5", "network=lab,mac=52:54:00:00:00:05", &[]).expect_err("in the way").to_string();
    assert!(error.contains("which would be its macvtap") && error.contains("rename it"), "{error}");
    // What is in the way of one is said of the network.
    lab.host.exec(&["ip", "link", "del", "nic1"]).expect("deleted");
    wait_for("the reason is told", PATIENCE, || {
        lab.view()["reason"].as_str().is_some_and(|r| r.contains("the macvtap of port g2") && r.contains("nic1"))
    })
    .expect("it is");
}

/// A sysfs of our own, removed on drop.
struct Tree(PathBuf);

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A tree with a NIC and virtual functions whose netdevs have these names.
fn tree(functions: &[&str]) -> Tree {
    let tree = Tree(std::env::temp_dir().join(unique("vswitch-sysfs-")));
    let at = &tree.0;
    let link = |from: &str, to: &str| {
        let path = at.join(from);
        fs::create_dir_all(path.parent().expect("not the root")).expect("made");
        symlink(to, path).expect("linked");
    };
    let pf = at.join("devices/0000:03:00.0");
    fs::create_dir_all(pf.join("net/pf0")).expect("made");
    fs::write(pf.join("sriov_totalvfs"), "8\n").expect("written");
    fs::write(pf.join("sriov_numvfs"), format!("{}\n", functions.len())).expect("written");
    link("class/net/pf0", "../../devices/0000:03:00.0/net/pf0");
    symlink("../../../0000:03:00.0", pf.join("net/pf0/device")).expect("linked");
    for (index, netdev) in functions.iter().enumerate() {
        let address = format!("0000:03:10.{index}");
        fs::create_dir_all(at.join("devices").join(&address).join("net").join(netdev)).expect("made");
        symlink(format!("../{address}"), pf.join(format!("virtfn{index}"))).expect("linked");
        symlink("../0000:03:00.0", at.join("devices").join(&address).join("physfn")).expect("linked");
        link(&format!("bus/pci/devices/{address}"), &format!("../../../devices/{address}"));
    }
    tree
}

#[test]
fn the_pool_can_be_the_virtual_functions_of_a_nic() {
    let sysfs = tree(&["vf0", "vf1"]);
    let lab = Lab::with(&["--sysfs", sysfs.0.to_str().expect("text")]);
    lab.wire("vf0");
    lab.outside.configure("vf0", &["10.7.0.9/24"]).expect("configured");
    let xml = include_str!("../network-xml/macvtap-pf.xml").replace("<name>macvtap-pf<", "<name>lab<");
    lab.start(&xml.replace("eth3", "pf0"));
    let one = lab.plug("one", "network=lab", &["10.7.0.1/24"]).expect("joined");
    reaches(&one, "10.7.0.9");
    // The second has no device in the namespace yet: its port waits for it.
    lab.plug("two", "network=lab", &[]).expect("joined");
    let pool = json!([{ "device": "vf0", "members": ["one"] }, { "device": "vf1", "members": ["two"] }]);
    assert_eq!(lab.view()["pool"], pool);
    assert!(lab.view()["reason"].as_str().is_some_and(|reason| reason.contains("vf1")), "{}", lab.view());
    let error = lab.plug("three", "network=lab", &[]).expect_err("none is left").to_string();
    assert!(error.contains("enable more virtual functions of pf0"), "{error}");
    let error =
        lab.define(&xml.replace("eth3", "pf9")).and_then(|_| lab.daemon.cli(&["port", "add", "x=tap,network=lab"]));
    assert!(error.expect_err("no such NIC").to_string().contains("NICs that have: pf0"));
}
