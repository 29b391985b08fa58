//! Existing netdevs as ports over AF_XDP (`engine=xdp`): what holds for AF_PACKET (`vswitch_tests::wired`), and what an XDP
//! program on the device brings with it.

use std::{collections::HashSet, time::Duration};

use switch_core::{
    mac::MacAddr,
    sys::{
        packet::Promiscuous,
        raw::RawSocket,
        xdp::{Program, RX_CHUNKS, Unbound},
    },
};
use vswitch_benches::{
    frames,
    netns::{Namespace, wait_for},
    tools::{installed, ping},
};
use vswitch_tests::{
    Daemon, PATIENCE, skip,
    wired::{self, FLOWS, Lab, PER_FLOW, numbered, send_flows, wire, xdp_or_skip},
};

const XDP: &str = "packet,engine=xdp";

/// What `ip` says of a device, to see whether a program is on it.
fn link(home: &Namespace, device: &str) -> String {
    home.exec(&["ip", "link", "show", "dev", device]).expect("there")
}

fn has_program(home: &Namespace, device: &str) -> bool {
    link(home, device).contains(" xdp ")
}

/// The kernel takes a program off when the last descriptor of its link is closed, which a program that is just being started
/// may have as well.
fn wait_program(home: &Namespace, device: &str, there: bool) {
    wait_for(&format!("{device} has a program: {there}"), PATIENCE, || has_program(home, device) == there).expect("so");
}

#[test]
fn netdevs_and_taps_reach_each_other_and_data_arrives_unchanged() {
    if xdp_or_skip() {
        let lab = Lab::new(&[XDP, XDP, "packet", "tap"], &[]);
        assert!(has_program(&lab.home, "p0") && !has_program(&lab.home, "p2"));
        wired::all_reach_all(&lab);
    }
}

#[test]
fn data_over_a_tagged_wire_between_two_ports_arrives_unchanged() {
    if xdp_or_skip() {
        wired::a_tagged_wire_carries_data(XDP);
    }
}

#[test]
fn a_frame_with_a_tag_goes_to_the_domain_of_the_tag_and_keeps_it() {
    if xdp_or_skip() {
        wired::a_tag_decides_and_is_kept(XDP);
    }
}

#[test]
fn a_tag_that_the_kernel_keeps_beside_the_frame_decides_too() {
    if !xdp_or_skip() {
        return;
    }
    let home = Namespace::new("vph").expect("root");
    let far = Namespace::new("vp").expect("root");
    wire(&home, &far, 0, "1");
    // A bridge takes the tag of what comes in off, as every receiving kernel does, and leaves it beside the frame.
    for words in [
        &["ip", "link", "add", "br0", "type", "bridge"][..],
        &["ip", "link", "add", "in0", "type", "veth", "peer", "name", "in1"],
        &["ip", "link", "set", "eth0", "master", "br0", "up"],
        &["ip", "link", "set", "in0", "master", "br0", "up"],
        &["ip", "link", "set", "in1", "up"],
        &["ip", "link", "set", "br0", "up"],
    ] {
        far.exec(words).expect("made");
    }
    let restored = home
        .run(|| Program::load(nix::net::if_::if_nametoindex("p0").expect("there"), 1).map(|p| p.restores_tags()))
        .expect("namespace")
        .expect("loaded");
    if !restored {
        skip("this kernel does not tell XDP programs of tags");
        return;
    }
    let port = format!("p0={XDP},netns={},domain=red:tag=5,domain=default", home.name());
    let tap = format!("t0=tap,netns={},domain=red", home.name());
    let daemon = Daemon::start(&["--domain", "red", "--port", &port, "--port", &tap]).expect("starts");
    home.exec(&["ip", "link", "set", "t0", "up"]).expect("up");
    daemon.wait_state("p0", "up").expect("up");
    let mut sink = home.run(|| RawSocket::open("t0", true)).expect("namespace").expect("opened");
    sink.set_timeout(Duration::from_millis(50)).expect("set");
    let source = far.run(|| RawSocket::open("in1", false)).expect("namespace").expect("opened");
    let plain = frames::build(MacAddr::BROADCAST, MacAddr([2, 0, 0, 0, 8, 1]), 1500, 7);
    let tagged = [&plain[..12], &[0x81, 0, 0xa0, 5], &plain[12..]].concat();
    let mut whole = false;
    // A bridge's port is silent for a while.
    wait_for("red has the frame", PATIENCE, || {
        source.send(std::slice::from_ref(&tagged)).expect("sent");
        sink.receive(|frame| whole |= frame == plain).expect("read");
        whole
    })
    .expect("by its tag");
    let entries = daemon.json(&["fdb", "show"]).expect("shown");
    let own = entries.as_array().into_iter().flatten().filter(|entry| entry["mac"] == "02:00:00:00:08:01");
    let domains: Vec<_> = own.map(|entry| entry["domain"].clone()).collect();
    assert_eq!(domains, ["red"], "and nowhere else: {entries}");
}

