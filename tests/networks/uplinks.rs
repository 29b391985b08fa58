//! Bridged networks that share an uplink: VLANs on a device and on a bond. The world outside is another switch, which speaks the
//! tags.

use vswitch_benches::netns::{Namespace, exec, wait_for};
use vswitch_tests::{Daemon, PATIENCE};

use super::lab::{Lab, ping, reaches};

/// A switch in the lab's outside, with a domain and a station for each VLAN and one without (0).
struct World {
    _daemon: Daemon,
    stations: Vec<Namespace>,
}

/// A wire from `nic<i>` of the lab's host to the same of its outside.
fn wire(lab: &Lab, i: usize) {
    let (nic, names) = (format!("nic{i}"), [lab.host.name(), lab.outside.name()]);
    exec(&["ip", "-n", names[0], "link", "add", &nic, "up", "type", "veth", "peer", "name", &nic, "netns", names[1]])
        .expect("a wire");
    lab.outside.exec(&["ip", "link", "set", &nic, "up"]).expect("up");
    // The kernel's own address comes with the carrier, which takes a moment; what is compared later has it.
    let shown = || lab.host.exec(&["ip", "-6", "address", "show", "dev", &nic]).expect("shown");
    wait_for("an address of the kernel's", PATIENCE, || shown().contains("fe80:")).expect("up");
}

