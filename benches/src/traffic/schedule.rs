//! When frames are due. Absolute: a frame that is late makes no other frame late, and the average rate is kept as long as
//! the generator can keep up. Knows no clock: times are given to it, in ns since the sending began.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Lags above this are recorded as this.
const MAX_LAG_NS: u64 = 3_600_000_000_000;
const NS_PER_S: f64 = 1e9;

#[derive(Clone, Debug)]
enum Due {
    /// Bursts at equal distances, the first one at once.
    Paced { frames_per_s: f64, burst: u64 },
    /// The time of each frame, ascending.
    Times(Vec<u64>),
}

/// See the module page.
#[derive(Clone, Debug)]
pub struct Schedule {
    due: Due,
    sent: u64,
    lag: Histogram<u64>,
}

/// How late frames were sent, in ns after they were due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// The latest of all.
    pub max_ns: u64,
    /// 99 of 100 were not later than this.
    pub p99_ns: u64,
    /// Half of them were not later than this.
    pub median_ns: u64,
}

impl Schedule {
    /// `burst` frames at once, `frames_per_s` on average.
    ///
    /// # Panics
    /// Not a rate, or bursts of nothing; [`Traffic::check`](super::Traffic::check) says so before.
    #[must_use]
    pub fn paced(frames_per_s: f64, burst: u64) -> Schedule {
        assert!(frames_per_s > 0.0 && burst > 0, "{frames_per_s} frames per second in bursts of {burst}");
        Schedule::new(Due::Paced { frames_per_s, burst })
    }

    /// Frame `k` at `times_ns[k]`; afterwards no more.
    #[must_use]
    pub fn at(mut times_ns: Vec<u64>) -> Schedule {
        times_ns.sort_unstable();
        Schedule::new(Due::Times(times_ns))
    }

    fn new(due: Due) -> Schedule {
        let lag = Histogram::new_with_bounds(1, MAX_LAG_NS, 3).expect("these bounds can be had");
        Schedule { due, sent: 0, lag }
    }

    /// When frame `k` is due, in ns; `None`: never.
    #[must_use]
    pub fn due_ns(&self, k: u64) -> Option<u64> {
        match &self.due {
            // From the number of the burst each time, so that no error adds up.
            Due::Paced { frames_per_s, burst } => Some(((k / burst * burst) as f64 * NS_PER_S / frames_per_s) as u64),
            Due::Times(times) => times.get(k as usize).copied(),
        }
    }

    /// How many frames are due at `now_ns` and were not sent yet, `most` at most.
    #[must_use]
    pub fn ready(&self, now_ns: u64, most: usize) -> usize {
        (self.sent..self.sent + most as u64).take_while(|k| self.due_ns(*k).is_some_and(|due| due <= now_ns)).count()
    }

    /// When the next frame is due, in ns; `None`: there is none.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        self.due_ns(self.sent)
    }

    /// The next `frames` frames were sent at `now_ns`.
    pub fn note(&mut self, frames: usize, now_ns: u64) {
        for k in self.sent..self.sent + frames as u64 {
            let due = self.due_ns(k).unwrap_or(now_ns);
            self.lag.saturating_record(now_ns.saturating_sub(due));
        }
        self.sent += frames as u64;
    }

    /// How late they were.
    #[must_use]
    pub fn lag(&self) -> Lag {
        Lag {
            max_ns: self.lag.max(),
            p99_ns: self.lag.value_at_quantile(0.99),
            median_ns: self.lag.value_at_quantile(0.5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends all that is ready at each of these times; how many that is.
    fn run(schedule: &mut Schedule, times: impl IntoIterator<Item = u64>) -> Vec<usize> {
        let mut counts = Vec::new();
        for now in times {
            let ready = schedule.ready(now, 32);
            schedule.note(ready, now);
            counts.push(ready);
        }
        counts
    }

    #[test]
    fn frames_are_due_at_equal_distances() {
        let mut schedule = Schedule::paced(1000.0, 1);
        assert_eq!(run(&mut schedule, [0, 1, 999_999, 1_000_000, 3_500_000, 3_999_999]), [1, 0, 0, 1, 2, 0]);
        assert_eq!(schedule.next_ns(), Some(4_000_000));
        let lag = schedule.lag();
        assert!(lag.max_ns.abs_diff(1_500_000) < 2_000, "frame 2 was due at 2 ms and went at 3.5: {lag:?}");
        assert_eq!(lag.median_ns, 0);
    }

    #[test]
    fn bursts_come_whole_and_a_stall_is_made_up_for() {
        let mut schedule = Schedule::paced(1e6, 8);
        assert_eq!(run(&mut schedule, [0, 7_999, 8_000, 8_001]), [8, 0, 8, 0]);
        assert_eq!(run(&mut schedule, [80_000; 4]), [32, 32, 8, 0], "all until 80 µs, which is the eleventh burst's");
    }

    #[test]
    fn no_error_adds_up() {
        // A rate whose distance is no whole number of ns, for a day: exact to a microsecond.
        let schedule = Schedule::paced(3_000_000.0, 1);
        let frames = 3_000_000 * 86_400;
        let due = schedule.due_ns(frames).expect("always one more");
        assert!(due.abs_diff(86_400 * 1_000_000_000) < 1000, "{due}");
    }

    #[test]
    fn listed_times_end() {
        let mut schedule = Schedule::at(vec![0, 50, 50, 70]);
        assert_eq!(run(&mut schedule, [49, 50, 69, 1000, 2000]), [1, 2, 0, 1, 0]);
        assert_eq!((schedule.next_ns(), schedule.lag().max_ns), (None, 930));
    }
}