#[test]
fn a_port_waits_for_its_device_and_comes_back_with_it() {
    if xdp_or_skip() {
        wired::a_port_comes_back_with_its_device(XDP);
    }
}

#[test]
fn several_queues_keep_the_order_of_each_flow() {
    if !xdp_or_skip() || !has_ethtool() || !has_queues() {
        return;
    }
    let port = format!("{XDP},queues=2");
    let lab = wired::queues_keep_the_order_of_each_flow(&[&port, &port]);
    let statistics = lab.home.exec(&["ethtool", "-S", "p0"]).expect("a veth has some");
    for queue in ["rx_queue_0_xdp_packets", "rx_queue_1_xdp_packets"] {
        let count = statistics.lines().find_map(|line| line.trim().strip_prefix(queue)?.strip_prefix(": "));
        assert!(count.is_some_and(|count| count != "0"), "{queue}: {statistics}");
    }
}

fn has_ethtool() -> bool {
    let there = installed("ethtool");
    if !there {
        skip("ethtool is not installed");
    }
    there
}

/// Whether a veth can have two queues: it has as many as there are processors.
fn has_queues() -> bool {
    let there = std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
    if !there {
        skip("there is one processor, so a veth has one queue");
    }
    there
}

/// Of a table of /proc/net: the sum of all counters of this name.
fn counter(host: &Namespace, table: &str, name: &str) -> u64 {
    let text = host.exec(&["cat", &format!("/proc/net/{table}")]).expect("there");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let in_columns = lines.chunks(2).filter(|pair| pair.len() == 2).flat_map(|pair| pair[0].iter().zip(&pair[1]));
    let in_lines = lines.iter().filter(|words| words.len() == 2).map(|words| (&words[0], &words[1]));
    in_columns.chain(in_lines).filter(|(n, _)| n.ends_with(name)).filter_map(|(_, v)| v.parse::<u64>().ok()).sum()
}

#[test]
fn checksums_that_the_hosts_leave_to_their_devices_arrive_complete() {
    if !xdp_or_skip() || !has_ethtool() {
        return;
    }
    let lab = Lab::new(&[XDP, XDP, "tap,offload=off"], &[]);
    let features = lab.hosts[0].exec(&["ethtool", "-k", "eth0"]).expect("veth can");
    assert!(features.contains("tx-checksumming: on"), "{features}");
    assert!(features.contains("tcp-segmentation-offload: off"), "the program keeps segments short: {features}");
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
        assert!(lab.reaches(from, to));
        assert!(ping(&lab.hosts[from], &format!("fd08::{}", to + 1), 3, false).expect("ping runs").received > 0);
        for address in [format!("10.8.0.{}", to + 1), format!("fd08::{}", to + 1)] {
            lab.transfer(from, to, &address, 3_000_000);
            datagrams(&lab, from, to, &address);
        }
    }
    for host in &lab.hosts {
        let wrong = counter(host, "snmp", "InCsumErrors") + counter(host, "snmp6", "InCsumErrors");
        assert_eq!(wrong, 0, "{}", host.name());
    }
}

