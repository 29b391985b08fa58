//! The switch among real namespaces and TAPs: reachability, isolation, data integrity, devices that come and go.

use std::{net::UdpSocket, sync::atomic::AtomicBool, time::Duration};

use switch_core::{
    mac::MacAddr,
    sys::raw::{RawSocket, Way},
};
use vswitch_benches::{
    ends::{PacketRx, PacketTx},
    frames,
    netns::{Namespace, exec, unique, wait_for},
    run::{Limit, Sink, generate},
    tools::ping,
    traffic::{Composer, Outcome, Tally, Traffic},
};
use vswitch_tests::{Daemon, PATIENCE, reaches, transfer};

/// More than any test sends at once.
const QUEUE: &str = "20000";

struct Lab {
    daemon: Daemon,
    hosts: Vec<Namespace>,
}

impl Lab {
    /// A switch with a TAP `eth0` in each of some namespaces; `extra` goes into the SPEC of each port.
    fn new(extra: &[&str], arguments: &[&str]) -> Lab {
        let hosts: Vec<Namespace> = extra.iter().map(|_| Namespace::new("vt").expect("root")).collect();
        let specs: Vec<String> = hosts
            .iter()
            .zip(extra)
            .enumerate()
            .map(|(i, (host, extra))| format!("h{i}=tap,device=eth0,netns={}{extra}", host.name()))
            .collect();
        let mut all = arguments.to_vec();
        for spec in &specs {
            all.extend(["--port", spec]);
        }
        let daemon = Daemon::start(&all).expect("the switch starts");
        for (i, host) in hosts.iter().enumerate() {
            let addresses = [format!("10.9.0.{}/24", i + 1), format!("fd00::{}/64", i + 1)];
            // Room for all that a test sends, should the switch not get a processor for a while.
            host.exec(&["ip", "link", "set", "eth0", "txqueuelen", QUEUE]).expect("the TAP is there");
            host.configure("eth0", &[&addresses[0], &addresses[1]]).expect("the TAP is there");
        }
        Lab { daemon, hosts }
    }

    /// Reaches it in the end; see [`pings`](Self::pings) for hosts that are not to be reached.
    fn reaches(&self, from: usize, to: usize) -> bool {
        reaches(&self.hosts[from], &format!("10.9.0.{}", to + 1))
    }

    fn pings(&self, from: usize, to: usize) -> bool {
        ping(&self.hosts[from], &format!("10.9.0.{}", to + 1), 3, false).expect("ping runs").received > 0
    }

    fn mac(&self, host: usize) -> MacAddr {
        let text = self.hosts[host].exec(&["cat", "/sys/class/net/eth0/address"]).expect("the TAP is there");
        text.trim().parse().expect("a MAC address")
    }

    /// Traffic from one host to another, and a sink for it there.
    fn sink(&self, from: usize, to: usize, rate: f64) -> (Traffic, Sink<Tally>) {
        let traffic = Traffic::new(self.mac(to), self.mac(from)).size(204).rate(rate);
        let end = PacketRx::open(&self.hosts[to], "eth0").expect("opened");
        let tally = Tally::new(traffic.clone()).expect("it can be made");
        (traffic, Sink::start(end, tally).expect("sink"))
    }

    /// Sends it; returns how many frames.
    fn send(&self, from: usize, traffic: &Traffic, time: Duration) -> u64 {
        let mut source = Composer::new(traffic.clone()).expect("it can be made");
        let mut end = PacketTx::open(&self.hosts[from], "eth0", Way::default()).expect("opened");
        let stop = AtomicBool::new(false);
        generate(&mut source, &mut end, traffic.schedule(), Limit::time(time), &stop).expect("sent").frames
    }

    /// Sends so many bytes from one host to another; they must arrive as they were sent.
    fn transfer(&self, from: usize, to: usize, bytes: usize) {
        transfer(&self.hosts[from], &self.hosts[to], &format!("10.9.0.{}", to + 1), bytes);
    }
}

