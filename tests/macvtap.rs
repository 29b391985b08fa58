//! Macvtaps on veths: the way to a device's network, in every mode; what is made, adopted, lost and removed.

use vswitch_benches::{
    netns::{Namespace, exec, unique, wait_for},
    tools::{ping, tcp},
};
use vswitch_tests::{Daemon, PATIENCE, reaches, transfer};

const GUEST: &str = "02:00:00:00:0a:01";
const OTHER: &str = "02:00:00:00:0a:02";

/// A veth `nic` at home, where macvtaps are made, whose far end is `eth0` of a host on the NIC's network.
struct Lab {
    home: Namespace,
    host: Namespace,
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab { home: Namespace::new("vmh").expect("root"), host: Namespace::new("vmo").expect("root") };
        lab.wire();
        lab
    }

    fn wire(&self) {
        let words = ["ip", "link", "add", "nic", "type", "veth", "peer", "name", "eth0", "netns", self.host.name()];
        self.home.exec(&words).expect("made");
        self.home.exec(&["ip", "link", "set", "nic", "up"]).expect("up");
        self.host.configure("eth0", &["10.10.0.1/24", "fd0a::1/64"]).expect("configured");
    }

    /// The SPEC of a macvtap at home.
    fn spec(&self, name: &str, more: &str) -> String {
        format!("{name}=macvtap,device=nic,netns={}{more}", self.home.name())
    }

    fn has(&self, device: &str) -> bool {
        self.home.output(&["ip", "link", "show", device]).expect("ip runs").status.success()
    }
}

/// A namespace behind a TAP `eth0` with an address, and the TAP's SPEC.
fn guest(number: u8, mac: &str, more: &str) -> (Namespace, String) {
    let namespace = Namespace::new("vmg").expect("root");
    let spec = format!("g{number}=tap,device=eth0,netns={},mac={mac}{more}", namespace.name());
    (namespace, spec)
}

fn configure(guest: &Namespace, number: u8) {
    let addresses = [format!("10.10.0.{}/24", 10 + number), format!("fd0a::{}/64", 10 + number)];
    guest.configure("eth0", &[&addresses[0], &addresses[1]]).expect("configured");
}

fn pings(from: &Namespace, address: &str) -> bool {
    ping(from, address, 3, false).expect("ping runs").received > 0
}

/// A guest behind a TAP, and the switch with its macvtap `vtap0` up.
fn guest_and_switch(lab: &Lab) -> (Namespace, Daemon) {
    let (one, tap) = guest(1, GUEST, "");
    let daemon =
        Daemon::start(&["--port", &lab.spec("vtap0", &format!(",mac={GUEST}")), "--port", &tap]).expect("starts");
    configure(&one, 1);
    daemon.wait_state("vtap0", "up").expect("up");
    (one, daemon)
}

#[test]
fn one_guest_reaches_the_network_of_the_nic_with_offloads_and_several_queues() {
    for more in [",queues=3", ",mode=private,offload=off", ",mode=vepa"] {
        let lab = Lab::new();
        let (one, tap) = guest(1, GUEST, "");
        let daemon = Daemon::start(&["--port", &lab.spec("vtap0", &format!(",mac={GUEST}{more}")), "--port", &tap])
            .expect("starts");
        configure(&one, 1);
        daemon.wait_state("vtap0", "up").expect("up");
        assert!(reaches(&one, "10.10.0.1") && reaches(&one, "fd0a::1"), "{more}: {}", daemon.port("vtap0"));
        assert!(reaches(&lab.host, "10.10.0.11") && reaches(&lab.host, "fd0a::11"), "{more}");
        for address in ["10.10.0.1", "fd0a::1"] {
            transfer(&one, &lab.host, address, 5_000_000);
        }
        for address in ["10.10.0.11", "fd0a::11"] {
            transfer(&lab.host, &one, address, 5_000_000);
        }
        let view = daemon.port("vtap0");
        assert_eq!((&view["device_kind"], &view["device_mac"]), (&"macvtap".into(), &GUEST.into()));
        let segments = view["counters"]["tx_segments"].as_u64().expect("a number");
        assert_eq!(segments > 0, more.contains("offload=off"), "{more}: only without offload the switch segments");
    }
}

#[test]
fn a_macvtap_in_the_switchs_own_namespace_is_opened_by_the_usual_node() {
    let host = Namespace::new("vmo").expect("root");
    let (nic, name) = (unique("vmn"), unique("vmt"));
    // The veth goes away with the namespace that its far end is in.
    exec(&["ip", "link", "add", &nic, "type", "veth", "peer", "name", "eth0", "netns", host.name()]).expect("made");
    exec(&["ip", "link", "set", &nic, "up"]).expect("up");
    host.configure("eth0", &["10.10.0.1/24"]).expect("configured");
    let (one, tap) = guest(1, GUEST, "");
    let daemon = Daemon::start(&["--port", &format!("{name}=macvtap,device={nic},mac={GUEST}"), "--port", &tap])
        .expect("starts");
    configure(&one, 1);
    daemon.wait_state(&name, "up").expect("up");
    assert!(reaches(&one, "10.10.0.1"));
    daemon.cli(&["port", "del", &name]).expect("deleted");
    assert!(exec(&["ip", "link", "show", &name]).is_err(), "removed");
}