/// UDP from one host to another, of every length modulo 8, one after the other.
fn datagrams(lab: &Lab, from: usize, to: usize, address: &str) {
    let bind = |host: &Namespace, any: &str| {
        let socket = host.run(|| std::net::UdpSocket::bind((any, 0))).expect("namespace").expect("bound");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket
    };
    let receiver = bind(&lab.hosts[to], address);
    let sender = bind(&lab.hosts[from], if address.contains(':') { "::" } else { "0.0.0.0" });
    let place = receiver.local_addr().expect("bound");
    for len in (0..1400).step_by(97) {
        let data: Vec<u8> = (0..len).map(|i| (i * 31 + len) as u8).collect();
        sender.send_to(&data, place).expect("sent");
        let mut buffer = [0; 2048];
        let n = receiver.recv(&mut buffer).expect("it arrives");
        assert!(buffer[..n] == data, "{len} bytes");
    }
}

#[test]
fn frames_of_every_length_arrive_byte_for_byte() {
    if !xdp_or_skip() {
        return;
    }
    let lab = Lab::new(&[XDP, XDP], &[]);
    assert!(lab.reaches(0, 1), "both are up");
    let mut sink = lab.hosts[1].run(|| RawSocket::open("eth0", true)).expect("namespace").expect("opened");
    sink.set_timeout(Duration::from_millis(50)).expect("set");
    let source = lab.hosts[0].run(|| RawSocket::open("eth0", false)).expect("namespace").expect("opened");
    let (dst, src) = (MacAddr::BROADCAST, MacAddr([2, 0, 0, 0, 8, 9]));
    let all: Vec<Vec<u8>> = (60..=1514).map(|len| frames::build(dst, src, len, len as u64)).collect();
    // One handful after the other, so that none finds a full queue of the kernel's.
    for some in all.chunks(16) {
        let mut left = some;
        while !left.is_empty() {
            left = &left[source.send(left).expect("sent")..];
        }
        let mut wanted: HashSet<&[u8]> = some.iter().map(Vec::as_slice).collect();
        wait_for(&format!("frames of {} bytes and more", some[0].len()), PATIENCE, || {
            sink.receive(|frame| {
                if frames::number_of(frame).is_some() {
                    assert!(wanted.remove(frame), "changed or twice: {} bytes", frame.len());
                }
            })
            .expect("read");
            wanted.is_empty()
        })
        .expect("all arrive");
    }
    let shown = lab.daemon.port("h1");
    assert_eq!(shown["drops"], serde_json::json!({}), "{shown}");
}

