//! The Link Aggregation Control Protocol (IEEE 802.1AX-2020 §6.4): which members of a bond carry frames is agreed on with
//! whoever is at their other ends.
//!
//! A state machine without I/O and without a clock: time is an argument, in milliseconds from any beginning. Per member
//! there are the standard's receive, periodic and multiplexing machines; selection is simpler than the standard's, because
//! a bond is one aggregator: members are selected whose partners are the same system with the same key. Which partner
//! that is, is decided when none is chosen (by most members, then by the first of them) and stays so while a member has it.
//! A member whose partner does not answer is never used alone, which the standard would allow: two such at one bridge are a loop.
//!
//! Collecting and distributing are two steps (the standard's independent control), so a frame is never sent to a port
//! that does not take it yet.

use super::lacpdu::{Info, Lacpdu, State};
use crate::mac::MacAddr;

/// Between two LACPDUs to a partner with a short timeout, and a long one.
const FAST_PERIODIC_MS: u64 = 1_000;
const SLOW_PERIODIC_MS: u64 = 30_000;
/// Without an LACPDU for so long the partner is gone, if that is what we told it.
const SHORT_TIMEOUT_MS: u64 = 3_000;
const LONG_TIMEOUT_MS: u64 = 90_000;
/// A member waits so long for others before it joins.
const AGGREGATE_WAIT_MS: u64 = 2_000;
/// LACPDUs that a member may send in [`FAST_PERIODIC_MS`].
const TX_LIMIT: usize = 3;
/// What a bond that has no reason to say otherwise says.
const PRIORITY: u16 = 0x8000;
const KEY: u16 = 1;
/// A change lets others happen: no chain of them is longer.
const MAX_ROUNDS: usize = 16;

/// How a bond takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its address as a system.
    pub system: MacAddr,
    /// It speaks without being spoken to.
    pub active: bool,
    /// It asks its partner to speak every second, and notices its absence after three.
    pub fast: bool,
}

/// What a bond's members have in common with their partners: the aggregate that they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lag {
    system_priority: u16,
    system: MacAddr,
    key: u16,
    /// The one member of it, if the other end does not aggregate.
    alone: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receive {
    /// No link.
    Disabled,
    /// Not heard for a while; given up at that time.
    Expired,
    /// Given up.
    Defaulted,
    /// Heard in time.
    Current,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mux {
    Detached,
    Waiting,
    Attached,
    Collecting,
    Distributing,
}

/// Why a member carries no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No LACPDU has come.
    NoPartner,
    /// None has come for a while.
    Silent,
    /// The other end is a member of this bond.
    Loop,
    /// The other end is another system than the other members'.
    OtherSystem(MacAddr),
    /// The other end has another key, which is another bond of the same system.
    OtherKey(u16),
    /// The other end is to be alone.
    Individual,
    /// It waits for other members.
    Joining,
    /// The other end has not selected it.
    NotInSync,
    /// The other end does not take frames yet.
    NotCollecting,
}

#[derive(Clone, Debug)]
struct Port {
    enabled: bool,
    actor: Info,
    partner: Info,
    receive: Receive,
    /// When the partner has been silent for too long.
    current_until: Option<u64>,
    /// When to send the next LACPDU for no other reason, and whether that is counted in seconds.
    periodic: Option<(u64, bool)>,
    need_to_transmit: bool,
    /// When the last ones were sent.
    sent: [Option<u64>; TX_LIMIT],
    mux: Mux,
    wait_until: Option<u64>,
    selected: Option<Lag>,
}

/// The members of a bond in the protocol. See the module page.
#[derive(Clone, Debug)]
pub struct Lacp {
    settings: Settings,
    ports: Vec<Port>,
    chosen: Option<Lag>,
}

impl Port {
    fn new(settings: &Settings, number: u16) -> Port {
        let state = State::AGGREGATION
            .with(State::ACTIVE, settings.active)
            .with(State::SHORT_TIMEOUT, settings.fast)
            .with(State::DEFAULTED, true);
        let (system_priority, port_priority) = (PRIORITY, PRIORITY);
        let system = settings.system;
        Port {
            enabled: false,
            actor: Info { system_priority, system, key: KEY, port_priority, port: number, state },
            partner: nobody(),
            receive: Receive::Disabled,
            current_until: None,
            periodic: None,
            need_to_transmit: false,
            sent: [None; TX_LIMIT],
            mux: Mux::Detached,
            wait_until: None,
            selected: None,
        }
    }