#[test]
fn iperf3_runs_through_a_macvtap_both_ways() {
    let lab = Lab::new();
    let (one, _daemon) = guest_and_switch(&lab);
    let second = std::time::Duration::from_secs(1);
    assert!(tcp(&one, &lab.host, "10.10.0.1", second).expect("iperf3").bits_per_second > 0.0);
    assert!(tcp(&lab.host, &one, "fd0a::11", second).expect("iperf3").bits_per_second > 0.0);
}

#[test]
fn a_second_station_is_heard_but_not_answered_unless_the_macvtap_is_in_passthrough_mode() {
    for (mode, second_reaches) in [("bridge", false), ("passthrough", true)] {
        let lab = Lab::new();
        let ((one, tap), (two, other)) = (guest(1, GUEST, ""), guest(2, OTHER, ""));
        // In passthrough mode the macvtap shares its address with the device below, which then has it as well.
        let up = lab.spec("vtap0", &format!(",mode={mode},mac={GUEST}"));
        let daemon = Daemon::start(&["--port", &up, "--port", &tap, "--port", &other]).expect("starts");
        configure(&one, 1);
        configure(&two, 2);
        daemon.wait_state("vtap0", "up").expect("up");
        assert!(reaches(&one, "10.10.0.1"), "{mode}: the macvtap's own address");
        assert!(reaches(&one, "10.10.0.12"), "{mode}: inside the switch");
        let second = |address: &str| if second_reaches { reaches(&two, address) } else { pings(&two, address) };
        assert_eq!(second("10.10.0.1"), second_reaches, "{mode}: another address");
        // A promiscuous macvtap is given no more of what is for others.
        lab.home.exec(&["ip", "link", "set", "vtap0", "promisc", "on"]).expect("set");
        assert_eq!(second("10.10.0.1"), second_reaches, "{mode}: promiscuous");
        // What it sends arrives all the same: the host beyond the NIC has learned its address.
        let neighbours = lab.host.exec(&["ip", "neigh", "show", "10.10.0.12"]).expect("ip runs");
        assert!(neighbours.contains(OTHER), "{mode}: {neighbours}");
    }
}

#[test]
fn two_vepa_endpoints_reach_each_other_only_by_a_reflective_relay() {
    let relay_home = Namespace::new("vmr").expect("root");
    let home = Namespace::new("vmh").expect("root");
    home.exec(&["ip", "link", "add", "nic", "type", "veth", "peer", "name", "relay", "netns", relay_home.name()])
        .expect("made");
    home.exec(&["ip", "link", "set", "nic", "up"]).expect("up");
    relay_home.exec(&["ip", "link", "set", "relay", "up"]).expect("up");
    let ((one, tap), (two, other)) = (guest(1, GUEST, ",domain=a"), guest(2, OTHER, ",domain=b"));
    let endpoint = |name: &str, mac: &str, domain: &str| {
        format!("{name}=macvtap,device=nic,netns={},mode=vepa,mac={mac},domain={domain}", home.name())
    };
    let (near, far) = (endpoint("m1", GUEST, "a"), endpoint("m2", OTHER, "b"));
    let relay = format!("relay=packet,netns={}", relay_home.name());
    let mut arguments = Vec::new();
    for domain in ["a", "b"] {
        arguments.extend(["--domain", domain]);
    }
    for port in [&near, &far, &tap, &other, &relay] {
        arguments.extend(["--port", port]);
    }
    let daemon = Daemon::start(&arguments).expect("starts");
    configure(&one, 1);
    configure(&two, 2);
    for port in ["m1", "m2", "relay"] {
        daemon.wait_state(port, "up").expect("up");
    }
    assert!(!pings(&one, "10.10.0.12"), "nobody reflects");
    daemon.cli(&["port", "set", "relay", "hairpin=on"]).expect("set");
    wait_for("the relay reflects", PATIENCE, || pings(&one, "10.10.0.12")).expect("it does");
    assert!(reaches(&two, "fd0a::11"));
    transfer(&one, &two, "10.10.0.12", 1_000_000);
    let counters = daemon.port("relay")["counters"].clone();
    assert!(counters["tx_frames"].as_u64() > Some(20), "all of it went through the relay: {counters}");
    daemon.cli(&["port", "set", "relay", "hairpin=off"]).expect("set");
    assert!(!pings(&one, "10.10.0.12"), "nobody reflects any more");
}

