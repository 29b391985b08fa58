//! Hosts of layer 3 beside hosts of layer 2: a namespace behind a TUN and namespaces behind TAPs, in one domain.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use vswitch_benches::{
    netns::{Namespace, wait_for},
    tools::{ping, tcp},
};
use vswitch_tests::{Daemon, PATIENCE, reaches, transfer};

const ROUTED: [&str; 2] = ["10.11.0.5", "fd0b::5"];
const FLAT: [&str; 2] = ["10.11.0.1", "fd0b::1"];

/// A namespace behind a TUN, one behind a TAP, and the switch between them.
struct Lab {
    daemon: Daemon,
    routed: Namespace,
    flat: Namespace,
}

impl Lab {
    fn new(tun: &str, tap: &str) -> Lab {
        let (routed, flat) = (Namespace::new("vtr").expect("root"), Namespace::new("vtf").expect("root"));
        let addresses = format!("address={},address={}", ROUTED[0], ROUTED[1]);
        let near = format!("l3=tun,device=tun0,netns={},{addresses}{tun}", routed.name());
        let far = format!("l2=tap,device=eth0,netns={}{tap}", flat.name());
        let daemon = Daemon::start(&["--port", &near, "--port", &far]).expect("starts");
        let lab = Lab { daemon, routed, flat };
        lab.routed
            .configure("tun0", &[&format!("{}/32", ROUTED[0]), &format!("{}/128", ROUTED[1])])
            .expect("the TUN is there");
        for default in [
            ["ip", "-4", "route", "add", "default", "dev", "tun0"],
            ["ip", "-6", "route", "add", "default", "dev", "tun0"],
        ] {
            lab.routed.exec(&default).expect("set");
        }
        lab.flat
            .configure("eth0", &[&format!("{}/24", FLAT[0]), &format!("{}/64", FLAT[1])])
            .expect("the TAP is there");
        for port in ["l3", "l2"] {
            lab.daemon.wait_state(port, "up").expect("up");
        }
        lab
    }

    fn count(&self, port: &str, name: &str) -> u64 {
        vswitch_tests::vhost::count(&self.daemon.port(port), name)
    }
}

fn pings(from: &Namespace, address: &str) -> bool {
    ping(from, address, 3, false).expect("ping runs").received > 0
}

#[test]
fn both_layers_reach_each_other_and_data_arrives_unchanged() {
    for (tun, tap) in [("", ""), (",offload=off", ""), ("", ",offload=off")] {
        let lab = Lab::new(tun, tap);
        for (flat, routed) in FLAT.iter().zip(ROUTED) {
            assert!(reaches(&lab.routed, flat), "{tun} {flat}: {}", lab.daemon.port("l3"));
            assert!(reaches(&lab.flat, routed), "{tap} {routed}");
            transfer(&lab.routed, &lab.flat, flat, 5_000_000);
            transfer(&lab.flat, &lab.routed, routed, 5_000_000);
        }
        let second = Duration::from_secs(1);
        assert!(tcp(&lab.routed, &lab.flat, FLAT[0], second).expect("iperf3").bits_per_second > 0.0);
        assert!(tcp(&lab.flat, &lab.routed, ROUTED[1], second).expect("iperf3").bits_per_second > 0.0);
        // Segments cross as long ones where both sides can: 5 MB are far fewer frames than packets of 1500 bytes.
        if tun.is_empty() && tap.is_empty() {
            assert_eq!(lab.count("l3", "tx_segments") + lab.count("l2", "tx_segments"), 0, "nobody cuts segments");
        } else {
            assert!(lab.count("l3", "tx_segments") + lab.count("l2", "tx_segments") > 0, "the switch cuts them");
        }
    }
}