#[test]
fn hosts_of_a_domain_reach_each_other_and_no_others() {
    let lab = Lab::new(&["", "", ",domain=red"], &["--domain", "red"]);
    assert!(lab.reaches(0, 1) && lab.reaches(1, 0));
    assert!(!lab.pings(0, 2) && !lab.pings(2, 1));
    assert!(reaches(&lab.hosts[0], "fd00::2"));
    // Moved to the other domain at run time, the host changes sides.
    lab.daemon.cli(&["port", "detach", "h1", "default"]).expect("detached");
    lab.daemon.cli(&["port", "attach", "h1", "red"]).expect("attached");
    assert!(lab.reaches(2, 1) && !lab.pings(0, 1));
}

#[test]
fn roles_and_link_state_hold_in_real_namespaces() {
    let lab = Lab::new(&["", ",domain=default:isolated", ",domain=default:isolated"], &[]);
    assert!(lab.reaches(0, 1) && lab.reaches(2, 0) && !lab.pings(1, 2));
    lab.daemon.cli(&["port", "set", "h1", "link=down"]).expect("set");
    assert!(!lab.pings(0, 1));
    lab.daemon.cli(&["port", "set", "h1", "link=up"]).expect("set");
    assert!(lab.reaches(0, 1));
}

#[test]
fn data_arrives_unchanged_with_every_mix_of_offloads() {
    let lab = Lab::new(&["", ",offload=off", ",queues=2", ",queues=2,offload=off"], &["--workers", "2"]);
    for from in 0..4 {
        for to in 0..4 {
            if from != to {
                lab.transfer(from, to, 3_000_000);
            }
        }
    }
    let ports = lab.daemon.json(&["port", "show", "h1"]).expect("shown");
    assert!(ports[0]["counters"]["tx_segments"].as_u64() > Some(0), "segmentation was done in software: {ports}");
}

/// Sends datagrams through a socket that leaves cutting them up to the device (`UDP_SEGMENT`), and compares them.
fn datagrams(lab: &Lab, from: usize, to: usize) {
    const SIZE: usize = 1000;
    const COUNT: usize = 20;
    let address = format!("10.9.0.{}:0", to + 1);
    let receiver = lab.hosts[to].run(|| UdpSocket::bind(address)).expect("namespace").expect("bind");
    receiver.set_read_timeout(Some(PATIENCE)).expect("set");
    let sender = lab.hosts[from].run(|| UdpSocket::bind("0.0.0.0:0")).expect("namespace").expect("bind");
    nix::sys::socket::setsockopt(&sender, nix::sys::socket::sockopt::UdpGsoSegment, &(SIZE as i32))
        .expect("UDP_SEGMENT");
    let data: Vec<u8> = (0..COUNT * SIZE - 100).map(|i| (i * 7 + i / SIZE) as u8).collect();
    sender.send_to(&data, receiver.local_addr().expect("bound")).expect("sent");
    let mut buffer = [0; 65_536];
    for part in data.chunks(SIZE) {
        let n = receiver.recv(&mut buffer).expect("every datagram arrives");
        assert!(buffer[..n] == *part, "from {from} to {to}: a datagram of {n} bytes");
    }
}

#[test]
fn segmented_datagrams_arrive_unchanged_with_every_mix_of_offloads() {
    let lab = Lab::new(&["", ",offload=off", ""], &[]);
    for (from, to) in [(0, 1), (1, 0), (0, 2), (1, 2), (2, 1)] {
        assert!(lab.reaches(from, to));
        datagrams(&lab, from, to);
    }
}

