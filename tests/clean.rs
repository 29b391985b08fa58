//! Clean ports: what an honest station says passes, and every lie is refused for its own reason; on frames alone, and on
//! real workers with in-memory ports.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use proptest::prelude::*;
use switch_core::{
    clean::{
        Clean, Notice,
        bindings::{Bindings, TENTATIVE_NANOS, Writing},
        judge,
    },
    frame::offload::Capabilities,
    id::DomainId,
    mac::MacAddr,
    topology::{Attachment, DEFAULT_GROUP_FWD_MASK, DomainDef, Dress, Policy, Role},
    verdict::DropReason::{self, *},
};
use vswitch_benches::packets::*;
use vswitch_tests::{Bench, Setup, spoof::*};

#[test]
fn every_lie_has_its_reason() {
    let clean = rules("10.0.0.1+fd00::1");
    for (name, frame, expected) in cases() {
        assert_eq!(judge(&clean, &Bindings::default(), &frame, 1), expected, "{name}");
    }
}

#[test]
fn without_address_rules_only_addresses_pass() {
    let by_address = [SpoofedIpv4, SpoofedIpv6, SpoofedArp, SpoofedNd, SpoofedDhcp];
    let any = rules("any");
    for (name, frame, expected) in cases() {
        let result = judge(&any, &Bindings::default(), &frame, 1);
        match expected {
            Err(reason) if !by_address.contains(&reason) => assert_eq!(result, Err(reason), "{name}"),
            Err(_) => {}
            Ok(_) => assert!(result.is_ok(), "{name}"),
        }
    }
    assert!(judge(&any, &Bindings::default(), &v4(&ipv4(OTHER_IP, IP, TCP, 0, &tcp())), 1).is_ok());
    assert!(judge(&any, &Bindings::default(), &nd(OTHER_V6, 136, OTHER_V6, Some((2, OWN))), 1).is_ok());
    assert_eq!(judge(&any, &Bindings::default(), &request(OTHER, NO_IP, NO_IP), 1), Err(SpoofedDhcp));
    assert_eq!(
        judge(&any, &Bindings::default(), &nd(OTHER_V6, 136, OTHER_V6, Some((2, OTHER))), 1),
        Err(SpoofedNd),
        "its MAC address is still its own"
    );
}

#[test]
fn a_lease_lets_its_address_pass_until_it_ends_or_is_given_back() {
    let (clean, bindings) = (rules("learn"), Bindings::default());
    let frame = v4(&ipv4(IP, OTHER_IP, TCP, 0, &tcp()));
    assert_eq!(judge(&clean, &bindings, &frame, 1), Err(SpoofedIpv4));
    bindings.lease(&Writing::begin(), IP.to_ipv6_mapped().to_bits(), 100, 1);
    assert_eq!(judge(&clean, &bindings, &frame, 99), Ok(Notice::None));
    assert_eq!(judge(&clean, &bindings, &frame, 100), Err(SpoofedIpv4));
    assert_eq!(judge(&rules("10.0.0.9"), &bindings, &frame, 50), Err(SpoofedIpv4), "nothing is learned there");
    let release = ipv4(IP, OTHER_IP, UDP, 0, &udp(68, 67, &dhcp(1, 7, OWN, IP, NO_IP, 0)));
    assert_eq!(judge(&clean, &bindings, &v4(&release), 50), Ok(Notice::Release(IP.to_ipv6_mapped().to_bits())));
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0usize..5) {
        let types = [[8, 0], [0x86, 0xdd], [8, 6], [0x80, 0x35], [0x81, 0]];
        if bytes.len() > 14 {
            bytes[..12].copy_from_slice(&[OTHER.0, OWN.0].concat());
            bytes[12..14].copy_from_slice(&types[kind]);
        }
        let _ = judge(&rules("learn"), &Bindings::default(), &bytes, 1);
    }

    #[test]
    fn no_wrapping_hides_a_router(
        tags in 0usize..3,
        extensions in proptest::collection::vec((proptest::sample::select(vec![0u8, 43, 60, 51, 44, 135]), 0u8..40), 0..12),
        cut in 0usize..2000,
    ) {
        // From the inside out: each header is what the one before it announces.
        let (mut next, mut payload) = (58u8, router_advertisement());
        for (kind, words) in extensions {
            let header = match kind {
                44 => vec![next, 0, 0, 1, 0, 0, 0, 1],
                51 => { let mut h = vec![next, words]; h.resize((usize::from(words) + 2) * 4, 0); h }
                _ => { let mut h = vec![next, words]; h.resize(8 + usize::from(words) * 8, 0); h }
            };
            payload = [header, payload].concat();
            next = kind;
        }
        let mut frame = v6(&ipv6(LINK_LOCAL, V6, next, 255, &payload));
        for _ in 0..tags {
            frame.splice(12..12, [0x81, 0, 0, 0]);
        }
        let result = judge(&rules("any"), &Bindings::default(), &frame, 1);
        prop_assert!(matches!(result, Err(RouterAdvertisement | UnreadableHeaders)), "{:?}", result);
        // Nor does cutting it off, as long as a receiver could put it together.
        let cut = frame.len() - cut.min(payload.len());
        let result = judge(&rules("any"), &Bindings::default(), &frame[..cut.max(14)], 1);
        prop_assert!(matches!(result, Err(RouterAdvertisement | UnreadableHeaders)), "{:?}", result);
    }
}

