use super::*;

const ME: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const NEW: MacAddr = MacAddr([2, 0, 0, 0, 0, 3]);

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn own(onlink: &[&str], gateways: &[&str]) -> Own {
    let prefixes = |texts: &[&str]| texts.iter().map(|t| t.parse().expect("a prefix")).collect();
    Own {
        mac: ME,
        addresses: prefixes(&["10.0.0.16/28", "fd00::5"]),
        onlink: prefixes(onlink),
        gateways: gateways.iter().map(|t| ip(t)).collect(),
    }
}

/// A resolver that has announced itself.
fn resolver() -> Resolver {
    let mut resolver = Resolver::new(own(&[], &[]));
    while resolver.next_message().is_some() {}
    resolver
}

/// What is said next, as others hear it, and to whom.
fn said(resolver: &mut Resolver) -> Option<(MacAddr, Heard)> {
    let message = resolver.next_message()?;
    let to = MacAddr(message[..6].try_into().expect("six bytes"));
    Some((to, messages::read(&message, true).expect("well formed")))
}

fn tells(of: &str, mac: MacAddr) -> Heard {
    Heard::Tells { of: ip(of), mac: Some(mac), solicited: true, replaces: true }
}

fn route(resolver: &mut Resolver, to: &str, now: u64) -> Route {
    let from = if to.contains(':') { "fd00::5" } else { "10.0.0.17" };
    resolver.route(ip(from), ip(to), now)
}

/// Routes and holds one packet of these bytes.
fn hold(resolver: &mut Resolver, to: &str, packet: &[u8], now: u64) {
    let Route::Unknown(hop) = route(resolver, to, now) else { panic!("{to} is known") };
    resolver.hold(hop, packet, Offload::NONE);
}

fn released(resolver: &mut Resolver) -> Vec<(MacAddr, Vec<u8>)> {
    let mut all = Vec::new();
    let mut buffer = [0; HELD_BYTES];
    while let Some((mac, len, _)) = resolver.next_packet(&mut buffer) {
        all.push((mac, buffer[..len].to_vec()));
    }
    all
}

#[test]
fn single_addresses_are_announced_and_prefixes_are_not() {
    let mut resolver = Resolver::new(own(&[], &[]));
    let (to, heard) = said(&mut resolver).expect("an announcement");
    let announced = Heard::Tells { of: ip("fd00::5"), mac: Some(ME), solicited: false, replaces: true };
    assert_eq!((to.0[0], heard), (0x33, announced));
    assert_eq!(said(&mut resolver), None);
}

#[test]
fn a_packet_waits_for_its_answer_and_then_goes() {
    for (to, mine) in [("10.0.0.2", "10.0.0.17"), ("fd00::2", "fd00::5")] {
        let mut resolver = resolver();
        hold(&mut resolver, to, b"one", 0);
        hold(&mut resolver, to, b"two", 10);
        let asked = Heard::Asks { target: ip(to), from: Some((ip(mine), ME)) };
        assert_eq!(said(&mut resolver).map(|(to, heard)| (to.is_multicast(), heard)), Some((true, asked)));
        assert_eq!(said(&mut resolver), None, "one question for both");
        resolver.hear(tells(to, PEER), 20);
        assert_eq!(released(&mut resolver), [(PEER, b"one".to_vec()), (PEER, b"two".to_vec())]);
        assert_eq!(route(&mut resolver, to, 30), Route::To(PEER));
        assert!(!resolver.waits() && resolver.take_lost() == 0);
    }
}

#[test]
fn whoever_does_not_answer_is_asked_three_times_and_given_up() {
    let mut resolver = resolver();
    hold(&mut resolver, "10.0.0.2", b"lost", 0);
    let mut questions = 0;
    for second in 0..10 {
        resolver.tick(second * 1000);
        questions += std::iter::from_fn(|| said(&mut resolver)).count();
    }
    assert_eq!((questions, resolver.take_lost(), resolver.waits()), (3, 1, false));
    // An answer to nobody is not learned.
    resolver.hear(tells("10.0.0.2", PEER), 11_000);
    assert!(matches!(route(&mut resolver, "10.0.0.2", 11_000), Route::Unknown(_)));
}