#[test]
fn a_stream_keeps_its_order_over_several_queues_and_workers() {
    let lab = Lab::new(&[",queues=2", ",queues=2"], &["--workers", "2"]);
    assert!(lab.reaches(0, 1));
    let (traffic, sink) = lab.sink(0, 1, 10_000.0);
    let sent = lab.send(0, &traffic, Duration::from_secs(1));
    wait_for("all frames are there", PATIENCE, || sink.arrived() >= sent).expect("nothing is lost at this rate");
    let outcome = sink.finish().expect("sink").judge.outcome(sent, 0);
    let foreign = outcome.foreign;
    assert_eq!(outcome, Outcome { sent, received: sent, foreign, ..Outcome::default() });
}

#[test]
fn a_link_that_is_set_down_is_down_on_both_sides() {
    let lab = Lab::new(&["", ""], &[]);
    let carrier = || lab.hosts[0].exec(&["cat", "/sys/class/net/eth0/carrier"]).expect("up").trim().to_owned();
    let state = || lab.daemon.json(&["port", "show", "h0"]).expect("shown")[0].clone();
    assert_eq!(carrier(), "1");
    lab.daemon.cli(&["port", "set", "h0", "link=down"]).expect("set");
    assert_eq!((carrier(), state()["state"].clone()), ("0".to_owned(), "down".into()));
    lab.daemon.cli(&["port", "set", "h0", "link=up"]).expect("set");
    assert_eq!(carrier(), "1");
    assert!(lab.reaches(0, 1));
    // The other way round: the host sets its end down, and the port says so.
    lab.hosts[0].exec(&["ip", "link", "set", "eth0", "down"]).expect("set");
    wait_for("the port notices", PATIENCE, || state()["state"] == "waiting").expect("noticed");
    assert!(state()["reason"].as_str().expect("a reason").contains("ip link set eth0 up"));
    lab.hosts[0].exec(&["ip", "link", "set", "eth0", "up"]).expect("set");
    wait_for("the port is up again", PATIENCE, || state()["state"] == "up").expect("up");
    assert!(lab.reaches(1, 0));
}

#[test]
fn the_host_has_its_address_on_the_host_port() {
    let lab = Lab::new(&[""], &[]);
    let name = unique("vd");
    lab.daemon.cli(&["domain", "add", &name, "host=on"]).expect("added");
    lab.daemon.cli(&["port", "detach", "h0", "default"]).expect("detached");
    lab.daemon.cli(&["port", "attach", "h0", &name]).expect("attached");
    // A subnet of its own for every run: tests share the host's namespace.
    let net = std::process::id() % 200 + 20;
    exec(&["ip", "address", "add", &format!("10.233.{net}.1/24"), "dev", &name]).expect("the TAP is in the host");
    lab.hosts[0].exec(&["ip", "address", "add", &format!("10.233.{net}.2/24"), "dev", "eth0"]).expect("set");
    assert!(reaches(&lab.hosts[0], &format!("10.233.{net}.1")));
    lab.daemon.cli(&["port", "detach", "h0", &name]).expect("detached");
    lab.daemon.cli(&["domain", "del", &name]).expect("removed");
    assert!(exec(&["ip", "link", "show", &name]).is_err(), "the host port goes with its domain");
}

