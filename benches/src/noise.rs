//! How quiet the machine is: a fixed piece of arithmetic, timed again and again beside a run. On a quiet machine all times
//! are alike; a maximum far from the median, or stolen time, says that others had a part in the run's numbers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::cpu::Machine;

/// Steps of one [`piece`]: some 100 µs on a processor of today.
pub const STEPS: u32 = 100_000;
/// Between two pieces: the loop takes some 0.2 % of one processor from the run.
const PAUSE: Duration = Duration::from_millis(50);
/// Times kept; afterwards no more is measured (83 minutes).
const MAX_TIMES: usize = 100_000;

/// What the loop found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Noise {
    /// How often the piece was timed; at least once.
    pub times: usize,
    /// The fastest time, in ns.
    pub min_ns: u64,
    /// The median, in ns.
    pub median_ns: u64,
    /// The slowest, in ns.
    pub max_ns: u64,
    /// What a hypervisor gave to others meanwhile, of all processors, in ns (to 10 ms).
    pub steal_ns: u64,
}

/// The same arithmetic each time: a chain of multiplications, which no compiler shortens and no cache matters to.
#[must_use]
pub fn piece(seed: u64) -> u64 {
    (0..STEPS)
        .fold(std::hint::black_box(seed), |x, _| x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1) ^ (x >> 29))
}

fn summary(mut times: Vec<u64>, steal_ns: u64) -> Noise {
    times.sort_unstable();
    let (Some(min), Some(max)) = (times.first(), times.last()) else { return Noise { steal_ns, ..Noise::default() } };
    Noise { times: times.len(), min_ns: *min, median_ns: times[times.len() / 2], max_ns: *max, steal_ns }
}

/// The loop, until [`finish`](NullLoop::finish).
pub struct NullLoop {
    stop: Arc<AtomicBool>,
    machine: Machine,
    thread: JoinHandle<Vec<u64>>,
}

impl NullLoop {
    /// Starts it on a thread of its own.
    ///
    /// # Errors
    /// No thread can be had, or there is no /proc/stat.
    pub fn start() -> anyhow::Result<NullLoop> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let machine = Machine::read()?;
        let thread = std::thread::Builder::new().name("null-loop".into()).spawn(move || {
            let mut times = Vec::new();
            let mut value = 1;
            loop {
                let begin = Instant::now();
                value = piece(value);
                times.push(begin.elapsed().as_nanos() as u64);
                if stopped.load(Relaxed) || times.len() == MAX_TIMES {
                    std::hint::black_box(value);
                    return times;
                }
                std::thread::park_timeout(PAUSE);
            }
        })?;
        Ok(NullLoop { stop, machine, thread })
    }

    /// Ends it.
    ///
    /// # Errors
    /// There is no /proc/stat any more.
    pub fn finish(self) -> anyhow::Result<Noise> {
        self.stop.store(true, Relaxed);
        self.thread.thread().unpark();
        let times = self.thread.join().map_err(|_| anyhow::anyhow!("the null loop panicked"))?;
        Ok(summary(times, Machine::read()?.since(&self.machine).steal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_summed_up() {
        let noise = summary(vec![5, 1, 9, 3, 4], 7);
        assert_eq!(noise, Noise { times: 5, min_ns: 1, median_ns: 4, max_ns: 9, steal_ns: 7 });
        assert_eq!(summary(Vec::new(), 0), Noise::default());
    }

    #[test]
    fn the_loop_runs_beside_and_ends() {
        let looped = NullLoop::start().expect("started");
        let noise = looped.finish().expect("ended");
        assert!(noise.times >= 1 && noise.min_ns <= noise.median_ns && noise.median_ns <= noise.max_ns, "{noise:?}");
        assert_eq!(piece(1), piece(1));
        assert_ne!(piece(1), piece(2));
    }
}
