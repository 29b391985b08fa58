//! Flap detection: an address that moves between ports again and again is held where it is for a while, so that a loop
//! or a duplicated address cannot make every frame a table write, and cannot pull a host's traffic away.
//!
//! Each worker has a table of its own (moves are rare in a sane network; no lock is worth sharing them): 256 cells,
//! direct-mapped by key. A collision restarts the count, so an attacker can at worst hide his own flapping.

use std::collections::VecDeque;

use crate::{
    clock::Now,
    id::{DomainId, PortId},
    mac::MacAddr,
};

/// Moves within [`WINDOW_NS`] that make an address a flapping one.
pub const MOVES_TO_HOLD: u32 = 5;
/// The window in which moves are counted.
pub const WINDOW_NS: u64 = 10_000_000_000;
/// How long a flapping address is held.
pub const HOLD_NS: u64 = 10_000_000_000;
/// Events kept until somebody takes them; later ones are lost, the counters are not.
pub const MAX_EVENTS: usize = 64;
const CELLS: usize = 256;

/// An address began to flap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlapEvent {
    /// Its domain.
    pub domain: DomainId,
    /// The address.
    pub mac: MacAddr,
    /// Where it is held.
    pub kept_on: PortId,
    /// Where it was seen as well.
    pub seen_on: PortId,
}

#[derive(Clone, Copy, Default)]
struct Cell {
    key: u64,
    moves: u32,
    window_start: u64,
    held_until: u64,
}

/// One worker's memory of moves.
pub struct FlapTable {
    cells: Box<[Cell; CELLS]>,
    events: VecDeque<FlapEvent>,
}

impl Default for FlapTable {
    fn default() -> Self {
        FlapTable { cells: Box::new([Cell::default(); CELLS]), events: VecDeque::with_capacity(MAX_EVENTS) }
    }
}

/// The cell of a key. The domain counts too: a router has one address in all of its domains, and a loop moves it in
/// all of them at once.
fn cell_of(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize % CELLS
}

impl FlapTable {
    /// Whether `key` is held at this moment. Counts nothing.
    #[inline]
    pub(super) fn holds(&self, key: u64, now: Now) -> bool {
        let cell = &self.cells[cell_of(key)];
        cell.key == key && now.nanos < cell.held_until
    }

    /// Whether `key` may move from one port to the other now; counts the move if so.
    pub(super) fn may_move(&mut self, key: u64, kept_on: PortId, seen_on: PortId, now: Now) -> bool {
        let cell = &mut self.cells[cell_of(key)];
        if cell.key != key {
            *cell = Cell { key, window_start: now.nanos, ..Cell::default() };
        }
        if now.nanos < cell.held_until {
            return false;
        }
        if now.nanos - cell.window_start > WINDOW_NS {
            cell.moves = 0;
            cell.window_start = now.nanos;
        }
        cell.moves += 1;
        if cell.moves <= MOVES_TO_HOLD {
            return true;
        }
        cell.held_until = now.nanos + HOLD_NS;
        cell.moves = 0;
        if self.events.len() < MAX_EVENTS {
            let domain = DomainId((key >> 48) as u16);
            self.events.push_back(FlapEvent { domain, mac: MacAddr::from_u64(key), kept_on, seen_on });
        }
        false
    }

    /// Takes the oldest event.
    pub fn take_event(&mut self) -> Option<FlapEvent> {
        self.events.pop_front()
    }
}
