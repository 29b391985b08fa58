//! Which MAC address an IP packet goes to: the neighbours of a `tun` port, asked for, answered and forgotten.
//!
//! A state machine without I/O, owned by the port's receive half: packets that come out of the TUN ask it for their next hop
//! ([`Resolver::route`]), messages that the transmit half saw are given to it ([`Resolver::hear`]), and what it has to
//! say is taken from [`Resolver::next_message`]. Time is an argument, in milliseconds of a coarse clock.
//!
//! Everything is bounded and allocated once: neighbours in sets of [`WAYS`] (a full set gives up its unresolved neighbour
//! that was used longest ago, or else its resolved one), [`HELD`] packets that wait for an answer, [`HELD_EACH`] of them
//! per neighbour (the oldest makes room, RFC 4861 §7.2.2), and [`MESSAGES`] messages on their way. Whatever finds no room
//! is counted in [`Resolver::take_lost`].

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr},
};

use arrayvec::ArrayVec;

use super::{
    messages::{self, Heard, Message, Speaker},
    prefix::Prefix,
};
use crate::{frame::offload::Offload, mac::MacAddr};

/// Neighbours in one set.
pub const WAYS: usize = 8;
const SETS: usize = 128;
/// Neighbours that are known at once.
pub const NEIGHBOURS: usize = WAYS * SETS;
/// Packets that wait for answers.
pub const HELD: usize = 64;
/// Packets that wait for one answer.
pub const HELD_EACH: usize = 3;
/// The longest packet that can wait; a longer one is lost, and its sender sends it again.
pub const HELD_BYTES: usize = 2048;
/// Messages that wait to be sent.
pub const MESSAGES: usize = 64;
/// Questions before a neighbour is given up (`MAX_MULTICAST_SOLICIT`, `MAX_UNICAST_SOLICIT`).
const QUESTIONS: u8 = 3;
/// Milliseconds between them (`RETRANS_TIMER`), less what a coarse clock may be late.
const ASK_AGAIN_MS: u64 = 950;
/// An answer is believed without asking again for so long (`REACHABLE_TIME`).
const REACHABLE_MS: u64 = 30_000;
/// After so long it is not believed even until the next answer.
const FORGOTTEN_MS: u64 = 120_000;

/// What belongs to the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its MAC address in the domain.
    pub mac: MacAddr,
    /// The addresses behind it.
    pub addresses: Vec<Prefix>,
    /// What is reached without a gateway; only asked where there is one.
    pub onlink: Vec<Prefix>,
    /// Where everything else goes: at most one address of each family.
    pub gateways: Vec<IpAddr>,
}

impl Own {
    /// Whether an address is behind the port.
    #[inline]
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|prefix| prefix.contains(address))
    }

    fn next_hop(&self, to: IpAddr) -> IpAddr {
        match self.gateways.iter().find(|gateway| gateway.is_ipv4() == to.is_ipv4()) {
            Some(gateway) if !self.onlink.iter().any(|prefix| prefix.contains(to)) => *gateway,
            _ => to,
        }
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// There.
    To(MacAddr),
    /// Nobody knows yet: give it to [`Resolver::hold`] with this.
    Unknown(Hop),
    /// Nowhere: it is not from an address of the port, or to one that no packet goes to.
    Refused,
}

/// A next hop that has been asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    set: usize,
    way: usize,
}

/// A packet that waits.
#[derive(Clone, Copy, Debug)]
struct Packet {
    len: usize,
    offload: Offload,
}

#[derive(Clone, Debug)]
struct Neighbour {
    ip: IpAddr,
    mac: Option<MacAddr>,
    /// When its address was last known to be right.
    confirmed: u64,
    used: u64,
    /// Questions since then, and when the last one was.
    asked: u8,
    asked_at: u64,
    /// The address of ours in whose name is asked.
    by: IpAddr,
    held: ArrayVec<u8, HELD_EACH>,
}

/// See the module page.
pub struct Resolver {
    own: Own,
    sets: Box<[[Option<Neighbour>; WAYS]]>,
    hash: RandomState,
    buffers: Box<[u8]>,
    packets: [Packet; HELD],
    free: ArrayVec<u8, HELD>,
    /// Packets whose answer has come.
    ready: VecDeque<(MacAddr, u8)>,
    messages: VecDeque<Message>,
    unresolved: usize,
    lost: u64,
}