    /// Records what the partner says, and what that says of us (recordPDU, update_Selected, update_NTT).
    fn record(&mut self, pdu: &Lacpdu, now_ms: u64) {
        if !self.partner.is_same_port(&pdu.actor) {
            self.selected = None;
        }
        let told = State(State::ACTIVE.0 | State::SHORT_TIMEOUT.0 | State::SYNCHRONIZED.0 | State::AGGREGATION.0).0;
        let actor = &mut self.actor;
        if !pdu.partner.is_same_port(actor) || pdu.partner.state.0 & told != actor.state.0 & told {
            self.need_to_transmit = true;
        }
        let theirs = pdu.actor.state;
        let aggregation = |state: State| state.has(State::AGGREGATION);
        let means_us = pdu.partner.is_same_port(actor) && aggregation(pdu.partner.state) == aggregation(actor.state);
        let maintained =
            theirs.has(State::ACTIVE) || (actor.state.has(State::ACTIVE) && pdu.partner.state.has(State::ACTIVE));
        let in_sync = theirs.has(State::SYNCHRONIZED) && (means_us || !aggregation(theirs)) && maintained;
        self.partner = pdu.actor;
        self.partner.state = theirs.with(State::SYNCHRONIZED, in_sync);
        actor.state = actor.state.with(State::DEFAULTED, false).with(State::EXPIRED, false);
        let limit = if actor.state.has(State::SHORT_TIMEOUT) { SHORT_TIMEOUT_MS } else { LONG_TIMEOUT_MS };
        self.current_until = Some(now_ms + limit);
        self.receive = Receive::Current;
    }

    /// The partner is not heard: it has three seconds, and is asked every second.
    fn expire(&mut self, now_ms: u64) {
        self.partner.state = self.partner.state.with(State::SYNCHRONIZED, false).with(State::SHORT_TIMEOUT, true);
        self.actor.state = self.actor.state.with(State::EXPIRED, true);
        self.current_until = Some(now_ms + SHORT_TIMEOUT_MS);
        self.receive = Receive::Expired;
    }

    fn give_up(&mut self) {
        self.partner = nobody();
        self.actor.state = self.actor.state.with(State::EXPIRED, false).with(State::DEFAULTED, true);
        self.current_until = None;
        self.receive = Receive::Defaulted;
        self.selected = None;
    }

    fn run_timers(&mut self, now_ms: u64) {
        if self.current_until.is_some_and(|at| now_ms >= at) {
            match self.receive {
                Receive::Current => self.expire(now_ms),
                _ => self.give_up(),
            }
        }
        let speaks = self.actor.state.has(State::ACTIVE) || self.partner.state.has(State::ACTIVE);
        if !self.enabled || !speaks {
            self.periodic = None;
            return;
        }
        let fast = self.partner.state.has(State::SHORT_TIMEOUT);
        let every = if fast { FAST_PERIODIC_MS } else { SLOW_PERIODIC_MS };
        match self.periodic {
            Some((at, before)) if before == fast && now_ms < at => {}
            None => self.periodic = Some((now_ms + every, fast)),
            // From fast to slow only the interval changes.
            Some((_, true)) if !fast => self.periodic = Some((now_ms + every, fast)),
            Some(_) => {
                self.need_to_transmit = true;
                self.periodic = Some((now_ms + every, fast));
            }
        }
    }