fn clean_port(station: MacAddr, ip: &str) -> Setup {
    Setup {
        policy: Policy { clean: Some(Arc::new(Clean::new(station, ip.parse().expect("a rule")))), ..Policy::default() },
        ..trusted()
    }
}

/// Tags are payload, so that what is behind them is judged too.
fn trusted() -> Setup {
    let member = Attachment { domain: DomainId(0), dress: Dress::Transparent, role: Role::PROMISCUOUS };
    Setup { attachments: vec![member], capabilities: Capabilities::ALL, hairpin: false, policy: Policy::default() }
}

fn bench(setups: Vec<Setup>) -> Bench {
    let domain = DomainDef { id: DomainId(0), mtu: 1500, group_fwd_mask: DEFAULT_GROUP_FWD_MASK, rate: None };
    Bench::new(2, setups, &[domain]).expect("starts")
}

/// Sends a frame; the reason for which it was dropped.
fn send(bench: &Bench, port: usize, frame: &[u8]) -> Option<DropReason> {
    let before: Vec<_> = (0..bench.ports.len()).map(|p| bench.totals(p)).collect();
    let received: u64 = before.iter().map(|t| t.get(switch_core::stats::Counter::RxFrames)).sum();
    bench.ports[port].peer.send(frame);
    bench.settle(received + 1).expect("accounts balance");
    let after = bench.totals(port);
    DropReason::ALL.iter().copied().find(|r| after.dropped(*r) > before[port].dropped(*r))
}

/// Does at once what must not take as long as an address is tentative, on a switch of its own each time: until the machine let it.
fn in_time<T>(mut attempt: impl FnMut() -> T) -> T {
    for _ in 0..20 {
        let begin = std::time::Instant::now();
        let done = attempt();
        if begin.elapsed().as_nanos() < u128::from(TENTATIVE_NANOS) {
            return done;
        }
    }
    panic!("the machine has no time for this");
}

fn later() {
    std::thread::sleep(std::time::Duration::from_nanos(TENTATIVE_NANOS + 50_000_000));
}

