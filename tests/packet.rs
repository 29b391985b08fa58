//! Existing netdevs as ports: veth ends among themselves and with TAPs, tags, devices that come and go.

use std::time::Duration;

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use switch_core::{
    batch::Batch,
    frame::offload::VNET_HDR_BYTES,
    mac::MacAddr,
    sys::{
        packet::{PacketSocket, Received},
        raw::RawSocket,
    },
};
use vswitch_benches::{
    frames,
    netns::{Namespace, wait_for},
    tools::installed,
};
use vswitch_tests::{Daemon, PATIENCE, reaches, transfer};

struct Lab {
    daemon: Daemon,
    /// Where the packet ports' devices are.
    home: Namespace,
    hosts: Vec<Namespace>,
}

impl Lab {
    /// A switch with a port to each of some hosts, as `kind,extras` says: `packet` (a veth whose near end `p<i>` is in
    /// a namespace of its own) or `tap`.
    fn new(ports: &[&str], arguments: &[&str]) -> Lab {
        let home = Namespace::new("vph").expect("root");
        let hosts: Vec<Namespace> = ports.iter().map(|_| Namespace::new("vp").expect("root")).collect();
        let mut specs = Vec::new();
        for (i, (host, port)) in hosts.iter().zip(ports).enumerate() {
            if port.starts_with("packet") {
                wire(&home, host, i);
                specs.push(format!("h{i}={port},device=p{i},netns={}", home.name()));
            } else {
                specs.push(format!("h{i}={port},device=eth0,netns={}", host.name()));
            }
        }
        let mut all = arguments.to_vec();
        for spec in &specs {
            all.extend(["--port", spec]);
        }
        let daemon = Daemon::start(&all).expect("the switch starts");
        for (i, host) in hosts.iter().enumerate() {
            host.configure("eth0", &[&format!("10.8.0.{}/24", i + 1), &format!("fd08::{}/64", i + 1)])
                .expect("the device is there");
        }
        Lab { daemon, home, hosts }
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        reaches(&self.hosts[from], &format!("10.8.0.{}", to + 1))
    }

    fn state(&self, port: &str) -> serde_json::Value {
        self.daemon.json(&["port", "show", port]).expect("shown")[0]["state"].clone()
    }

    /// Sends so many bytes from one host to another; they must arrive as they were sent.
    fn transfer(&self, from: usize, to: usize, address: &str, bytes: usize) {
        transfer(&self.hosts[from], &self.hosts[to], address, bytes);
    }
}

/// A veth from `eth0` of a host to `p<i>` at home, which is up.
fn wire(home: &Namespace, host: &Namespace, i: usize) {
    let near = format!("p{i}");
    home.exec(&["ip", "link", "add", &near, "type", "veth", "peer", "name", "eth0", "netns", host.name()])
        .expect("root");
    home.exec(&["ip", "link", "set", &near, "up"]).expect("root");
}

#[test]
fn netdevs_and_taps_reach_each_other_and_data_arrives_unchanged() {
    let lab = Lab::new(&["packet", "packet,offload=off", "tap", "tap,offload=off"], &[]);
    for from in 0..4 {
        for to in 0..4 {
            if from != to {
                assert!(lab.reaches(from, to), "from {from} to {to}");
                lab.transfer(from, to, &format!("10.8.0.{}", to + 1), 5_000_000);
                lab.transfer(from, to, &format!("fd08::{}", to + 1), 1_000_000);
            }
        }
    }
    let segments = |port: &str| {
        lab.daemon.json(&["port", "show", port]).expect("shown")[0]["counters"]["tx_segments"].as_u64().unwrap_or(0)
    };
    assert_eq!(segments("h0"), 0, "the device segments");
    assert!(segments("h1") > 0, "without offload the switch does");
}

