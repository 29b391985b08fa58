//! Rates in bytes: dual token buckets (average with a burst, and a peak), exact on whatever clock they are given.
//!
//! A bucket counts billionths of a byte, so that `rate × nanoseconds` is a whole number and nothing is ever rounded. A
//! frame passes if both buckets hold its bytes; one that is longer than a bucket passes when that is full, and the
//! bucket owes the rest. So between two instants there pass at most `burst + rate × time` bytes (and once the longest
//! frame, if the burst is shorter than that), and in the long run exactly the rate.
//!
//! The state is locked once per batch by whoever has frames to judge, for as long as that takes; never together with a
//! transmit queue. Ports without a rate have no [`Limiter`].

use std::{fmt, str::FromStr};

use parking_lot::{Mutex, MutexGuard};

/// What `KiB` means.
const KIB: u64 = 1024;
/// Billionths of a byte in a byte, and nanoseconds in a second.
const NANO: i128 = 1_000_000_000;
/// The burst of a rate that names none: what it carries in this fraction of a second …
const DEFAULT_BURST_FRACTION: u64 = 4;
/// … but not less than this: one GSO frame, which a smaller bucket would let pass only when it is full.
const LEAST_BURST: u64 = 64 * KIB;
/// The peak's own bucket: what it carries in this fraction of a second, or [`LEAST_BURST`].
const PEAK_BURST_FRACTION: u64 = 100;
/// The greatest number of KiB, and of KiB per second, that a rate can name: 4 TiB.
const MAX_KIB: u64 = u32::MAX as u64;

/// `AVERAGE[:PEAK[:BURST]]`: KiB per second, KiB per second, KiB, as libvirt's `<bandwidth>` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// KiB per second in the long run.
    pub average: u32,
    /// KiB per second during a burst; `None`: as fast as it goes.
    pub peak: Option<u32>,
    /// KiB that may go at once after a silence.
    pub burst: Option<u32>,
}

impl Rate {
    /// Bytes that may go at once after a silence.
    #[must_use]
    pub fn burst_bytes(&self) -> u64 {
        let average = u64::from(self.average) * KIB;
        self.burst.map_or_else(|| (average / DEFAULT_BURST_FRACTION).max(LEAST_BURST), |kib| u64::from(kib) * KIB)
    }
}

/// The text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a rate; write AVERAGE[:PEAK[:BURST]] in KiB/s, KiB/s and KiB, for example 1000:2000:512")]
pub struct ParseRateError(String);

impl FromStr for Rate {
    type Err = ParseRateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseRateError(text.to_owned());
        let number = |part: &str| match part.parse::<u64>() {
            Ok(n @ 1..=MAX_KIB) => Ok(n as u32),
            _ => Err(wrong()),
        };
        let optional = |part: Option<&str>| part.filter(|part| !part.is_empty()).map(number).transpose();
        let mut parts = text.split(':');
        let average = number(parts.next().unwrap_or_default())?;
        let (peak, burst) = (optional(parts.next())?, optional(parts.next())?);
        if parts.next().is_some() || peak.is_some_and(|peak| peak < average) {
            return Err(wrong());
        }
        Ok(Rate { average, peak, burst })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.average)?;
        match (self.peak, self.burst) {
            (None, None) => Ok(()),
            (Some(peak), None) => write!(f, ":{peak}"),
            (None, Some(burst)) => write!(f, "::{burst}"),
            (Some(peak), Some(burst)) => write!(f, ":{peak}:{burst}"),
        }
    }
}

impl serde::Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Bytes per second, which is billionths of a byte per nanosecond.
    rate: i128,
    /// What it holds at most, in billionths of a byte.
    depth: i128,
    /// What it holds; below zero: what it owes.
    level: i128,
}

impl Bucket {
    fn new(rate: u64, depth: u64) -> Bucket {
        let depth = i128::from(depth) * NANO;
        Bucket { rate: rate.into(), depth, level: depth }
    }

    fn fill(&mut self, nanos: u64) {
        self.level = self.depth.min(self.level + self.rate * i128::from(nanos));
    }

    fn admits(&self, bytes: u64) -> bool {
        self.level >= (i128::from(bytes) * NANO).min(self.depth)
    }

    fn take(&mut self, bytes: u64) {
        self.level -= i128::from(bytes) * NANO;
    }

    /// Nanoseconds until it holds something.
    fn wait(&self) -> u64 {
        if self.level > 0 { 0 } else { u64::try_from(-self.level / self.rate).unwrap_or(u64::MAX).saturating_add(1) }
    }
}

#[derive(Debug)]
struct State {
    average: Bucket,
    peak: Option<Bucket>,
    /// The latest instant that anybody came with: workers read the clock apart, and time does not go back here.
    filled: u64,
}

/// The buckets of one [`Rate`], shared by all workers.
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    state: Mutex<State>,
}

/// Two limiters are equal if they let the same pass in the long run, whatever they hold now.
impl PartialEq for Limiter {
    fn eq(&self, other: &Limiter) -> bool {
        self.rate == other.rate
    }
}

impl Eq for Limiter {}

impl Limiter {
    /// Full buckets.
    #[must_use]
    pub fn new(rate: Rate) -> Limiter {
        let average = Bucket::new(u64::from(rate.average) * KIB, rate.burst_bytes());
        let peak = rate.peak.map(|kib| {
            let bytes = u64::from(kib) * KIB;
            Bucket::new(bytes, (bytes / PEAK_BURST_FRACTION).max(LEAST_BURST))
        });
        Limiter { rate, state: Mutex::new(State { average, peak, filled: 0 }) }
    }

