//! Guests, drivers, QEMUs and switches that end and begin again.

use serde_json::json;
use vswitch_tests::guest::{Guest, Machine, NetnsPeer, Setup, check_transfer};

use crate::lab::{Lab, Pings, long_checksum, slow_fetch};

const A: &str = "10.6.0.1";
const B: &str = "10.6.0.2";
const C: &str = "10.6.0.3";

fn join(guest: &Guest, address: &str) {
    guest.configure("eth0", &[&format!("{address}/24")]).expect("set");
}

fn exchange(a: &dyn Machine, b: &dyn Machine, what: &str) {
    a.reach(B).unwrap_or_else(|e| panic!("{what}: {e:#}"));
    check_transfer(a, b, B).unwrap_or_else(|e| panic!("{what}: to a: {e:#}"));
    check_transfer(b, a, A).unwrap_or_else(|e| panic!("{what}: to b: {e:#}"));
}

/// Guests on port `a`, with several queues on a socket of the switch's, and on port `b`, whose socket is QEMU's.
fn setups(lab: &Lab) -> [Setup; 2] {
    [
        Setup::new(1).cpus(2).vhost_user(&lab.path("a"), false, 2, ""),
        Setup::new(2).vhost_user(&lab.path("b"), true, 1, ""),
    ]
}

fn start(setups: &[Setup; 2]) -> [Guest; 2] {
    let guests = [0, 1].map(|n| setups[n].start().expect("started"));
    for (guest, address) in guests.iter().zip([A, B]) {
        guest.ready().expect("boots");
        join(guest, address);
    }
    guests
}

#[test]
fn guests_reboot_reload_their_driver_and_die_in_mid_transfer() {
    let peer = NetnsPeer::new("vgl").expect("root");
    let tap = format!("c=tap,device=eth0,netns={}", peer.namespace.name());
    let ports = ["a=vhost-user,path=@/a,queues=2", "b=vhost-user,path=@/b,mode=client", &tap];
    let Some(lab) = Lab::new(&[], &ports) else { return };
    peer.namespace.configure("eth0", &[&format!("{C}/24")]).expect("set");
    let setups = setups(&lab);
    let [mut a, mut b] = start(&setups);
    exchange(&a, &b, "at first");

    for (guest, port, address) in [(&a, "a", A), (&b, "b", B)] {
        guest.reboot().expect("boots again");
        join(guest, address);
        exchange(&a, &b, &format!("{port} has rebooted"));

        guest.sh("rmmod virtio_net").expect("no device is in use");
        lab.daemon.wait_state(port, "waiting").expect("no driver");
        peer.reach(if port == "a" { B } else { A }).expect("the others go on");
        guest.sh("insmod /modules/virtio_net.ko").expect("loaded");
        join(guest, address);
        lab.wait_up(&[port]);
        exchange(&a, &b, &format!("{port} has its driver again"));
    }

    a.qmp("system_reset", json!({})).expect("reset");
    a.ready().expect("boots again");
    join(&a, A);
    exchange(&a, &b, "a was reset");

    // A guest is stopped and goes on, in the middle of what it sends and of what it receives.
    for (to, from, address) in [(&b, &a, A), (&a, &b, B)] {
        to.spawn("fetch", &slow_fetch(address)).expect("started");
        to.sh("while [ ! -s /tmp/chunk ]; do usleep 100000; done").expect("data flow");
        a.qmp("stop", json!({})).expect("stopped");
        lab.daemon.wait_state("a", "waiting").expect("its device has stopped");
        check_transfer(&b, &peer, C).expect("the others go on");
        a.qmp("cont", json!({})).expect("goes on");
        lab.wait_up(&["a"]);
        let wanted = long_checksum(from);
        let (status, got) = to.finish("fetch").expect("ends");
        assert!(status == 0 && got.starts_with(&wanted), "{wanted} became {got}");
    }

    // Its cable is pulled by QEMU.
    a.qmp("set_link", json!({"name": "n0", "up": false})).expect("set");
    lab.daemon.wait_state("a", "waiting").expect("its device has stopped");
    a.qmp("set_link", json!({"name": "n0", "up": true})).expect("set");
    lab.wait_up(&["a"]);
    exchange(&a, &b, "the cable is back");

    // The one that sends dies in the middle; the one that receives and a third port go on.
    b.spawn("fetch", &slow_fetch(A)).expect("started");
    b.sh("while [ ! -s /tmp/chunk ]; do usleep 100000; done").expect("data flow");
    a.kill().expect("killed");
    lab.daemon.wait_state("a", "waiting").expect("nobody is connected");
    check_transfer(&b, &peer, C).expect("the others go on");
    check_transfer(&peer, &b, B).expect("the others go on");
    a = setups[0].start().expect("the same socket again");
    a.ready().expect("boots");
    join(&a, A);
    exchange(&a, &b, "another QEMU came to a");
    b.sh("killall wget; true").expect("asked");

    // The one that receives dies in the middle.
    b.spawn("fetch", &slow_fetch(A)).expect("started");
    b.sh("while [ ! -s /tmp/chunk ]; do usleep 100000; done").expect("data flow");
    b.kill().expect("killed");
    lab.daemon.wait_state("b", "waiting").expect("nobody listens");
    check_transfer(&a, &peer, C).expect("the others go on");
    b = setups[1].start().expect("the same socket again");
    b.ready().expect("boots");
    join(&b, B);
    exchange(&a, &b, "another QEMU came to b");
}

#[test]
fn traffic_goes_on_after_a_switch_that_was_killed() {
    let ports = ["a=vhost-user,path=@/a,queues=2", "b=vhost-user,path=@/b,mode=client"];
    let Some(mut lab) = Lab::new(&[], &ports) else { return };
    let [a, b] = start(&setups(&lab));
    exchange(&a, &b, "at first");
    let wanted = long_checksum(&a);
    let pings = Pings::start(&a, B).expect("started");
    b.spawn("fetch", &slow_fetch(A)).expect("started");
    b.sh("while [ ! -s /tmp/chunk ]; do usleep 100000; done").expect("data flow");
    for kill in 0..3 {
        assert!(kill > 0 || b.sh("[ -s /tmp/fetch.status ]").is_err(), "the transfer lasts");
        pings.more().expect("answered");
        lab.daemon.crash_and_restart().expect("starts again");
        lab.wait_up(&["a", "b"]);
        pings.more().expect("answered again, although nobody did anything about it");
    }
    let (status, got) = b.finish("fetch").expect("ends");
    assert!(status == 0 && got.starts_with(&wanted), "a transfer through three switches: {wanted} became {got}");
    println!("three switches killed: {}", pings.stop().expect("stopped"));
    exchange(&a, &b, "at last");
}
