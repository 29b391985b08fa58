//! Coarse time. The frame path never reads a clock: a worker reads one once per turn and passes it down.

use std::time::Instant;

/// Whole seconds since the switch started: the unit of FDB ages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u32);

/// One reading of a monotonic clock, in the two units that the frame path uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds since the switch started (storm control, rate limits, hold-down).
    pub nanos: u64,
    /// The same instant in whole seconds.
    pub tick: Tick,
}

impl Now {
    /// The instant `nanos` nanoseconds after the start of the switch.
    pub const fn from_nanos(nanos: u64) -> Now {
        Now { nanos, tick: Tick((nanos / 1_000_000_000) as u32) }
    }
}

/// The switch's clock: monotonic, starting at one second so that tick 0 can mean "never".
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Reads the clock.
    #[must_use]
    pub fn now(&self) -> Now {
        Now::from_nanos(1_000_000_000 + self.start.elapsed().as_nanos() as u64)
    }
}
