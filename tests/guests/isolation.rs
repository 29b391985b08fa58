//! Who does not hear whom: roles of a private VLAN, domains, ports that are set down.

use vswitch_tests::guest::{Guest, Machine, NetnsPeer, Setup, check_transfer, mac};

use crate::lab::Lab;

/// The attachments of the two guests, and whether these reach each other. A promiscuous TAP reaches the first one always.
const PAIRS: [(&str, &str, bool); 5] = [
    ("d0:isolated", "d0:isolated", false),
    ("d1:community=x", "d1:community=x", true),
    ("d2:community=x", "d2:community=y", false),
    ("d3", "other", false),
    ("d4:isolated", "d4", true),
];

/// A guest reaches an address, which may take a busy machine a while, or does not.
fn check(from: &Guest, address: &str, reaches: bool, what: &str) {
    if reaches {
        from.reach(address).unwrap_or_else(|e| panic!("{what}: {e:#}"));
    } else {
        assert!(!from.pings(address).expect("asked"), "{what}");
    }
}

/// The same for another guest, which the first one is told the address of, so that a unicast is tried too.
fn check_unicast(from: &Guest, id: u8, n: usize, reaches: bool, what: &str) {
    let address = format!("10.5.{n}.{id}");
    from.sh(&format!("arp -i eth{n} -s {address} {}", mac(id, n))).expect("set");
    check(from, &address, reaches, what);
}

#[test]
fn roles_domains_and_links_set_down_part_guests() {
    let peer = NetnsPeer::new("vgi").expect("root");
    let mut ports = Vec::new();
    for (n, (of_a, of_b, _)) in PAIRS.into_iter().enumerate() {
        ports.push(format!("a{n}=vhost-user,path=@/a{n},domain={of_a}"));
        ports.push(format!("b{n}=vhost-user,path=@/b{n},domain={of_b}"));
        ports.push(format!("t{n}=tap,device=eth{n},netns={},domain=d{n}", peer.namespace.name()));
    }
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let Some(lab) = Lab::new(&["d0", "d1", "d2", "d3", "d4", "other"], &ports) else { return };
    let start = |id, name: &str| {
        (0..PAIRS.len())
            .fold(Setup::new(id), |setup, n| setup.vhost_user(&lab.path(&format!("{name}{n}")), false, 1, ""))
            .start()
            .expect("started")
    };
    let (a, b) = (start(1, "a"), start(2, "b"));
    a.ready().expect("boots");
    b.ready().expect("boots");
    for (n, (of_a, of_b, meet)) in PAIRS.into_iter().enumerate() {
        let device = format!("eth{n}");
        a.configure(&device, &[&format!("10.5.{n}.1/24")]).expect("set");
        b.configure(&device, &[&format!("10.5.{n}.2/24")]).expect("set");
        peer.namespace.configure(&device, &[&format!("10.5.{n}.3/24")]).expect("set");
        lab.wait_up(&[&format!("a{n}"), &format!("b{n}")]);
        peer.reach(&format!("10.5.{n}.1")).expect("a promiscuous port reaches everybody");
        if of_b != "other" {
            peer.reach(&format!("10.5.{n}.2")).expect("a promiscuous port reaches everybody");
        }
        // Both have been heard now, and their addresses are known.
        for (from, id) in [(&a, 2), (&b, 1)] {
            check(from, &format!("10.5.{n}.{id}"), meet, &format!("{of_a} and {of_b}"));
            check_unicast(from, id, n, meet, &format!("{of_a} and {of_b}, unicast to {id}"));
        }
        peer.reach(&format!("10.5.{n}.1")).expect(of_a);
    }

    for (port, who) in [("a1", "the sender"), ("b1", "the receiver")] {
        lab.daemon.cli(&["port", "set", port, "link=down"]).expect("set");
        check(&a, "10.5.1.2", false, &format!("{who} is down"));
        check_unicast(&b, 1, 1, false, &format!("{who} is down"));
        check(&a, "10.5.4.2", true, "another port of that guest goes on");
        lab.daemon.cli(&["port", "set", port, "link=up"]).expect("set");
        a.reach("10.5.1.2").expect("up again");
        check_transfer(&b, &a, "10.5.1.1").expect("up again");
    }
}