#[test]
fn data_over_a_tagged_wire_between_two_ports_arrives_unchanged() {
    let lab = Lab::new(
        &["tap,domain=red", "packet,domain=blue", "tap,offload=off,domain=blue"],
        &["--domain", "red", "--domain", "blue"],
    );
    lab.home.exec(&["ip", "link", "add", "name", "ta", "type", "veth", "peer", "name", "tb"]).expect("made");
    for (device, domain) in [("ta", "red"), ("tb", "blue")] {
        lab.home.exec(&["ip", "link", "set", device, "up"]).expect("up");
        let netns = lab.home.name();
        lab.daemon
            .cli(&["port", "add", &format!("{device}=packet,netns={netns},domain={domain}:tag=7")])
            .expect("added");
    }
    wait_for("the trunk is up", PATIENCE, || lab.state("ta") == "up" && lab.state("tb") == "up").expect("up");
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
        assert!(lab.reaches(from, to), "from {from} to {to}");
        lab.transfer(from, to, &format!("10.8.0.{}", to + 1), 5_000_000);
    }
}

#[test]
fn a_frame_with_a_tag_goes_to_the_domain_of_the_tag_and_keeps_it() {
    let lab = Lab::new(
        &["packet,domain=red:tag=5,domain=default", "packet,domain=red:tag=6", "packet,domain=red", "packet"],
        &["--domain", "red"],
    );
    let (dst, src) = (MacAddr([2, 0, 0, 0, 8, 2]), MacAddr([2, 0, 0, 0, 8, 1]));
    let plain = frames::build(dst, src, 100, 1);
    let tagged = |tci: [u8; 2]| [&plain[..12], &[0x81, 0x00], &tci, &plain[12..]].concat();
    let near: Vec<std::cell::RefCell<RawSocket>> = lab.hosts[2..]
        .iter()
        .map(|host| {
            let socket = host.run(|| RawSocket::open("eth0", true)).expect("namespace").expect("opened");
            socket.set_timeout(Duration::from_millis(50)).expect("set");
            socket.into()
        })
        .collect();
    // The tag of port 1 is taken off by its kernel too, so tcpdump, which puts it back, reads there.
    let capture = lab.daemon.file("capture");
    let path = capture.to_str().expect("text");
    let _tcpdump = lab.hosts[1]
        .spawn(&["tcpdump", "-i", "eth0", "-U", "-w", path, "-Q", "in", "ether", "src", "02:00:00:00:08:01"])
        .expect("tcpdump");
    wait_for("tcpdump is ready", PATIENCE, || std::fs::metadata(&capture).is_ok_and(|m| m.len() >= 24)).expect("ready");
    let sender = lab.hosts[0].run(|| RawSocket::open("eth0", false)).expect("namespace").expect("opened");
    // Priority 5, VLAN 5.
    sender.send(&[tagged([0xa0, 5])]).expect("sent");
    let seen = |index: usize| {
        let mut found = false;
        near[index]
            .borrow_mut()
            .receive(|frame| found |= frame[..plain.len().min(frame.len())] == plain[..])
            .expect("read");
        found
    };
    wait_for("red has the frame", PATIENCE, || seen(0)).expect("untagged");
    wait_for("the tagged side has it", PATIENCE, || {
        let wanted = tagged([0xa0, 6]);
        std::fs::read(&capture).is_ok_and(|bytes| bytes.windows(wanted.len()).any(|w| w == wanted))
    })
    .expect("tagged with the port's own VLAN and the frame's priority");
    // Untagged it belongs to the other domain; by then anything that leaked would have arrived before.
    sender.send(&[frames::build(dst, src, 100, 2)]).expect("sent");
    let mut arrived = Vec::new();
    wait_for("the default domain has the second frame", PATIENCE, || {
        near[1].borrow_mut().receive(|f| arrived.extend(frames::number_of(f).and_then(Result::ok))).expect("read");
        arrived.contains(&2)
    })
    .expect("untagged");
    assert_eq!(arrived, [2], "nothing of red");
}

