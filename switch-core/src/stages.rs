//! What the stages of the frame path cost: cycles of the time stamp counter per stage, summed over the batches of a worker.
//!
//! Compiled in only with the feature `stages`, because it reads the counter seven times per batch. Without it there is a
//! twin of the same shape that is nothing, so that the frame path has one text.

use std::sync::Arc;

/// The stages, in the order of a batch.
pub const STAGES: [&str; 6] = ["rx", "classify", "learn", "decide", "transmit", "release"];

/// What a batch has just been through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// The driver filled the batch.
    Rx,
    /// Attachment, domain, validation.
    Classify,
    /// Source addresses.
    Learn,
    /// Rates of the port, destinations, and the plan.
    Decide,
    /// The plan's copies to the drivers.
    Transmit,
    /// Leased buffers back to their senders.
    Release,
}

/// A worker's sums since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Frames received.
    pub frames: u64,
    /// Cycles by stage.
    pub cycles: [u64; STAGES.len()],
}

/// Reads a worker's sums from other threads; `None`: they are not compiled in.
pub type Reading = Arc<dyn Fn() -> Option<Sums> + Send + Sync>;

pub use twin::Stages;

#[cfg(feature = "stages")]
mod twin {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    };

    use super::{Reading, STAGES, Stage, Sums};
    use crate::sys::tsc;

    #[derive(Default)]
    struct Shared {
        frames: AtomicU64,
        cycles: [AtomicU64; STAGES.len()],
    }

    /// One worker's clock. See the module page.
    #[derive(Default)]
    pub struct Stages {
        since: u64,
        shared: Arc<Shared>,
    }

    /// Only the worker writes: no read-modify-write is needed.
    fn add(to: &AtomicU64, n: u64) {
        to.store(to.load(Relaxed) + n, Relaxed);
    }

    impl Stages {
        /// The next stage begins now.
        #[inline]
        pub fn begin(&mut self) {
            self.since = tsc::read().unwrap_or(0);
        }

        /// A stage has ended, and the next one begins.
        #[inline]
        pub fn end(&mut self, stage: Stage) {
            let now = tsc::read().unwrap_or(0);
            add(&self.shared.cycles[stage as usize], now.saturating_sub(self.since));
            self.since = now;
        }

        /// So many frames are in the batch.
        #[inline]
        pub fn frames(&mut self, frames: usize) {
            add(&self.shared.frames, frames as u64);
        }

        /// For those who show the sums.
        #[must_use]
        pub fn reading(&self) -> Reading {
            let shared = Arc::clone(&self.shared);
            Arc::new(move || {
                let cycles = std::array::from_fn(|stage| shared.cycles[stage].load(Relaxed));
                Some(Sums { frames: shared.frames.load(Relaxed), cycles })
            })
        }
    }
}

#[cfg(not(feature = "stages"))]
mod twin {
    use super::{Reading, Stage};

    /// Nothing. See the module page.
    #[derive(Default)]
    pub struct Stages {}

    impl Stages {
        /// Nothing.
        #[inline]
        pub fn begin(&mut self) {}

        /// Nothing.
        #[inline]
        pub fn end(&mut self, _stage: Stage) {}

        /// Nothing.
        #[inline]
        pub fn frames(&mut self, _frames: usize) {}

        /// There are no sums.
        #[must_use]
        pub fn reading(&self) -> Reading {
            std::sync::Arc::new(|| None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_go_to_the_stage_that_ended() {
        let mut stages = Stages::default();
        let read = stages.reading();
        for _ in 0..3 {
            stages.begin();
            stages.frames(5);
            stages.end(Stage::Rx);
            std::thread::sleep(std::time::Duration::from_millis(1));
            stages.end(Stage::Learn);
        }
        if cfg!(not(feature = "stages")) {
            assert_eq!((read(), size_of::<Stages>()), (None, 0), "the twin is nothing");
            return;
        }
        let Sums { frames, cycles } = read().expect("compiled in");
        assert_eq!((frames, cycles[Stage::Classify as usize], cycles[Stage::Release as usize]), (15, 0, 0));
        if cfg!(target_arch = "x86_64") {
            assert!(cycles[Stage::Learn as usize] > cycles[Stage::Rx as usize], "{cycles:?}");
        }
        assert_eq!(STAGES[Stage::Learn as usize], "learn");
    }
}