#[test]
fn a_tag_that_a_host_sends_takes_it_nowhere() {
    // h0 is in red only; h1 is the trunk: red untagged, blue with tag 10; h2 is in blue.
    let lab = Lab::new(
        &[",domain=red", ",domain=red,domain=blue:tag=10", ",domain=blue"],
        &["--domain", "red", "--domain", "blue"],
    );
    let plain = frames::build(MacAddr::BROADCAST, MacAddr([2, 0, 0, 0, 0, 9]), 100, 1);
    let behind = |tags: &[u8]| [&plain[..12], tags, &plain[12..]].concat();
    let sockets: Vec<RawSocket> = (1..3)
        .map(|host| {
            let socket = lab.hosts[host].run(|| RawSocket::open("eth0", true)).expect("namespace").expect("opened");
            socket.set_timeout(Duration::from_millis(50)).expect("set");
            socket
        })
        .collect();
    let sender = lab.hosts[0].run(|| RawSocket::open("eth0", false)).expect("namespace").expect("opened");
    let attempts = [
        behind(&[0x81, 0, 0, 10]),
        behind(&[0x88, 0xa8, 0, 10]),
        behind(&[0x81, 0, 0, 0, 0x81, 0, 0, 10]),
        behind(&[0x81, 0, 0, 0, 0x88, 0xa8, 0, 10]),
        behind(&[0x81, 0, 0, 10, 0x81, 0, 0, 10]),
    ];
    sender.send(&attempts).expect("sent");
    // The last one is legitimate: what was sent before it has been judged when it arrives.
    sender.send(std::slice::from_ref(&plain)).expect("sent");
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let [mut trunk, mut blue]: [RawSocket; 2] = sockets.try_into().expect("two sockets");
    wait_for("the plain frame", PATIENCE, || {
        trunk.receive(|f| seen.extend((f[6..12] == plain[6..12]).then(|| f.to_vec()))).expect("read");
        !seen.is_empty()
    })
    .expect("it arrives");
    blue.receive(|f| seen.extend((f[6..12] == plain[6..12]).then(|| f.to_vec()))).expect("read");
    assert_eq!(seen, [plain], "nothing else leaves on the trunk, and nothing reaches blue");
    let count = |port: &str, reason: &str| {
        lab.daemon.json(&["port", "show", port]).expect("shown")[0]["drops"][reason].as_u64().unwrap_or(0)
    };
    assert_eq!((count("h0", "tag_not_allowed"), count("h1", "ambiguous_tag")), (3, 2));
}

#[test]
fn jumbo_frames_pass_where_the_domain_allows_them() {
    let lab = Lab::new(
        &[",mtu=9000,domain=big", ",mtu=9000,domain=big", ",mtu=9000", ",mtu=9000"],
        &["--domain", "big,mtu=9000"],
    );
    let big = |from: usize, to: usize, limit_s: &str| {
        let address = format!("10.9.0.{}", to + 1);
        lab.hosts[from].exec(&["ping", "-n", "-c", "1", "-W", limit_s, "-M", "do", "-s", "8972", &address]).is_ok()
    };
    assert!(big(0, 1, "20"));
    assert!(!big(2, 3, "1"));
    let ports = lab.daemon.json(&["port", "show", "h2"]).expect("shown");
    assert_eq!(ports[0]["drops"]["giant"].as_u64(), Some(1), "{ports}");
}

#[test]
fn other_ports_lose_no_frame_while_the_switch_is_changed() {
    let lab = Lab::new(&["", ""], &[]);
    assert!(lab.reaches(0, 1));
    let (traffic, sink) = lab.sink(0, 1, 5_000.0);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| lab.send(0, &traffic, Duration::from_secs(3)));
        wait_for("traffic flows", PATIENCE, || sink.arrived() > 1000).expect("frames arrive");
        let config = lab.daemon.file("config.toml");
        let extra = unique("vx");
        for round in 0..10 {
            let text = format!(
                "[[domain]]\nname = \"d{round}\"\n[[port]]\nname = \"x\"\nkind = \"tap\"\ndevice = \"{extra}\"\ndomains = [\"d{round}:tag=7\"]\n"
            );
            std::fs::write(&config, text).expect("written");
            lab.daemon.cli(&["apply", config.to_str().expect("text")]).expect("applied");
        }
        std::fs::write(&config, "").expect("written");
        lab.daemon.cli(&["apply", config.to_str().expect("text")]).expect("applied");
        sender.join().expect("no panic")
    });
    wait_for("all frames are there", PATIENCE, || sink.arrived() >= sent).expect("nothing is lost");
    let outcome = sink.finish().expect("received").judge.outcome(sent, 0);
    let foreign = outcome.foreign;
    assert_eq!(outcome, Outcome { sent, received: sent, foreign, ..Outcome::default() });
}

