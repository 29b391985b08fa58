//! Switches with netdevs as ports, for the tests of both engines of `packet` ports, and what holds for both.

use std::{ops::Range, time::Duration};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use switch_core::{
    mac::MacAddr,
    sys::{
        raw::RawSocket,
        xdp::{Program, Unbound},
    },
};
use vswitch_benches::{
    frames,
    netns::{Namespace, wait_for},
};

use crate::{Daemon, PATIENCE, reaches, transfer};

/// A switch with ports to some hosts.
pub struct Lab {
    /// The switch.
    pub daemon: Daemon,
    /// Where the packet ports' devices are.
    pub home: Namespace,
    /// The hosts, each with `eth0`.
    pub hosts: Vec<Namespace>,
}

impl Lab {
    /// A switch with a port to each of some hosts, as `kind,extras` says: `packet` (a veth whose near end `p<i>` is in
    /// a namespace of its own) or `tap`. The veths of an AF_XDP port have as many queues as the port.
    ///
    /// # Panics
    /// Not root, or the switch does not start.
    #[must_use]
    pub fn new(ports: &[&str], arguments: &[&str]) -> Lab {
        let home = Namespace::new("vph").expect("root");
        let hosts: Vec<Namespace> = ports.iter().map(|_| Namespace::new("vp").expect("root")).collect();
        let mut specs = Vec::new();
        for (i, (host, port)) in hosts.iter().zip(ports).enumerate() {
            if port.starts_with("packet") {
                wire(&home, host, i, queues_of(port));
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

    /// Whether one host answers another in the end.
    #[must_use]
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        reaches(&self.hosts[from], &format!("10.8.0.{}", to + 1))
    }

    /// `up` or `waiting`.
    #[must_use]
    pub fn state(&self, port: &str) -> serde_json::Value {
        self.daemon.port(port)["state"].clone()
    }

    /// Sends so many bytes from one host to another; they must arrive as they were sent.
    ///
    /// # Panics
    /// They do not.
    pub fn transfer(&self, from: usize, to: usize, address: &str, bytes: usize) {
        transfer(&self.hosts[from], &self.hosts[to], address, bytes);
    }
}

/// The queues that the veth of a port must have.
fn queues_of(port: &str) -> &str {
    let wanted = port.split(',').find_map(|word| word.strip_prefix("queues="));
    wanted.filter(|_| port.contains("engine=xdp")).unwrap_or("1")
}

/// A veth from `eth0` of a host to `p<i>` at home, which is up, with so many queues each way.
///
/// # Panics
/// Not root, or they exist.
pub fn wire(home: &Namespace, host: &Namespace, i: usize, queues: &str) {
    let near = format!("p{i}");
    home.exec(&["ip", "link", "add", &near, "type", "veth", "peer", "name", "eth0", "netns", host.name()])
        .expect("root");
    if queues != "1" {
        home.exec(&["ethtool", "-L", &near, "rx", queues, "tx", queues]).expect("as many as there are");
        host.exec(&["ethtool", "-L", "eth0", "rx", queues, "tx", queues]).expect("as many as there are processors");
    }
    home.exec(&["ip", "link", "set", &near, "up"]).expect("root");
}

/// Whether AF_XDP can be had; if not, it says so as a skipped test.
#[must_use]
pub fn xdp_or_skip() -> bool {
    let tried = Program::load(1, 1).map_err(|e| e.to_string()).and_then(|_| Unbound::new().map_err(|e| e.to_string()));
    if let Err(why) = &tried {
        crate::skip(&format!("this kernel has no AF_XDP: {why}"));
    }
    tried.is_ok()
}

/// All hosts of a lab reach each other, and data arrives unchanged, over IPv4 and IPv6.
///
/// # Panics
/// It is not so.
pub fn all_reach_all(lab: &Lab) {
    for from in 0..lab.hosts.len() {
        for to in 0..lab.hosts.len() {
            if from != to {
                assert!(lab.reaches(from, to), "from {from} to {to}");
                lab.transfer(from, to, &format!("10.8.0.{}", to + 1), 5_000_000);
                lab.transfer(from, to, &format!("fd08::{}", to + 1), 1_000_000);
            }
        }
    }
}

/// Two packet ports (`packet` and what else) joined by a wire carry tagged frames from one domain to another.
///
/// # Panics
/// It is not so.
pub fn a_tagged_wire_carries_data(packet: &str) {
    let lab = Lab::new(
        &["tap,domain=red", &format!("{packet},domain=blue"), "tap,offload=off,domain=blue"],
        &["--domain", "red", "--domain", "blue"],
    );
    lab.home.exec(&["ip", "link", "add", "name", "ta", "type", "veth", "peer", "name", "tb"]).expect("made");
    for (device, domain) in [("ta", "red"), ("tb", "blue")] {
        lab.home.exec(&["ip", "link", "set", device, "up"]).expect("up");
        let netns = lab.home.name();
        lab.daemon
            .cli(&["port", "add", &format!("{device}={packet},netns={netns},domain={domain}:tag=7")])
            .expect("added");
    }
    wait_for("the trunk is up", PATIENCE, || lab.state("ta") == "up" && lab.state("tb") == "up").expect("up");
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
        assert!(lab.reaches(from, to), "from {from} to {to}");
        lab.transfer(from, to, &format!("10.8.0.{}", to + 1), 5_000_000);
    }
}

/// A frame with a tag goes to the domain of the tag, and leaves with the tag of the port.
///
/// # Panics
/// It is not so.
pub fn a_tag_decides_and_is_kept(packet: &str) {
    let lab = Lab::new(
        &["domain=red:tag=5,domain=default", "domain=red:tag=6", "domain=red", "domain=default"]
            .map(|domains| format!("{packet},{domains}"))
            .each_ref()
            .map(String::as_str),
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

/// A port waits while its device is down, deleted or without a carrier, and comes back with it.
///
/// # Panics
/// It is not so.
pub fn a_port_comes_back_with_its_device(packet: &str) {
    let lab = Lab::new(&[packet, packet], &[]);
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
    wire(&lab.home, &lab.hosts[0], 0, queues_of(packet));
    reason("no carrier").expect("the other end is down");
    lab.hosts[0].configure("eth0", &["10.8.0.1/24"]).expect("configured");
    wait_for("the port is up again", PATIENCE, || lab.state("h0") == "up").expect("up");
    assert!(lab.reaches(0, 1) && lab.reaches(1, 0));
}

/// A UDP datagram of a flow, with a number.
#[must_use]
pub fn datagram(flow: u8, number: u32) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 8, 2, 2, 0, 0, 0, 8, 1, 8, 0]);
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 9, 17, 0, 0, 10, 8, 0, 1, 10, 8, 0, 2]);
    frame[34..42].copy_from_slice(&[0x40, flow, 0x50, 0, 0, 26, 0, 0]);
    frame[42] = flow;
    frame[43..47].copy_from_slice(&number.to_be_bytes());
    frame
}

