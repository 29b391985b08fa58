//! When an adaptive worker had better not spin.
//!
//! Where there are fewer processors than threads that never sleep, a spinning worker uses up its share of a processor on
//! nothing, and then waits for milliseconds while frames pile up; a sleeping one is let in as soon as it is woken. The
//! clock tells: a round that took long is one in which somebody else had the processor, if the kernel says so too.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

/// Rounds are far shorter, as a rule, and a scheduler's slices far longer.
const GAP: Duration = Duration::from_micros(500);
/// How long a worker does not spin after a gap, and at most where it comes upon one whenever it tries again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(2560);

/// Whether spinning is worth it, in nanoseconds of the worker's clock.
#[derive(Default)]
pub(super) struct Spin {
    /// Not before.
    from: u64,
    /// The length of the last pause.
    pause: u64,
    /// How often the worker has lost its processor, when last asked.
    lost: i64,
}

impl Spin {
    /// Whether an idle worker may spin.
    pub(super) fn allowed(&self, now: u64) -> bool {
        self.from <= now
    }

    /// The worker read the clock twice and did not sleep in between; `lost` is asked only where that took long.
    pub(super) fn passed(&mut self, before: u64, now: u64, lost: impl FnOnce() -> i64) {
        if now.saturating_sub(before) < nanos(GAP) {
            return;
        }
        let lost_before = std::mem::replace(&mut self.lost, lost());
        if self.lost == lost_before || !self.allowed(before) {
            return;
        }
        let relapse = before < self.from + self.pause;
        self.pause = if relapse { (self.pause * 2).min(nanos(LONGEST_PAUSE)) } else { nanos(FIRST_PAUSE) };
        self.from = now + self.pause;
    }
}

/// How often the kernel gave this thread's processor to another while it was at work.
pub(super) fn lost() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        time::Instant,
    };

    use nix::{
        sched::{CpuSet, sched_getaffinity, sched_setaffinity},
        unistd::Pid,
    };

    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_worker_that_is_left_alone_spins() {
        let mut spin = Spin::default();
        for at in (0..20 * MS).step_by(5_000) {
            spin.passed(at, at + 5_000, || unreachable!("nothing to ask for"));
            assert!(spin.allowed(at + 5_000));
        }
        // A long round that was its own.
        spin.passed(20 * MS, 25 * MS, || 0);
        assert!(spin.allowed(25 * MS));
    }

    #[test]
    fn one_that_loses_its_processor_sleeps_and_longer_each_time_it_is_driven_out_again() {
        let mut spin = Spin::default();
        let (mut now, mut lost) = (1_000 * MS, 0);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            lost += 1;
            spin.passed(now, now + 3 * MS, || lost);
            now += 3 * MS;
            assert!(!spin.allowed(now));
            // What happens while it sleeps anyway changes nothing.
            lost += 1;
            spin.passed(now, now + MS, || lost);
            let pause = (0..).find(|ms| spin.allowed(now + ms * MS)).expect("some time");
            pauses.push(pause);
            now += pause * MS;
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 2560]);
        // It was left alone for as long as it had paused.
        now += 2560 * MS;
        spin.passed(now, now + MS, || lost + 1);
        assert!(!spin.allowed(now + 10 * MS) && spin.allowed(now + 11 * MS));
    }

    #[test]
    fn the_kernel_tells_who_lost_the_processor() {
        let over = AtomicBool::new(false);
        let here = || {
            let all = sched_getaffinity(Pid::from_raw(0)).expect("known");
            let mut one = CpuSet::new();
            one.set((0..CpuSet::count()).find(|&cpu| all.is_set(cpu) == Ok(true)).expect("a processor"))
                .expect("valid");
            sched_setaffinity(Pid::from_raw(0), &one).expect("allowed");
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                here();
                while !over.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
            scope.spawn(|| {
                here();
                let (before, begin) = (lost(), Instant::now());
                while lost() == before && begin.elapsed() < Duration::from_secs(30) {
                    std::hint::spin_loop();
                }
                over.store(true, Relaxed);
                assert!(lost() > before, "two threads on one processor");
            });
        });
    }
}