#[test]
fn the_ttl_stays_and_the_mac_address_is_the_ports() {
    let lab = Lab::new(",mac=02:00:00:00:0b:05", "");
    assert!(reaches(&lab.routed, FLAT[0]) && reaches(&lab.routed, FLAT[1]));
    for address in ROUTED {
        let neighbour = lab.flat.exec(&["ip", "neigh", "show", address]).expect("ip runs");
        assert!(neighbour.contains("02:00:00:00:0b:05"), "{address}: {neighbour}");
    }
    let output = lab.routed.output(&["ping", "-n", "-c", "1", "-t", "1", "-W", "20", FLAT[0]]).expect("ping runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("ttl=64"), "a TTL of 1 arrives, and the answer's is as it was sent: {text}");
}

#[test]
fn packets_from_addresses_that_are_not_the_ports_stay() {
    let lab = Lab::new("", "");
    lab.routed.exec(&["ip", "addr", "add", "10.11.0.6/32", "dev", "tun0"]).expect("added");
    let before = lab.count("l3", "rx_errors");
    assert!(reaches(&lab.routed, FLAT[0]), "its own address works");
    let output =
        lab.routed.output(&["ping", "-n", "-c", "2", "-W", "1", "-I", "10.11.0.6", FLAT[0]]).expect("ping runs");
    assert!(!output.status.success());
    wait_for("both are counted", PATIENCE, || lab.count("l3", "rx_errors") >= before + 2).expect("counted");
    // Nobody answers for it, and a frame that is sent to the port for it all the same is filtered.
    assert!(!pings(&lab.flat, "10.11.0.6"));
    let mac = lab.flat.exec(&["sh", "-c", "ip neigh show 10.11.0.5 | sed 's/.*lladdr //;s/ .*//'"]).expect("known");
    lab.flat.exec(&["ip", "neigh", "replace", "10.11.0.6", "lladdr", mac.trim(), "dev", "eth0"]).expect("set");
    let filtered = lab.count("l3", "not_for_port");
    assert!(!pings(&lab.flat, "10.11.0.6"));
    assert!(lab.count("l3", "not_for_port") >= filtered + 3, "{}", lab.daemon.port("l3"));
}

#[test]
fn other_networks_are_reached_by_the_gateway() {
    let lab = Lab::new(",gateway=10.11.0.1,gateway=fd0b::1,onlink=10.11.0.0/24,onlink=fd0b::/64", "");
    for address in ["192.0.2.1/32", "2001:db8::1/128"] {
        lab.flat.exec(&["ip", "addr", "add", address, "dev", "lo"]).expect("added");
    }
    for address in ["192.0.2.1", "2001:db8::1"] {
        assert!(reaches(&lab.routed, address), "{address}: {}", lab.daemon.port("l3"));
    }
    assert!(reaches(&lab.routed, FLAT[0]));
    lab.daemon.cli(&["port", "set", "l3", "gateway=none"]).expect("set");
    lab.daemon.wait_state("l3", "up").expect("up");
    // The TUN was made anew, and there is nobody who answers for that address itself: Linux answers for all of its own, so
    // it is one that nobody has.
    lab.routed.configure("tun0", &["10.11.0.5/32"]).expect("there");
    lab.routed.exec(&["ip", "route", "add", "default", "dev", "tun0"]).expect("set");
    assert!(!pings(&lab.routed, "192.0.2.77"));
    wait_for("what waited for it is lost", PATIENCE, || lab.count("l3", "rx_lost") > 0).expect("counted");
}

#[test]
fn what_is_longer_than_the_tun_carries_is_dropped_and_counted() {
    let lab = Lab::new(",mtu=1400", "");
    assert!(reaches(&lab.flat, ROUTED[0]));
    let sent =
        lab.flat.output(&["ping", "-n", "-c", "1", "-W", "20", "-M", "do", "-s", "1372", ROUTED[0]]).expect("runs");
    assert!(sent.status.success(), "1400 bytes fit");
    let sent =
        lab.flat.output(&["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1373", ROUTED[0]]).expect("runs");
    assert!(!sent.status.success());
    assert_eq!(lab.count("l3", "egress_too_big"), 1);
}

#[test]
fn very_many_unknown_destinations_do_not_disturb_a_known_one() {
    let lab = Lab::new("", "");
    assert!(reaches(&lab.routed, FLAT[0]));
    let socket = lab.routed.run(|| UdpSocket::bind((ROUTED[0], 0))).expect("namespace").expect("bound");
    let begin = Instant::now();
    for n in 0..5000u16 {
        let [high, low] = n.to_be_bytes();
        // A full socket buffer is no harm: there are enough.
        let _ = socket.send_to(b"anybody?", (std::net::Ipv4Addr::new(10, 99, high, low), 9));
    }
    assert!(begin.elapsed() < PATIENCE);
    assert!(reaches(&lab.routed, FLAT[0]) && reaches(&lab.flat, ROUTED[1]), "{}", lab.daemon.port("l3"));
    wait_for("those that waited in vain are counted", PATIENCE, || lab.count("l3", "rx_lost") > 64).expect("counted");
}

#[test]
fn a_station_that_moves_to_another_address_is_found_again() {
    let lab = Lab::new("", "");
    assert!(reaches(&lab.routed, FLAT[0]) && reaches(&lab.routed, FLAT[1]));
    lab.flat.exec(&["ip", "link", "set", "eth0", "address", "02:00:00:00:0b:77"]).expect("set");
    // Linux says so where it is told to; otherwise its next question does.
    assert!(reaches(&lab.flat, ROUTED[0]) && reaches(&lab.flat, ROUTED[1]));
    assert!(reaches(&lab.routed, FLAT[0]) && reaches(&lab.routed, FLAT[1]), "found");
}

#[test]
fn a_tun_goes_away_with_the_switch_and_comes_back_when_it_is_deleted() {
    let mut lab = Lab::new("", "");
    let has = |lab: &Lab| lab.routed.output(&["ip", "link", "show", "tun0"]).expect("ip runs").status.success();
    assert!(has(&lab));
    lab.routed.exec(&["ip", "link", "del", "tun0"]).expect("deleted");
    wait_for("made anew", PATIENCE, || has(&lab) && lab.daemon.port("l3")["state"] == "up").expect("made");
    lab.routed.exec(&["ip", "link", "set", "tun0", "down"]).expect("down");
    lab.daemon.wait_state("l3", "waiting").expect("down");
    lab.routed.exec(&["ip", "link", "set", "tun0", "up"]).expect("up");
    lab.daemon.wait_state("l3", "up").expect("up");
    lab.daemon.stop().expect("stopped");
    assert!(!has(&lab));
}

#[test]
fn a_spec_of_a_tun_port_says_what_is_missing() {
    let daemon = Daemon::start(&["--domain", "blue"]).expect("starts");
    for (spec, part) in [
        ("t=tun", "needs the addresses that are behind it"),
        ("t=tun,address=10.0.0.5/24", "10.0.0.0/24"),
        ("t=tun,address=10.0.0.5,gateway=10.0.0.5", "among the port's own addresses"),
        ("t=tun,address=10.0.0.5,gateway=10.0.0.1,gateway=10.0.0.2", "one gateway= for IPv4"),
        ("t=tun,address=10.0.0.5,domain=blue:tag=5", "a tun port is untagged"),
        ("t=tun,address=10.0.0.5,queues=2", "queues= is not for tun ports"),
        ("t=tun,address=10.0.0.5,mac=01:00:00:00:00:01", "no unicast address"),
        ("t=tap,onlink=10.0.0.0/24", "onlink= is not for tap ports"),
    ] {
        let error = daemon.cli(&["port", "add", spec]).expect_err(spec).to_string();
        assert!(error.contains(part), "{spec}: {error}");
    }
}