    /// One step of the multiplexing machine; whether there was one.
    fn step_mux(&mut self, now_ms: u64) -> bool {
        let selected = self.selected.is_some();
        let theirs = self.partner.state;
        let in_sync = selected && theirs.has(State::SYNCHRONIZED);
        let to = match self.mux {
            Mux::Detached if selected => Mux::Waiting,
            Mux::Waiting if !selected => Mux::Detached,
            Mux::Waiting if self.wait_until.is_some_and(|at| now_ms >= at) => Mux::Attached,
            Mux::Attached if !selected => Mux::Detached,
            Mux::Attached if in_sync => Mux::Collecting,
            Mux::Collecting if !in_sync => Mux::Attached,
            Mux::Collecting if theirs.has(State::COLLECTING) => Mux::Distributing,
            Mux::Distributing if !in_sync || !theirs.has(State::COLLECTING) => Mux::Collecting,
            _ => return false,
        };
        self.wait_until = (to == Mux::Waiting).then_some(now_ms + AGGREGATE_WAIT_MS);
        self.mux = to;
        let state = self.actor.state;
        self.actor.state = state
            .with(State::SYNCHRONIZED, to >= Mux::Attached)
            .with(State::COLLECTING, to >= Mux::Collecting)
            .with(State::DISTRIBUTING, to == Mux::Distributing);
        self.need_to_transmit |= self.actor.state != state;
        true
    }

    /// Whether an LACPDU is due, and may be sent; it is counted as sent then.
    fn transmits(&mut self, now_ms: u64) -> bool {
        if !self.need_to_transmit || self.periodic.is_none() || self.sends_at(now_ms) > now_ms {
            return false;
        }
        self.need_to_transmit = false;
        self.sent.rotate_left(1);
        self.sent[TX_LIMIT - 1] = Some(now_ms);
        true
    }

    /// When the next one may be sent.
    fn sends_at(&self, now_ms: u64) -> u64 {
        self.sent[0].map_or(now_ms, |first| first + FAST_PERIODIC_MS)
    }

    fn pdu(&self) -> Lacpdu {
        Lacpdu { actor: self.actor, partner: self.partner }
    }
}

/// The partner of a member that has none (recordDefault): it has said nothing, and is asked every second.
fn nobody() -> Info {
    Info { state: State::SHORT_TIMEOUT, ..Info::default() }
}

impl Lacp {
    /// A bond of so many members, none of which has a link yet.
    #[must_use]
    pub fn new(settings: Settings, members: usize) -> Lacp {
        let ports = (1..=members as u16).map(|number| Port::new(&settings, number)).collect();
        Lacp { settings, ports, chosen: None }
    }

    /// A member has got a link, or lost it.
    pub fn set_enabled(&mut self, member: usize, enabled: bool, now_ms: u64) {
        let port = &mut self.ports[member];
        if port.enabled == enabled {
            return;
        }
        port.enabled = enabled;
        port.partner.state = port.partner.state.with(State::SYNCHRONIZED, false);
        if enabled {
            port.expire(now_ms);
            port.need_to_transmit = true;
        } else {
            port.receive = Receive::Disabled;
            port.current_until = None;
            port.selected = None;
            port.need_to_transmit = false;
        }
    }

    /// A member has received an LACPDU.
    pub fn receive(&mut self, member: usize, pdu: &Lacpdu, now_ms: u64) {
        let port = &mut self.ports[member];
        if port.enabled {
            port.record(pdu, now_ms);
        }
    }

    /// Does what is due; returns what is to be sent, and by which member.
    pub fn advance(&mut self, now_ms: u64) -> Vec<(usize, Lacpdu)> {
        for port in &mut self.ports {
            port.run_timers(now_ms);
        }
        for _ in 0..MAX_ROUNDS {
            let mut changed = false;
            for port in &mut self.ports {
                changed |= port.step_mux(now_ms);
            }
            changed |= self.select();
            if !changed {
                break;
            }
        }
        let due = self.ports.iter_mut().enumerate().filter_map(|(index, port)| {
            // Whether it speaks at all may have changed with its partner.
            port.run_timers(now_ms);
            port.transmits(now_ms).then(|| (index, port.pdu()))
        });
        due.collect()
    }

    /// What to say when the bond goes away, so that nothing more is sent to it.
    #[must_use]
    pub fn farewell(&self) -> Vec<(usize, Lacpdu)> {
        let heard = self.ports.iter().enumerate().filter(|(_, port)| port.enabled && port.receive == Receive::Current);
        let last = heard.map(|(index, port)| {
            let mut pdu = port.pdu();
            let joined = State(State::SYNCHRONIZED.0 | State::COLLECTING.0 | State::DISTRIBUTING.0);
            pdu.actor.state = pdu.actor.state.with(joined, false);
            (index, pdu)
        });
        last.collect()
    }

