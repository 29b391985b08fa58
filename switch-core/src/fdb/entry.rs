//! What an entry is: for its users, and packed into the 32 bits of a bucket's value.

use crate::{
    clock::Tick,
    id::{DomainId, MAX_PORTS, PortId},
    mac::MacAddr,
};

/// How an entry came to be and what may happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Ages and moves.
    Learned,
    /// Ages, never moves.
    Sticky,
    /// Neither.
    Static,
}

/// What came of a source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Known here, and the tick has not changed: nothing was written.
    Fresh,
    /// Known here; the tick was updated.
    Refreshed,
    /// New.
    New,
    /// Was on another port.
    Moved {
        /// Which one.
        from: PortId,
    },
    /// Static or sticky on another port: left there.
    Violation {
        /// Which one.
        pinned_to: PortId,
    },
    /// Flapping: left where it was.
    Held,
    /// A quota is used up, or nothing may be evicted.
    Full,
    /// Another writer was there first.
    Raced,
}

/// One entry, for humans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The domain.
    pub domain: DomainId,
    /// The address.
    pub mac: MacAddr,
    /// The port.
    pub port: PortId,
    /// The kind.
    pub kind: Kind,
    /// Seconds since the last frame.
    pub age_s: u32,
}

/// An entry that the control side wants cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdbError {
    /// Both buckets are full of static entries.
    #[error("no room for {0}: the table has too many static entries; start the switch with a larger fdb-size")]
    Full(MacAddr),
    /// A worker kept the bucket.
    #[error("the table entry for {0} is busy; try again")]
    Busy(MacAddr),
    /// Not an address of one host.
    #[error("{0} is not a unicast address")]
    NotUnicast(MacAddr),
}

/// Which entries to flush.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flush {
    /// Only this port's.
    pub port: Option<PortId>,
    /// Only this domain's.
    pub domain: Option<DomainId>,
    /// Static entries too.
    pub include_static: bool,
}

pub(super) const PORT_SHIFT: u32 = 18;
pub(super) const KIND_SHIFT: u32 = 16;

pub(super) fn pack(port: PortId, kind: Kind, tick: Tick) -> u32 {
    debug_assert!(port.index() < MAX_PORTS, "a port id has 14 bits");
    (u32::from(port.0) << PORT_SHIFT) | ((kind as u32) << KIND_SHIFT) | (tick.0 & 0xffff)
}

#[inline]
pub(super) fn port_of(value: u32) -> PortId {
    PortId((value >> PORT_SHIFT) as u16)
}

#[inline]
pub(super) fn kind_of(value: u32) -> Kind {
    match (value >> KIND_SHIFT) & 3 {
        0 => Kind::Learned,
        1 => Kind::Sticky,
        _ => Kind::Static,
    }
}

/// Seconds by which two readings of the clock may be apart: the sweep reads it before a worker does.
const CLOCK_SKEW_S: u32 = 60;

#[inline]
pub(super) fn age_of(value: u32, now: Tick) -> u32 {
    let age = now.0.wrapping_sub(value) & 0xffff;
    // An entry that is newer than `now` wraps to the top of the range, which real ages never reach.
    if age > 0xffff - CLOCK_SKEW_S { 0 } else { age }
}
