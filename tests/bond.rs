//! Bonds: several netdevs as one port, against a kernel bridge, bare devices, another bond of the switch, and Open vSwitch.

use std::{collections::BTreeMap, time::Duration};

use switch_core::{mac::MacAddr, sys::raw::RawSocket};
use vswitch_benches::{
    contestants::{DEVICE, ovs::Ovs},
    frames,
    netns::{Namespace, wait_for},
    tools::{installed, ping},
};
use vswitch_tests::{Daemon, PATIENCE, skip, transfer};

const FLOWS: u16 = 32;
const PER_FLOW: u32 = 50;
/// Frames of a flow that are under way at once.
const BURST: u32 = 5;

/// A switch with a TAP in `guest` and a bond of `m0` and `m1`, which are in `home`; their other ends are `f0` and `f1`.
struct Lab {
    daemon: Daemon,
    home: Namespace,
    guest: Namespace,
}

fn wire(home: &Namespace, far: &Namespace, i: usize) {
    let (near, other) = (format!("m{i}"), format!("f{i}"));
    home.exec(&["ip", "link", "add", &near, "type", "veth", "peer", "name", &other, "netns", far.name()])
        .expect("made");
    home.exec(&["ip", "link", "set", &near, "up"]).expect("up");
}

impl Lab {
    fn new(far: &Namespace, mode: &str) -> Lab {
        let (home, guest) = (Namespace::new("vbh").expect("root"), Namespace::new("vbg").expect("root"));
        (0..2).for_each(|i| wire(&home, far, i));
        let bond = format!("up=bond,devices=m0+m1,netns={},{mode}", home.name());
        let tap = format!("g=tap,device=eth0,netns={}", guest.name());
        let daemon = Daemon::start(&["--port", &bond, "--port", &tap]).expect("starts");
        guest.configure("eth0", &["10.9.0.1/24"]).expect("the TAP is there");
        Lab { daemon, home, guest }
    }

    fn member(&self, i: usize) -> serde_json::Value {
        self.daemon.port("up")["bond"]["members"][i].clone()
    }

    fn wait_members(&self, states: [&str; 2]) {
        let now = || [0, 1].map(|i| self.member(i)["state"].clone());
        let waited = wait_for(&format!("members are {states:?}"), PATIENCE, || now() == states);
        waited.unwrap_or_else(|e| panic!("{e}: {}", self.daemon.port("up")));
    }

    fn pings(&self) -> bool {
        ping(&self.guest, "10.9.0.9", 5, false).expect("ping runs").received > 0
    }

    fn reaches(&self) {
        wait_for("an answer", PATIENCE, || self.pings()).unwrap_or_else(|e| panic!("{e}: {}", self.daemon.port("up")));
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.daemon.port("up")["drops"][reason].as_u64().unwrap_or(0)
    }
}

/// A kernel bridge with an address, in a namespace of its own: the switch outside.
fn bridge() -> Namespace {
    let far = Namespace::new("vbf").expect("root");
    // With an address of its own it does not take on another one with every port.
    far.exec(&["ip", "link", "add", "br0", "address", "02:00:00:00:09:f0", "type", "bridge"]).expect("made");
    far.configure("br0", &["10.9.0.9/24"]).expect("up");
    far
}

fn plug(far: &Namespace, i: usize) {
    let device = format!("f{i}");
    far.exec(&["ip", "link", "set", &device, "master", "br0", "up"]).expect("plugged");
    let forwards = || far.exec(&["bridge", "link", "show", "dev", &device]).is_ok_and(|s| s.contains("forwarding"));
    wait_for("the bridge forwards", PATIENCE, forwards).expect("plugged");
}

fn set(far: &Namespace, device: &str, state: &str) {
    far.exec(&["ip", "link", "set", device, state]).expect("set");
}