#[test]
fn what_is_refused_reaches_nobody_and_teaches_nothing() {
    let bench = bench(vec![clean_port(OWN, "10.0.0.1+fd00::1"), trusted()]);
    for (name, frame, expected) in cases() {
        let dropped = send(&bench, 0, &frame);
        match expected {
            Err(reason) => {
                // What every port refuses is refused before.
                let known = dropped == Some(reason) || dropped == Some(ReservedAddress);
                assert!(known && bench.ports[1].peer.take().is_empty(), "{name}: {dropped:?}");
            }
            Ok(_) => assert_eq!((dropped, bench.ports[1].peer.take().len()), (None, 1), "{name}"),
        }
    }
    let learned: Vec<_> = bench.switch.fdb().entries(switch_core::clock::Tick(1)).iter().map(|e| e.mac).collect();
    assert_eq!(learned, [OWN]);
}

#[test]
fn a_trusted_servers_lease_binds_the_station_that_it_is_for() {
    let bench = bench(vec![clean_port(OWN, "learn"), clean_port(OTHER, "learn"), trusted()]);
    let server = MacAddr([2, 0, 0, 0, 0, 9]);
    let answer = |kind, to, yours| {
        let message = udp(67, 68, &dhcp(2, kind, to, NO_IP, yours, 3600));
        ether(ALL, server, 0x0800, &ipv4(Ipv4Addr::new(10, 0, 0, 9), EVERYBODY, UDP, 0, &message))
    };
    let from = |mac, ip| ether(server, mac, 0x0800, &ipv4(ip, EVERYBODY, TCP, 0, &tcp()));
    assert_eq!(send(&bench, 0, &request(OWN, NO_IP, NO_IP)), None);
    assert_eq!(send(&bench, 2, &answer(2, OWN, IP)), None, "an offer");
    assert_eq!(send(&bench, 0, &from(OWN, IP)), Some(SpoofedIpv4));
    assert_eq!(send(&bench, 2, &answer(5, OWN, IP)), None);
    assert_eq!(send(&bench, 0, &from(OWN, IP)), None);
    assert_eq!(send(&bench, 1, &from(OTHER, IP)), Some(SpoofedIpv4), "it is not the other's");
    // Whoever asks in another's name (the client identifier is not judged) does not get what that one holds.
    assert_eq!(send(&bench, 2, &answer(5, OTHER, IP)), None);
    assert_eq!(send(&bench, 1, &from(OTHER, IP)), Some(SpoofedIpv4));
    let release = ipv4(IP, OTHER_IP, UDP, 0, &udp(68, 67, &dhcp(1, 7, OWN, IP, NO_IP, 0)));
    assert_eq!(send(&bench, 0, &v4(&release)), None);
    assert_eq!(send(&bench, 0, &from(OWN, IP)), Some(SpoofedIpv4), "given back");
    assert_eq!(send(&bench, 2, &answer(5, OTHER, IP)), None);
    assert_eq!(send(&bench, 1, &from(OTHER, IP)), None, "and given to the next");
    // A clean port is no server, whatever it says.
    let frame =
        ether(ALL, OTHER, 0x0800, &ipv4(IP, EVERYBODY, UDP, 0, &udp(67, 68, &dhcp(2, 5, OWN, NO_IP, OTHER_IP, 9))));
    assert_eq!(send(&bench, 1, &frame), Some(DhcpServer));
    assert_eq!(send(&bench, 0, &from(OWN, OTHER_IP)), Some(SpoofedIpv4));
    let list = bench.ports[1].shared.bindings.list(0);
    assert!(list.len() == 1 && list[0].leased && list[0].address == IP && list[0].left_s >= 3600, "{list:?}");
}