#[test]
fn a_neighbour_is_asked_again_while_it_is_used_and_forgotten_when_it_is_silent() {
    let mut resolver = resolver();
    hold(&mut resolver, "10.0.0.2", b"", 0);
    resolver.hear(tells("10.0.0.2", PEER), 0);
    while resolver.next_message().is_some() {}
    assert_eq!(route(&mut resolver, "10.0.0.2", 29_000), Route::To(PEER));
    assert_eq!(said(&mut resolver), None);
    // The station that had it is asked, not everybody.
    assert_eq!(route(&mut resolver, "10.0.0.2", 31_000), Route::To(PEER));
    assert_eq!(said(&mut resolver).map(|(to, _)| to), Some(PEER));
    assert_eq!(route(&mut resolver, "10.0.0.2", 31_100), Route::To(PEER));
    assert_eq!(said(&mut resolver), None);
    resolver.hear(tells("10.0.0.2", NEW), 31_200);
    assert_eq!(route(&mut resolver, "10.0.0.2", 60_000), Route::To(NEW));
    for now in [62_000, 63_000, 64_000] {
        assert_eq!(route(&mut resolver, "10.0.0.2", now), Route::To(NEW), "at {now}");
        assert_eq!(said(&mut resolver).map(|(to, _)| to), Some(NEW));
    }
    assert!(matches!(route(&mut resolver, "10.0.0.2", 65_000), Route::Unknown(_)));
    assert_eq!(said(&mut resolver).map(|(to, _)| to), Some(MacAddr::BROADCAST));
    // One that was not used for long is not believed.
    resolver.hear(tells("10.0.0.2", NEW), 65_100);
    assert!(matches!(route(&mut resolver, "10.0.0.2", 300_000), Route::Unknown(_)));
}

#[test]
fn questions_for_own_addresses_are_answered_and_others_are_not() {
    let mut resolver = resolver();
    for (target, asker) in [("10.0.0.31", "10.0.0.2"), ("fd00::5", "fd00::2")] {
        resolver.hear(Heard::Asks { target: ip(target), from: Some((ip(asker), PEER)) }, 0);
        assert_eq!(said(&mut resolver), Some((PEER, tells(target, ME))));
        // Whoever asked is known already.
        assert_eq!(route(&mut resolver, asker, 1), Route::To(PEER));
    }
    for target in ["10.0.0.32", "fd00::6"] {
        resolver.hear(Heard::Asks { target: ip(target), from: Some((ip("10.0.0.2"), PEER)) }, 0);
        assert_eq!(said(&mut resolver), None);
    }
    // Somebody who wants to have an address of ours hears that it is taken, and is not learned.
    resolver.hear(Heard::Asks { target: ip("10.0.0.17"), from: None }, 0);
    assert_eq!(said(&mut resolver).map(|(to, _)| to), Some(MacAddr::BROADCAST));
    resolver.hear(Heard::Asks { target: ip("10.0.0.17"), from: Some((ip("10.0.0.18"), PEER)) }, 0);
    assert!(said(&mut resolver).is_some());
    assert_eq!(route(&mut resolver, "10.0.0.18", 0), Route::Refused);
}

#[test]
fn unasked_advertisements_change_what_is_known_and_nothing_else() {
    let mut resolver = resolver();
    hold(&mut resolver, "fd00::2", b"", 0);
    resolver.hear(tells("fd00::2", PEER), 0);
    let told = |mac, replaces| Heard::Tells { of: ip("fd00::2"), mac, solicited: false, replaces };
    resolver.hear(told(Some(NEW), false), 1);
    assert_eq!(route(&mut resolver, "fd00::2", 1), Route::To(PEER));
    resolver.hear(told(Some(NEW), true), 2);
    assert_eq!(route(&mut resolver, "fd00::2", 2), Route::To(NEW));
    resolver.hear(Heard::Tells { of: ip("fd00::2"), mac: None, solicited: true, replaces: false }, 29_000);
    assert_eq!(route(&mut resolver, "fd00::2", 50_000), Route::To(NEW), "confirmed without an address");
    resolver.hear(Heard::Tells { of: ip("fd00::9"), mac: Some(NEW), solicited: false, replaces: true }, 3);
    assert!(matches!(route(&mut resolver, "fd00::9", 3), Route::Unknown(_)));
}

#[test]
fn only_packets_of_own_addresses_leave_and_only_to_others() {
    let mut resolver = resolver();
    for (from, to) in [
        ("10.0.0.15", "10.0.0.2"),
        ("fe80::1", "ff02::2"),
        ("fd00::4", "fd00::2"),
        ("10.0.0.17", "10.0.0.18"),
        ("10.0.0.17", "0.0.0.0"),
        ("10.0.0.17", "127.0.0.1"),
        ("fd00::5", "::1"),
        ("fd00::5", "::"),
    ] {
        assert_eq!(resolver.route(ip(from), ip(to), 0), Route::Refused, "{from} to {to}");
    }
    assert_eq!(route(&mut resolver, "224.0.0.251", 0), Route::To(MacAddr([1, 0, 0x5e, 0, 0, 251])));
    assert_eq!(route(&mut resolver, "ff02::fb", 0), Route::To(MacAddr([0x33, 0x33, 0, 0, 0, 0xfb])));
    assert_eq!(route(&mut resolver, "255.255.255.255", 0), Route::To(MacAddr::BROADCAST));
    assert_eq!(said(&mut resolver), None);
}