#[test]
fn the_backup_takes_over_and_announces_who_is_behind_it() {
    let far = bridge();
    let lab = Lab::new(&far, "mode=active-backup");
    lab.daemon.wait_state("up", "waiting").expect("the other ends are down");
    let reason = lab.daemon.port("up")["reason"].to_string();
    assert!(reason.contains("m0") && reason.contains("no carrier"), "{reason}");
    plug(&far, 0);
    lab.wait_members(["active", "down"]);
    plug(&far, 1);
    lab.wait_members(["active", "backup"]);
    lab.reaches();

    // What the bridge floods comes by both, and once only to the guest.
    let mut sink = lab.guest.run(|| RawSocket::open("eth0", true)).expect("namespace").expect("opened");
    sink.set_timeout(Duration::from_millis(50)).expect("set");
    let source = far.run(|| RawSocket::open("br0", false)).expect("namespace").expect("opened");
    let before = lab.dropped("inactive_member");
    let src = MacAddr([2, 0, 0, 0, 9, 9]);
    for number in 0..100 {
        source.send(&[frames::build(MacAddr([0xff; 6]), src, 100, number)]).expect("sent");
    }
    let mut numbers = Vec::new();
    wait_for("all arrive", PATIENCE, || {
        sink.receive(|frame| numbers.extend(frames::number_of(frame).and_then(Result::ok))).expect("read");
        numbers.len() >= 100
    })
    .expect("all");
    wait_for("the copies are counted", PATIENCE, || lab.dropped("inactive_member") >= before + 100).expect("counted");
    sink.receive(|frame| numbers.extend(frames::number_of(frame).and_then(Result::ok))).expect("read");
    assert!(numbers.iter().copied().eq(0..100), "{numbers:?}");

    let mac = lab.guest.exec(&["cat", "/sys/class/net/eth0/address"]).expect("an address");
    let behind = |device: &str| {
        let shown = far.exec(&["bridge", "fdb", "show", "br", "br0"]).expect("shown");
        shown.lines().any(|line| line.starts_with(mac.trim()) && line.contains(&format!("dev {device} ")))
    };
    assert!(behind("f0"));
    set(&far, "f0", "down");
    lab.wait_members(["down", "active"]);
    wait_for("the bridge knows the new way", PATIENCE, || behind("f1")).expect("announced");
    lab.reaches();
    // The one that carries frames goes on doing so.
    set(&far, "f0", "up");
    lab.wait_members(["backup", "active"]);
    lab.reaches();

    // A device that vanishes is out, and comes back as another one of its name.
    lab.home.exec(&["ip", "link", "del", "m0"]).expect("deleted");
    lab.wait_members(["down", "active"]);
    assert!(lab.member(0)["reason"].to_string().contains("there is no device"), "{}", lab.member(0));
    lab.reaches();
    wire(&lab.home, &far, 0);
    plug(&far, 0);
    lab.wait_members(["backup", "active"]);
    set(&far, "f1", "down");
    lab.wait_members(["active", "down"]);
    lab.reaches();
    // So is one that is set down here.
    set(&lab.home, "m0", "down");
    lab.daemon.wait_state("up", "waiting").expect("none is left");
    set(&lab.home, "m0", "up");
    lab.daemon.wait_state("up", "up").expect("up again");
    lab.reaches();
    // All of them gone at once.
    lab.home.exec(&["ip", "link", "del", "m0"]).expect("deleted");
    lab.home.exec(&["ip", "link", "del", "m1"]).expect("deleted");
    lab.daemon.wait_state("up", "waiting").expect("waiting");
    wire(&lab.home, &far, 1);
    plug(&far, 1);
    lab.wait_members(["down", "active"]);
    lab.reaches();
    let shown = lab.daemon.cli(&["port", "show", "up"]).expect("shown");
    assert!(shown.contains("bond active-backup") && shown.contains("m1              active"), "{shown}");

    lab.daemon.cli(&["port", "del", "up"]).expect("removed");
    assert_eq!(lab.home.exec(&["nft", "list", "ruleset"]).expect("listed"), "", "the host has its devices back");
}

/// A UDP datagram of a flow, with a number.
fn datagram(flow: u16, number: u32) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 9, 9, 2, 0, 0, 0, 9, 1, 8, 0]);
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 9, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 9]);
    frame[34..36].copy_from_slice(&(1000 + flow).to_be_bytes());
    frame[36..40].copy_from_slice(&[0, 53, 0, 26]);
    frame[42..46].copy_from_slice(b"flow");
    frame[46..50].copy_from_slice(&number.to_be_bytes());
    frame
}

fn numbered(frame: &[u8]) -> Option<(u16, u32)> {
    (frame.get(42..46)? == b"flow").then(|| {
        let port = u16::from_be_bytes([frame[34], frame[35]]);
        (port - 1000, u32::from_be_bytes(frame[46..50].try_into().expect("four bytes")))
    })
}

/// Sends all flows from the guest, a few frames at a time; what came by which of the two devices, flow by flow.
fn spread(lab: &Lab, sinks: &mut [RawSocket]) -> BTreeMap<u16, Vec<(usize, u32)>> {
    let source = lab.guest.run(|| RawSocket::open("eth0", false)).expect("namespace").expect("opened");
    let mut seen: BTreeMap<u16, Vec<(usize, u32)>> = BTreeMap::new();
    let (mut sent, mut count) = (0, 0);
    for first in (0..PER_FLOW).step_by(BURST as usize) {
        for number in first..first + BURST {
            for flow in 0..FLOWS {
                sent += source.send(&[datagram(flow, number)]).expect("sent");
            }
        }
        let arrived = wait_for("all arrive", PATIENCE, || {
            for (which, sink) in sinks.iter_mut().enumerate() {
                sink.receive(|frame| {
                    if let Some((flow, number)) = numbered(frame) {
                        seen.entry(flow).or_default().push((which, number));
                        count += 1;
                    }
                })
                .expect("read");
            }
            count >= sent
        });
        arrived.unwrap_or_else(|e| panic!("{e}: {} {}", lab.daemon.port("g"), lab.daemon.port("up")));
    }
    seen
}

