//! Distributions of latencies, kept so that rounds can be put together again.

use hdrhistogram::Histogram;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Significant decimal digits of a recorded value, from which the percentiles come.
const DIGITS: u8 = 3;
/// Of the buckets in the file: 1 % is enough for a curve and for putting rounds together, and keeps the file small.
const BUCKET_DIGITS: u8 = 2;

/// The latencies of one load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// What was timed, such as `one way` or `round trip`.
    pub what: String,
    /// The load in per cent of the contestant's throughput; absent where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_percent: Option<f64>,
    /// The load in frames per second; 0 for one frame after the other.
    pub load_fps: f64,
    /// Latencies recorded.
    pub count: u64,
    /// Smallest in nanoseconds.
    pub min_ns: u64,
    /// Half of all are at most this, in nanoseconds.
    pub p50_ns: u64,
    /// 90 % are at most this.
    pub p90_ns: u64,
    /// 99 % are at most this.
    pub p99_ns: u64,
    /// 99.9 % are at most this.
    pub p99_9_ns: u64,
    /// 99.99 % are at most this.
    pub p99_99_ns: u64,
    /// Largest.
    pub max_ns: u64,
    /// The whole distribution: pairs of a latency in nanoseconds (the highest that its bucket holds; two significant
    /// digits) and how many there were, in rising order.
    pub buckets: Vec<(u64, u64)>,
}

impl Latency {
    /// A histogram that takes any number of nanoseconds, for whoever records.
    #[must_use]
    pub fn recorder() -> Histogram<u64> {
        Histogram::new(DIGITS).expect("three digits are allowed")
    }

    /// What was recorded.
    #[must_use]
    pub fn of(what: &str, load_percent: Option<f64>, load_fps: f64, recorded: &Histogram<u64>) -> Latency {
        let mut coarse: Histogram<u64> = Histogram::new(BUCKET_DIGITS).expect("two digits are allowed");
        // It grows as it must.
        let _ = coarse.add(recorded);
        let at = |quantile| recorded.value_at_quantile(quantile);
        Latency {
            what: what.to_owned(),
            load_percent,
            load_fps,
            count: recorded.len(),
            min_ns: if recorded.is_empty() { 0 } else { recorded.min() },
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p99_9_ns: at(0.999),
            p99_99_ns: at(0.9999),
            max_ns: recorded.max(),
            buckets: coarse.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())).collect(),
        }
    }

    /// The distribution as a histogram again.
    #[must_use]
    pub fn histogram(&self) -> Histogram<u64> {
        let mut histogram = Latency::recorder();
        for &(ns, count) in &self.buckets {
            // The range grows as it must; only a latency beyond 2^63 ns could fail.
            let _ = histogram.record_n(ns, count);
        }
        histogram
    }

    /// Several rounds of the same load as one; `None` of nothing.
    #[must_use]
    pub fn merged<'a>(rounds: impl IntoIterator<Item = &'a Latency>) -> Option<Latency> {
        let mut rounds = rounds.into_iter();
        let first = rounds.next()?;
        let mut all = first.histogram();
        for other in rounds {
            // Both grow: see above.
            let _ = all.add(other.histogram());
        }
        Some(Latency::of(&first.what, first.load_percent, first.load_fps, &all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_survive_the_file_and_rounds_add_up() {
        let mut one = Latency::recorder();
        for ns in 1..=100_000u64 {
            one.record(ns).unwrap();
        }
        let latency = Latency::of("one way", Some(50.0), 1e6, &one);
        assert_eq!((latency.count, latency.min_ns), (100_000, 1));
        for (found, exact) in [
            (latency.p50_ns, 50_000.0),
            (latency.p90_ns, 90_000.0),
            (latency.p99_ns, 99_000.0),
            (latency.p99_99_ns, 99_990.0),
            (latency.max_ns, 100_000.0),
        ] {
            assert!((found as f64 / exact - 1.0).abs() < 1e-3, "{found} is not {exact}");
        }
        let text = serde_json::to_string(&latency).unwrap();
        let read: Latency = serde_json::from_str(&text).unwrap();
        assert!(read.buckets.len() < 2000, "{}", read.buckets.len());
        let again = Latency::of("one way", Some(50.0), 1e6, &read.histogram()).p99_9_ns;
        assert!((again as f64 / latency.p99_9_ns as f64 - 1.0).abs() < 0.01, "{again}");

        let mut late = Latency::recorder();
        late.record_n(1_000_000, 100_000).unwrap();
        let both = Latency::merged([&read, &Latency::of("one way", Some(50.0), 1e6, &late)]).unwrap();
        assert_eq!(both.count, 200_000);
        assert!(both.p50_ns <= 101_000 && both.p90_ns >= 990_000, "{both:?}");
        assert_eq!(Latency::merged([]), None);
    }

    #[test]
    fn nothing_recorded_is_all_zeros() {
        let empty = Latency::of("one way", None, 0.0, &Latency::recorder());
        assert_eq!((empty.count, empty.min_ns, empty.max_ns), (0, 0, 0));
    }
}
