//! `vhost-user` ports in trouble: VMMs that take their memory away or block, and a switch that is killed.

use std::{
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use switch_core::port::mem::MemFrame;
use vswitch_benches::{
    frontend::{FrontEnd, Options, Protocol},
    netns::wait_for,
};
use vswitch_tests::{
    PATIENCE,
    vhost::{Lab, count, introduce, plain},
};

/// Frames go to and fro between two innocent drivers until `stop`; returns how many did. None may be missing.
fn pass_frames(c: &mut FrontEnd, d: &mut FrontEnd, stop: &AtomicBool) -> u64 {
    let mut n = 0;
    let mut pass = |from, to, a: &mut FrontEnd, b: &mut FrontEnd| {
        let some: Vec<_> = (0..8).map(|k| plain(from, to, 60 + 300 * k as usize, n + k)).collect();
        n += 8;
        a.send_all(0, &some, PATIENCE).expect("sent");
        let got = b.receive_until(0, PATIENCE, |all| all.len() == some.len()).expect("received");
        assert!(got == some, "{} of {} frames arrived, or changed", got.len(), some.len());
    };
    while !stop.load(Relaxed) {
        pass(2, 3, c, d);
        pass(3, 2, d, c);
    }
    n
}

#[test]
fn a_vmm_that_truncates_its_memory_kills_its_own_port_only() {
    let lab = Lab::new(4, "", &["--domain", "default,mtu=9000"]);
    // The innocents are on the same worker, in a domain of their own.
    lab.daemon.cli(&["domain", "add", "other", "mtu=9000"]).expect("added");
    for port in ["vm2", "vm3"] {
        lab.daemon.cli(&["port", "detach", port, "default"]).expect("left");
        lab.daemon.cli(&["port", "attach", port, "other"]).expect("joined");
    }
    let (mut c, mut d) = (lab.connect(2, Options::default()), lab.connect(3, Options::default()));
    introduce_pair(&mut c, &mut d);
    let stop = AtomicBool::new(false);
    let passed = std::thread::scope(|scope| {
        let innocents = scope.spawn(|| pass_frames(&mut c, &mut d, &stop));
        let mut b = lab.connect(1, Options::default());
        for round in 0..12u64 {
            let mut a = lab.connect(0, Options::default());
            introduce(&mut a, &mut b);
            let long = |from, to| -> Vec<MemFrame> {
                (0..60).map(|n| plain(from, to, if n % 2 == 0 { 100 } else { 5000 }, n)).collect()
            };
            // All of it, only the receive buffers, and all but the first ring.
            let rest = [0, 0x10_0000, 0x1000][round as usize % 3];
            if round % 2 == 0 {
                a.send(0, &long(0, 1)).expect("sent");
                a.truncate(rest).expect("cut");
                a.kick(0).expect("kicked");
            } else {
                b.send(0, &long(1, 0)).expect("sent");
                a.truncate(rest).expect("cut");
            }
            // What is still to be touched is gone: sooner or later that is noticed.
            wait_for("the port is given up", PATIENCE, || {
                b.send(0, &long(1, 0)).expect("the innocent driver's ring is in order");
                a.kick(0).expect("kicked");
                lab.view("vm0")["state"] == "waiting"
            })
            .unwrap_or_else(|e| panic!("{e}: {}", lab.view("vm0")));
            let reason = lab.view("vm0")["reason"].as_str().unwrap_or_default().to_owned();
            assert!(reason.contains("broke a ring: the file of its memory was truncated"), "{reason}");
            b.receive(0).expect("received");
        }
        stop.store(true, Relaxed);
        innocents.join().expect("the innocent drivers")
    });
    assert!(passed > 0);
    wait_for("every one is counted", PATIENCE, || count(&lab.view("vm0"), "rx_errors") >= 12).expect("counted");
    for innocent in ["vm1", "vm2", "vm3"] {
        assert_eq!(count(&lab.view(innocent), "rx_errors"), 0, "{innocent}");
        assert!(innocent == "vm1" || lab.view(innocent)["state"] == "up", "{innocent}");
    }
    lab.check_balance(&["vm0", "vm1", "vm2", "vm3"]);
}

fn introduce_pair(c: &mut FrontEnd, d: &mut FrontEnd) {
    c.send_all(0, &[plain(2, 3, 60, 0)], PATIENCE).expect("sent");
    d.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
    d.send_all(0, &[plain(3, 2, 60, 0)], PATIENCE).expect("sent");
    c.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
}

#[test]
fn a_vmm_that_truncates_its_log_or_inflight_area_is_given_up() {
    let lab = Lab::new(2, "", &[]);
    let mut b = lab.connect(1, Options::default());
    for logging in [true, false] {
        let options = Options { protocol: Protocol::all(), ..Options::default() };
        let mut a = lab.connect(0, options);
        introduce(&mut a, &mut b);
        if logging {
            a.start_logging().expect("started");
            a.truncate_log().expect("cut");
        } else {
            // Ours cannot be cut off; one that the VMM made can.
            assert!(a.truncate_inflight().is_err(), "it is sealed");
            a.replace_inflight().expect("taken");
            a.truncate_inflight().expect("cut");
        }
        a.send(0, &[plain(0, 1, 60, 1)]).expect("sent");
        b.send(0, &[plain(1, 0, 60, 1)]).expect("sent");
        lab.wait_state("vm0", "waiting");
        let reason = lab.view("vm0")["reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains("truncated"), "{reason}");
    }
}

#[test]
fn a_killed_switch_loses_no_descriptor_and_returns_none_twice() {
    let mut lab = Lab::new(2, "", &[]);
    let options = Options { protocol: Protocol::all(), size: 128, ..Options::default() };
    let (mut a, mut b) = (lab.connect(0, options.clone()), lab.connect(1, options));
    introduce(&mut a, &mut b);
    for round in 0..8u64 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0;
                while !stop.load(Relaxed) {
                    let some: Vec<_> = (0..20).map(|k| plain(0, 1, 60 + 500 * k as usize % 1400, n + k)).collect();
                    n += a.send(0, &some).expect("no descriptor is returned twice") as u64;
                }
            });
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    b.receive(0).expect("no buffer is returned twice");
                }
            });
            std::thread::sleep(Duration::from_millis(20 + 3 * round));
            lab.daemon.kill().expect("killed");
            stop.store(true, Relaxed);
        });
        lab.daemon.restart().expect("it comes up again");
        for (port, front) in [&mut a, &mut b].into_iter().enumerate() {
            front.reconnect(&lab.path(port)).expect("connected again");
            lab.wait_state(&format!("vm{port}"), "up");
        }
        wait_for("every descriptor is back", PATIENCE, || {
            b.receive(0).expect("no buffer is returned twice");
            a.in_flight(0).expect("no descriptor is returned twice") == 0
        })
        .expect("none is lost");
        let last = plain(0, 1, 60, u64::from(u32::MAX) + round);
        a.send_all(0, std::slice::from_ref(&last), PATIENCE).expect("sent");
        let got = b.receive_until(0, PATIENCE, |all| all.contains(&last)).expect("received");
        assert_eq!(got.iter().filter(|frame| **frame == last).count(), 1, "after the reconnection all is as before");
    }
}