#[test]
fn balance_xor_spreads_flows_and_keeps_each_in_order_on_one_member() {
    let far = Namespace::new("vbf").expect("root");
    let lab = Lab::new(&far, "mode=balance-xor");
    let mut sinks = Vec::new();
    for device in ["f0", "f1"] {
        set(&far, device, "up");
        let sink = far.run(|| RawSocket::open(device, true)).expect("namespace").expect("opened");
        sink.set_timeout(Duration::from_millis(20)).expect("set");
        sinks.push(sink);
    }
    lab.wait_members(["active", "active"]);
    lab.daemon.wait_state("up", "up").expect("up");
    let seen = spread(&lab, &mut sinks);
    for (flow, got) in &seen {
        assert!(got.iter().map(|(_, number)| *number).eq(0..PER_FLOW), "flow {flow}: {got:?}");
        assert!(got.iter().all(|(which, _)| *which == got[0].0), "flow {flow} is on one member");
    }
    let on = |which: usize| seen.values().filter(|got| got[0].0 == which).count();
    assert!(on(0) >= 4 && on(1) >= 4, "{} and {} of {FLOWS} flows", on(0), on(1));

    // Both are heard.
    let mut guest = lab.guest.run(|| RawSocket::open("eth0", true)).expect("namespace").expect("opened");
    guest.set_timeout(Duration::from_millis(20)).expect("set");
    for (n, device) in ["f0", "f1"].into_iter().enumerate() {
        let source = far.run(|| RawSocket::open(device, false)).expect("namespace").expect("opened");
        let frame = frames::build(MacAddr([0xff; 6]), MacAddr([2, 0, 0, 0, 9, 9]), 100, n as u64);
        source.send(&[frame]).expect("sent");
    }
    let mut numbers = Vec::new();
    wait_for("one by each", PATIENCE, || {
        guest.receive(|frame| numbers.extend(frames::number_of(frame).and_then(Result::ok))).expect("read");
        numbers.len() >= 2
    })
    .expect("heard");

    // One is left: it has them all.
    set(&far, "f1", "down");
    lab.wait_members(["active", "down"]);
    let mut left = vec![sinks.swap_remove(0)];
    let seen = spread(&lab, &mut left);
    assert!(seen.values().all(|got| got.iter().map(|(_, number)| *number).eq(0..PER_FLOW)), "{seen:?}");
}

#[test]
fn without_a_partner_nothing_is_sent() {
    let far = bridge();
    let lab = Lab::new(&far, "mode=802.3ad");
    (0..2).for_each(|i| plug(&far, i));
    lab.wait_members(["out", "out"]);
    wait_for("the reason is said", PATIENCE, || {
        let port = lab.daemon.port("up");
        port["state"] == "waiting" && port["reason"].to_string().contains("nobody has answered by LACP")
    })
    .expect("waiting");
    assert!(!lab.pings());
    // The bridge's own frames come in, and go no further.
    far.exec(&["ping", "-c", "2", "-W", "1", "10.9.0.1"]).expect_err("no answer");
    wait_for("they are counted", PATIENCE, || lab.dropped("inactive_member") > 0).expect("counted");
    let member = lab.member(0);
    assert_eq!(member["partner"], serde_json::Value::Null);
    assert!(member["actor"]["state"].to_string().contains("defaulted"), "{member}");
}

