//! What a VMM does beside frames on a `vhost-user` port: it moves its VM to another host, asks for an MTU, sets the status
//! of the device, and is left alone while the port's link is down.

use std::{collections::BTreeSet, os::unix::net::UnixListener, time::Duration};

use switch_core::{frame::offload::Offload, port::mem::MemFrame};
use vswitch_benches::{
    frontend::{FrontEnd, Options, Protocol},
    netns::wait_for,
};
use vswitch_tests::{
    PATIENCE,
    vhost::{Lab, count, introduce, mac, plain},
};

const SEND_RARP: u32 = 19;
const NET_SET_MTU: u32 = 20;
const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;

fn everything() -> Options {
    Options { protocol: Protocol::all(), ..Options::default() }
}

#[test]
fn exactly_the_pages_that_the_device_writes_to_are_logged() {
    let lab = Lab::new(2, "", &["--domain", "default,mtu=9000"]);
    for features in [u64::MAX, !switch_core::port::vhost_user::features::EVENT_IDX] {
        let base = everything();
        let options = Options { features: base.features & features, ..base };
        let mut a = lab.connect(0, options);
        let mut b = lab.connect(1, Options::default());
        introduce(&mut a, &mut b);
        a.start_logging().expect("started");
        a.take_dirty().expect("logged");
        for n in 0..40u64 {
            let before = a.snapshot().expect("read");
            let sent: Vec<_> = (0..n % 5).map(|k| plain(0, 1, 100, k)).collect();
            let back: Vec<_> = (0..1 + n % 3).map(|k| plain(1, 0, 60 + (n * 211 + k) as usize % 9000, k)).collect();
            a.send_all(0, &sent, PATIENCE).expect("sent");
            b.send_all(0, &back, PATIENCE).expect("sent");
            b.receive_until(0, PATIENCE, |all| all.len() == sent.len()).expect("received");
            // What arrived is looked at later, so that the driver gives no buffer back meanwhile.
            wait_for("all is quiet", PATIENCE, || {
                a.in_flight(0).expect("in order") == 0 && a.ready(0).expect("in order")
            })
            .expect("quiet");
            lab.check_balance(&["vm0", "vm1"]);
            let after = a.snapshot().expect("read");
            let changed: BTreeSet<u64> =
                before.iter().filter(|(page, bytes)| after[page] != **bytes).map(|(page, _)| *page).collect();
            let dirty = a.take_dirty().expect("logged");
            assert!(!changed.is_empty() && dirty.is_superset(&changed), "round {n}: {changed:?} but {dirty:?}");
            assert!(a.device_pages().is_superset(&dirty), "round {n}: {dirty:?}");
            // Pages of a frame's buffers and of both rings, and no more.
            let buffers: usize = back.iter().map(|f| (f.bytes.len() + 12).div_ceil(2048)).sum();
            assert!(dirty.len() <= buffers + 4, "round {n}: {} pages for {buffers} buffers", dirty.len());
            assert_eq!(a.receive(0).expect("received"), back);
        }
        a.stop_logging().expect("stopped");
        b.send_all(0, &[plain(1, 0, 60, 1)], PATIENCE).expect("sent");
        assert_eq!(a.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received").len(), 1);
    }
}

#[test]
fn a_station_that_has_moved_is_announced_to_everybody() {
    let lab = Lab::new(3, "", &[]);
    let mut fronts: Vec<FrontEnd> = (0..3).map(|port| lab.connect(port, everything())).collect();
    // It was behind another port before.
    fronts[2].send_all(0, &[plain(5, 1, 60, 0)], PATIENCE).expect("sent");
    let place = || {
        let entries = lab.daemon.json(&["fdb", "show"]).expect("shown");
        let entries = entries.as_array().expect("a list").clone();
        let station = mac(5).to_string();
        entries.iter().find(|e| e["mac"] == station.as_str()).map(|e| e["port"].as_str().unwrap_or_default().to_owned())
    };
    wait_for("it is known", PATIENCE, || place().as_deref() == Some("vm2")).expect("learned");
    for front in &mut fronts[..2] {
        front.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
    }
    let mut body = [0; 8];
    body[..6].copy_from_slice(&mac(5).0);
    assert_eq!(fronts[0].request(SEND_RARP, &body).expect("answered"), 0);
    let mut wanted = vec![0xff; 6];
    wanted.extend_from_slice(&mac(5).0);
    wanted.extend_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in 0..2 {
        wanted.extend_from_slice(&mac(5).0);
        wanted.extend_from_slice(&[0; 4]);
    }
    wanted.resize(60, 0);
    let wanted = MemFrame { bytes: wanted, offload: Offload::NONE };
    for front in &mut fronts[1..] {
        let got = front.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
        assert_eq!(got, std::slice::from_ref(&wanted));
    }
    wait_for("it has moved", PATIENCE, || place().as_deref() == Some("vm0")).expect("moved");
    lab.check_balance(&["vm0", "vm1", "vm2"]);
    assert_eq!(count(&lab.view("vm0"), "rx_frames"), 1, "counted as if the guest had sent it");
    assert!(fronts[0].receive(0).expect("received").is_empty(), "it does not come back");
}

#[test]
fn an_mtu_is_taken_if_the_domains_carry_it_and_the_status_is_kept() {
    let lab = Lab::new(1, "", &["--domain", "default,mtu=2000"]);
    let mut front = lab.connect(0, everything());
    for (mtu, answer) in [(2000u64, 0), (1500, 0), (68, 0), (67, 1), (2001, 1), (u64::MAX, 1), (0x1_0000_05dc, 1)] {
        assert_eq!(front.request(NET_SET_MTU, &mtu.to_ne_bytes()).expect("answered"), answer, "an MTU of {mtu}");
    }
    lab.daemon.cli(&["domain", "set", "default", "mtu=1000"]).expect("set");
    assert_eq!(front.request(NET_SET_MTU, &1001u64.to_ne_bytes()).expect("answered"), 1);

    assert_eq!(front.request(GET_STATUS, &[]).expect("answered"), 0);
    for status in [1u64, 3, 11, 15] {
        assert_eq!(front.request(SET_STATUS, &status.to_ne_bytes()).expect("answered"), 0);
        assert_eq!(front.request(GET_STATUS, &[]).expect("answered"), status);
    }
    lab.wait_state("vm0", "up");
    front.send_all(0, &[plain(0, 1, 60, 1), plain(0, 1, 60, 2)], PATIENCE).expect("sent");
    wait_for("they are taken", PATIENCE, || front.in_flight(0).expect("in order") == 0).expect("taken");
    // A reset stops all rings; where they were can still be asked for, as QEMU 7.2 does.
    assert_eq!(front.request(SET_STATUS, &0u64.to_ne_bytes()).expect("answered"), 0);
    lab.wait_state("vm0", "waiting");
    assert_eq!(front.request(GET_STATUS, &[]).expect("answered"), 0);
    assert_eq!(front.stop_ring(1).expect("stopped"), 2);
    for index in 0..2 {
        front.restart_ring(index).expect("started");
    }
    lab.wait_state("vm0", "up");
    // What is no status ends the connection, and so does a message that was not agreed on.
    assert_eq!(front.request(SET_STATUS, &256u64.to_ne_bytes()).expect("answered"), 1);
    assert!(front.request(GET_STATUS, &[]).is_err());
    let mut front = lab.connect(0, Options::default());
    assert!(front.request(GET_STATUS, &[]).is_err());
}

#[test]
fn a_switch_that_connects_stays_away_while_the_link_is_down() {
    let lab = Lab::new(2, ",mode=client", &[]);
    let listeners = [0, 1].map(|port| UnixListener::bind(lab.path(port)).expect("bound"));
    let [mut a, mut b] =
        [0, 1].map(|port: usize| FrontEnd::accept(&listeners[port], Options::default()).expect("started"));
    for port in ["vm0", "vm1"] {
        lab.wait_state(port, "up");
    }
    introduce(&mut a, &mut b);
    for _ in 0..3 {
        lab.daemon.cli(&["port", "set", "vm0", "link=down"]).expect("set");
        wait_for("the VM sees the connection go", PATIENCE, || a.share_memory().is_err()).expect("gone");
        listeners[0].set_nonblocking(true).expect("set");
        std::thread::sleep(Duration::from_millis(1200));
        assert!(listeners[0].accept().is_err(), "the switch has come back");
        listeners[0].set_nonblocking(false).expect("set");
        lab.daemon.cli(&["port", "set", "vm0", "link=up"]).expect("set");
        a = FrontEnd::accept(&listeners[0], Options::default()).expect("started");
        lab.wait_state("vm0", "up");
        introduce(&mut a, &mut b);
    }
}
