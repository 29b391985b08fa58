//! The forwarding rules, on real workers and in-memory ports: what goes where, what is dropped and why, and that the
//! accounts balance.

use switch_core::{
    frame::{
        checksum::checksum,
        offload::{Capabilities, Gso, Offload},
    },
    id::DomainId,
    mac::MacAddr,
    stats::Counter,
    topology::{Attachment, DEFAULT_GROUP_FWD_MASK, DomainDef, Dress, Policy, Role},
    verdict::{DropReason, Side},
};
use vswitch_tests::{Bench, Setup};

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn frame(dst: MacAddr, src: MacAddr, after: &[u8]) -> Vec<u8> {
    let mut bytes = [&dst.0[..], &src.0, after].concat();
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

const IP: [u8; 2] = [0x08, 0x00];

fn tagged(tpid: u16, vid: u16, rest: &[u8]) -> Vec<u8> {
    [&tpid.to_be_bytes()[..], &vid.to_be_bytes(), rest].concat()
}

fn domain(id: u16, mtu: u32) -> DomainDef {
    DomainDef { id: DomainId(id), mtu, group_fwd_mask: DEFAULT_GROUP_FWD_MASK, rate: None }
}

fn member(domain: u16, dress: Dress, role: Role) -> Attachment {
    Attachment { domain: DomainId(domain), dress, role }
}

fn port(attachments: &[Attachment]) -> Setup {
    Setup {
        attachments: attachments.to_vec(),
        capabilities: Capabilities::ALL,
        hairpin: false,
        policy: Policy::default(),
    }
}

fn plain(domain: u16) -> Setup {
    port(&[member(domain, Dress::Untagged, Role::PROMISCUOUS)])
}

/// Sends frames one after the other, each judged before the next, and returns what each port got in the end.
fn exchange(bench: &Bench, frames: &[(usize, Vec<u8>)]) -> Vec<Vec<Vec<u8>>> {
    let before: u64 = (0..bench.ports.len()).map(|p| bench.totals(p).get(Counter::RxFrames)).sum();
    for (index, (from, bytes)) in frames.iter().enumerate() {
        bench.ports[*from].peer.send(bytes);
        bench.settle(before + index as u64 + 1).expect("accounts balance");
    }
    bench.ports.iter().map(|p| p.peer.take().into_iter().map(|f| f.bytes).collect()).collect()
}

#[test]
fn floods_then_learns_and_stays_in_the_domain() {
    let bench = Bench::new(2, vec![plain(0), plain(0), plain(0), plain(1)], &[domain(0, 1500), domain(1, 1500)])
        .expect("starts");
    let request = frame(mac(2), mac(1), &IP);
    let answer = frame(mac(1), mac(2), &IP);
    let got = exchange(&bench, &[(0, request.clone()), (1, answer.clone()), (0, request.clone())]);
    assert_eq!(got[0], [answer]);
    assert_eq!(got[1], [request.clone(), request.clone()]);
    assert_eq!(got[2], [request], "only the unknown one is flooded");
    assert!(got[3].is_empty());
    // The same addresses in the other domain are other hosts.
    let got = exchange(&bench, &[(3, frame(mac(1), mac(2), &IP))]);
    assert!(got.iter().all(Vec::is_empty));
    assert_eq!(bench.totals(3).dropped(DropReason::NoDestination), 1);
}

#[test]
fn frame_rules_have_their_reasons() {
    let bench = Bench::new(1, vec![plain(0), plain(0)], &[domain(0, 1500)]).expect("starts");
    let group = |n| MacAddr([1, 0x80, 0xc2, 0, 0, n]);
    let mut giant = frame(mac(2), mac(1), &IP);
    giant.resize(1515, 0);
    let cases: Vec<(Vec<u8>, Option<DropReason>)> = vec![
        (vec![0; 13], Some(DropReason::Runt)),
        (frame(mac(2), MacAddr::BROADCAST, &IP), Some(DropReason::MulticastSource)),
        (frame(mac(2), MacAddr::ZERO, &IP), Some(DropReason::ZeroSource)),
        (frame(group(2), mac(1), &IP), Some(DropReason::ReservedAddress)),
        (frame(group(0), mac(1), &IP), None),
        (frame(group(0x10), mac(1), &IP), None),
        (frame(mac(2), mac(1), &tagged(0x8100, 5, &IP)), Some(DropReason::TagNotAllowed)),
        (frame(mac(2), mac(1), &tagged(0x8100, 0, &IP)), None),
        (giant.clone(), Some(DropReason::Giant)),
        (giant[..1514].to_vec(), None),
        (frame(mac(1), mac(1), &IP), Some(DropReason::SamePort)),
    ];
    for (bytes, reason) in cases {
        let before = bench.totals(0);
        let got = exchange(&bench, &[(0, bytes.clone())]);
        let after = bench.totals(0);
        let seen: Vec<_> =
            DropReason::ALL.iter().filter(|r| after.dropped(**r) > before.dropped(**r)).copied().collect();
        assert_eq!(seen, reason.into_iter().collect::<Vec<_>>(), "{:02x?}", &bytes[..bytes.len().min(18)]);
        assert_eq!(got[1].len(), usize::from(reason.is_none()), "{:02x?}", &bytes[..bytes.len().min(18)]);
        assert!(got[0].is_empty(), "nothing is reflected");
    }
}

#[test]
fn roles_hold_for_unicast_and_flood() {
    let with = |role| port(&[member(0, Dress::Untagged, role)]);
    let red = Role::community(0);
    let bench = Bench::new(
        1,
        vec![
            with(Role::PROMISCUOUS),
            with(Role::ISOLATED),
            with(Role::ISOLATED),
            with(red),
            with(red),
            with(Role::community(1)),
        ],
        &[domain(0, 1500)],
    )
    .expect("starts");
    let hello: Vec<_> = (0..6u8).map(|p| (usize::from(p), frame(MacAddr::BROADCAST, mac(p + 1), &IP))).collect();
    let got = exchange(&bench, &hello);
    let heard: Vec<Vec<u8>> = got.iter().map(|frames| frames.iter().map(|f| f[11] - 1).collect()).collect();
    assert_eq!(heard, [vec![1, 2, 3, 4, 5], vec![0], vec![0], vec![0, 4], vec![0, 3], vec![0]]);
    let got = exchange(
        &bench,
        &[(1, frame(mac(3), mac(2), &IP)), (3, frame(mac(6), mac(4), &IP)), (3, frame(mac(5), mac(4), &IP))],
    );
    assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 0]);
    assert_eq!(bench.totals(1).dropped(DropReason::RoleForbidden), 1);
    assert_eq!(bench.totals(3).dropped(DropReason::RoleForbidden), 1);
}