#[test]
fn a_port_waits_for_its_device_and_comes_back_with_it() {
    let lab = Lab::new(&["packet", "packet"], &[]);
    assert!(lab.reaches(0, 1));
    lab.home.exec(&["ip", "link", "set", "p0", "down"]).expect("down");
    wait_for("the port notices", PATIENCE, || lab.state("h0") == "waiting").expect("waiting");
    let reason = |what: &str| {
        wait_for(what, PATIENCE, || lab.daemon.json(&["port", "show", "h0"]).expect("shown").to_string().contains(what))
    };
    reason("ip link set p0 up").expect("the mend is named");
    lab.home.exec(&["ip", "link", "set", "p0", "up"]).expect("up");
    wait_for("the port is up again", PATIENCE, || lab.state("h0") == "up").expect("up");
    assert!(lab.reaches(0, 1));
    lab.home.exec(&["ip", "link", "del", "p0"]).expect("deleted");
    reason("there is no device").expect("waiting");
    assert_eq!((lab.state("h0"), lab.state("h1")), ("waiting".into(), "up".into()));
    wire(&lab.home, &lab.hosts[0], 0);
    reason("no carrier").expect("the other end is down");
    lab.hosts[0].configure("eth0", &["10.8.0.1/24"]).expect("configured");
    wait_for("the port is up again", PATIENCE, || lab.state("h0") == "up").expect("up");
    assert!(lab.reaches(0, 1) && lab.reaches(1, 0));
}

/// A UDP datagram of a flow, with a number.
fn datagram(flow: u8, number: u32) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 8, 2, 2, 0, 0, 0, 8, 1, 8, 0]);
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 9, 17, 0, 0, 10, 8, 0, 1, 10, 8, 0, 2]);
    frame[34..42].copy_from_slice(&[0x40, flow, 0x50, 0, 0, 26, 0, 0]);
    frame[42] = flow;
    frame[43..47].copy_from_slice(&number.to_be_bytes());
    frame
}

fn numbered(frame: &[u8]) -> Option<(u8, u32)> {
    let ours = frame.len() >= 60 && frame[6..14] == [2, 0, 0, 0, 8, 1, 8, 0] && frame[23] == 17;
    ours.then(|| (frame[42], u32::from_be_bytes(frame[43..47].try_into().expect("four bytes"))))
}

const FLOWS: u8 = 16;
const PER_FLOW: u32 = 500;

/// Sends the flows by turns from one processor, because the kernel keeps no order between its processors.
fn send_flows(host: &Namespace, device: &str) {
    host.run(|| {
        // A thread of its own, which ends here.
        let mut first = CpuSet::new();
        first.set(0).expect("there is one");
        sched_setaffinity(Pid::from_raw(0), &first).expect("set");
        let socket = RawSocket::open(device, false).expect("opened");
        for number in 0..PER_FLOW {
            let burst: Vec<_> = (0..FLOWS).map(|flow| datagram(flow, number)).collect();
            let mut left = &burst[..];
            while !left.is_empty() {
                left = &left[socket.send(left).expect("sent")..];
            }
        }
    })
    .expect("namespace");
}

#[test]
fn several_queues_keep_the_order_of_each_flow() {
    let cpus = if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) { "0,1" } else { "0" };
    let lab = Lab::new(&["packet,queues=2", "packet,queues=2,offload=off"], &["--workers", "2", "--cpus", cpus]);
    assert!(lab.reaches(0, 1) && lab.reaches(1, 0), "and nothing that is sent comes back");
    lab.transfer(0, 1, "10.8.0.2", 5_000_000);
    lab.transfer(1, 0, "fd08::1", 5_000_000);
    let mut sink = lab.hosts[1].run(|| RawSocket::open("eth0", true)).expect("namespace").expect("opened");
    sink.set_timeout(Duration::from_millis(50)).expect("set");
    send_flows(&lab.hosts[0], "eth0");
    let mut arrived = vec![Vec::new(); usize::from(FLOWS)];
    let all = usize::from(FLOWS) * PER_FLOW as usize;
    wait_for("all frames arrive", PATIENCE, || {
        let note = |frame: &[u8]| {
            if let Some((flow, number)) = numbered(frame) {
                arrived[usize::from(flow)].push(number);
            }
        };
        sink.receive(note).expect("read");
        arrived.iter().map(Vec::len).sum::<usize>() >= all
    })
    .expect("all");
    for (flow, numbers) in arrived.iter().enumerate() {
        assert!(numbers.iter().copied().eq(0..PER_FLOW), "flow {flow}: {numbers:?}");
    }
}