impl World {
    /// `uplink` is a SPEC without domains.
    fn new(lab: &Lab, uplink: &str, vlans: &[u16]) -> World {
        let stations: Vec<Namespace> = vlans.iter().map(|_| Namespace::new("vns").expect("station")).collect();
        let (mut arguments, mut uplink) = (Vec::new(), uplink.to_owned());
        for (vlan, station) in vlans.iter().zip(&stations) {
            arguments.extend(["--domain".to_owned(), format!("v{vlan}")]);
            let tap = format!("s{vlan}=tap,device=eth0,netns={},domain=v{vlan}", station.name());
            arguments.extend(["--port".to_owned(), tap]);
            uplink += &if *vlan == 0 { ",domain=v0".to_owned() } else { format!(",domain=v{vlan}:tag={vlan}") };
        }
        arguments.extend(["--port".to_owned(), uplink]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let daemon = Daemon::start_in(Some(lab.outside.name()), &arguments).expect("starts");
        for station in &stations {
            station.configure("eth0", &["10.7.0.9/24"]).expect("configured");
        }
        World { _daemon: daemon, stations }
    }
}

/// A guest of a network, with the same address in each.
fn guest(lab: &Lab, network: &str) -> Namespace {
    let guest = Namespace::new("vng").expect("guest");
    let spec = format!("{network}1=tap,device=eth0,netns={},domain={network}", guest.name());
    lab.daemon.cli(&["port", "add", &spec]).expect("added");
    guest.configure("eth0", &["10.7.0.5/24"]).expect("configured");
    guest
}

/// The address behind 10.7.0.9 as a guest has found it.
fn answers_from(guest: &Namespace, station: &Namespace) -> bool {
    let mac = station.exec(&["cat", "/sys/class/net/eth0/address"]).expect("an address");
    guest.exec(&["ip", "neigh", "show", "10.7.0.9"]).expect("shown").contains(mac.trim())
}

fn domains(lab: &Lab, port: &str) -> serde_json::Value {
    lab.daemon.port(port)["spec"]["domains"].clone()
}

#[test]
fn networks_with_vlans_share_one_device() {
    let lab = Lab::new();
    wire(&lab, 0);
    let world = World::new(&lab, "nic0=packet", &[0, 10, 20]);
    for (name, vlan) in [("plain", ""), ("red", ", vlan = 10"), ("blue", ", vlan = 20")] {
        let text =
            format!("name = \"{name}\"\nforward = {{ mode = \"bridge\", uplink = {{ device = \"nic0\"{vlan} }} }}");
        lab.define(&text).expect("defined");
    }
    let before = lab.host_state();
    lab.daemon.cli(&["network", "start", "red"]).expect("started");
    lab.daemon.wait_state("nic0.uplink", "up").expect("up");
    assert_eq!(domains(&lab, "nic0.uplink"), serde_json::json!(["red:tag=10"]));
    let red = guest(&lab, "red");
    reaches(&red, "10.7.0.9");
    assert!(answers_from(&red, &world.stations[1]));
    // The others come to the same port, which goes on.
    let received = || lab.daemon.port("nic0.uplink")["counters"]["rx_frames"].as_u64().unwrap_or(0);
    let count = received();
    for name in ["blue", "plain"] {
        lab.daemon.cli(&["network", "start", name]).expect("started");
    }
    assert!(received() >= count && count > 0);
    assert_eq!(domains(&lab, "nic0.uplink"), serde_json::json!(["blue:tag=20", "plain", "red:tag=10"]));
    for (network, station) in [("blue", 2), ("plain", 0)] {
        let guest = guest(&lab, network);
        reaches(&guest, "10.7.0.9");
        assert!(answers_from(&guest, &world.stations[station]), "{network}");
        reaches(&red, "10.7.0.9");
    }
    assert!(answers_from(&red, &world.stations[1]));

    // A second one for the same VLAN, or for the device alone, is refused.
    let same = "name = \"x\"\nforward = { mode = \"bridge\", uplink = { device = \"nic0\", vlan = 10 } }";
    let error = lab.define(same).expect_err("taken").to_string();
    assert!(error.contains("network \"red\" has vlan 10 of uplink \"nic0.uplink\" already"), "{error}");
    let error =
        lab.define("name = \"x\"\nforward = { mode = \"bridge\", dev = \"nic0\" }").expect_err("shared").to_string();
    assert!(error.contains("alone (forward.dev)"), "{error}");

    // They leave one by one, and the port with the last.
    lab.daemon.cli(&["network", "stop", "red"]).expect("stopped");
    assert!(!ping(&red, "10.7.0.9"));
    assert_eq!(domains(&lab, "nic0.uplink"), serde_json::json!(["blue:tag=20", "plain"]));
    lab.daemon.cli(&["network", "stop", "blue"]).expect("stopped");
    lab.daemon.cli(&["network", "stop", "plain"]).expect("stopped");
    assert_eq!(lab.daemon.port("nic0.uplink"), serde_json::Value::Null);
    assert_eq!(lab.host_state(), before);
}

#[test]
fn networks_with_vlans_share_a_bond() {
    let mut lab = Lab::new();
    (0..2).for_each(|i| wire(&lab, i));
    let world = World::new(&lab, "up=bond,devices=nic0+nic1,mode=802.3ad,lacp=passive", &[10, 20]);
    let before = lab.host_state();
    for (name, vlan) in [("red", 10), ("blue", 20)] {
        let bond = "bond = { devices = [\"nic0\", \"nic1\"], mode = \"802.3ad\" }";
        let text =
            format!("name = \"{name}\"\nforward = {{ mode = \"bridge\", uplink = {{ vlan = {vlan}, {bond} }} }}");
        lab.define(&text).expect("defined");
        lab.daemon.cli(&["network", "start", name]).expect("started");
    }
    let guests = ["red", "blue"].map(|network| guest(&lab, network));
    let agreed = |lab: &Lab| lab.daemon.port("nic0-nic1.uplink")["state"] == "up";
    wait_for("the bonds agree", PATIENCE, || agreed(&lab)).expect("agreed");
    for (guest, station) in guests.iter().zip(&world.stations) {
        reaches(guest, "10.7.0.9");
        assert!(answers_from(guest, station));
    }
    let shown = lab.daemon.cli(&["network", "show", "red"]).expect("shown");
    assert!(shown.contains("uplink    nic0-nic1.uplink: bond of nic0, nic1, vlan 10"), "{shown}");
    // They are back after a crash, and the host is as before when they have stopped.
    lab.daemon.crash_and_restart().expect("restarted");
    wait_for("the bonds agree again", PATIENCE, || agreed(&lab)).expect("agreed");
    for guest in &guests {
        // Their TAPs are new ones.
        guest.configure("eth0", &["10.7.0.5/24"]).expect("configured");
        reaches(guest, "10.7.0.9");
    }
    for name in ["red", "blue"] {
        lab.daemon.cli(&["network", "stop", name]).expect("stopped");
    }
    assert_eq!(lab.host_state(), before);
}