#[test]
fn tags_are_taken_off_put_on_and_translated() {
    let p = Role::PROMISCUOUS;
    let tag = |vid| Dress::Tagged { tpid: 0x8100, vid };
    let service = |vid| Dress::Tagged { tpid: 0x88a8, vid };
    let bench = Bench::new(
        1,
        vec![
            plain(0),
            port(&[member(0, tag(10), p), member(1, tag(20), p)]),
            port(&[member(0, service(99), p)]),
            plain(1),
            port(&[member(0, Dress::Transparent, p)]),
        ],
        &[domain(0, 1500), domain(1, 1500)],
    )
    .expect("starts");
    let body = [&IP[..], b"payload"].concat();
    // Priority 5 survives the translation from one tag to the other, and is lost where there is no tag.
    let got = exchange(&bench, &[(1, frame(MacAddr::BROADCAST, mac(1), &tagged(0x8100, 10 | 5 << 13, &body)))]);
    let untagged = |f: &[u8]| f[12..21].to_vec();
    assert_eq!(untagged(&got[0][0]), body);
    assert_eq!(got[2][0][12..25], tagged(0x88a8, 99 | 5 << 13, &body));
    assert!(got[3].is_empty());
    assert_eq!(untagged(&got[4][0]), body);
    let got = exchange(&bench, &[(3, frame(MacAddr::BROADCAST, mac(2), &body))]);
    assert_eq!(got[1][0][12..25], tagged(0x8100, 20, &body));
    assert!(got[0].is_empty() && got[2].is_empty() && got[4].is_empty());
    // An untagged frame on a trunk without untagged attachment has no domain.
    exchange(&bench, &[(1, frame(MacAddr::BROADCAST, mac(1), &body))]);
    assert_eq!(bench.totals(1).dropped(DropReason::NoDomain), 1);
}

