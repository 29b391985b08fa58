//! Two machines against each other on a clock of the test's, over links that lose what they are told to lose.

use super::{
    lacp::{Lacp, Settings, Why},
    lacpdu::{Info, Lacpdu, State},
};
use crate::mac::MacAddr;

const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const THEIRS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const STEP_MS: u64 = 100;

fn settings(system: MacAddr, active: bool, fast: bool) -> Settings {
    Settings { system, active, fast }
}

/// Two bonds, member by member at each other.
struct World {
    now: u64,
    ends: [Lacp; 2],
    /// Whether a frame of this end by this member is lost.
    loses: Box<dyn FnMut(usize, usize) -> bool>,
    sent: [usize; 2],
}

impl World {
    fn new(ours: Settings, theirs: Settings, members: usize) -> World {
        let ends = [Lacp::new(ours, members), Lacp::new(theirs, members)];
        let mut world = World { now: 5, ends, loses: Box::new(|_, _| false), sent: [0; 2] };
        (0..members).for_each(|member| world.link(member, true));
        world
    }

    fn link(&mut self, member: usize, up: bool) {
        let now = self.now;
        self.ends.iter_mut().for_each(|end| end.set_enabled(member, up, now));
    }

    fn run(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            // What one says may be answered at once.
            for _ in 0..4 {
                for from in 0..2 {
                    for (member, pdu) in self.ends[from].advance(self.now) {
                        self.sent[from] += 1;
                        if !(self.loses)(from, member) {
                            self.ends[1 - from].receive(member, &pdu, self.now);
                        }
                    }
                }
            }
            // Never to a member that does not take it.
            for from in 0..2 {
                let (sends, takes) = (self.ends[from].distributing(), self.ends[1 - from].collecting());
                let quiet = (self.loses)(from, 0) || (self.loses)(1 - from, 0);
                assert!(quiet || sends & !takes == 0, "{sends:b} to {takes:b} at {}", self.now);
            }
            self.now += STEP_MS;
        }
    }

    fn carrying(&self) -> [u32; 4] {
        let [a, b] = &self.ends;
        [a.collecting(), a.distributing(), b.collecting(), b.distributing()]
    }
}

#[test]
fn two_bonds_agree_whoever_begins_and_however_often_they_speak() {
    for (ours, theirs) in
        [((true, true), (true, true)), ((true, false), (false, true)), ((false, false), (true, false))]
    {
        let mut world = World::new(settings(OURS, ours.0, ours.1), settings(THEIRS, theirs.0, theirs.1), 3);
        world.run(1_500);
        assert_eq!(world.carrying(), [0; 4], "they wait for each other's members");
        world.run(6_000);
        assert_eq!(world.carrying(), [0b111; 4], "{ours:?} {theirs:?}");
        let before = world.sent;
        world.run(60_000);
        let asked = |fast: bool| if fast { 3 * 60 } else { 3 * 2 };
        for (sent, before, partner_fast) in [(world.sent[0], before[0], theirs.1), (world.sent[1], before[1], ours.1)] {
            let sent = sent - before;
            assert!(sent.abs_diff(asked(partner_fast)) <= 3, "{sent} in a minute, {ours:?} {theirs:?}");
        }
        assert_eq!(world.carrying(), [0b111; 4]);
        assert_eq!((world.ends[0].partner(), world.ends[0].why(2)), (Some(THEIRS), None));
    }
}

#[test]
fn two_that_wait_to_be_spoken_to_stay_silent() {
    let mut world = World::new(settings(OURS, false, true), settings(THEIRS, false, true), 2);
    world.run(60_000);
    assert_eq!((world.carrying(), world.sent), ([0; 4], [0; 2]));
    assert_eq!(world.ends[0].why(0), Some(Why::NoPartner));
}

#[test]
fn nobody_at_the_other_end_is_asked_every_second_and_never_sent_to() {
    let mut one = Lacp::new(settings(OURS, true, true), 1);
    one.set_enabled(0, true, 0);
    let mut sent = 0;
    for now in (0..60_000).step_by(STEP_MS as usize) {
        sent += one.advance(now).len();
        assert_eq!((one.collecting(), one.distributing()), (0, 0));
    }
    assert!((59..=62).contains(&sent), "{sent}");
    assert_eq!(one.why(0), Some(Why::NoPartner));
    assert!(one.wake_at(60_000).is_some_and(|at| at <= 61_000));
}

#[test]
fn a_lost_link_leaves_at_once_and_comes_back() {
    let mut world = World::new(settings(OURS, true, true), settings(THEIRS, true, true), 2);
    world.run(6_000);
    world.link(1, false);
    world.run(STEP_MS);
    assert_eq!(world.carrying(), [0b01; 4]);
    world.run(10_000);
    world.link(1, true);
    world.run(6_000);
    assert_eq!(world.carrying(), [0b11; 4]);
}

#[test]
fn a_way_that_loses_everything_is_left_by_both_ends() {
    let mut world = World::new(settings(OURS, true, true), settings(THEIRS, true, true), 2);
    world.run(6_000);
    // Ours are not heard by member 1; theirs are.
    world.loses = Box::new(|from, member| from == 0 && member == 1);
    world.run(4_000);
    // They say so; until they give us up they do not say that we must not take what they would send.
    assert_eq!(world.carrying(), [0b11, 0b01, 0b01, 0b01]);
    assert_eq!((world.ends[0].why(1), world.ends[1].why(1)), (Some(Why::NotCollecting), Some(Why::Silent)));
    world.run(4_000);
    assert_eq!(world.carrying(), [0b01; 4]);
    assert_eq!(world.ends[1].why(1), Some(Why::NoPartner));
    world.loses = Box::new(|_, _| false);
    world.run(6_000);
    assert_eq!(world.carrying(), [0b11; 4]);
}

