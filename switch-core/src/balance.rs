//! Which receive queue should change its worker. Pure.
//!
//! The measure is frames received, not time: it is there for nothing, and what matters is that two busy queues do not
//! share a worker while another one idles. A move must be worth its price (cold caches, a pause of some microseconds),
//! so small differences are left alone, and a queue is never moved only to be the new worker's whole burden.

/// What a receive queue received since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The worker that serves the queue.
    pub worker: usize,
    /// Frames.
    pub frames: u64,
}

/// Frames between two looks below which a worker counts as idle.
pub const MIN_FRAMES: u64 = 5_000;
/// The share of the busiest worker's frames by which its burden must shrink, as a divisor.
const MIN_GAIN: u64 = 8;

/// The index of the queue to move, and the worker to move it to.
#[must_use]
pub fn choose(loads: &[Load], workers: usize) -> Option<(usize, usize)> {
    let mut sums = vec![0u64; workers];
    for load in loads {
        sums[load.worker] += load.frames;
    }
    let busiest = (0..workers).max_by_key(|w| sums[*w])?;
    let idlest = (0..workers).min_by_key(|w| sums[*w])?;
    let (most, least) = (sums[busiest], sums[idlest]);
    if most < MIN_FRAMES {
        return None;
    }
    let (index, frames) = loads
        .iter()
        .enumerate()
        .filter(|(_, load)| load.worker == busiest)
        .map(|(index, load)| (index, load.frames))
        // The busier of the two afterwards.
        .min_by_key(|(_, frames)| (most - frames).max(least + frames))?;
    let after = (most - frames).max(least + frames);
    (after + most / MIN_GAIN <= most).then_some((index, idlest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(loads: &[(usize, u64)], workers: usize) -> Option<(usize, usize)> {
        let loads: Vec<_> = loads.iter().map(|(worker, frames)| Load { worker: *worker, frames: *frames }).collect();
        choose(&loads, workers)
    }

    #[test]
    fn the_queue_that_evens_things_out_moves() {
        assert_eq!(chosen(&[(0, 50_000), (0, 40_000), (1, 0)], 2), Some((0, 1)));
        assert_eq!(chosen(&[(0, 10_000), (0, 60_000), (0, 30_000), (1, 20_000)], 2), Some((2, 1)));
        assert_eq!(chosen(&[(0, 30_000), (1, 60_000), (1, 60_000), (2, 90_000)], 3), Some((1, 0)));
    }

    #[test]
    fn what_would_not_help_stays() {
        assert_eq!(chosen(&[(0, 90_000), (1, 0)], 2), None, "one queue cannot be divided");
        assert_eq!(chosen(&[(0, 50_000), (0, 1_000), (1, 48_000)], 2), None, "too small a gain");
        assert_eq!(chosen(&[(0, 1_000), (0, 1_000), (1, 0)], 2), None, "idle");
        assert_eq!(chosen(&[(0, 50_000), (0, 50_000)], 1), None);
        assert_eq!(chosen(&[], 2), None);
    }
}
