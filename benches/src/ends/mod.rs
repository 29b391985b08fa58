//! Where frames leave and arrive: one trait for each direction, batch by batch, and an end of each kind.
//!
//! | | transmit | receive | lost on the sink's side |
//! |---|---|---|---|
//! | a netdev | [`PacketTx`] | [`PacketRx`] | `PACKET_STATISTICS` of its socket |
//! | a TAP's character device | [`TapTx`] | [`TapRx`] | the netdev's transmit drops: its queue was full |
//! | a virtio ring | [`RingTx`] | [`RingRx`] | nothing: a full ring is in the switch's own counters |
//! | memory | [`FaultyWire`] | [`FaultyWire`] | nothing |

mod packet;
mod ring;
mod tap;
mod wire;

use std::time::Duration;

pub use self::{
    packet::{PacketRx, PacketTx},
    ring::{RingRx, RingTx, ring_loop},
    tap::{TapRx, TapTx},
    wire::{Fault, FaultyWire},
};

/// Where frames leave.
pub trait Transmit: Send {
    /// Sends frames, each behind a virtio-net header of 12 bytes; returns how many were taken, from the first on. None: there is
    /// no room now.
    ///
    /// # Errors
    /// The end is broken.
    fn send(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<usize>;
}

/// Where frames arrive.
pub trait Receive: Send {
    /// Shows what has arrived to `look`, without virtio-net headers and with VLAN tags in their place; returns how many
    /// frames that was. Waits `patience` at most if there is nothing.
    ///
    /// # Errors
    /// The end is broken.
    fn receive(&mut self, patience: Duration, look: &mut dyn FnMut(&[u8])) -> anyhow::Result<usize>;

    /// Frames that were lost on the sink's side since the last call because it was too slow.
    ///
    /// # Errors
    /// The system does not say.
    fn take_lost(&mut self) -> anyhow::Result<u64> {
        Ok(0)
    }
}

impl<T: Transmit + ?Sized> Transmit for Box<T> {
    fn send(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<usize> {
        (**self).send(frames)
    }
}

impl<T: Receive + ?Sized> Receive for Box<T> {
    fn receive(&mut self, patience: Duration, look: &mut dyn FnMut(&[u8])) -> anyhow::Result<usize> {
        (**self).receive(patience, look)
    }

    fn take_lost(&mut self) -> anyhow::Result<u64> {
        (**self).take_lost()
    }
}