/// Two bonds of one switch, member by member at each other; one waits to be spoken to.
#[test]
fn two_bonds_of_the_switch_agree() {
    let home = Namespace::new("vbh").expect("root");
    (0..2).for_each(|i| wire(&home, &home, i));
    (0..2).for_each(|i| set(&home, &format!("f{i}"), "up"));
    let hosts = ["a", "b"].map(|_| Namespace::new("vbg").expect("root"));
    let (netns, [a, b]) = (home.name(), [hosts[0].name(), hosts[1].name()]);
    let daemon = Daemon::start(&[
        "--domain",
        "red",
        "--port",
        &format!("one=bond,devices=m0+m1,netns={netns},mode=802.3ad,domain=default:tag=7"),
        "--port",
        &format!("two=bond,devices=f0+f1,netns={netns},mode=802.3ad,lacp=passive,lacp-rate=slow,domain=red:tag=7"),
        "--port",
        &format!("a=tap,device=eth0,netns={a}"),
        "--port",
        &format!("b=tap,device=eth0,netns={b},domain=red"),
    ])
    .expect("starts");
    for (i, host) in hosts.iter().enumerate() {
        host.configure("eth0", &[&format!("10.9.1.{}/24", i + 1)]).expect("the TAP is there");
    }
    for port in ["one", "two"] {
        let active = || (0..2).all(|i| daemon.port(port)["bond"]["members"][i]["state"] == "active");
        wait_for(port, PATIENCE, active).unwrap_or_else(|e| panic!("{e}: {}", daemon.port(port)));
        daemon.wait_state(port, "up").expect("up");
    }
    let (one, two) = (daemon.port("one"), daemon.port("two"));
    let partner = |port: &serde_json::Value| port["bond"]["members"][1]["partner"].clone();
    assert_eq!(partner(&one)["system"], two["bond"]["members"][0]["actor"]["system"]);
    assert!(!partner(&one)["state"].to_string().contains("\"active\""), "{one}");
    transfer(&hosts[0], &hosts[1], "10.9.1.2", 5_000_000);
    transfer(&hosts[1], &hosts[0], "10.9.1.1", 5_000_000);
    assert_eq!(
        daemon.port("one")["drops"]["reserved_address"],
        serde_json::Value::Null,
        "LACP stays out of the frame path"
    );
    // A bond that is taken away says so: its partner does not wait for 90 seconds.
    daemon.cli(&["port", "del", "one"]).expect("removed");
    daemon.wait_state("two", "waiting").expect("it has been told");
}

#[test]
fn open_vswitch_and_the_switch_agree_and_a_lost_member_is_done_without() {
    if let Some(missing) =
        ["ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-appctl"].into_iter().find(|program| !installed(program))
    {
        return skip(&format!("{missing} is not installed"));
    }
    let theirs = Namespace::new("oa").expect("root");
    let ovs = Ovs::start(&[&theirs], false).expect("Open vSwitch starts");
    let far = ovs.home();
    let lab = Lab::new(far, "mode=802.3ad,offload=off");
    (0..2).for_each(|i| set(far, &format!("f{i}"), "up"));
    let settings = ["lacp=active", "bond_mode=balance-tcp", "other_config:lacp-time=fast"];
    ovs.add_bond("bond0", &["f0", "f1"], &settings).expect("added");
    theirs.configure(DEVICE, &["10.9.0.9/24"]).expect("up");
    lab.wait_members(["active", "active"]);
    lab.daemon.wait_state("up", "up").expect("up");
    let attached = |device: &str| {
        let shown = ovs.lacp("bond0").unwrap_or_default();
        shown.lines().any(|line| line.contains(&format!(": {device}: current attached")))
    };
    let says = || ovs.lacp("bond0").unwrap_or_default();
    for device in ["f0", "f1"] {
        wait_for("Open vSwitch agrees", PATIENCE, || attached(device)).unwrap_or_else(|e| panic!("{e}: {}", says()));
    }
    let system = lab.member(0)["actor"]["system"].as_str().expect("an address").to_owned();
    assert!(says().contains(&format!("partner sys_id: {system}")), "{}", says());
    assert_eq!(lab.member(1)["partner"]["system"], lab.daemon.port("up")["bond"]["partner"]);
    lab.reaches();
    transfer(&lab.guest, &theirs, "10.9.0.9", 1 << 20);
    transfer(&theirs, &lab.guest, "10.9.0.1", 1 << 20);

    set(far, "f0", "down");
    lab.wait_members(["down", "active"]);
    lab.reaches();
    transfer(&lab.guest, &theirs, "10.9.0.9", 1 << 20);
    set(far, "f0", "up");
    lab.wait_members(["active", "active"]);
    wait_for("Open vSwitch agrees again", PATIENCE, || attached("f0")).unwrap_or_else(|e| panic!("{e}: {}", says()));
    transfer(&theirs, &lab.guest, "10.9.0.1", 1 << 20);

    // It falls silent while its links stand, and speaks again.
    ovs.set_port("bond0", &["lacp=off"]).expect("set");
    lab.wait_members(["out", "out"]);
    lab.daemon.wait_state("up", "waiting").expect("nothing is sent");
    ovs.set_port("bond0", &["lacp=active"]).expect("set");
    lab.wait_members(["active", "active"]);
    lab.reaches();
    let shown = lab.daemon.cli(&["port", "show", "up"]).expect("shown");
    assert!(shown.contains("bond 802.3ad, partner") && shown.contains("collecting distributing"), "{shown}");
}
