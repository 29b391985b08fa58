//! The guard of packet ports: the host is silent on their devices, and has them back as they were.

use std::time::Duration;

use switch_core::{mac::MacAddr, sys::raw::RawSocket};
use vswitch_benches::{
    frames,
    netns::{Namespace, exec, unique, wait_for},
    tools::ping,
};
use vswitch_tests::{Daemon, PATIENCE, reaches};

/// A namespace `home` with the addressed device `p0`, at whose other end is `eth0` of the namespace `far`.
struct Wire {
    home: Namespace,
    far: Namespace,
}

const TABLES_OF_THE_USER: &str = "add table inet mine
add chain inet mine c { type filter hook input priority 0; policy accept; }
add table netdev mine
add chain netdev mine c { type filter hook ingress device p0 priority 0; policy accept; }";

impl Wire {
    fn new() -> Wire {
        let wire = Wire { home: Namespace::new("vgh").expect("root"), far: Namespace::new("vgf").expect("root") };
        wire.home
            .exec(&["ip", "link", "add", "p0", "type", "veth", "peer", "name", "eth0", "netns", wire.far.name()])
            .expect("made");
        wire.home.configure("p0", &["10.7.0.1/24"]).expect("up");
        wire.far.configure("eth0", &["10.7.0.2/24"]).expect("up");
        wire.home.exec(&["nft", TABLES_OF_THE_USER]).expect("nft");
        wire
    }

    fn port(&self) -> String {
        format!("p0=packet,netns={}", self.home.name())
    }

    /// What the user sees of the device: all tables, and how addresses are made.
    fn state(&self) -> String {
        let mode = self.home.exec(&["cat", "/proc/sys/net/ipv6/conf/p0/addr_gen_mode"]).expect("IPv6");
        self.home.exec(&["nft", "list", "ruleset"]).expect("nft") + &mode
    }

    /// It does in the end; [`answers`](Self::answers) is for when it must not.
    fn is_back(&self) -> bool {
        wait_for("an answer", PATIENCE, || self.answers()).is_ok()
    }

    /// The host answers ARP and echo requests that come over the wire.
    fn answers(&self) -> bool {
        // What was learned before would do without ARP.
        self.far.exec(&["ip", "neigh", "flush", "all"]).expect("flushed");
        ping(&self.far, "10.7.0.1", 2, false).expect("ping runs").received > 0
    }
}

fn kill_and_wait(daemon: &Daemon) {
    let pid = nix::unistd::Pid::from_raw(daemon.pid().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
    wait_for("it is dead", PATIENCE, || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z"))
    })
    .expect("dead");
}

#[test]
fn the_host_neither_answers_nor_sends_while_the_device_is_a_port() {
    let wire = Wire::new();
    let before = wire.state();
    assert!(wire.is_back());
    let other = Namespace::new("vgo").expect("root");
    let daemon =
        Daemon::start(&["--port", &wire.port(), "--port", &format!("o=tap,device=eth0,netns={}", other.name())])
            .expect("starts");
    other.configure("eth0", &["10.7.0.3/24"]).expect("the TAP is there");
    assert!(!wire.answers(), "the host is silent");
    assert!(reaches(&wire.far, "10.7.0.3"), "the switch is not");
    let while_guarded = wire.state();
    assert!(while_guarded.ends_with("1\n"), "no addresses are made: {while_guarded}");

    let mut sink = wire.far.run(|| RawSocket::open("eth0", true)).expect("namespace").expect("opened");
    sink.set_timeout(Duration::from_millis(50)).expect("set");
    let mut arrived = Vec::new();
    let mut receive = |until: u64| {
        wait_for("the frame arrives", PATIENCE, || {
            sink.receive(|frame| arrived.extend(frames::number_of(frame).and_then(Result::ok))).expect("read");
            arrived.contains(&until)
        })
        .expect("arrives");
        std::mem::take(&mut arrived)
    };
    let frame = |number| [frames::build(MacAddr::BROADCAST, MacAddr([2, 0, 0, 0, 7, number]), 100, number.into())];
    let host = wire.home.run(|| RawSocket::open("p0", false)).expect("namespace").expect("opened");
    let through = other.run(|| RawSocket::open("eth0", false)).expect("namespace").expect("opened");
    // The kernel may or may not tell the sender.
    let _ = host.send(&frame(1));
    through.send(&frame(2)).expect("sent");
    assert_eq!(receive(2), [2], "what the host sends goes nowhere");

    daemon.cli(&["port", "del", "p0"]).expect("deleted");
    assert_eq!(wire.state(), before);
    assert!(wire.is_back());
    host.send(&frame(3)).expect("sent");
    assert_eq!(receive(3), [3]);
}