    /// When [`advance`](Self::advance) has something to do next; `None`: when something is received.
    #[must_use]
    pub fn wake_at(&self, now_ms: u64) -> Option<u64> {
        let of = |port: &Port| {
            let due = (port.need_to_transmit && port.periodic.is_some()).then(|| port.sends_at(now_ms));
            [port.current_until, port.wait_until, port.periodic.map(|(at, _)| at), due].into_iter().flatten().min()
        };
        self.ports.iter().filter_map(of).min()
    }

    /// The aggregate that a member could belong to.
    fn lag_of(&self, member: usize) -> Option<Lag> {
        let port = &self.ports[member];
        let heard = matches!(port.receive, Receive::Current)
            || port.receive == Receive::Expired && !port.actor.state.has(State::DEFAULTED);
        let partner = port.partner;
        if !port.enabled || !heard || partner.system == self.settings.system {
            return None;
        }
        let alone = (!partner.state.has(State::AGGREGATION)).then_some(member);
        Some(Lag { system_priority: partner.system_priority, system: partner.system, key: partner.key, alone })
    }

    /// Selects the members of one aggregate; whether anything has changed.
    fn select(&mut self) -> bool {
        let lags: Vec<Option<Lag>> = (0..self.ports.len()).map(|member| self.lag_of(member)).collect();
        let count = |lag: &Lag| lags.iter().flatten().filter(|other| *other == lag).count();
        if self.chosen.is_none_or(|chosen| count(&chosen) == 0) {
            // The last of equals in reverse order is the first.
            self.chosen = lags.iter().rev().flatten().max_by_key(|lag| count(lag)).copied();
        }
        let mut changed = false;
        for (port, lag) in self.ports.iter_mut().zip(lags) {
            let wanted = lag.filter(|lag| Some(*lag) == self.chosen);
            if port.selected == wanted {
                continue;
            }
            // One that belonged elsewhere leaves first.
            let next = if port.mux == Mux::Detached { wanted } else { None };
            changed |= port.selected != next;
            port.selected = next;
        }
        changed
    }

    fn mask(&self, least: Mux) -> u32 {
        self.ports
            .iter()
            .enumerate()
            .filter(|(_, port)| port.mux >= least)
            .fold(0, |mask, (index, _)| mask | 1 << index)
    }

    /// The members that frames are taken from, as bits.
    #[must_use]
    pub fn collecting(&self) -> u32 {
        self.mask(Mux::Collecting)
    }

    /// The members that frames are sent by, as bits.
    #[must_use]
    pub fn distributing(&self) -> u32 {
        self.mask(Mux::Distributing)
    }

    /// The two ends of a member's link; the other one, if it has been heard.
    #[must_use]
    pub fn ends(&self, member: usize) -> (Info, Option<Info>) {
        let port = &self.ports[member];
        (port.actor, (!port.actor.state.has(State::DEFAULTED)).then_some(port.partner))
    }

    /// The system at the other end of the bond.
    #[must_use]
    pub fn partner(&self) -> Option<MacAddr> {
        self.chosen.map(|lag| lag.system)
    }

    /// Why a member with a link sends no frames; `None`: it does.
    #[must_use]
    pub fn why(&self, member: usize) -> Option<Why> {
        let port = &self.ports[member];
        let partner = &port.partner;
        if port.actor.state.has(State::DEFAULTED) {
            return Some(Why::NoPartner);
        }
        if port.receive == Receive::Expired {
            return Some(Why::Silent);
        }
        if partner.system == self.settings.system {
            return Some(Why::Loop);
        }
        if port.selected.is_none() {
            return Some(match self.chosen {
                Some(chosen)
                    if (chosen.system, chosen.system_priority) != (partner.system, partner.system_priority) =>
                {
                    Why::OtherSystem(partner.system)
                }
                Some(chosen) if chosen.key != partner.key => Why::OtherKey(partner.key),
                Some(chosen) if chosen.alone != Some(member) && !partner.state.has(State::AGGREGATION) => {
                    Why::Individual
                }
                _ => Why::Joining,
            });
        }
        match port.mux {
            Mux::Detached | Mux::Waiting => Some(Why::Joining),
            Mux::Attached => Some(Why::NotInSync),
            Mux::Collecting => Some(Why::NotCollecting),
            Mux::Distributing => None,
        }
    }
}
