//! The generator's own ceiling: what it sends and its sink takes with nothing in between that decides anything. Whatever
//! comes near that over a switch says something about the generator, not about the switch.

use std::{os::fd::AsRawFd, time::Duration};

use serde::Serialize;
use switch_core::sys::{raw::Way, tap};

use crate::{
    ends::{PacketRx, PacketTx, Receive, TapRx, TapTx, Transmit, ring_loop},
    netns::{Namespace, exec},
    run::{Limit, Run, run_traffic},
    traffic::{Sizes, Tally, Traffic},
};

/// A direct way from a generator to a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loop {
    /// From netdev to netdev of a veth pair.
    Veth,
    /// Into a TAP's character device, from its netdev: the generator's half of two held TAPs.
    TapIn,
    /// Into a TAP's netdev, from its character device: the sink's half.
    TapOut,
    /// From virtio ring to virtio ring, moved by the sink's thread.
    Ring,
}

impl Loop {
    /// All there are.
    pub const ALL: [Loop; 4] = [Loop::Veth, Loop::TapIn, Loop::TapOut, Loop::Ring];
}

/// What generator and sink reach over a [`Loop`], in frames (segments of large ones) per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceiling {
    /// Which way.
    pub over: Loop,
    /// What was sent.
    pub sent_per_s: f64,
    /// What arrived as it was sent.
    pub received_per_s: f64,
}

/// A result from this part of the ceiling on is the generator's.
const BOUND: f64 = 0.9;

/// What a result's row says of itself: "generator-bound" if it is within 10 % of the ceiling or above.
#[must_use]
pub fn mark(received_per_s: f64, ceiling: &Ceiling) -> Option<&'static str> {
    (received_per_s >= BOUND * ceiling.received_per_s).then_some("generator-bound")
}

/// Sends over a loop.
///
/// # Errors
/// Not root, or the traffic cannot be made.
pub fn over(way: Loop, traffic: &Traffic, limit: Limit) -> anyhow::Result<Run<Tally>> {
    let run = |tx: &mut dyn Transmit, rx: &mut dyn Receive| run_traffic(traffic, tx, rx, limit);
    let direct = Way { direct: true, headers: matches!(traffic.sizes, Sizes::Large { .. }) };
    match way {
        Loop::Ring => {
            let (mut tx, mut rx) = ring_loop()?;
            run(&mut tx, &mut rx)
        }
        Loop::Veth => {
            let homes = [Namespace::new("vg")?, Namespace::new("vg")?];
            let [near, far] = [homes[0].name(), homes[1].name()];
            exec(&["ip", "-n", near, "link", "add", "e0", "type", "veth", "peer", "name", "e0", "netns", far])?;
            homes.iter().try_for_each(|home| ready(home, "e0"))?;
            run(&mut PacketTx::open(&homes[0], "e0", direct)?, &mut PacketRx::open(&homes[1], "e0")?)
        }
        Loop::TapIn | Loop::TapOut => {
            let home = Namespace::new("vg")?;
            let queue = home.run(|| tap::attach_vnet("e0", false))??;
            tap::set_offloads(queue.as_raw_fd(), true)?;
            ready(&home, "e0")?;
            if way == Loop::TapIn {
                run(&mut TapTx::new(queue), &mut PacketRx::open(&home, "e0")?)
            } else {
                // By the queueing discipline: without, frames that find the TAP's queue full are gone.
                let way = Way { direct: false, ..direct };
                run(&mut PacketTx::open(&home, "e0", way)?, &mut TapRx::new(queue, &home, "e0")?)
            }
        }
    }
}

fn ready(home: &Namespace, device: &str) -> anyhow::Result<()> {
    // Long enough for every frame that can be sent, and no words of its own.
    home.exec(&["ip", "link", "set", device, "mtu", "65000"])?;
    home.exec(&["sh", "-c", &format!("echo 1 >/proc/sys/net/ipv6/conf/{device}/disable_ipv6")])?;
    home.exec(&["ip", "link", "set", device, "up"])?;
    Ok(())
}

/// Measures a ceiling for so long.
///
/// # Errors
/// As [`over`].
pub fn ceiling(way: Loop, traffic: &Traffic, time: Duration) -> anyhow::Result<Ceiling> {
    let run = over(way, traffic, Limit::time(time))?;
    let sent_per_s = run.sent.rate * traffic.segments() as f64;
    Ok(Ceiling { over: way, sent_per_s, received_per_s: run.rate() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_near_the_ceiling_are_marked() {
        let ceiling = Ceiling { over: Loop::Ring, sent_per_s: 1100.0, received_per_s: 1000.0 };
        assert_eq!(mark(899.0, &ceiling), None);
        assert_eq!((mark(900.0, &ceiling), mark(1200.0, &ceiling)), (Some("generator-bound"), Some("generator-bound")));
    }
}