#[test]
fn a_vmm_whose_call_descriptor_blocks_stops_nobody_for_long() {
    let lab = Lab::new(4, "", &[]);
    let (mut c, mut d) = (lab.connect(2, Options::default()), lab.connect(3, Options::default()));
    introduce_pair(&mut c, &mut d);
    let (mut a, mut b) = (lab.connect(0, Options::default()), lab.connect(1, Options::default()));
    introduce(&mut a, &mut b);
    // The descriptor of the one who receives, then that of the one who sends.
    for port in ["vm1", "vm0"] {
        let clogged = if port == "vm1" { &mut b } else { &mut a };
        let _held = clogged.clog(0).expect("clogged");
        clogged.want_interrupts(0).expect("asked for");
        a.send(0, &[plain(0, 1, 60, 1)]).expect("sent");
        lab.wait_state(port, "waiting");
        let reason = lab.view(port)["reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains("its call descriptor makes the switch wait"), "{reason}");
        for n in 0..100 {
            let frame = plain(3, 2, 60, n);
            d.send_all(0, std::slice::from_ref(&frame), PATIENCE).expect("sent");
            let all = c.receive_until(0, PATIENCE, |all| all.contains(&frame)).expect("received");
            assert!(all.contains(&frame));
        }
    }
    wait_for("both are counted", PATIENCE, || {
        ["vm0", "vm1"].iter().all(|port| count(&lab.view(port), "rx_errors") == 1)
    })
    .expect("counted");
    lab.check_balance(&["vm0", "vm1", "vm2", "vm3"]);
}

/// A switch whose port `vm0` has seen VMs leave at once, and says so. `None` if the switch had no processor for so long that it must have
/// taken one of them for a VM that stayed (half a second): then all is as it should be, and not what is to be seen here.
fn left_at_once() -> Option<Lab> {
    let lab = Lab::new(2, "", &[]);
    for _ in 0..8 {
        drop(UnixStream::connect(lab.path(0)).expect("the port listens"));
    }
    let said =
        wait_for("the port says so", PATIENCE, || lab.view("vm0")["reason"].to_string().contains("leave at once"));
    let log = std::fs::read_to_string(lab.daemon.file("log")).expect("there");
    let first = log.split_once("let in twice a second").map_or(log.as_str(), |(first, _)| first);
    // 2026-01-02T03:04:05.678901Z: seconds of the day.
    let seconds = |line: &str| -> Option<f64> {
        let mut parts = line.split_once('T')?.1.split_once('Z')?.0.split(':').map(|part| part.parse::<f64>().ok());
        Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
    };
    let events = first.lines().skip_while(|line| !line.contains("a VM has connected"));
    let times: Vec<f64> = events.filter_map(seconds).collect();
    if times.windows(2).any(|pair| !(0.0..0.5).contains(&(pair[1] - pair[0]))) {
        return None;
    }
    said.unwrap_or_else(|e| panic!("{e}: {log}"));
    assert_eq!(log.matches("a VM has connected").count(), 4, "{log}");
    assert_eq!(log.matches("let in twice a second").count(), 1, "{log}");
    Some(lab)
}

#[test]
fn vms_that_leave_at_once_over_and_over_cost_little_and_are_told_once() {
    let lab = (0..10).find_map(|_| left_at_once()).expect("a processor at last");
    // One that works is served all the same, and makes an end of it.
    let (mut a, mut b) = (lab.connect(0, Options::default()), lab.connect(1, Options::default()));
    introduce(&mut a, &mut b);
    drop(a);
    wait_for("the port waits", PATIENCE, || lab.view("vm0")["reason"].to_string().contains("is connected"))
        .expect("said");
    assert!(!lab.view("vm0")["reason"].to_string().contains("leave at once"));
}