#[test]
fn the_host_is_held_off_and_has_its_device_back() {
    if !xdp_or_skip() {
        return;
    }
    let lab = Lab::new(&["tap"], &[]);
    let far = Namespace::new("vpf").expect("root");
    wire(&lab.home, &far, 9, "1");
    lab.home.configure("p9", &["10.8.0.9/24"]).expect("up");
    far.configure("eth0", &["10.8.0.5/24"]).expect("up");
    let answers = || {
        far.exec(&["ip", "neigh", "flush", "all"]).expect("flushed");
        ping(&far, "10.8.0.9", 2, false).expect("ping runs").received > 0
    };
    assert!(answers());
    let tables = || lab.home.exec(&["nft", "list", "ruleset"]).expect("nft");
    let before = tables();
    let spec = format!("p9={XDP},netns={}", lab.home.name());
    lab.daemon.cli(&["port", "add", &spec]).expect("added");
    assert!(!answers(), "the host is silent");
    assert!(ping(&far, "10.8.0.1", 3, false).expect("ping runs").received > 0, "the switch is not");

    let mut sink = far.run(|| RawSocket::open("eth0", true)).expect("namespace").expect("opened");
    sink.set_timeout(Duration::from_millis(50)).expect("set");
    let frame = |number| [frames::build(MacAddr::BROADCAST, MacAddr([2, 0, 0, 0, 8, 7]), 100, number)];
    let host = lab.home.run(|| RawSocket::open("p9", false)).expect("namespace").expect("opened");
    let through = lab.hosts[0].run(|| RawSocket::open("eth0", false)).expect("namespace").expect("opened");
    // The kernel may or may not tell the sender.
    let _ = host.send(&frame(1));
    through.send(&frame(2)).expect("sent");
    let mut arrived = Vec::new();
    wait_for("what the switch sends arrives", PATIENCE, || {
        sink.receive(|frame| arrived.extend(frames::number_of(frame).and_then(Result::ok))).expect("read");
        arrived.contains(&2)
    })
    .expect("arrives");
    assert_eq!(arrived, [2], "what the host sends goes nowhere");

    lab.daemon.cli(&["port", "del", "p9"]).expect("deleted");
    wait_program(&lab.home, "p9", false);
    assert_eq!(tables(), before);
    assert!(answers());
}

#[test]
fn a_killed_switch_leaves_no_program_and_comes_back() {
    if !xdp_or_skip() {
        return;
    }
    let mut lab = Lab::new(&[XDP, XDP], &[]);
    assert!(lab.reaches(0, 1) && has_program(&lab.home, "p0") && has_program(&lab.home, "p1"));
    lab.daemon.kill().expect("killed");
    wait_program(&lab.home, "p0", false);
    wait_program(&lab.home, "p1", false);
    lab.daemon.restart().expect("comes up again");
    lab.daemon.wait_state("h0", "up").expect("up");
    lab.daemon.wait_state("h1", "up").expect("up");
    assert!(lab.reaches(0, 1) && lab.reaches(1, 0));
}

#[test]
fn the_engine_of_a_port_can_be_changed() {
    if !xdp_or_skip() {
        return;
    }
    let lab = Lab::new(&["packet", XDP], &[]);
    for (engine, program) in [("xdp", true), ("packet", false), ("xdp", true)] {
        lab.daemon.cli(&["port", "set", "h0", &format!("engine={engine}")]).expect("set");
        lab.daemon.wait_state("h0", "up").expect("up");
        wait_program(&lab.home, "p0", program);
        assert!(lab.reaches(0, 1) && lab.reaches(1, 0), "{engine}");
    }
}

#[test]
fn a_device_with_another_program_is_left_alone_until_that_is_gone() {
    if !xdp_or_skip() {
        return;
    }
    let lab = Lab::new(&["tap"], &[]);
    lab.home
        .exec(&["ip", "link", "add", "p9", "type", "veth", "peer", "name", "far0", "netns", lab.hosts[0].name()])
        .expect("made");
    lab.home.exec(&["ip", "link", "set", "p9", "up"]).expect("up");
    let other = lab
        .home
        .run(|| {
            let index = nix::net::if_::if_nametoindex("p9").expect("there");
            let mut other = Program::load(index, 1).expect("loaded");
            other.attach(index).expect("attached");
            other
        })
        .expect("namespace");
    let netns = lab.home.name();
    let reason = || lab.daemon.port("p9").to_string();
    lab.daemon.cli(&["port", "add", &format!("p9={XDP},netns={netns}")]).expect("it waits");
    assert!(reason().contains("ip link set dev p9 xdp off"), "{}", reason());
    assert!(!lab.home.exec(&["nft", "list", "ruleset"]).expect("nft").contains("p9"), "the host has it still");
    drop(other);
    lab.hosts[0].exec(&["ip", "link", "set", "far0", "up"]).expect("up");
    lab.daemon.wait_state("p9", "up").expect("it is taken when that is gone");
}

