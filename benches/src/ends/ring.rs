//! A virtio ring, by the driver without a VM.

use std::time::{Duration, Instant};

use super::{Receive, Transmit};
use crate::frontend::{FrontEnd, Looped};

/// Sends by one pair of a driver's queues.
pub struct RingTx {
    front: FrontEnd,
    pair: usize,
}

impl RingTx {
    /// Takes a driver that is connected.
    #[must_use]
    pub fn new(front: FrontEnd, pair: usize) -> RingTx {
        RingTx { front, pair }
    }

    /// Gives the driver back.
    #[must_use]
    pub fn into_front(self) -> FrontEnd {
        self.front
    }
}

impl Transmit for RingTx {
    fn send(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<usize> {
        self.front.send_behind(self.pair, frames)
    }
}

/// Receives by one pair of a driver's queues.
pub struct RingRx {
    front: FrontEnd,
    pair: usize,
    /// What fills the ring, if no switch does.
    looped: Option<Looped>,
}

impl RingRx {
    /// Takes a driver that is connected.
    #[must_use]
    pub fn new(front: FrontEnd, pair: usize) -> RingRx {
        RingRx { front, pair, looped: None }
    }

    /// Gives the driver back.
    #[must_use]
    pub fn into_front(self) -> FrontEnd {
        self.front
    }
}

impl Receive for RingRx {
    fn receive(&mut self, patience: Duration, look: &mut dyn FnMut(&[u8])) -> anyhow::Result<usize> {
        match &mut self.looped {
            Some(looped) => {
                // Nothing interrupts it: it looks until something is there.
                let begin = Instant::now();
                while looped.turn()? == 0 && !self.front.ready(self.pair)? && begin.elapsed() < patience {
                    std::thread::yield_now();
                }
            }
            None if !self.front.ready(self.pair)? && !patience.is_zero() => {
                self.front.wait(self.pair, patience)?;
            }
            None => {}
        }
        self.front.receive_each(self.pair, |_, frame| {
            look(frame);
            Ok(())
        })
    }
}

/// Two ends with nothing between them than what moves frames from ring to ring.
///
/// # Errors
/// No memory.
pub fn ring_loop() -> anyhow::Result<(RingTx, RingRx)> {
    let (from, to, looped) = Looped::new()?;
    Ok((RingTx::new(from, 0), RingRx { looped: Some(looped), ..RingRx::new(to, 0) }))
}