#[test]
fn a_group_of_sockets_divides_flows_and_sees_nothing_twice() {
    let (home, far) = (Namespace::new("vph").expect("root"), Namespace::new("vp").expect("root"));
    wire(&home, &far, 0);
    far.exec(&["ip", "link", "set", "eth0", "up"]).expect("up");
    let sockets = home
        .run(|| {
            let index = nix::net::if_::if_nametoindex("p0").expect("there");
            PacketSocket::open_many(index, None, 2)
        })
        .expect("namespace")
        .expect("opened");
    send_flows(&far, "eth0");
    // What leaves by the device is nobody's to receive.
    send_flows(&home, "p0");
    let mut seen = vec![Vec::new(); usize::from(FLOWS)];
    let mut batch = Batch::new();
    for (which, socket) in sockets.iter().enumerate() {
        loop {
            let mut received = [Received::default(); switch_core::batch::BURST_FRAMES];
            let burst = batch.begin_burst();
            let Ok(n) = socket.receive(batch.burst_buffers(burst), &mut received) else { break };
            for (index, received) in received[..n].iter().enumerate() {
                let (slot, _) = batch.burst_buffer(burst, index);
                if let Some((flow, number)) = numbered(&slot[VNET_HDR_BYTES..][..received.len]) {
                    seen[usize::from(flow)].push((which, number));
                }
            }
        }
    }
    for (flow, numbers) in seen.iter().enumerate() {
        assert!(numbers.iter().map(|(_, n)| *n).eq(0..PER_FLOW), "flow {flow}");
        assert!(numbers.iter().all(|(which, _)| *which == numbers[0].0), "flow {flow} comes to one socket");
    }
    let firsts: Vec<usize> = seen.iter().map(|numbers| numbers[0].0).collect();
    assert!(firsts.contains(&0) && firsts.contains(&1), "both have some: {firsts:?}");
}

#[test]
fn frames_that_find_the_socket_full_are_counted() {
    let (home, far) = (Namespace::new("vph").expect("root"), Namespace::new("vp").expect("root"));
    wire(&home, &far, 0);
    far.exec(&["ip", "link", "set", "eth0", "up"]).expect("up");
    let socket = home
        .run(|| PacketSocket::open(nix::net::if_::if_nametoindex("p0").expect("there"), None))
        .expect("namespace")
        .expect("opened");
    // What the kernels of both ends had to say before.
    let _ = socket.take_lost();
    let rounds = 16;
    (0..rounds).for_each(|_| send_flows(&far, "eth0"));
    let lost = socket.take_lost();
    let (mut batch, mut kept) = (Batch::new(), 0);
    let mut received = [Received::default(); switch_core::batch::BURST_FRAMES];
    loop {
        let burst = batch.begin_burst();
        let Ok(n) = socket.receive(batch.burst_buffers(burst), &mut received) else { break };
        for (index, received) in received[..n].iter().enumerate() {
            let (slot, _) = batch.burst_buffer(burst, index);
            kept += u64::from(numbered(&slot[VNET_HDR_BYTES..][..received.len]).is_some());
        }
    }
    let sent = rounds * u64::from(FLOWS) * u64::from(PER_FLOW);
    assert!(lost > 0, "{sent} frames are more than a socket holds");
    // The far end's own chatter may be among the lost, not among the kept.
    assert!(kept + lost >= sent && kept + lost <= sent + 100, "{kept} + {lost} of {sent}");
}

#[test]
fn a_device_without_offloads_is_given_what_its_kernel_segments() {
    if !installed("ethtool") {
        vswitch_tests::skip("ethtool is not installed");
        return;
    }
    let lab = Lab::new(&["packet", "packet"], &[]);
    lab.home.exec(&["ethtool", "-K", "p0", "tso", "off", "tx", "off", "gso", "off"]).expect("veth can");
    assert!(lab.reaches(0, 1));
    lab.transfer(1, 0, "10.8.0.1", 5_000_000);
    lab.transfer(1, 0, "fd08::1", 5_000_000);
    lab.transfer(0, 1, "10.8.0.2", 5_000_000);
    let shown = lab.daemon.json(&["port", "show", "h0"]).expect("shown");
    assert_eq!(shown[0]["counters"]["tx_segments"], 0, "the switch leaves it to the kernel: {shown}");
}