#[test]
fn an_inner_tag_does_not_escape() {
    let p = Role::PROMISCUOUS;
    let bench = Bench::new(
        1,
        vec![
            port(&[member(0, Dress::Tagged { tpid: 0x8100, vid: 10 }, p)]),
            plain(0),
            port(&[member(0, Dress::Tagged { tpid: 0x8100, vid: 30 }, p)]),
            port(&[member(0, Dress::Transparent, p)]),
        ],
        &[domain(0, 1500)],
    )
    .expect("starts");
    let double = frame(MacAddr::BROADCAST, mac(1), &tagged(0x8100, 10, &tagged(0x8100, 20, &IP)));
    let got = exchange(&bench, &[(0, double)]);
    assert!(got[1].is_empty(), "it would be read as VLAN 20");
    assert_eq!(bench.totals(1).dropped(DropReason::AmbiguousTag), 1);
    assert_eq!(got[2][0][12..22], tagged(0x8100, 30, &tagged(0x8100, 20, &IP)));
    assert_eq!(got[3][0][12..18], tagged(0x8100, 20, &IP));
    // Linux, for one, looks through a priority tag and finds VLAN 20 behind it.
    let hidden = frame(MacAddr::BROADCAST, mac(1), &tagged(0x8100, 10, &tagged(0x8100, 0, &tagged(0x8100, 20, &IP))));
    let got = exchange(&bench, &[(0, hidden)]);
    assert_eq!((got[1].len(), got[2].len(), got[3].len()), (0, 1, 1));
    assert_eq!(bench.totals(1).dropped(DropReason::AmbiguousTag), 2);
}

#[test]
fn hairpin_sends_back_where_it_is_set() {
    let mut setup = plain(0);
    setup.hairpin = true;
    let bench = Bench::new(1, vec![setup, plain(0)], &[domain(0, 1500)]).expect("starts");
    let got = exchange(&bench, &[(0, frame(MacAddr::BROADCAST, mac(1), &IP)), (0, frame(mac(1), mac(9), &IP))]);
    assert_eq!((got[0].len(), got[1].len()), (2, 1));
}

#[test]
fn a_full_queue_is_counted_and_disturbs_nobody_else() {
    let bench = Bench::new(1, vec![plain(0), plain(0), plain(0)], &[domain(0, 1500)]).expect("starts");
    bench.ports[1].peer.set_room(3);
    for _ in 0..500 {
        bench.ports[0].peer.send(&frame(MacAddr::BROADCAST, mac(1), &IP));
    }
    bench.settle(500).expect("accounts balance");
    assert_eq!((bench.ports[1].peer.take().len(), bench.ports[2].peer.take().len()), (3, 500));
    assert_eq!(bench.totals(1).dropped(DropReason::QueueFull), 497);
    assert_eq!(bench.totals(1).dropped_on(Side::Egress), 497);
}

