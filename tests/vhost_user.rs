//! `vhost-user` ports: drivers without VMs on a running switch, among themselves and with a TAP; VMs that come, go, break
//! the rules or say only half of what they want.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    time::{Duration, Instant},
};

use switch_core::{
    frame::offload::{Gso, Offload},
    port::{mem::MemFrame, vhost_user::features},
    sys::raw::RawSocket,
};
use vswitch_benches::{
    frames,
    frontend::{FrontEnd, Options},
    netns::{Namespace, wait_for},
};
use vswitch_tests::{
    PATIENCE,
    vhost::{Lab, count, introduce, mac, plain},
};

/// A TCP segment of IPv4 with its checksum (and, past one segment, its segmentation) owed.
fn tcp(from: u8, to: u8, payload: usize, segment: u16) -> MemFrame {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&mac(to).0);
    bytes.extend_from_slice(&mac(from).0);
    bytes.extend_from_slice(&[8, 0]);
    let total = (40 + payload) as u16;
    let mut ip =
        vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, from, 10, 0, 0, to];
    let sum = !ones_sum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let tcp_len = (20 + payload) as u16;
    let pseudo = ones_sum(&[&ip[12..20], &[0, 6], &tcp_len.to_be_bytes()].concat(), 0);
    bytes.extend_from_slice(&ip);
    let mut header = vec![0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    header[16..18].copy_from_slice(&pseudo.to_be_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend((0..payload).map(|i| (i * 7 + i / 251) as u8));
    let gso = if payload > usize::from(segment) { Gso::TcpV4 } else { Gso::None };
    let offload = Offload {
        needs_csum: true,
        gso,
        hdr_len: if gso == Gso::None { 0 } else { 54 },
        gso_size: if gso == Gso::None { 0 } else { segment },
        csum_start: 34,
        csum_offset: 16,
        ..Offload::NONE
    };
    MemFrame { bytes, offload }
}

fn differences(wanted: &MemFrame, got: &[MemFrame]) -> String {
    let lengths: Vec<_> = got.iter().map(|f| f.bytes.len()).collect();
    let at = got.first().and_then(|f| f.bytes.iter().zip(&wanted.bytes).position(|(a, b)| a != b));
    format!(
        "{:?} became {:?}, of {lengths:?} bytes, differing from {at:?} on",
        wanted.offload,
        got.first().map(|f| f.offload)
    )
}

fn ones_sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn frames_of_all_lengths_arrive_unchanged_both_ways() {
    let sets = [
        Options::default(),
        Options { size: 64, rx_buffer: 1600, ..Options::default() },
        Options { features: features::offered(true) & !features::EVENT_IDX, ..Options::default() },
        Options { features: features::offered(true) & !features::INDIRECT_DESC, ..Options::default() },
        Options { features: features::offered(true) & !features::MRG_RXBUF, rx_buffer: 66_000, ..Options::default() },
        Options {
            features: features::offered(true) & !(features::MRG_RXBUF | features::VERSION_1),
            rx_buffer: 66_000,
            size: 128,
            ..Options::default()
        },
    ];
    let lab = Lab::new(2, "", &["--domain", "default,mtu=9216"]);
    for options in sets {
        let mut a = lab.connect(0, options.clone());
        let mut b = lab.connect(1, options);
        introduce(&mut a, &mut b);
        let short = [60, 61, 1500, 1514, 2047, 2048, 2100, 2112, 2113, 4084, 4085, 8180, 8181, 9000];
        let plains = |from, to| short.map(|len| plain(from, to, len, len as u64)).to_vec();
        let owed =
            |from, to| [1, 1448, 1449, 4000, 32_000, 64_999, 65_495].map(|len| tcp(from, to, len, 1448)).to_vec();
        for frame in [plains(0, 1), owed(0, 1)].concat() {
            a.send_all(0, std::slice::from_ref(&frame), PATIENCE).expect("sent");
            let got = b.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
            assert!(got == [frame.clone()], "{} bytes forth: {}", frame.bytes.len(), differences(&frame, &got));
        }
        for frame in [plains(1, 0), owed(1, 0)].concat() {
            b.send_all(0, std::slice::from_ref(&frame), PATIENCE).expect("sent");
            let got = a.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
            assert!(got == [frame.clone()], "{} bytes back: {}", frame.bytes.len(), differences(&frame, &got));
        }
        // Many at once, of mixed lengths, in order.
        let many: Vec<_> = (0..400u64).map(|n| plain(0, 1, 60 + (n as usize * 37) % 3000, n)).collect();
        let mut got = Vec::new();
        for some in many.chunks(16) {
            a.send_all(0, some, PATIENCE).expect("sent");
            got.extend(b.receive_until(0, PATIENCE, |all| all.len() == some.len()).expect("received"));
        }
        assert!(got == many, "{} of {} arrived, or changed", got.len(), many.len());
        lab.check_balance(&["vm0", "vm1"]);
    }
}

#[test]
fn what_one_driver_owes_is_done_for_one_that_cannot() {
    let lab = Lab::new(2, "", &[]);
    let mut a = lab.connect(0, Options::default());
    let plain_only = features::offered(false);
    let mut b = lab.connect(1, Options { features: plain_only, ..Options::default() });
    introduce(&mut a, &mut b);
    let big = tcp(0, 1, 60_000, 1448);
    a.send_all(0, std::slice::from_ref(&big), PATIENCE).expect("sent");
    let segments = 60_000usize.div_ceil(1448);
    let got = b.receive_until(0, PATIENCE, |all| all.len() == segments).expect("received");
    assert_eq!(got.len(), segments);
    let mut payload = Vec::new();
    for segment in &got {
        assert_eq!(segment.offload, Offload::NONE);
        let bytes = &segment.bytes;
        assert_eq!(ones_sum(&bytes[14..34], 0), 0xffff, "header checksum");
        let tcp_len = (bytes.len() - 34) as u16;
        let pseudo = [&bytes[26..34], &[0, 6], &tcp_len.to_be_bytes()].concat();
        assert_eq!(ones_sum(&[&pseudo, &bytes[34..]].concat(), 0), 0xffff, "checksum");
        payload.extend_from_slice(&bytes[54..]);
    }
    assert!(payload == big.bytes[54..], "the payload arrived changed");
    assert_eq!(count(&lab.view("vm1"), "tx_segments"), segments as u64);
    // One that negotiated nothing cannot be told to vouch for anything either.
    b.send_all(0, &[plain(1, 0, 60, 9)], PATIENCE).expect("sent");
    assert_eq!(a.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received").len(), 1);
    // A driver that lies about its frame loses that frame.
    let lie = MemFrame { offload: Offload { csum_start: 2000, ..big.offload }, ..big };
    a.send_all(0, &[lie, plain(0, 1, 60, 10)], PATIENCE).expect("sent");
    assert_eq!(b.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received"), [plain(0, 1, 60, 10)]);
    assert_eq!(count(&lab.view("vm0"), "bad_offload"), 1);
    lab.check_balance(&["vm0", "vm1"]);
}

#[test]
fn frames_pass_between_a_driver_and_a_tap() {
    let host = Namespace::new("vv").expect("root");
    let tap = format!("host=tap,device=eth0,netns={}", host.name());
    let lab = Lab::new(1, "", &["--domain", "default,mtu=2000", "--port", &tap]);
    host.configure("eth0", &[]).expect("the device is there");
    host.exec(&["ip", "link", "set", "eth0", "address", &mac(9).to_string(), "mtu", "2000"]).expect("set");
    let mut socket = host.run(|| RawSocket::open("eth0", true)).expect("namespace").expect("socket");
    socket.set_timeout(Duration::from_millis(20)).expect("set");
    let mut vm = lab.connect(0, Options::default());
    lab.wait_state("host", "up");
    for (n, len) in (1u64..).zip([60, 61, 500, 1514, 1900, 2014]) {
        let forth = plain(0, 9, len, n);
        vm.send_all(0, std::slice::from_ref(&forth), PATIENCE).expect("sent");
        let mut got = Vec::new();
        wait_for("the frame arrives", PATIENCE, || {
            // Nothing yet is an error like any other here.
            let _ = socket.receive(|bytes| {
                if frames::number_of(bytes).is_some() {
                    got.push(bytes.to_vec());
                }
            });
            !got.is_empty()
        })
        .expect("arrives");
        assert!(got == [forth.bytes], "{len} bytes arrived changed at the TAP");
        let back = plain(9, 0, len, n);
        assert_eq!(socket.send(std::slice::from_ref(&back.bytes)).expect("sent"), 1);
        let numbered = |all: &[MemFrame]| all.iter().any(|f| frames::number_of(&f.bytes).is_some());
        let got = vm.receive_until(0, PATIENCE, numbered).expect("received");
        let got: Vec<_> = got.into_iter().filter(|f| frames::number_of(&f.bytes).is_some()).collect();
        assert!(got.len() == 1 && got[0].bytes == back.bytes, "{len} bytes arrived changed at the driver");
    }
    lab.check_balance(&["vm0", "host"]);
}

#[test]
fn a_vm_comes_and_goes_and_another_takes_its_place() {
    let lab = Lab::new(2, "", &[]);
    let reason = lab.view("vm0")["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("no VM is connected to") && reason.contains("0.sock"), "{reason}");
    let mut b = lab.connect(1, Options::default());
    for round in 0..5 {
        let mut a = lab.connect(0, Options { size: 64 << round, ..Options::default() });
        introduce(&mut a, &mut b);
        // A guest that resets its device goes on where it stopped.
        let last = plain(0, 1, 60, 1);
        a.send_all(0, std::slice::from_ref(&last), PATIENCE).expect("sent");
        b.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
        a.stop_ring(1).expect("stopped");
        lab.wait_state("vm0", "waiting");
        assert_eq!(a.send(0, &[plain(0, 1, 60, 2), plain(0, 1, 3000, 3)]).expect("queued"), 2);
        assert!(!b.wait(0, Duration::from_millis(100)).expect("waited"), "a stopped ring is left alone");
        a.restart_ring(1).expect("started");
        lab.wait_state("vm0", "up");
        let got = b.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
        // The second is longer than the domain's MTU.
        assert_eq!(got, [plain(0, 1, 60, 2)]);
        drop(a);
        lab.wait_state("vm0", "waiting");
        assert_eq!(lab.view("vm0")["fdb_entries"], 0, "its addresses are forgotten");
    }
    lab.check_balance(&["vm0", "vm1"]);
    let socket = lab.path(1);
    lab.daemon.cli(&["port", "del", "vm1"]).expect("deleted");
    assert!(!socket.exists(), "the socket goes with its port");
    assert!(b.share_memory().is_err(), "the connection too");
}

#[test]
fn memory_and_descriptors_change_under_traffic() {
    let lab = Lab::new(3, "", &["--domain", "default,mtu=9000"]);
    let mut a = lab.connect(0, Options::default());
    let mut b = lab.connect(1, Options::default());
    introduce(&mut a, &mut b);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut sent = 0u64;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut next = 1;
            while !stop.load(std::sync::atomic::Ordering::Relaxed)
                || b.wait(0, Duration::from_millis(200)).expect("waited")
            {
                for frame in b.receive(0).expect("the ring's rules are kept") {
                    let number = frames::number_of(&frame.bytes).expect("ours").expect("undamaged");
                    assert!(number >= next, "{number} came after {}", next - 1);
                    next = number + 1;
                }
            }
        });
        let begin = Instant::now();
        let mut rounds = 0;
        while begin.elapsed() < Duration::from_secs(3) {
            let some: Vec<_> = (1..=20).map(|n| plain(0, 1, if n % 3 == 0 { 8000 } else { 100 }, sent + n)).collect();
            sent += a.send(0, &some).expect("the ring's rules are kept") as u64;
            rounds += 1;
            match rounds % 4 {
                0 => a.share_memory().expect("accepted"),
                1 => {
                    a.stop_ring(1).expect("stopped");
                    a.restart_ring(1).expect("started");
                }
                _ => {}
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        receiver.join().expect("the receiver");
    });
    wait_for("everything is returned", PATIENCE, || a.in_flight(0).expect("the ring's rules are kept") == 0)
        .expect("returned");
    lab.check_balance(&["vm0", "vm1", "vm2"]);
    assert_eq!(count(&lab.view("vm0"), "rx_frames"), sent + 1, "none is lost while rings stop and start");
}

#[test]
fn a_vm_that_dies_or_lies_harms_only_its_own_port() {
    let lab = Lab::new(4, "", &[]);
    let mut b = lab.connect(1, Options::default());
    let mut c = lab.connect(2, Options::default());
    introduce(&mut c, &mut b);
    // Half a message, and nothing after it.
    let mut half = UnixStream::connect(lab.path(3)).expect("connected");
    half.write_all(&[1, 0, 0, 0, 1]).expect("sent");
    for round in 0..6 {
        let mut a = lab.connect(0, Options::default());
        a.send_all(0, &[plain(0, 1, 60, 0)], PATIENCE).expect("sent");
        let burst: Vec<_> = (0..200).map(|n| plain(0, 1, 1500, n)).collect();
        a.send(0, &burst).expect("sent");
        if round % 2 == 0 {
            a.break_ring(0).expect("broken");
            lab.wait_state("vm0", "waiting");
            let reason = lab.view("vm0")["reason"].as_str().unwrap_or_default().to_owned();
            assert!(reason.contains("broke a ring"), "{reason}");
            assert!(a.share_memory().is_err(), "it was disconnected");
        }
        drop(a);
        lab.wait_state("vm0", "waiting");
        // The others do not notice.
        let frame = plain(2, 1, 1000, round);
        c.send_all(0, std::slice::from_ref(&frame), PATIENCE).expect("sent");
        let mine = |f: &MemFrame| f.bytes[6..12] == mac(2).0;
        let got = b.receive_until(0, PATIENCE, |all| all.iter().any(mine)).expect("received");
        assert!(got.contains(&frame));
    }
    lab.check_balance(&["vm0", "vm1", "vm2", "vm3"]);
    assert_eq!(count(&lab.view("vm0"), "rx_errors"), 3, "a broken ring is counted");
    // A port whose VM is in the middle of a sentence can be taken away.
    lab.daemon.cli(&["port", "del", "vm3"]).expect("deleted");
    drop(half);
}

#[test]
fn a_ring_may_be_enabled_before_features_are_acknowledged_as_qemu_does() {
    let lab = Lab::new(1, "", &[]);
    let mut vmm = UnixStream::connect(lab.path(0)).expect("connected");
    vmm.set_read_timeout(Some(PATIENCE)).expect("set");
    let message = |code: u32, flags: u32, body: &[u32]| {
        let header = [code, flags, 4 * body.len() as u32];
        header.iter().chain(body).flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>()
    };
    // GET_FEATURES, SET_VRING_ENABLE of a ring that is there and asks for an answer.
    vmm.write_all(&message(1, 1, &[])).expect("sent");
    let mut reply = [0; 20];
    vmm.read_exact(&mut reply).expect("features");
    vmm.write_all(&message(18, 1 | 8, &[1, 1])).expect("sent");
    vmm.read_exact(&mut reply).expect("an answer");
    assert_eq!(reply.to_vec(), message(18, 1 | 4, &[0, 0]));
    // One that is not there is refused, and the connection ends.
    vmm.write_all(&message(18, 1 | 8, &[2, 1])).expect("sent");
    vmm.read_exact(&mut reply).expect("an answer");
    assert_eq!(reply.to_vec(), message(18, 1 | 4, &[1, 0]));
    assert_eq!(vmm.read(&mut reply).expect("closed"), 0);
}

#[test]
fn a_driver_that_takes_nothing_loses_frames_and_nobody_else_does() {
    let lab = Lab::new(2, "", &[]);
    let mut a = lab.connect(0, Options::default());
    let mut b = lab.connect(1, Options { size: 64, ..Options::default() });
    introduce(&mut a, &mut b);
    let many: Vec<_> = (0..200).map(|n| plain(0, 1, 60, n)).collect();
    a.send_all(0, &many, PATIENCE).expect("sent");
    lab.check_balance(&["vm0", "vm1"]);
    assert_eq!(count(&lab.view("vm1"), "queue_full"), 200 - 64);
    let got = b.receive(0).expect("received");
    assert!(got == many[..64], "the first ones are there");
    let small =
        Options { features: features::offered(true) & !features::MRG_RXBUF, rx_buffer: 1000, ..Options::default() };
    drop(b);
    let mut b = lab.connect(1, small);
    introduce(&mut a, &mut b);
    a.send_all(0, &[plain(0, 1, 1000, 1), plain(0, 1, 988, 2)], PATIENCE).expect("sent");
    assert_eq!(b.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received"), [plain(0, 1, 988, 2)]);
    assert_eq!(count(&lab.view("vm1"), "egress_too_big"), 1, "{}", lab.view("vm1"));
}

#[test]
fn no_wakeup_is_lost_when_everybody_sleeps_between_frames() {
    for features in [features::offered(true), features::offered(true) & !features::EVENT_IDX] {
        let lab = Lab::new(2, "", &["--poll", "interrupt"]);
        let options = Options { features, ..Options::default() };
        let mut a = lab.connect(0, options.clone());
        let mut b = lab.connect(1, options);
        introduce(&mut a, &mut b);
        for n in 0..3000u64 {
            let frame = plain(0, 1, 60, n);
            assert_eq!(a.send(0, std::slice::from_ref(&frame)).expect("sent"), 1);
            let got = b.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
            assert!(got == [frame], "frame {n} did not come: {got:?}");
            let back = plain(1, 0, 60, n);
            assert_eq!(b.send(0, std::slice::from_ref(&back)).expect("sent"), 1);
            let got = a.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
            assert!(got == [back], "frame {n} did not come back: {got:?}");
            // From no pause at all to one in which the worker is certainly asleep.
            let pause = Duration::from_micros(n % 97);
            let begin = Instant::now();
            if n % 3 == 0 {
                std::thread::sleep(pause);
            } else {
                while begin.elapsed() < pause {
                    std::hint::spin_loop();
                }
            }
        }
        lab.check_balance(&["vm0", "vm1"]);
    }
}

#[test]
fn a_switch_that_connects_does_so_again() {
    let lab = Lab::new(2, ",mode=client", &[]);
    assert!(lab.view("vm0")["reason"].as_str().unwrap_or_default().contains("no VM listens on"));
    let listeners = [0, 1].map(|port| UnixListener::bind(lab.path(port)).expect("bound"));
    for _ in 0..2 {
        let [mut a, mut b] =
            [0, 1].map(|port: usize| FrontEnd::accept(&listeners[port], Options::default()).expect("started"));
        lab.wait_state("vm0", "up");
        lab.wait_state("vm1", "up");
        introduce(&mut a, &mut b);
        drop((a, b));
        lab.wait_state("vm0", "waiting");
    }
}

#[test]
fn queues_that_a_driver_does_not_use_are_left_out() {
    let lab = Lab::new(2, ",queues=4", &["--workers", "2"]);
    for queues in [4, 1, 3] {
        let mut a = lab.connect(0, Options { queues, ..Options::default() });
        let mut b = lab.connect(1, Options { queues: 2, ..Options::default() });
        introduce_any(&mut a, queues, &mut b, 2);
        let mut got = 0;
        for n in 0..200u8 {
            // A flow of its own each: the destination port differs.
            let mut frame = tcp(0, 1, 100, 1448);
            frame.bytes[36] = n;
            frame.offload = Offload::NONE;
            let pair = usize::from(n) % queues;
            a.send_all(pair, &[frame], PATIENCE).expect("sent");
            got += receive_any(&mut b, 2, 1);
        }
        assert_eq!(got, 200, "with {queues} queues");
        for n in 0..200u8 {
            let mut frame = tcp(1, 0, 100, 1448);
            frame.bytes[36] = n;
            frame.offload = Offload::NONE;
            b.send_all(usize::from(n) % 2, &[frame], PATIENCE).expect("sent");
            got += receive_any(&mut a, queues, 1);
        }
        assert_eq!(got, 400, "with {queues} queues on the way back");
    }
    lab.check_balance(&["vm0", "vm1"]);
}

fn introduce_any(a: &mut FrontEnd, a_queues: usize, b: &mut FrontEnd, b_queues: usize) {
    a.send_all(0, &[plain(0, 1, 60, 0)], PATIENCE).expect("sent");
    assert_eq!(receive_any(b, b_queues, 1), 1);
    b.send_all(0, &[plain(1, 0, 60, 0)], PATIENCE).expect("sent");
    assert_eq!(receive_any(a, a_queues, 1), 1);
}

/// How many frames came on any queue, waiting for so many.
fn receive_any(front: &mut FrontEnd, queues: usize, wanted: usize) -> usize {
    let begin = Instant::now();
    let mut got = 0;
    while got < wanted && begin.elapsed() < PATIENCE {
        got += (0..queues).map(|pair| front.receive(pair).expect("the ring's rules are kept").len()).sum::<usize>();
        std::thread::yield_now();
    }
    got
}

#[test]
fn an_interrupt_that_went_to_a_descriptor_of_before_is_made_up_for() {
    let lab = Lab::new(2, "", &[]);
    let mut a = lab.connect(0, Options::default());
    let mut b = lab.connect(1, Options::default());
    introduce(&mut a, &mut b);
    b.want_interrupts(0).expect("asked for");
    a.send_all(0, &[plain(0, 1, 60, 7)], PATIENCE).expect("sent");
    wait_for("the frame is in the ring", PATIENCE, || count(&lab.view("vm1"), "tx_frames") == 2).expect("counted");
    // The driver has not looked, and the interrupt is lost. No other comes for this request of the driver's.
    b.exchange_call(0).expect("accepted");
    assert!(b.interrupted(0, PATIENCE).expect("waited"), "the driver is told to look");
    assert_eq!(b.receive(0).expect("the ring's rules are kept").len(), 1);
}