#[test]
fn kill_and_restart_keeps_what_was_made() {
    let mut lab = Lab::new(&["", ""], &[]);
    lab.daemon.cli(&["domain", "add", "blue", "ageing=77"]).expect("added");
    let error = lab.daemon.cli(&["fdb", "add", "02:00:00:00:00:77", "h0", "domain", "blue"]).expect_err("not in blue");
    assert!(error.to_string().contains("vswitch port attach h0 blue"), "{error}");
    lab.daemon.cli(&["fdb", "add", "02:00:00:00:00:77", "h0", "static"]).expect("added");
    lab.daemon.crash_and_restart().expect("comes up again");
    for (i, host) in lab.hosts.iter().enumerate() {
        host.configure("eth0", &[&format!("10.9.0.{}/24", i + 1)]).expect("the TAP was made again");
    }
    assert!(lab.reaches(0, 1));
    let domains = lab.daemon.json(&["domain", "show", "blue"]).expect("kept");
    assert_eq!(domains[0]["spec"]["ageing"], 77);
    let fdb = lab.daemon.cli(&["fdb", "show"]).expect("shown");
    assert!(fdb.contains("02:00:00:00:00:77") && fdb.contains("static"), "{fdb}");
}

#[test]
fn a_port_waits_for_its_namespace_and_survives_its_device() {
    let lab = Lab::new(&[""], &[]);
    let late = unique("vl");
    let output = lab.daemon.cli(&["port", "add", &format!("late=tap,device=eth0,netns={late}")]);
    assert!(output.is_ok(), "{output:?}");
    let state = || lab.daemon.json(&["port", "show", "late"]).expect("shown")[0]["state"].clone();
    assert_eq!(state(), "waiting");
    exec(&["ip", "netns", "add", &late]).expect("root");
    let up = wait_for("the port comes up", PATIENCE, || state() == "up");
    let deleted = exec(&["ip", "-n", &late, "link", "del", "eth0"]);
    let again = wait_for("the device is made again", PATIENCE, || {
        state() == "up" && exec(&["ip", "-n", &late, "link", "show", "eth0"]).is_ok()
    });
    exec(&["ip", "netns", "del", &late]).expect("deleted");
    up.and(deleted.map(drop)).and(again).expect("up, deleted, up again");
    assert_eq!(lab.daemon.json(&["port", "show", "h0"]).expect("shown")[0]["state"], "up");
}

#[test]
fn an_existing_persistent_tap_is_adopted_and_left_behind() {
    let name = unique("va");
    exec(&["ip", "tuntap", "add", &name, "mode", "tap"]).expect("root");
    let mut daemon = Daemon::start(&["--port", &format!("a=tap,device={name}")]).expect("starts");
    let state = daemon.json(&["port", "show", "a"]).expect("shown")[0]["state"].clone();
    let status = daemon.stop().expect("stopped");
    let left = exec(&["ip", "link", "show", &name]);
    exec(&["ip", "link", "del", &name]).expect("deleted");
    assert_eq!((state, status), ("up".into(), Some(0)));
    assert!(left.is_ok(), "a persistent device outlives the switch");
}

#[test]
fn two_hundred_ports_work_and_go_away() {
    let base = unique("m");
    let daemon = Daemon::start(&["--workers", "2"]).expect("starts");
    let mut text = String::new();
    for i in 0..200 {
        text.push_str(&format!("[[port]]\nname = \"p{i}\"\nkind = \"tap\"\ndevice = \"{base}-{i}\"\n"));
    }
    let config = daemon.file("many.toml");
    std::fs::write(&config, text).expect("written");
    daemon.cli(&["apply", config.to_str().expect("text")]).expect("applied");
    let status = daemon.json(&["status"]).expect("shown");
    assert_eq!((&status["ports_up"], &status["ports_waiting"]), (&200.into(), &0.into()));
    drop(daemon);
    assert!(exec(&["ip", "link", "show", &format!("{base}-0")]).is_err(), "devices that the switch made are gone");
}