/// A TCP/IPv4 frame of `payload` bytes whose segmentation (into `mss`) is owed.
fn gso_frame(payload: usize, mss: u16) -> (Vec<u8>, Offload) {
    let mut bytes = frame(mac(2), mac(1), &[]);
    bytes.truncate(12);
    bytes.extend_from_slice(&IP);
    let total = (40 + payload) as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(&ip);
    bytes.extend_from_slice(&[0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    bytes.extend((0..payload).map(|i| (i % 251) as u8));
    let offload = Offload {
        needs_csum: true,
        gso: Gso::TcpV4,
        hdr_len: 54,
        gso_size: mss,
        csum_start: 34,
        csum_offset: 16,
        ..Offload::NONE
    };
    (bytes, offload)
}

#[test]
fn owed_work_is_done_for_ports_that_cannot_carry_it() {
    let mut bare = plain(0);
    bare.capabilities = Capabilities::NONE;
    let mut trunk = port(&[member(0, Dress::Tagged { tpid: 0x8100, vid: 7 }, Role::PROMISCUOUS)]);
    trunk.capabilities = Capabilities::NONE;
    let bench = Bench::new(1, vec![plain(0), bare, trunk, plain(0)], &[domain(0, 1500)]).expect("starts");
    let (bytes, offload) = gso_frame(60_000, 1448);
    bench.ports[0].peer.send_owed(&bytes, offload);
    bench.settle(1).expect("accounts balance");
    let segments = 60_000usize.div_ceil(1448);
    for (p, tag) in [(1, 0), (2, 4)] {
        let got = bench.ports[p].peer.take();
        assert_eq!(got.len(), segments);
        let payload: Vec<u8> = got.iter().flat_map(|f| f.bytes[54 + tag..].to_vec()).collect();
        assert_eq!(payload, bytes[54..]);
        for f in &got {
            assert_eq!(f.offload, Offload::NONE);
            let ip = &f.bytes[14 + tag..34 + tag];
            assert_eq!(checksum(ip), 0, "IPv4 header");
            let tcp = &f.bytes[34 + tag..];
            let pseudo = [&ip[12..20], &[0, 6], &(tcp.len() as u16).to_be_bytes(), tcp].concat();
            assert_eq!(checksum(&pseudo), 0, "TCP");
            if tag > 0 {
                assert_eq!(f.bytes[12..16], [0x81, 0, 0, 7]);
            }
        }
        assert_eq!(bench.totals(p).get(Counter::TxFrames), 1, "segments are counted apart");
        assert_eq!(bench.totals(p).get(Counter::TxSegments), segments as u64);
    }
    let whole = bench.ports[3].peer.take();
    assert_eq!((whole.len(), &whole[0].bytes, whole[0].offload.gso), (1, &bytes, Gso::TcpV4));
}

#[test]
fn lies_about_owed_work_are_dropped() {
    let bench = Bench::new(1, vec![plain(0), plain(0)], &[domain(0, 1500)]).expect("starts");
    let (bytes, honest) = gso_frame(5000, 1448);
    let lies = [
        Offload { csum_start: 60_000, ..honest },
        Offload { gso: Gso::TcpV6, ..honest },
        Offload { gso_size: 0, ..honest },
        Offload { gso: Gso::Ufo, ..honest },
        Offload { needs_csum: false, ..honest },
    ];
    for lie in lies {
        bench.ports[0].peer.send_owed(&bytes, lie);
    }
    bench.ports[0].peer.send_owed(&bytes, Offload { gso_size: 3000, ..honest });
    bench.settle(6).expect("accounts balance");
    assert_eq!(bench.totals(0).dropped(DropReason::BadOffload), 5);
    assert_eq!(bench.totals(0).dropped(DropReason::Giant), 1, "segments longer than the MTU");
    assert!(bench.ports[1].peer.take().is_empty());
}

#[test]
fn many_ports_on_two_workers_keep_order_and_accounts() {
    let bench = Bench::new(2, (0..8).map(|_| plain(0)).collect(), &[domain(0, 1500)]).expect("starts");
    exchange(
        &bench,
        &(0..8u8).map(|p| (usize::from(p), frame(MacAddr::BROADCAST, mac(p + 1), &IP))).collect::<Vec<_>>(),
    );
    const EACH: u32 = 2000;
    for n in 0..EACH {
        for p in 0..8u8 {
            let body = [&IP[..], &n.to_be_bytes()].concat();
            bench.ports[usize::from(p)].peer.send(&frame(mac((p + 1) % 8 + 1), mac(p + 1), &body));
        }
    }
    bench.settle(8 + u64::from(EACH) * 8).expect("accounts balance");
    for p in &bench.ports {
        let numbers: Vec<u32> =
            p.peer.take().iter().map(|f| u32::from_be_bytes(f.bytes[14..18].try_into().expect("four bytes"))).collect();
        assert_eq!(numbers, (0..EACH).collect::<Vec<_>>(), "{}", p.id);
    }
}

#[test]
fn two_busy_queues_of_one_worker_are_parted_and_keep_their_order() {
    let mut bench = Bench::new(2, (0..4).map(|_| plain(0)).collect(), &[domain(0, 1500)]).expect("starts");
    let worker = |bench: &Bench, port: usize| {
        let all = bench.switch.assignments();
        all.iter().find(|(p, ..)| p.index() == port).expect("granted").2
    };
    assert_eq!(worker(&bench, 0), worker(&bench, 2), "queues are granted in turn");
    // Host 4 is known on port 3.
    exchange(&bench, &[(3, frame(MacAddr::BROADCAST, mac(4), &IP))]);
    let before: u64 = (0..4).map(|p| bench.totals(p).get(Counter::RxFrames)).sum();
    let mut sent = 0u32;
    let send = |bench: &Bench, sent: &mut u32, count: u32| {
        for _ in 0..count {
            for (port, host) in [(0, 1), (2, 3)] {
                let bytes = frame(mac(4), mac(host), &[&IP[..], &sent.to_be_bytes()].concat());
                bench.ports[port].peer.send(&bytes);
            }
            *sent += 1;
        }
    };
    send(&bench, &mut sent, 6000);
    bench.settle(before + 2 * u64::from(sent)).expect("judged");
    // The move comes in the middle of these.
    send(&bench, &mut sent, 1000);
    let moved = bench.switch.balance().expect("workers live");
    send(&bench, &mut sent, 1000);
    let (port, ..) = moved.expect("one of the two has moved");
    assert!([0, 2].contains(&port.index()));
    assert_ne!(worker(&bench, 0), worker(&bench, 2));
    bench.settle(before + 2 * u64::from(sent)).expect("nothing is lost in a move");
    let got: Vec<Vec<u8>> = bench.ports[3].peer.take().into_iter().map(|f| f.bytes).collect();
    for host in [1, 3] {
        let numbers: Vec<u32> = got
            .iter()
            .filter(|f| f[6..12] == mac(host).0)
            .map(|f| u32::from_be_bytes(f[14..18].try_into().expect("four bytes")))
            .collect();
        assert!(numbers.iter().copied().eq(0..sent), "host {host}: all of them, in order");
    }
}

#[test]
fn a_port_that_is_not_flooded_to_gets_what_is_known_and_what_is_for_many() {
    let mut quiet = plain(0);
    quiet.policy.no_flood = true;
    let bench = Bench::new(1, vec![plain(0), quiet, plain(0)], &[domain(0, 1500)]).expect("starts");
    let unknown = frame(mac(9), mac(1), &IP);
    let broadcast = frame(MacAddr::BROADCAST, mac(1), &IP);
    let multicast = frame(MacAddr([1, 0, 0x5e, 0, 0, 1]), mac(1), &IP);
    let known = frame(mac(2), mac(1), &IP);
    let hello = frame(mac(1), mac(2), &IP);
    let frames = [(0, unknown.clone()), (0, broadcast.clone()), (0, multicast.clone()), (1, hello), (0, known.clone())];
    let got = exchange(&bench, &frames);
    assert_eq!(got[1], [broadcast.clone(), multicast.clone(), known]);
    assert_eq!(got[2], [unknown, broadcast, multicast]);
}

#[test]
fn a_native_vlan_comes_with_its_tag_or_without_and_leaves_with_it() {
    let p = Role::PROMISCUOUS;
    let trunk = port(&[
        member(0, Dress::Native { tpid: 0x8100, vid: 42 }, p),
        member(1, Dress::Tagged { tpid: 0x8100, vid: 7 }, p),
    ]);
    let bench = Bench::new(1, vec![trunk, plain(0), plain(1)], &[domain(0, 1500), domain(1, 1500)]).expect("starts");
    let bare = frame(MacAddr::BROADCAST, mac(1), &IP);
    let native = frame(MacAddr::BROADCAST, mac(1), &tagged(0x8100, 42, &IP));
    let other = frame(MacAddr::BROADCAST, mac(1), &tagged(0x8100, 7, &IP));
    let answer = frame(MacAddr::BROADCAST, mac(2), &IP);
    let got = exchange(&bench, &[(0, bare.clone()), (0, native), (0, other), (1, answer)]);
    assert_eq!(got[1].len(), 2);
    assert!(got[1].iter().all(|f| f[12..14] == IP), "no tag on the access port");
    assert_eq!(got[2].len(), 1);
    assert_eq!(got[0].len(), 1);
    assert_eq!(got[0][0][12..18], [0x81, 0, 0, 42, 8, 0]);
}