#[test]
fn a_crash_leaves_the_host_cut_off_and_the_next_run_gives_all_back() {
    let wire = Wire::new();
    let before = wire.state();
    let mut daemon = Daemon::start(&["--port", &wire.port()]).expect("starts");
    kill_and_wait(&daemon);
    assert!(wire.state().contains("table netdev vswitch-") && !wire.answers(), "nobody opens the device by dying");
    daemon.crash_and_restart().expect("comes up again");
    assert!(!wire.answers());
    assert_eq!(wire.state().matches("table netdev vswitch-").count(), 1, "{}", wire.state());
    daemon.cli(&["port", "del", "p0"]).expect("deleted");
    assert_eq!(wire.state(), before);
    assert_eq!(std::fs::read_to_string(daemon.file("state/guards.json")).expect("kept").trim(), "[]");
    assert!(wire.is_back());
}

#[test]
fn what_a_crash_left_is_undone_even_if_the_port_is_not_wanted_any_more_or_the_device_has_another_name() {
    let wire = Wire::new();
    let before = wire.state();
    let mut daemon = Daemon::start(&["--port", &wire.port()]).expect("starts");
    kill_and_wait(&daemon);
    // A renamed device is found by its index; it can no longer be opened by its old name.
    wire.home.exec(&["ip", "link", "set", "p0", "down"]).expect("down");
    wire.home.exec(&["ip", "link", "set", "p0", "name", "renamed"]).expect("renamed");
    daemon.crash_and_restart().expect("comes up again");
    let mode = wire.home.exec(&["cat", "/proc/sys/net/ipv6/conf/renamed/addr_gen_mode"]).expect("there");
    assert_eq!(mode, "0\n");
    wire.home.exec(&["ip", "link", "set", "renamed", "name", "p0"]).expect("renamed");
    assert_eq!(wire.state(), before);
    assert_eq!(daemon.stop().expect("stopped"), Some(0));
}

#[test]
fn a_stop_gives_the_device_back_and_guards_of_other_switches_stay() {
    let wire = Wire::new();
    wire.home.exec(&["ip", "link", "add", "q0", "type", "veth", "peer", "name", "q1"]).expect("made");
    wire.home.exec(&["ip", "link", "set", "q0", "up"]).expect("up");
    wire.home.exec(&["ip", "link", "set", "q1", "up"]).expect("up");
    let other = Daemon::start(&["--port", &format!("q0=packet,netns={}", wire.home.name())]).expect("starts");
    let before = wire.state();
    assert_eq!(before.matches("table netdev vswitch-").count(), 1, "{before}");
    // Both ports of one switch: the second holds the same guard.
    let twice = format!("again=packet,device=p0,netns={}", wire.home.name());
    let mut daemon = Daemon::start(&["--port", &wire.port(), "--port", &twice]).expect("starts");
    assert_eq!(wire.state().matches("table netdev vswitch-").count(), 2, "{}", wire.state());
    daemon.cli(&["port", "del", "again"]).expect("deleted");
    assert!(!wire.answers(), "the other port is still there");
    assert_eq!(daemon.stop().expect("stopped"), Some(0));
    assert_eq!(wire.state(), before);
    drop(other);
    assert!(!wire.state().contains("table netdev vswitch-"));
}

#[test]
fn guard_off_leaves_the_host_alone_and_can_be_changed() {
    let wire = Wire::new();
    let before = wire.state();
    let daemon = Daemon::start(&["--port", &format!("{},guard=off", wire.port())]).expect("starts");
    assert_eq!(wire.state(), before);
    assert!(wire.is_back());
    daemon.cli(&["port", "set", "p0", "guard=on"]).expect("set");
    assert!(!wire.answers());
    daemon.cli(&["port", "set", "p0", "guard=off"]).expect("set");
    assert_eq!(wire.state(), before);
    let error = daemon.cli(&["port", "add", "t=tap,guard=off"]).expect_err("no guard there").to_string();
    assert!(error.contains("guard= is not for tap ports"), "{error}");
}

#[test]
fn a_device_beside_the_switch_is_guarded_and_its_end_takes_the_guard_with_it() {
    let far = Namespace::new("vgf").expect("root");
    let name = unique("vg");
    exec(&["ip", "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", far.name()]).expect("root");
    exec(&["ip", "link", "set", &name, "up"]).expect("up");
    far.configure("eth0", &["10.7.1.2/24"]).expect("up");
    let daemon = Daemon::start(&["--port", &format!("p=packet,device={name}")]).expect("starts");
    let guarded = || exec(&["nft", "list", "ruleset"]).expect("nft").contains(&format!("comment \"{name} is a port"));
    let first = guarded();
    exec(&["ip", "link", "del", &name]).expect("deleted");
    let state = || daemon.json(&["port", "show", "p"]).expect("shown")[0]["state"].clone();
    wait_for("the port notices", PATIENCE, || state() == "waiting").expect("waiting");
    assert!(first);
    assert!(!guarded(), "nothing is left of it");
}