#[test]
fn everything_that_is_not_on_the_link_goes_by_the_gateway() {
    let mut resolver = Resolver::new(own(&["10.0.0.0/24"], &["10.0.0.1", "fe80::1"]));
    while resolver.next_message().is_some() {}
    for (to, hop) in
        [("10.0.0.2", "10.0.0.2"), ("192.0.2.1", "10.0.0.1"), ("fd00::7", "fe80::1"), ("10.0.0.1", "10.0.0.1")]
    {
        let _ = route(&mut resolver, to, 0);
        if let Some((_, Heard::Asks { target, .. })) = said(&mut resolver) {
            assert_eq!(target, ip(hop), "{to}");
        }
        resolver.hear(tells(hop, PEER), 0);
        assert_eq!(route(&mut resolver, to, 0), Route::To(PEER), "{to}");
    }
}

#[test]
fn packets_that_find_no_room_are_counted() {
    let mut resolver = resolver();
    for number in 0..5u8 {
        hold(&mut resolver, "10.0.0.2", &[number], 0);
    }
    hold(&mut resolver, "10.0.0.3", &[0; HELD_BYTES + 1], 0);
    assert_eq!(resolver.take_lost(), 3, "two of one neighbour, and one too long");
    resolver.hear(tells("10.0.0.2", PEER), 1);
    let kept: Vec<u8> = released(&mut resolver).iter().map(|(_, bytes)| bytes[0]).collect();
    assert_eq!(kept, [2, 3, 4], "the newest, in order");
}

#[derive(Clone, Debug)]
enum Operation {
    Send(u16),
    Answer(u16),
    Ask(u16),
    Later(u16),
    Take,
}

fn operations() -> impl proptest::strategy::Strategy<Value = Vec<Operation>> {
    use proptest::prelude::*;
    // More neighbours than there is room for, and some that come again and again.
    let address = || prop_oneof![0..8u16, 0..4000u16];
    let operation = prop_oneof![
        6 => address().prop_map(Operation::Send),
        3 => address().prop_map(Operation::Answer),
        1 => address().prop_map(Operation::Ask),
        1 => (0..40_000u16).prop_map(Operation::Later),
        1 => Just(Operation::Take),
    ];
    proptest::collection::vec(operation, 0..3000)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_happens_all_bounds_hold_and_no_packet_is_lost_uncounted(operations in operations()) {
        let mut resolver = resolver();
        let (mut now, mut held, mut sent, mut lost, mut said) = (0, 0u64, 0u64, 0u64, 0u64);
        let peer = |n: u16| IpAddr::from([10, 1, (n >> 8) as u8, n as u8]);
        let mac = |n: u16| MacAddr([2, 1, 0, 0, (n >> 8) as u8, n as u8]);
        let mut buffer = [0; HELD_BYTES];
        for operation in operations {
            match operation {
                Operation::Send(n) => match resolver.route(ip("10.0.0.17"), peer(n), now) {
                    Route::To(to) => assert_eq!(to, mac(n), "a packet goes to its own neighbour"),
                    Route::Unknown(hop) => {
                        resolver.hold(hop, &n.to_be_bytes(), Offload::NONE);
                        held += 1;
                    }
                    Route::Refused => panic!("refused"),
                },
                Operation::Answer(n) => {
                    resolver.hear(Heard::Tells { of: peer(n), mac: Some(mac(n)), solicited: true, replaces: true }, now);
                }
                Operation::Ask(n) => {
                    resolver.hear(Heard::Asks { target: ip("10.0.0.17"), from: Some((peer(n), mac(n))) }, now);
                }
                Operation::Later(ms) => {
                    now += u64::from(ms);
                    resolver.tick(now);
                }
                Operation::Take => {
                    while let Some((to, len, _)) = resolver.next_packet(&mut buffer) {
                        let n = u16::from_be_bytes(buffer[..len].try_into().expect("two bytes"));
                        assert_eq!(to, mac(n));
                        sent += 1;
                    }
                    while resolver.next_message().is_some() {
                        said += 1;
                    }
                }
            }
            assert!(resolver.messages.len() <= MESSAGES && resolver.ready.len() <= HELD);
            let all = || resolver.sets.iter().flatten().flatten();
            let waiting: usize = all().map(|n| n.held.len()).sum();
            assert_eq!(waiting + resolver.ready.len() + resolver.free.len(), HELD, "no buffer is lost or used twice");
            assert_eq!(resolver.unresolved, all().filter(|n| n.mac.is_none()).count());
            assert!(all().all(|n| n.mac.is_none() || n.held.is_empty()));
        }
        // Messages that found no room are counted together with packets, so these are at least accounted for.
        for second in 1..8 {
            resolver.tick(now + second * 1000);
            while resolver.next_message().is_some() {
                said += 1;
            }
        }
        while resolver.next_packet(&mut buffer).is_some() {
            sent += 1;
        }
        lost += resolver.take_lost();
        assert!(!resolver.waits() && resolver.free.len() == HELD);
        assert!(sent + lost >= held, "held {held}, sent {sent}, lost {lost}, said {said}");
    }
}
