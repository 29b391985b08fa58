//! Guests and namespaces: plain, jumbo and tagged frames between vhost-user and TAPs, and guests on TAPs of their own.

use vswitch_benches::netns::Namespace;
use vswitch_tests::guest::{Machine, NetnsPeer, Setup, check_transfer};

use crate::lab::Lab;

#[test]
fn a_guest_exchanges_plain_jumbo_and_tagged_frames_with_taps() {
    let peer = NetnsPeer::new("vgt").expect("root");
    let tap = |n: u8, rest: &str| format!("t{n}=tap,device=eth{n},netns={},{rest}", peer.namespace.name());
    let ports = [
        // More queues than the guest has CPUs for.
        "g0=vhost-user,path=@/g0,domain=plain,queues=2".to_owned(),
        "g1=vhost-user,path=@/g1,domain=jumbo".to_owned(),
        "g2=vhost-user,path=@/g2,domain=red:tag=10,domain=blue:tag=20".to_owned(),
        tap(0, "domain=plain"),
        tap(1, "domain=jumbo,mtu=9000"),
        tap(2, "domain=red"),
        // This one has frames with a tag taken off and their segmentation owed.
        tap(3, "domain=blue,offload=off"),
    ];
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let Some(lab) = Lab::new(&["plain", "jumbo,mtu=9000", "red", "blue"], &ports) else { return };
    let guest = (0..3)
        .fold(Setup::new(1), |setup, n| {
            setup.vhost_user(&lab.path(&format!("g{n}")), false, if n == 0 { 2 } else { 1 }, "")
        })
        .start()
        .expect("started");
    guest.ready().expect("boots");
    guest.sh("ip link set eth1 mtu 9000; ip link set eth2 up").expect("set");
    for (name, vid) in [("red", 10), ("blue", 20), ("green", 30)] {
        guest.sh(&format!("ip link add link eth2 name {name} type vlan id {vid}")).expect("8021q is loaded");
    }
    for (n, device) in ["eth0", "eth1", "red", "blue"].into_iter().enumerate() {
        guest.configure(device, &[&format!("10.2.{n}.1/24"), &format!("fd00:2:{n}::1/64")]).expect("set");
        let (v4, v6) = (format!("10.2.{n}.2/24"), format!("fd00:2:{n}::2/64"));
        peer.namespace.configure(&format!("eth{n}"), &[&v4, &v6]).expect("set");
    }
    lab.wait_up(&["g0", "g1", "g2"]);
    for n in 0..4 {
        guest.reach(&format!("10.2.{n}.2")).expect("a way");
        for address in [format!("10.2.{n}.2"), format!("fd00:2:{n}::2")] {
            check_transfer(&guest, &peer, &address).expect("to the guest");
        }
        for address in [format!("10.2.{n}.1"), format!("fd00:2:{n}::1")] {
            check_transfer(&peer, &guest, &address).expect("from the guest");
        }
    }

    // A packet of 9000 bytes passes in one piece, in its domain only.
    peer.sh("ping -c 1 -W 60 -M do -s 8972 10.2.1.1").expect("jumbo");
    peer.sh("ping -c 1 -W 60 -M do -s 1472 10.2.0.1").expect("the largest of the plain ones");
    guest.sh("ip link set eth0 mtu 9000").expect("set");
    assert!(guest.sh("ping -c 2 -W 1 -s 4000 10.2.0.2").is_err(), "a jumbo frame in a domain of 1500");
    let oversize = lab.daemon.port("g0")["drops"].clone();
    assert!(oversize.as_object().is_some_and(|drops| !drops.is_empty()), "{oversize}");

    // Neither an untagged frame of the trunk nor one with a tag that it does not carry gets anywhere.
    guest.configure("green", &["10.2.30.1/24"]).expect("set");
    guest.configure("eth2", &["10.2.31.1/24"]).expect("set");
    for device in ["eth0", "eth2", "eth3"] {
        peer.namespace.configure(device, &[]).expect("up");
        for net in [30, 31] {
            peer.sh(&format!("ip addr replace 10.2.{net}.2/24 dev {device}")).expect("set");
            assert!(!guest.pings(&format!("10.2.{net}.2")).expect("asked"), "{net} reached {device}");
            peer.sh(&format!("ip addr del 10.2.{net}.2/24 dev {device}")).expect("set");
        }
    }
    for address in ["10.2.2.2", "10.2.3.2"] {
        guest.reach(address).expect("the tagged ones go on");
    }
}

#[test]
fn guests_on_taps_of_their_own_meet_through_packet_ports() {
    let homes = [Namespace::new("vgp").expect("root"), Namespace::new("vgp").expect("root")];
    // One TAP is QEMU's own, the other was there before.
    homes[1].exec(&["ip", "tuntap", "add", "vm0", "mode", "tap", "vnet_hdr"]).expect("made");
    let ports = ["a", "b"].map(|name| {
        let home = &homes[usize::from(name == "b")];
        format!("{name}=packet,device=vm0,netns={}", home.name())
    });
    let Some(lab) = Lab::new(&[], &[&ports[0], &ports[1]]) else { return };
    let setups = [1, 2].map(|id| {
        Setup::new(id).netns(homes[usize::from(id) - 1].name()).nic("tap,ifname=vm0,script=no,downscript=no", "")
    });
    let start = |n: usize| {
        let guest = setups[n].start().expect("started");
        let set_up = || homes[n].exec(&["ip", "link", "set", "vm0", "up"]).is_ok();
        vswitch_benches::netns::wait_for("QEMU opens its TAP", vswitch_tests::PATIENCE, set_up).expect("opened");
        guest
    };
    let join = |guest: &vswitch_tests::guest::Guest, n: usize| {
        guest.ready().expect("boots");
        guest.configure("eth0", &[&format!("10.3.0.{n}/24"), &format!("fd00:3::{n}/64")]).expect("set");
    };
    let (a, b) = (start(0), start(1));
    join(&a, 1);
    join(&b, 2);
    lab.wait_up(&["a", "b"]);
    let exchange = |a: &dyn Machine, b: &dyn Machine| {
        a.reach("10.3.0.2").expect("a way");
        for n in [4, 6] {
            let [of_a, of_b] = if n == 4 { ["10.3.0.1", "10.3.0.2"] } else { ["fd00:3::1", "fd00:3::2"] };
            check_transfer(a, b, of_b).expect("from b");
            check_transfer(b, a, of_a).expect("from a");
        }
    };
    exchange(&a, &b);

    // A QEMU that dies takes its TAP along; the next one's is found.
    a.kill().expect("killed");
    lab.daemon.wait_state("a", "waiting").expect("no device");
    let a = start(0);
    join(&a, 1);
    lab.wait_up(&["a", "b"]);
    exchange(&a, &b);
}