/// Flow and number of such a datagram.
///
/// # Panics
/// Never: the frame is long enough when it is looked at.
#[must_use]
pub fn numbered(frame: &[u8]) -> Option<(u8, u32)> {
    let ours = frame.len() >= 60 && frame[6..14] == [2, 0, 0, 0, 8, 1, 8, 0] && frame[23] == 17;
    ours.then(|| (frame[42], u32::from_be_bytes(frame[43..47].try_into().expect("four bytes"))))
}

/// Flows of [`send_flows`].
pub const FLOWS: u8 = 16;
/// Datagrams of each.
pub const PER_FLOW: u32 = 500;
/// Of each flow, sent at once.
const HANDFUL: u32 = 10;

/// Sends the flows by turns from one processor, because the kernel keeps no order between its processors.
///
/// # Panics
/// The device does not take them.
pub fn send_flows(host: &Namespace, device: &str) {
    send_some(host, device, 0..PER_FLOW);
}

/// The same with some of the numbers.
fn send_some(host: &Namespace, device: &str, numbers: Range<u32>) {
    host.run(|| {
        // A thread of its own, which ends here.
        let mut first = CpuSet::new();
        first.set(0).expect("there is one");
        sched_setaffinity(Pid::from_raw(0), &first).expect("set");
        let socket = RawSocket::open(device, false).expect("opened");
        for number in numbers {
            let burst: Vec<_> = (0..FLOWS).map(|flow| datagram(flow, number)).collect();
            let mut left = &burst[..];
            while !left.is_empty() {
                left = &left[socket.send(left).expect("sent")..];
            }
        }
    })
    .expect("namespace");
}

/// Two ports with several queues, on two workers, carry data and keep the order of each flow; returns the lab.
///
/// # Panics
/// It is not so.
pub fn queues_keep_the_order_of_each_flow(ports: &[&str; 2]) -> Lab {
    let cpus = if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) { "0,1" } else { "0" };
    let lab = Lab::new(ports, &["--workers", "2", "--cpus", cpus]);
    assert!(lab.reaches(0, 1) && lab.reaches(1, 0), "and nothing that is sent comes back");
    lab.transfer(0, 1, "10.8.0.2", 5_000_000);
    lab.transfer(1, 0, "fd08::1", 5_000_000);
    let mut sink = lab.hosts[1].run(|| RawSocket::open("eth0", true)).expect("namespace").expect("opened");
    sink.set_timeout(Duration::from_millis(50)).expect("set");
    let mut arrived = vec![Vec::new(); usize::from(FLOWS)];
    // So many at once that no queue on the way is too short for them, however late the switch has its turn.
    for begin in (0..PER_FLOW).step_by(HANDFUL as usize) {
        send_some(&lab.hosts[0], "eth0", begin..begin + HANDFUL);
        let all = usize::from(FLOWS) * (begin + HANDFUL) as usize;
        wait_for("all frames arrive", PATIENCE, || {
            let mut note = |frame: &[u8]| {
                if let Some((flow, number)) = numbered(frame) {
                    arrived[usize::from(flow)].push(number);
                }
            };
            while sink.receive(&mut note).expect("read") > 0 {}
            arrived.iter().map(Vec::len).sum::<usize>() >= all
        })
        .expect("all");
    }
    for (flow, numbers) in arrived.iter().enumerate() {
        assert!(numbers.iter().copied().eq(0..PER_FLOW), "flow {flow}: {numbers:?}");
    }
    lab
}
