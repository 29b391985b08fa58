//! Reading at a rate: a queue whose port has used up its rate is left alone until there is something of it again, so
//! that frames wait where they are (in the guest's ring, the TAP's queue, the peer's socket) and none is lost here.
//!
//! The rate is paid for after reading, when the frames' bytes are known; a batch is as large as what is left, and one
//! frame if that is less. A paused queue counts as ready, but keeps nobody awake: the worker sleeps until the first
//! pause ends.

use std::time::Duration;

use super::Worker;
use crate::{
    batch::{BATCH_FRAMES, MAX_FRAME_BYTES},
    clock::Now,
    id::PortId,
};

impl Worker {
    /// Whether the port has a rate from it.
    pub(super) fn is_paced(&self, port: PortId) -> bool {
        self.topology.port(port).is_some_and(|port| port.rate_from.is_some())
    }

    /// Says of every queue whether it is paced, after the topology has changed; pauses end.
    pub(super) fn set_paces(&mut self) {
        for index in 0..self.queues.len() {
            let Some(port) = self.queues[index].as_ref().map(|queue| queue.port) else { continue };
            let paced = self.is_paced(port);
            if let Some(queue) = &mut self.queues[index] {
                (queue.paced, queue.paused) = (paced, None);
            }
        }
    }

    /// Whether the queue may be read now, and how much of it; else it is paused.
    #[cold]
    #[inline(never)]
    pub(super) fn may_read(&mut self, index: usize, now: Now) -> bool {
        let Some(queue) = &mut self.queues[index] else { return false };
        if queue.paused.is_some_and(|until| now.nanos < until) {
            return false;
        }
        queue.paused = None;
        let Some(rate) = self.topology.port(queue.port).and_then(|port| port.rate_from.as_ref()) else { return true };
        let (wait, left) = {
            let buckets = rate.at(now.nanos);
            (buckets.wait(), buckets.left())
        };
        if wait > 0 {
            // Whatever woke it up does not come again.
            queue.ready = true;
            queue.paused = Some(now.nanos.saturating_add(wait));
            return false;
        }
        self.batch.set_limit((left as usize / MAX_FRAME_BYTES).clamp(1, BATCH_FRAMES));
        true
    }

    /// Pays for the batch that has been read.
    #[cold]
    #[inline(never)]
    pub(super) fn pay(&mut self, index: usize, now: Now) {
        self.batch.set_limit(BATCH_FRAMES);
        let Some(queue) = &self.queues[index] else { return };
        let Some(rate) = self.topology.port(queue.port).and_then(|port| port.rate_from.as_ref()) else { return };
        let bytes = (0..self.batch.len()).map(|slot| u64::from(self.batch.slot(slot).len)).sum();
        rate.at(now.nanos).charge(bytes);
    }

    /// How long the worker may sleep; `None`: until something happens.
    pub(super) fn longest_sleep(&self, now: Now) -> Option<Duration> {
        let first = self.queues.iter().flatten().filter_map(|queue| queue.paused).min()?;
        Some(Duration::from_nanos(first.saturating_sub(now.nanos)))
    }
}