    /// What it keeps to.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// The buckets at an instant, for as long as they are held.
    #[must_use]
    pub fn at(&self, now_nanos: u64) -> Buckets<'_> {
        let mut state = self.state.lock();
        let passed = now_nanos.saturating_sub(state.filled);
        state.average.fill(passed);
        if let Some(peak) = &mut state.peak {
            peak.fill(passed);
        }
        state.filled += passed;
        Buckets(state)
    }
}

/// See [`Limiter::at`].
pub struct Buckets<'a>(MutexGuard<'a, State>);

impl Buckets<'_> {
    /// Whether a frame of so many bytes may pass; if so they are taken.
    pub fn admit(&mut self, bytes: u64) -> bool {
        let passes = self.0.average.admits(bytes) && self.0.peak.is_none_or(|peak| peak.admits(bytes));
        if passes {
            self.charge(bytes);
        }
        passes
    }

    /// Takes the bytes of frames that are here already, and owes what is missing.
    pub fn charge(&mut self, bytes: u64) {
        self.0.average.take(bytes);
        if let Some(peak) = &mut self.0.peak {
            peak.take(bytes);
        }
    }

    /// Bytes that both buckets hold; 0 if one of them owes.
    #[must_use]
    pub fn left(&self) -> u64 {
        let level = self.0.peak.map_or(self.0.average.level, |peak| peak.level.min(self.0.average.level));
        u64::try_from(level / NANO).unwrap_or(0)
    }

    /// Nanoseconds until both buckets hold something.
    #[must_use]
    pub fn wait(&self) -> u64 {
        self.0.average.wait().max(self.0.peak.map_or(0, |peak| peak.wait()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_read_and_written() {
        for text in ["1000", "1000:2000", "1000:2000:512", "1000::512"] {
            assert_eq!(text.parse::<Rate>().expect(text).to_string(), text);
        }
        for text in ["", "0", "x", "1000:500", "1:2:3:4", "-1", "4294967296"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    /// What a bucket holds, from all that has passed before and from nothing else: the least, over all earlier instants,
    /// of a full bucket then, what has come in since, and what has been taken since.
    fn held(depth: i128, rate: i128, taken: &[(u64, u64)], now: u64) -> i128 {
        let since = |from: u64, index: usize| -> i128 {
            let out: i128 = taken[index..].iter().map(|(_, bytes)| i128::from(*bytes) * NANO).sum();
            depth + rate * i128::from(now - from) - out
        };
        (0..taken.len()).map(|index| since(taken[index].0, index)).chain([depth]).min().unwrap_or(depth)
    }

    proptest! {
        #[test]
        fn a_limiter_is_the_history_of_what_it_let_pass(
            average in 1u32..5000,
            peak in proptest::option::of(5000u32..20_000),
            burst in proptest::option::of(1u32..200),
            frames in proptest::collection::vec((0u64..30_000_000, 60u64..66_000), 1..60),
        ) {
            let rate = Rate { average, peak, burst };
            let limiter = Limiter::new(rate);
            let kib = |n: u32| i128::from(n) * 1024;
            let mut buckets = vec![(i128::from(rate.burst_bytes()) * NANO, kib(average))];
            buckets.extend(peak.map(|peak| ((kib(peak) / 100).max(65_536) * NANO, kib(peak))));
            let mut taken = Vec::new();
            let mut now = 0;
            for (gap, bytes) in frames {
                now += gap;
                let expected = buckets.iter().all(|(depth, rate)| {
                    held(*depth, *rate, &taken, now) >= (i128::from(bytes) * NANO).min(*depth)
                });
                prop_assert_eq!(limiter.at(now).admit(bytes), expected);
                if expected {
                    taken.push((now, bytes));
                }
            }
        }

        #[test]
        fn a_reader_that_pauses_loses_nothing_of_its_rate(average in 1u32..100_000, batch in 60u64..300_000) {
            let rate = Rate { average, peak: None, burst: Some(64) };
            let limiter = Limiter::new(rate);
            let (mut now, mut bytes) = (0u64, 0u64);
            for _ in 0..200 {
                let wait = limiter.at(now).wait();
                if wait > 0 {
                    prop_assert_eq!(limiter.at(now + wait - 1).left(), 0);
                    now += wait;
                    prop_assert_eq!(limiter.at(now).wait(), 0);
                }
                limiter.at(now).charge(batch);
                bytes += batch;
            }
            // All but the burst and the last batch has been paid for by time, to the nanosecond of each pause.
            let paid = u128::from(average) * 1024 * u128::from(now) / 1_000_000_000;
            prop_assert!(u128::from(bytes) <= paid + u128::from(rate.burst_bytes() + batch));
            // A pause is rounded up to the nanosecond that fills the bucket.
            let rounded = u128::from(average) * 1024 * 200 / 1_000_000_000 + 1;
            prop_assert!(paid <= u128::from(bytes) + rounded);
        }
    }

    #[test]
    fn time_that_comes_out_of_order_gives_nothing_twice() {
        let limiter = Limiter::new(Rate { average: 1, peak: None, burst: Some(1) });
        assert!(limiter.at(1_000_000_000).admit(1024));
        assert!(!limiter.at(500_000_000).admit(1024));
        assert!(!limiter.at(1_999_999_999).admit(1024));
        assert!(limiter.at(2_000_000_000).admit(1024));
    }
}
