//! A slowdown on purpose, to see that measurements find one: see docs/benchmarking/frame-path.md.
//!
//! Compiled in only with the feature `burden`, which no build has that is used; otherwise there is a twin that is nothing.

pub use twin::Burden;

/// Where the number of cycles per frame is read from when a worker is made.
pub const VARIABLE: &str = "VSWITCH_BURDEN_CYCLES";

#[cfg(feature = "burden")]
mod twin {
    use super::VARIABLE;
    use crate::sys::tsc;

    /// Cycles of the time stamp counter that each frame costs more.
    pub struct Burden(u64);

    impl Burden {
        /// As the environment says; 0 without the variable.
        #[must_use]
        pub fn from_environment() -> Burden {
            let cycles = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            tracing::warn!("this build slows itself down, by {cycles} cycles per frame ({VARIABLE})");
            Burden(cycles)
        }

        /// Waits as long as these frames are to cost more. Without a time stamp counter that is no time at all.
        #[inline]
        pub fn spend(&self, frames: usize) {
            let Some(begin) = tsc::read() else { return };
            let wanted = self.0 * frames as u64;
            while tsc::read().is_some_and(|now| now.saturating_sub(begin) < wanted) {}
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn each_frame_costs_what_was_asked_for() {
            let Some(begin) = tsc::read() else { return };
            Burden(1000).spend(64);
            assert!(tsc::read().is_some_and(|now| now - begin >= 64_000));
        }
    }
}

#[cfg(not(feature = "burden"))]
mod twin {
    /// Nothing. See the module page.
    pub struct Burden;

    impl Burden {
        /// Nothing.
        #[must_use]
        pub fn from_environment() -> Burden {
            Burden
        }

        /// Nothing.
        #[inline]
        pub fn spend(&self, _frames: usize) {}
    }
}