#[test]
fn what_the_switch_made_is_gone_with_it_and_what_it_found_is_not() {
    let lab = Lab::new();
    lab.home
        .exec(&["ip", "link", "add", "link", "nic", "name", "mine", "type", "macvtap", "mode", "bridge"])
        .expect("made");
    let adopted = format!("mine=macvtap,netns={}", lab.home.name());
    let mut daemon = Daemon::start(&["--port", &lab.spec("vtap0", ""), "--port", &adopted]).expect("starts");
    for port in ["vtap0", "mine"] {
        daemon.wait_state(port, "up").expect("up");
    }
    assert!(lab.home.exec(&["ip", "link", "show", "vtap0"]).expect("there").contains("made by vswitch"));

    // A killed switch leaves it; the next one takes it over, whatever it is to be now.
    daemon.kill().expect("killed");
    assert!(lab.has("vtap0"));
    daemon.restart().expect("starts again");
    daemon.wait_state("vtap0", "up").expect("up");
    daemon.cli(&["port", "set", "vtap0", "mode=private"]).expect("set");
    daemon.wait_state("vtap0", "up").expect("up");
    assert!(lab.home.exec(&["ip", "-d", "link", "show", "vtap0"]).expect("there").contains("mode private"));

    daemon.cli(&["port", "del", "vtap0"]).expect("deleted");
    assert!(!lab.has("vtap0"));
    daemon.stop().expect("stopped");
    assert!(lab.has("mine"), "somebody else's");
}

#[test]
fn a_macvtap_that_goes_away_comes_back_with_the_device_below() {
    let lab = Lab::new();
    let (one, daemon) = guest_and_switch(&lab);
    assert!(reaches(&one, "10.10.0.1"));

    lab.host.exec(&["ip", "link", "set", "eth0", "down"]).expect("down");
    daemon.wait_state("vtap0", "waiting").expect("no carrier");
    assert!(daemon.port("vtap0")["reason"].as_str().is_some_and(|r| r.contains("carrier")), "{}", daemon.port("vtap0"));
    lab.host.configure("eth0", &["fd0a::1/64"]).expect("up again");
    daemon.wait_state("vtap0", "up").expect("up");

    // Made anew at once when it alone is deleted, and with the device below when that goes and comes.
    lab.home.exec(&["ip", "link", "del", "vtap0"]).expect("deleted");
    wait_for("made anew", PATIENCE, || lab.has("vtap0") && daemon.port("vtap0")["state"] == "up").expect("made");
    assert!(reaches(&one, "10.10.0.1"));
    lab.home.exec(&["ip", "link", "del", "nic"]).expect("deleted");
    daemon.wait_state("vtap0", "waiting").expect("gone");
    wait_for("the reason is the device below", PATIENCE, || {
        daemon.port("vtap0")["reason"].as_str().is_some_and(|r| r.contains("there is no device \"nic\""))
    })
    .expect("it is");
    lab.wire();
    daemon.wait_state("vtap0", "up").expect("up");
    // The host at its far end has a new address.
    one.exec(&["ip", "neigh", "flush", "dev", "eth0"]).expect("flushed");
    assert!(reaches(&one, "10.10.0.1"));
}

#[test]
fn what_cannot_be_a_macvtap_waits_and_says_why() {
    let lab = Lab::new();
    lab.home.exec(&["ip", "link", "add", "dum", "type", "veth", "peer", "name", "dum2"]).expect("made");
    lab.home
        .exec(&["ip", "link", "add", "link", "nic", "name", "sib", "type", "macvtap", "mode", "vepa"])
        .expect("made");
    let netns = lab.home.name();
    let daemon = Daemon::start(&[]).expect("starts");
    for (spec, part) in [
        (format!("dum=macvtap,device=nic,netns={netns}"), "no macvtap but a veth device"),
        (format!("sib=macvtap,device=nic,netns={netns}"), "in another mode (vepa)"),
        (format!("sib=macvtap,device=dum,mode=vepa,netns={netns}"), "on another device"),
        (format!("x=macvtap,netns={netns}"), "there is no macvtap \"x\" to be adopted"),
        (format!("x=macvtap,device=eth9,netns={netns}"), "there is no device \"eth9\""),
        (format!("x=macvtap,device=nic,mode=passthrough,netns={netns}"), "passthrough takes the device alone"),
    ] {
        daemon.cli(&["port", "add", &spec]).expect("added");
        let name = spec.split('=').next().expect("a name");
        let view = daemon.port(name);
        assert_eq!(view["state"], "waiting", "{spec}");
        assert!(view["reason"].as_str().is_some_and(|reason| reason.contains(part)), "{spec}: {view}");
        daemon.cli(&["port", "del", name]).expect("deleted");
    }
    for (spec, part) in [
        ("eth0=macvtap,device=eth0", "called otherwise than its device"),
        ("up=macvtap,device=eth0,mode=server", "use bridge, private, vepa or passthrough"),
        ("up=macvtap,device=eth0,mode=loud", "use bridge, private, vepa or passthrough"),
        ("s=stream,path=/run/s,mode=bridge", "use server"),
        ("up=macvtap,device=eth0,persist=on", "persist= is not for macvtap ports"),
    ] {
        let error = daemon.cli(&["port", "add", spec]).expect_err(spec).to_string();
        assert!(error.contains(part), "{spec}: {error}");
    }
    assert!(lab.has("sib") && lab.has("dum"));
}