#[test]
fn a_dhcpv6_reply_binds_the_station_that_it_goes_to() {
    let bench = bench(vec![clean_port(OWN, "learn"), trusted()]);
    let server = MacAddr([2, 0, 0, 0, 0, 9]);
    let packet = v6(&ipv6(V6, V6, TCP, 64, &tcp()));
    assert_eq!(send(&bench, 0, &packet), Some(SpoofedIpv6));
    let reply = ipv6(OTHER_V6, LINK_LOCAL, UDP, 64, &udp(547, 546, &dhcpv6_reply(V6, 600)));
    assert_eq!(send(&bench, 1, &ether(OTHER, server, 0x86dd, &reply)), None, "to somebody else");
    assert_eq!(send(&bench, 0, &packet), Some(SpoofedIpv6));
    // Its address has been learned, so that it is not flooded.
    assert_eq!(send(&bench, 0, &request(OWN, NO_IP, NO_IP)), None);
    assert_eq!(send(&bench, 1, &ether(OWN, server, 0x86dd, &reply)), None);
    assert_eq!(send(&bench, 0, &packet), None);
}

#[test]
fn the_first_to_claim_an_address_has_it() {
    let claim = |mac| {
        let message = icmpv6(NO_V6, ALL_NODES.0, &neighbour(135, V6, None));
        ether(ALL_NODES.1, mac, 0x86dd, &ipv6(NO_V6, ALL_NODES.0, ICMPV6, 255, &message))
    };
    let advertise = |mac| {
        let message = icmpv6(V6, ALL_NODES.0, &neighbour(136, V6, Some((2, mac))));
        ether(ALL_NODES.1, mac, 0x86dd, &ipv6(V6, ALL_NODES.0, ICMPV6, 255, &message))
    };
    let from = |mac| ether(ALL, mac, 0x86dd, &ipv6(V6, OTHER_V6, TCP, 64, &tcp()));
    let (bench, said) = in_time(|| {
        let bench = bench(vec![clean_port(OWN, "learn"), clean_port(OTHER, "learn"), trusted()]);
        let said =
            [(0, claim(OWN)), (0, advertise(OWN)), (1, claim(OTHER))].map(|(port, frame)| send(&bench, port, &frame));
        (bench, said)
    });
    // Somebody may object, and the first one shall not think that its address is taken.
    assert_eq!(said, [None, Some(SpoofedIpv6), Some(SpoofedNd)]);
    later();
    assert_eq!(send(&bench, 0, &from(OWN)), None);
    assert_eq!(send(&bench, 0, &advertise(OWN)), None);
    assert_eq!(send(&bench, 1, &claim(OTHER)), None, "so that the owner can object");
    later();
    assert_eq!(send(&bench, 1, &from(OTHER)), Some(SpoofedIpv6));
}

#[test]
fn a_trusted_port_can_object_to_a_claim() {
    let gateway = MacAddr([2, 0, 0, 0, 0, 9]);
    let message = icmpv6(V6, ALL_NODES.0, &neighbour(136, V6, Some((2, gateway))));
    let objection = ether(ALL_NODES.1, gateway, 0x86dd, &ipv6(V6, ALL_NODES.0, ICMPV6, 255, &message));
    let (bench, said) = in_time(|| {
        let bench = bench(vec![clean_port(OWN, "learn"), trusted()]);
        let said =
            [(0, nd(NO_V6, 135, V6, None)), (1, objection.clone())].map(|(port, frame)| send(&bench, port, &frame));
        (bench, said)
    });
    assert_eq!(said, [None, None]);
    later();
    assert_eq!(send(&bench, 0, &v6(&ipv6(V6, OTHER_V6, TCP, 64, &tcp()))), Some(SpoofedIpv6));
    assert_eq!(bench.ports[0].shared.bindings.list(0), []);
}

#[test]
fn claims_without_end_are_refused() {
    let bench = bench(vec![clean_port(OWN, "learn"), trusted()]);
    let dropped: Vec<_> =
        (0..40u128).map(|n| send(&bench, 0, &nd(NO_V6, 135, Ipv6Addr::from_bits(V6.to_bits() + n), None))).collect();
    assert!(dropped[..16].iter().all(Option::is_none), "{dropped:?}");
    assert!(dropped[16..].iter().all(|d| *d == Some(BindingsFull)), "{dropped:?}");
}
