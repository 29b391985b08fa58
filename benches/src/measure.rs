//! One run of a scenario: everything is made anew, measured and removed again.
//!
//! A run answers one number per metric of its scenario; NaN stands for what this machine cannot count.

use std::{
    fs::File,
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::bail;
use switch_core::{
    frame::offload::VNET_HDR_BYTES,
    mac::MacAddr,
    sys::{raw::Way, tap},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    contestants::{DEVICE, Forwarder, PATIENCE, Setup, Wires},
    ends::{PacketRx, PacketTx, TapRx, TapTx},
    frames,
    netns::{Namespace, wait_for},
    run::{Limit, run_traffic},
    tools::{ping, tcp},
    traffic::{FCS_BYTES, Rate, Traffic, tally::bare},
};

/// The shortest Ethernet frame without its checksum.
pub const SHORT_BYTES: usize = 60;
/// The longest without a tag.
const LONG_BYTES: usize = 1514;
/// Echo requests of a round trip.
const FLOOD: u32 = 2000;
/// Of the hosts.
pub const ADDRESSES: [&str; 2] = ["10.79.0.1", "10.79.0.2"];

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

/// Ends the program at the next [`go_on`] after SIGINT or SIGTERM. By handlers, not by blocking: what is blocked here
/// would be blocked in every contestant too.
///
/// # Errors
/// The handlers cannot be set.
pub fn obey_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        CANCELLED.store(true, Relaxed);
    });
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
        let forwarder = setup.start(name, wires, &[&hosts[0], &hosts[1]])?;
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

    /// Short frames from the first host to the second.
    ///
    /// # Errors
    /// A device is gone.
    pub fn short_frames(&self, rate: Rate) -> anyhow::Result<Traffic> {
        let mac = |host: &Namespace| -> anyhow::Result<MacAddr> {
            Ok(host.exec(&["cat", &format!("/sys/class/net/{DEVICE}/address")])?.trim().parse()?)
        };
        Ok(Traffic { rate, ..Traffic::new(mac(&self.hosts[1])?, mac(&self.hosts[0])?) })
    }
}

/// Short frames per second, TCP in Gbit/s, and the mean round trip in µs, between two hosts.
///
/// # Errors
/// A program is missing or the hosts do not reach each other.
pub fn between_hosts(setup: &Setup, name: &str, wires: Wires, time: Duration) -> anyhow::Result<Vec<f64>> {
    let lab = Lab::new(setup, name, wires)?;
    let [near, far] = &lab.hosts;
    let traffic = lab.short_frames(Rate::Unlimited)?;
    let mut tx = PacketTx::open(near, DEVICE, Way::default())?;
    let mut rx = PacketRx::open(far, DEVICE)?;
    let short = run_traffic(&traffic, &mut tx, &mut rx, Limit::time(time))?.rate();
    drop((tx, rx));
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
    let mut tx = TapTx::new(taps[0].try_clone()?);
    let mut rx = TapRx::new(taps[1].try_clone()?, &home, "p1")?;
    let mut rates = Vec::new();
    // Probes may still be on their way: they are of run 0.
    for (run, bytes) in (1..).zip([SHORT_BYTES, LONG_BYTES]) {
        go_on()?;
        let traffic = Traffic { run, ..Traffic::new(macs[1], macs[0]).size(bytes + FCS_BYTES) };
        let run = run_traffic(&traffic, &mut tx, &mut rx, Limit::time(time))?;
        let outcome = run.outcome();
        if outcome.corrupted + outcome.duplicated > 0 {
            bail!("frames arrived damaged or twice: {outcome:?}");
        }
        rates.push(run.rate());
    }
    drop(forwarder);
    Ok(rates)
}

/// A frame behind an empty virtio-net header.
fn owned(frame: &[u8]) -> Vec<u8> {
    [&[0; VNET_HDR_BYTES], frame].concat()
}

/// Takes numbered frames that wait; how many.
fn drain(tap: &File) -> usize {
    let mut count = 0;
    let mut buffer = vec![0; 65_536 + 64];
    while let Ok(n) = tap::read(tap.as_raw_fd(), &mut buffer) {
        count += usize::from(frames::number_of(bare(&buffer[..n])).is_some());
    }
    count
}