impl Resolver {
    /// Nobody known; the port's own addresses are to be announced.
    #[must_use]
    pub fn new(own: Own) -> Resolver {
        let mut resolver = Resolver {
            sets: vec![[const { None }; WAYS]; SETS].into_boxed_slice(),
            hash: RandomState::new(),
            buffers: vec![0; HELD * HELD_BYTES].into_boxed_slice(),
            packets: [Packet { len: 0, offload: Offload::NONE }; HELD],
            free: (0..HELD as u8).collect(),
            ready: VecDeque::with_capacity(HELD),
            messages: VecDeque::with_capacity(MESSAGES),
            unresolved: 0,
            lost: 0,
            own,
        };
        let mac = resolver.own.mac;
        let singles: Vec<IpAddr> = resolver.own.addresses.iter().filter_map(Prefix::single).take(MESSAGES).collect();
        singles.into_iter().for_each(|ip| resolver.say(messages::announcement(Speaker { mac, ip })));
        resolver
    }

    /// What belongs to the port.
    #[must_use]
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// Whether [`tick`](Self::tick) is to be called about once per second.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.unresolved > 0
    }

    /// Packets and messages that found no room, or no answer, since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Where a packet goes that came out of the TUN.
    pub fn route(&mut self, from: IpAddr, to: IpAddr, now: u64) -> Route {
        if !self.own.has(from) || self.own.has(to) || to.is_unspecified() || to.is_loopback() {
            return Route::Refused;
        }
        if to.is_multicast() {
            return Route::To(messages::group_mac_of(to));
        }
        if to == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Route::To(MacAddr::BROADCAST);
        }
        let hop = self.own.next_hop(to);
        let place = self.find(hop).unwrap_or_else(|| self.make(hop, from, now));
        let mac = self.own.mac;
        let Some(neighbour) = &mut self.sets[place.set][place.way] else { return Route::Refused };
        neighbour.used = now;
        let age = now.saturating_sub(neighbour.confirmed);
        let ask = match neighbour.mac {
            Some(known) if age < REACHABLE_MS => return Route::To(known),
            Some(_) => neighbour.asked == 0 || now.saturating_sub(neighbour.asked_at) >= ASK_AGAIN_MS,
            None => neighbour.asked == 0,
        };
        if neighbour.mac.is_some() && (age >= FORGOTTEN_MS || (ask && neighbour.asked == QUESTIONS)) {
            (neighbour.mac, neighbour.asked) = (None, 0);
            self.unresolved += 1;
        }
        if ask || neighbour.asked == 0 {
            (neighbour.asked, neighbour.asked_at, neighbour.by) = (neighbour.asked + 1, now, from);
            let (ip, known) = (neighbour.ip, neighbour.mac);
            self.say(messages::question(Speaker { mac, ip: from }, ip, known));
        }
        match self.sets[place.set][place.way].as_ref().and_then(|n| n.mac) {
            Some(known) => Route::To(known),
            None => Route::Unknown(place),
        }
    }

    /// Keeps a packet until the answer comes. The hop is what [`route`](Self::route) has just said.
    pub fn hold(&mut self, hop: Hop, head: &[u8], offload: Offload) {
        let Some(neighbour) = &mut self.sets[hop.set][hop.way] else { return };
        if head.len() > HELD_BYTES {
            self.lost += 1;
            return;
        }
        let oldest = if neighbour.held.is_full() { Some(neighbour.held.remove(0)) } else { None };
        self.lost += u64::from(oldest.is_some());
        match oldest.or_else(|| self.free.pop()) {
            Some(buffer) => {
                let index = usize::from(buffer);
                self.buffers[index * HELD_BYTES..][..head.len()].copy_from_slice(head);
                self.packets[index] = Packet { len: head.len(), offload };
                neighbour.held.push(buffer);
            }
            None => self.lost += 1,
        }
    }

    /// Takes in what somebody in the domain said.
    pub fn hear(&mut self, heard: Heard, now: u64) {
        match heard {
            Heard::Asks { target, from } => {
                // Whoever has an address of ours is not believed.
                let from = from.filter(|(ip, mac)| !self.own.has(*ip) && *mac != self.own.mac);
                if !self.own.has(target) {
                    return;
                }
                if let Some((ip, mac)) = from {
                    let place = self.find(ip).unwrap_or_else(|| self.make(ip, target, now));
                    self.learn(place, mac, now);
                }
                self.say(messages::answer(Speaker { mac: self.own.mac, ip: target }, from));
            }
            Heard::Tells { of, mac, solicited, replaces } => {
                // Only of neighbours that we have asked for.
                let Some(place) = self.find(of).filter(|_| mac != Some(self.own.mac)) else { return };
                let Some(neighbour) = &mut self.sets[place.set][place.way] else { return };
                match (mac, neighbour.mac) {
                    (Some(mac), None) => self.learn(place, mac, now),
                    (Some(mac), Some(known)) if replaces || mac == known => {
                        if solicited {
                            self.learn(place, mac, now);
                        } else {
                            neighbour.mac = Some(mac);
                        }
                    }
                    (None, Some(known)) if solicited => self.learn(place, known, now),
                    _ => {}
                }
            }
        }
    }

    /// Asks again for those who have not answered, and gives up the ones that never do.
    pub fn tick(&mut self, now: u64) {
        for set in 0..SETS {
            for way in 0..WAYS {
                let Some(neighbour) = &mut self.sets[set][way] else { continue };
                if neighbour.mac.is_some() || now.saturating_sub(neighbour.asked_at) < ASK_AGAIN_MS {
                    continue;
                }
                if neighbour.asked < QUESTIONS {
                    (neighbour.asked, neighbour.asked_at) = (neighbour.asked + 1, now);
                    let (by, ip) = (neighbour.by, neighbour.ip);
                    self.say(messages::question(Speaker { mac: self.own.mac, ip: by }, ip, None));
                } else {
                    self.give_up(Hop { set, way });
                }
            }
        }
    }

    /// The next message to be sent into the domain.
    pub fn next_message(&mut self) -> Option<Message> {
        self.messages.pop_front()
    }

    /// The next packet whose answer has come: copied to `to`, which has room for [`HELD_BYTES`]; its length.
    pub fn next_packet(&mut self, to: &mut [u8]) -> Option<(MacAddr, usize, Offload)> {
        let (mac, buffer) = self.ready.pop_front()?;
        let index = usize::from(buffer);
        let packet = self.packets[index];
        to[..packet.len].copy_from_slice(&self.buffers[index * HELD_BYTES..][..packet.len]);
        self.free.push(buffer);
        Some((mac, packet.len, packet.offload))
    }

    /// Whether something is to be sent.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !(self.messages.is_empty() && self.ready.is_empty())
    }

    fn say(&mut self, message: Message) {
        if self.messages.len() < MESSAGES {
            self.messages.push_back(message);
        } else {
            self.lost += 1;
        }
    }

    fn learn(&mut self, place: Hop, mac: MacAddr, now: u64) {
        let Some(neighbour) = &mut self.sets[place.set][place.way] else { return };
        if neighbour.mac.replace(mac).is_none() {
            self.unresolved -= 1;
        }
        (neighbour.confirmed, neighbour.asked) = (now, 0);
        // There are as many places as buffers, so each finds one.
        self.ready.extend(neighbour.held.drain(..).map(|buffer| (mac, buffer)));
    }

    fn set_of(&self, ip: IpAddr) -> usize {
        (self.hash.hash_one(ip) % SETS as u64) as usize
    }

    fn find(&self, ip: IpAddr) -> Option<Hop> {
        let set = self.set_of(ip);
        let way = self.sets[set].iter().position(|n| n.as_ref().is_some_and(|n| n.ip == ip))?;
        Some(Hop { set, way })
    }

    /// A place for a neighbour that is not known, and has not been asked for.
    fn make(&mut self, ip: IpAddr, by: IpAddr, now: u64) -> Hop {
        let set = self.set_of(ip);
        let rank = |n: &Option<Neighbour>| n.as_ref().map(|n| (n.mac.is_some(), n.used));
        let way = (0..WAYS).min_by_key(|way| rank(&self.sets[set][*way])).unwrap_or(0);
        let place = Hop { set, way };
        self.give_up(place);
        self.sets[set][way] = Some(Neighbour {
            ip,
            mac: None,
            confirmed: 0,
            used: now,
            asked: 0,
            asked_at: now,
            by,
            held: ArrayVec::new(),
        });
        self.unresolved += 1;
        place
    }

    fn give_up(&mut self, place: Hop) {
        let Some(neighbour) = self.sets[place.set][place.way].take() else { return };
        self.unresolved -= usize::from(neighbour.mac.is_none());
        self.lost += neighbour.held.len() as u64;
        self.free.extend(neighbour.held);
    }
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