#[test]
fn devices_that_cannot_be_taken_say_why_and_name_the_other_engine() {
    if !xdp_or_skip() || !has_ethtool() || !has_queues() {
        return;
    }
    let home = Namespace::new("vph").expect("root");
    for words in [
        &["ip", "link", "add", "br9", "type", "bridge"][..],
        &["ip", "tuntap", "add", "t9", "mode", "tap"],
        &["ip", "link", "add", "j0", "mtu", "9000", "type", "veth", "peer", "name", "j1"],
        &["ip", "link", "add", "k0", "type", "veth", "peer", "name", "k1", "mtu", "9000"],
        &["ip", "link", "add", "q0", "numrxqueues", "2", "type", "veth", "peer", "name", "q1"],
        &["ip", "link", "add", "r0", "type", "veth", "peer", "name", "r1"],
        &["ethtool", "-L", "r1", "tx", "2"],
    ] {
        home.exec(words).expect("made");
    }
    let daemon = Daemon::start(&[]).expect("starts");
    for (device, part) in [
        ("br9", "no native XDP"),
        ("t9", "merged segments"),
        ("j0", "ip link set j0 mtu 1500"),
        ("k0", "the MTU of its other end"),
        ("q0", "use queues=2"),
        ("r0", "ethtool -L r0"),
        ("absent", "there is no device"),
    ] {
        if device != "absent" {
            home.exec(&["ip", "link", "set", device, "up"]).expect("up");
        }
        let spec = format!("{device}={XDP},netns={}", home.name());
        daemon.cli(&["port", "add", &spec]).expect("it waits");
        let error = daemon.port(device).to_string();
        assert!(error.contains(part), "{device}: {error}");
        assert!(error.contains("engine=packet") || device == "absent", "{device}: {error}");
        daemon.cli(&["port", "del", device]).expect("deleted");
    }
    let error = daemon.cli(&["port", "add", "t9=tap,engine=xdp"]).expect_err("a TAP").to_string();
    assert!(error.contains("engine= is not for tap ports"), "{error}");
}

#[test]
fn frames_that_find_no_chunk_are_counted() {
    if !xdp_or_skip() {
        return;
    }
    let (home, far) = (Namespace::new("vph").expect("root"), Namespace::new("vp").expect("root"));
    wire(&home, &far, 0, "1");
    far.exec(&["ip", "link", "set", "eth0", "up"]).expect("up");
    let (program, mut receiver) = home
        .run(|| {
            let index = nix::net::if_::if_nametoindex("p0").expect("there");
            let (socket, mut program) = (Unbound::new().expect("memory"), Program::load(index, 1).expect("loaded"));
            program.attach(index).expect("attached");
            socket.bind(index, 0).expect("bound");
            program.set_socket(0, socket.socket().as_raw_fd()).expect("in the map");
            let (receiver, _) = socket.into_halves();
            ((program, Promiscuous::new(index).expect("set")), receiver)
        })
        .expect("namespace");
    let rounds = 16;
    (0..rounds).for_each(|_| send_flows(&far, "eth0"));
    let (mut kept, mut all) = (0, 0);
    while receiver.receive(|frame| kept += u64::from(numbered(frame).is_some())) {
        all += 1;
    }
    receiver.release();
    let lost = receiver.take_lost();
    let sent = rounds * u64::from(FLOWS) * u64::from(PER_FLOW);
    assert_eq!(all, RX_CHUNKS, "as many as there are chunks");
    // The far end's own chatter may be among the lost, and the veth has a short queue of its own.
    assert!(lost > 0 && kept + lost <= sent + 100, "{kept} + {lost} of {sent}");
    assert_eq!(receiver.take_lost(), 0, "each is told once");
    // The chunks are the kernel's again.
    send_flows(&far, "eth0");
    assert!(receiver.receive(|_| ()));
    drop(program);
    wait_program(&home, "p0", false);
}
