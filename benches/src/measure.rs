//! One run of a scenario: everything is made anew, measured and removed again.
//!
//! A run answers one number per metric of its scenario; NaN stands for what this machine cannot count.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::bail;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use switch_core::{frame::offload::VNET_HDR_BYTES, mac::MacAddr, sys::tap};

use crate::{
    contestants::{DEVICE, Forwarder, PATIENCE, Setup, Wires},
    frames::{self, Sink, Stream, Tally},
    netns::{Namespace, wait_for},
    tools::{ping, tcp},
};

/// The shortest Ethernet frame without its checksum.
pub const SHORT_BYTES: usize = 60;
/// The longest without a tag.
const LONG_BYTES: usize = 1514;
/// Echo requests of a round trip.
const FLOOD: u32 = 2000;
const ADDRESSES: [&str; 2] = ["10.79.0.1", "10.79.0.2"];

/// Set by SIGINT and SIGTERM.
pub static CANCELLED: AtomicBool = AtomicBool::new(false);

/// An error once the program was told to stop.
///
/// # Errors
/// It was.
pub fn go_on() -> anyhow::Result<()> {
    if CANCELLED.load(Relaxed) {
        bail!("interrupted; everything was removed");
    }
    Ok(())
}

/// Two hosts and what forwards between them.
pub struct Lab {
    /// Whatever forwards; declared first, so that it goes before the hosts do.
    pub forwarder: Forwarder,
    /// The hosts, each with [`DEVICE`].
    pub hosts: [Namespace; 2],
}

impl Lab {
    /// Makes the hosts, starts the contestant and waits until the hosts reach each other.
    ///
    /// # Errors
    /// They do not.
    pub fn new(setup: &Setup, name: &str, wires: Wires) -> anyhow::Result<Lab> {
        let hosts = [Namespace::new("ve")?, Namespace::new("ve")?];
        let forwarder = setup.start(name, wires, [&hosts[0], &hosts[1]])?;
        let lab = Lab { forwarder, hosts };
        for (host, address) in lab.hosts.iter().zip(ADDRESSES) {
            host.configure(DEVICE, &[&format!("{address}/24")])?;
        }
        wait_for("the hosts reach each other", PATIENCE, || {
            CANCELLED.load(Relaxed) || ping(&lab.hosts[0], ADDRESSES[1], 2, false).is_ok_and(|p| p.received > 0)
        })?;
        go_on()?;
        Ok(lab)
    }

    /// A stream of short frames from the first host to the second.
    ///
    /// # Errors
    /// A device is gone.
    pub fn short_frames(&self, rate: u64) -> anyhow::Result<Stream> {
        let mac = |host: &Namespace| -> anyhow::Result<MacAddr> {
            Ok(host.exec(&["cat", &format!("/sys/class/net/{DEVICE}/address")])?.trim().parse()?)
        };
        Ok(Stream { dst: mac(&self.hosts[1])?, src: mac(&self.hosts[0])?, bytes: SHORT_BYTES, rate })
    }
}

/// Short frames per second, TCP in Gbit/s, and the mean round trip in µs, between two hosts.
///
/// # Errors
/// A program is missing or the hosts do not reach each other.
pub fn between_hosts(setup: &Setup, name: &str, wires: Wires, time: Duration) -> anyhow::Result<Vec<f64>> {
    let lab = Lab::new(setup, name, wires)?;
    let [near, far] = &lab.hosts;
    let sink = Sink::start(far, DEVICE)?;
    let stream = lab.short_frames(0)?;
    let begin = Instant::now();
    frames::send(near, DEVICE, &stream, time)?;
    let (tally, last) = sink.finish_timed()?;
    let short = rate(tally.received, begin, last);
    go_on()?;
    let bulk = tcp(near, far, ADDRESSES[1], time)?.bits_per_second / 1e9;
    go_on()?;
    let round_trip = ping(near, ADDRESSES[1], FLOOD, true)?;
    go_on()?;
    if round_trip.received == 0 {
        bail!("no echo came back");
    }
    Ok(vec![short, bulk, round_trip.mean_us])
}

