//! Storm control: how much of what has no single destination one port may send.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Frames per second that one port may have flooded, by class. 0 switches the check off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StormLimits {
    /// Broadcast frames per second.
    pub broadcast: u32,
    /// Multicast frames per second.
    pub multicast: u32,
    /// Frames to unknown unicast addresses per second.
    pub unknown: u32,
}

impl Default for StormLimits {
    /// Far above what hosts send, far below what a loop makes.
    fn default() -> Self {
        StormLimits { broadcast: 20_000, multicast: 200_000, unknown: 100_000 }
    }
}

/// The classes of storm control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StormClass {
    /// To ff:ff:ff:ff:ff:ff.
    Broadcast = 0,
    /// To another group address.
    Multicast = 1,
    /// To a unicast address that is not in the FDB.
    Unknown = 2,
}

/// The bursts that storm control allows, as a fraction of a second's worth.
const STORM_BURST_NS: u64 = 100_000_000;

/// Storm control of one port: the generic cell rate algorithm, one word per class, shared by the workers that own the
/// port's queues. Two workers that race may let one frame too many through; nothing is ever blocked.
#[derive(Debug, Default)]
pub struct StormState {
    due: [AtomicU64; 3],
}

impl StormState {
    /// Whether one more frame of `class` may be flooded now.
    #[inline]
    pub fn admit(&self, class: StormClass, limits: &StormLimits, now_nanos: u64) -> bool {
        let per_second = match class {
            StormClass::Broadcast => limits.broadcast,
            StormClass::Multicast => limits.multicast,
            StormClass::Unknown => limits.unknown,
        };
        if per_second == 0 {
            return true;
        }
        let cost = 1_000_000_000 / u64::from(per_second);
        let cell = &self.due[class as usize];
        let due = cell.load(Relaxed).max(now_nanos);
        if due - now_nanos > STORM_BURST_NS {
            return false;
        }
        cell.store(due + cost, Relaxed);
        true
    }
}