#[test]
fn one_frame_in_three_is_enough() {
    let mut world = World::new(settings(OURS, true, true), settings(THEIRS, true, true), 2);
    world.run(6_000);
    let mut number = [0u32; 4];
    world.loses = Box::new(move |from, member| {
        let n = &mut number[2 * from + member];
        *n += 1;
        // The third of them arrives before three seconds are over.
        !(*n).is_multiple_of(2)
    });
    for _ in 0..60 {
        world.run(1_000);
        let [collecting, ..] = world.carrying();
        assert_eq!(collecting, 0b11, "at {}", world.now);
    }
}

/// An LACPDU of a partner that has seen ours, and agrees.
fn agreeing(one: &Lacp, member: usize, system: MacAddr, key: u16, port: u16, state: State) -> Lacpdu {
    let all = State(State::ACTIVE.0 | State::SYNCHRONIZED.0 | State::COLLECTING.0 | State::DISTRIBUTING.0 | state.0);
    let actor = Info { system_priority: 9, system, key, port_priority: 1, port, state: all };
    Lacpdu { actor, partner: one.ends(member).0 }
}

/// Partners that say these (system, key, state) at the members, for some seconds.
fn meets(partners: &[(MacAddr, u16, State)]) -> Lacp {
    let mut one = Lacp::new(settings(OURS, true, true), partners.len());
    (0..partners.len()).for_each(|member| one.set_enabled(member, true, 0));
    for now in (0..6_000).step_by(STEP_MS as usize) {
        for (member, (system, key, state)) in partners.iter().enumerate() {
            let pdu = agreeing(&one, member, *system, *key, member as u16, *state);
            one.receive(member, &pdu, now);
        }
        drop(one.advance(now));
    }
    one
}

#[test]
fn partners_that_do_not_match_are_left_out_with_the_reason() {
    let (agg, third) = (State::AGGREGATION, MacAddr([2, 0, 0, 0, 0, 3]));
    let one = meets(&[(THEIRS, 4, agg), (third, 4, agg), (third, 4, agg), (third, 5, agg), (OURS, 1, agg)]);
    assert_eq!(one.distributing(), 0b00110, "the aggregate with most members");
    let why: Vec<Option<Why>> = (0..5).map(|member| one.why(member)).collect();
    assert_eq!(why, [Some(Why::OtherSystem(THEIRS)), None, None, Some(Why::OtherKey(5)), Some(Why::Loop)]);
    // A partner that does not aggregate is one by itself.
    let one = meets(&[(THEIRS, 4, State::default()), (THEIRS, 4, State::default())]);
    assert_eq!((one.distributing(), one.why(1)), (0b01, Some(Why::Individual)));
}

#[test]
fn a_chosen_partner_stays_while_it_has_a_member_and_a_moved_cable_starts_anew() {
    let third = MacAddr([2, 0, 0, 0, 0, 3]);
    let agg = State::AGGREGATION;
    let mut one = meets(&[(THEIRS, 4, agg), (THEIRS, 4, agg), (third, 4, agg)]);
    assert_eq!((one.distributing(), one.partner()), (0b011, Some(THEIRS)));
    let mut now = 6_000;
    let mut run = |one: &mut Lacp, systems: [MacAddr; 3], ms: u64| {
        for _ in 0..ms / STEP_MS {
            now += STEP_MS;
            for (member, system) in systems.into_iter().enumerate() {
                let pdu = agreeing(one, member, system, 4, member as u16, agg);
                one.receive(member, &pdu, now);
            }
            drop(one.advance(now));
        }
    };
    run(&mut one, [third, THEIRS, third], STEP_MS);
    assert_eq!((one.distributing(), one.partner()), (0b010, Some(THEIRS)), "fewer members, and still the same");
    assert_eq!(one.why(0), Some(Why::OtherSystem(third)));
    run(&mut one, [third, third, third], 4_000);
    assert_eq!((one.distributing(), one.partner()), (0b111, Some(third)));
}

#[test]
fn a_farewell_stops_the_partner_at_once() {
    let mut world = World::new(settings(OURS, true, true), settings(THEIRS, true, true), 2);
    world.run(6_000);
    let now = world.now;
    for (member, pdu) in world.ends[0].farewell() {
        world.ends[1].receive(member, &pdu, now);
    }
    drop(world.ends[1].advance(now));
    assert_eq!((world.ends[1].collecting(), world.ends[1].distributing()), (0, 0));
}

#[test]
fn no_more_than_three_are_sent_in_a_second_whatever_is_received() {
    let mut one = Lacp::new(settings(OURS, true, true), 1);
    one.set_enabled(0, true, 0);
    let mut sent = Vec::new();
    for now in (0..10_000).step_by(10) {
        // One that does not know us wants an answer each time.
        let stranger = Info { system: THEIRS, port: (now % 7) as u16, ..Info::default() };
        one.receive(0, &Lacpdu { actor: stranger, partner: Info::default() }, now);
        sent.extend(one.advance(now).iter().map(|_| now));
    }
    assert!(sent.windows(4).all(|four| four[3] - four[0] >= 1_000), "{sent:?}");
    assert!(sent.len() >= 27, "{}", sent.len());
}
