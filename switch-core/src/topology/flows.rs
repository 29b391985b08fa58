//! Which queue of a port with several a flow belongs to.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// For each flow of a multi-queue port, the queue on which the port last sent it: replies go back there, as the kernel
/// and virtio expect. Direct-mapped and best effort: a collision costs locality, not order within a burst.
#[derive(Debug)]
pub struct FlowQueues {
    queue_plus_one: Box<[AtomicU8]>,
}

const FLOW_CELLS: usize = 4096;

impl Default for FlowQueues {
    fn default() -> Self {
        FlowQueues { queue_plus_one: (0..FLOW_CELLS).map(|_| AtomicU8::new(0)).collect() }
    }
}

impl FlowQueues {
    /// Notes that the port sent the flow on `queue`. Writes only on change.
    #[inline]
    pub fn note(&self, flow_hash: u32, queue: u16) {
        let cell = &self.queue_plus_one[flow_hash as usize % FLOW_CELLS];
        let value = (queue as u8).wrapping_add(1);
        if cell.load(Relaxed) != value {
            cell.store(value, Relaxed);
        }
    }

    /// The queue for frames of the flow towards the port.
    #[inline]
    #[must_use]
    pub fn pick(&self, flow_hash: u32, queues: u16) -> u16 {
        let noted = self.queue_plus_one[flow_hash as usize % FLOW_CELLS].load(Relaxed);
        if noted != 0 && u16::from(noted) <= queues {
            u16::from(noted) - 1
        } else {
            ((u64::from(flow_hash) * u64::from(queues)) >> 32) as u16
        }
    }
}