/// Frames per second, short and long, between two TAPs whose character devices this process holds, as a virtual machine
/// monitor without vhost does: one thread writes into one, another reads the other. The switch has their netdevs.
///
/// # Errors
/// The TAPs cannot be made, or no frame comes through.
pub fn between_holders(setup: &Setup, name: &str, time: Duration) -> anyhow::Result<Vec<f64>> {
    let home = Namespace::new("vq")?;
    let mut taps = Vec::new();
    for device in ["p0", "p1"] {
        let file = home.run(|| tap::attach_vnet(device, false))??;
        tap::set_offloads(file.as_raw_fd(), true)?;
        home.exec(&["ip", "link", "set", device, "up"])?;
        taps.push(file);
    }
    let forwarder = setup.start_on_netdevs(name, &home)?;
    let macs = [MacAddr([2, 0, 0, 0, 79, 1]), MacAddr([2, 0, 0, 0, 79, 2])];
    // Both are known before anything is measured.
    for (from, to) in [(1, 0), (0, 1)] {
        let probe = owned(&frames::build(macs[to], macs[from], SHORT_BYTES, 0));
        wait_for("a frame comes through", PATIENCE, || {
            let _ = tap::write(taps[from].as_raw_fd(), &probe);
            std::thread::sleep(Duration::from_millis(20));
            drain(&taps[to]) > 0 || CANCELLED.load(Relaxed)
        })?;
    }
    let mut rates = Vec::new();
    for bytes in [SHORT_BYTES, LONG_BYTES] {
        go_on()?;
        wait_for("no more frames come", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(200));
            drain(&taps[1]) == 0
        })?;
        rates.push(blast(&taps[0], &taps[1], macs, bytes, time)?);
    }
    drop(forwarder);
    Ok(rates)
}

/// Frames per second until the last one arrived: what still waited in a switch when the sender ended is counted with the
/// time that it took.
fn rate(received: u64, begin: Instant, last: Instant) -> f64 {
    received as f64 / last.saturating_duration_since(begin).as_secs_f64().max(1e-3)
}

/// A frame behind an empty virtio-net header.
fn owned(frame: &[u8]) -> Vec<u8> {
    [&[0; VNET_HDR_BYTES], frame].concat()
}

/// Takes numbered frames that wait; how many.
fn drain(tap: &File) -> u64 {
    let mut tally = Tally::default();
    let mut buffer = vec![0; 65_536 + 64];
    while let Ok(n) = tap::read(tap.as_raw_fd(), &mut buffer) {
        tally.note(&buffer[VNET_HDR_BYTES.min(n)..n]);
    }
    tally.received
}

fn blast(from: &File, to: &File, macs: [MacAddr; 2], bytes: usize, time: Duration) -> anyhow::Result<f64> {
    let sent = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut frame = owned(&frames::build(macs[1], macs[0], bytes, 0));
            let number_at = VNET_HDR_BYTES + frames::MIN_BYTES - 8;
            let mut number = 0u64;
            while begin.elapsed() < time {
                frame[number_at..number_at + 8].copy_from_slice(&number.to_be_bytes());
                frame[number_at + 8..].fill(number as u8);
                if tap::write(from.as_raw_fd(), &frame).is_ok() {
                    number += 1;
                }
            }
            sent.store(number, Relaxed);
            done.store(true, Relaxed);
        });
        let mut tally = Tally::default();
        let mut buffer = vec![0; 65_536 + 64];
        let (mut last, mut noted) = (begin, 0);
        loop {
            match tap::read(to.as_raw_fd(), &mut buffer) {
                Ok(n) => tally.note(&buffer[VNET_HDR_BYTES.min(n)..n]),
                Err(_) => {
                    last = if tally.received > noted { Instant::now() } else { last };
                    noted = tally.received;
                    let mut set = [PollFd::new(to.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut set, PollTimeout::from(50u16)).unwrap_or(0) == 0 && done.load(Relaxed) {
                        break;
                    }
                }
            }
        }
        let (wrong, sent) = (tally.corrupted + tally.duplicated, sent.load(Relaxed));
        if wrong > 0 || tally.next > sent {
            bail!("{sent} frames sent, {wrong} arrived damaged or twice");
        }
        Ok(rate(tally.received, begin, last))
    })
}
