//! What the switch is as the device of virtual machines: with DPDK's drivers beside other devices, and with the
//! laboratory's own driver (`frontend.rs`) for large frames, quiet ports and restarts.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::Signal,
    },
    unistd::Pid,
};
use switch_core::{
    frame::offload::{Gso, Offload, VNET_HDR_BYTES},
    mac::MacAddr,
    port::mem::MemFrame,
};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::{
    contestants::{Directory, PATIENCE, PmdLab, Setup, Vswitch},
    counters::{cpu_nanos, sleeps},
    frames,
    frontend::{FrontEnd, Options},
    measure::{SHORT_BYTES, go_on},
    netns::wait_for,
    scale::sleep,
    stats::median,
};

/// Frames of both lengths, without checksum, as DPDK's generator has them.
const PMD_BYTES: [usize; 2] = [64, 1500];
/// Until packets circle steadily.
const WARM_UP: Duration = Duration::from_secs(1);
/// After the last driver started, until measuring quiet ports.
const SETTLE: Duration = Duration::from_secs(5);
/// Frames whose latency is measured, and the silence before each: many times what an adaptive worker spins.
const PROBES: usize = 200;
const SILENCE: Duration = Duration::from_millis(5);
/// Payload of a large segment: 45 Ethernet frames' worth of TCP.
const SEGMENT: usize = 1448;
const LARGE_PAYLOAD: usize = 45 * SEGMENT;
/// Bytes of a driver's buffer, in either direction, and entries of its rings.
const BUFFER: usize = 4096;
const RING: usize = 256;
/// Large frames on their way: half of what the receive ring holds, so that none is dropped although each is sent again as
/// soon as the switch has taken it.
const CIRCLING: usize = RING * BUFFER / LARGE_PAYLOAD / 2;
/// Between two numbered frames while the switch is restarted.
const EVERY: Duration = Duration::from_micros(100);
/// Frames that must arrive again before an interruption counts as over.
const FLOWING: u64 = 200;

fn mac(n: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0x76, n as u8])
}

fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot use processor {cpu}"))
}

/// Of two DPDK drivers between whose ports packets circle as fast as they are forwarded, for 64 and 1500 bytes each:
/// packets per second in both directions together; cycles that the device's processor spends per packet, empty polls not
/// counted; and the part of the time in which the drivers were at work: below 100 %, the device is the limit.
///
/// # Errors
/// A program or hugepages are missing.
pub fn pmd(setup: &Setup, name: &str, time: Duration) -> anyhow::Result<Vec<f64>> {
    let mut lab = PmdLab::new(setup, name)?;
    let mut values = Vec::new();
    for bytes in PMD_BYTES {
        lab.drivers.circle(bytes)?;
        sleep(WARM_UP)?;
        lab.drivers.clear_cycles()?;
        let cleared = Instant::now();
        lab.reset()?;
        let (before, begin) = lab.drivers.stats()?;
        sleep(time)?;
        let (after, end) = lab.drivers.stats()?;
        let packets = after.iter().zip(&before).map(|(a, b)| a.rx - b.rx).sum::<u64>() as f64;
        ensure!(packets > 0.0, "no packet of {bytes} bytes comes through");
        let mhz = lab.drivers.cycles()?.mhz;
        let device = lab.cycles_per_packet(packets, mhz)?;
        let at_work = lab.drivers.cycles()?.total / (mhz * 1e6) / cleared.elapsed().as_secs_f64();
        lab.drivers.stop()?;
        values.extend([packets / (end - begin).as_secs_f64(), device, at_work * 100.0]);
    }
    Ok(values)
}

/// A switch whose ports listen in a directory, and that directory.
struct Ports {
    switch: Vswitch,
    directory: Directory,
}

impl Ports {
    fn start(setup: &Setup, poll: &str, ports: usize, more: &[&str]) -> anyhow::Result<Ports> {
        let directory = Directory::new("vhost-e2e-")?;
        let path = |i: usize| socket(directory.path(), i);
        let specs: Vec<_> = (0..ports).map(|i| format!("vm{i}=vhost-user,path={}", path(i).display())).collect();
        let mut words = vec!["--poll", poll];
        words.extend(more);
        words.extend(specs.iter().flat_map(|spec| ["--port", spec]));
        let switch = Vswitch::start(&setup.binary, &words)?;
        wait_for("the ports listen", PATIENCE, || (0..ports).all(|i| path(i).exists()))?;
        Ok(Ports { switch, directory })
    }

    fn connect(&self, port: usize, options: Options) -> anyhow::Result<FrontEnd> {
        FrontEnd::connect(&socket(self.directory.path(), port), options)
    }
}

fn socket(directory: &Path, port: usize) -> PathBuf {
    directory.join(port.to_string())
}

fn numbered(to: usize, from: usize, number: u64) -> MemFrame {
    MemFrame { bytes: frames::build(mac(to), mac(from), SHORT_BYTES, number), offload: Offload::NONE }
}

/// Each sends a frame to the other, so that both are known.
fn introduce(a: &mut FrontEnd, b: &mut FrontEnd) -> anyhow::Result<()> {
    for _ in 0..2 {
        a.send_all(0, &[numbered(1, 0, 0)], PATIENCE)?;
        ensure!(!b.receive_until(0, PATIENCE, |all| !all.is_empty())?.is_empty(), "no frame comes through");
        b.send_all(0, &[numbered(0, 1, 0)], PATIENCE)?;
        ensure!(!a.receive_until(0, PATIENCE, |all| !all.is_empty())?.is_empty(), "no frame comes back");
    }
    Ok(())
}

/// Sums 16-bit words as TCP/IP checksums do.
fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b))).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A TCP segment of nearly 64 KiB whose cutting and checksum are owed.
fn large() -> MemFrame {
    let total = 40 + LARGE_PAYLOAD as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = !ones_sum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp = [0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    let pseudo = ones_sum(&[&ip[12..20], &[0, 6], &(total - 20).to_be_bytes()].concat());
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
    let mut bytes = [&mac(1).0[..], &mac(0).0, &[8, 0], &ip, &tcp].concat();
    bytes.resize(54 + LARGE_PAYLOAD, 0x5a);
    let offload = Offload {
        needs_csum: true,
        gso: Gso::TcpV4,
        hdr_len: 54,
        gso_size: SEGMENT as u16,
        csum_start: 34,
        csum_offset: 16,
        ..Offload::NONE
    };
    MemFrame { bytes, offload }
}

/// Gbit/s of large segments from one driver's memory to another's, through one worker on processor 1, or (`memcpy`) by
/// copying between as many buffers of the same size in the same order on the same processor. The drivers, on processor
/// 0, only turn their rings.
///
/// # Errors
/// The switch does not come up, or nothing arrives.
pub fn gso(setup: &Setup, name: &str, time: Duration) -> anyhow::Result<Vec<f64>> {
    let work = || -> anyhow::Result<f64> {
        if name == "memcpy" {
            return copy(time);
        }
        let ports = Ports::start(setup, "busy", 2, &["--cpus", "1"])?;
        // Not before: the switch would have no other processor either.
        pin(0)?;
        let options = Options { size: RING as u16, rx_buffer: BUFFER as u64, ..Options::default() };
        let (mut a, mut b) = (ports.connect(0, options.clone())?, ports.connect(1, options)?);
        ports.switch.wait_up(2)?;
        introduce(&mut a, &mut b)?;
        // Made available at once: so many circle from here on.
        let circling = vec![large(); CIRCLING];
        ensure!(a.send(0, &circling)? == circling.len(), "the ring has room for {} large frames", circling.len());
        let mut turn = |time: Duration| -> anyhow::Result<f64> {
            let (begin, mut bytes) = (Instant::now(), 0);
            while begin.elapsed() < time {
                for _ in 0..64 {
                    a.send_again(0)?;
                    bytes += b.discard(0)?;
                }
                go_on()?;
            }
            Ok(bytes as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9)
        };
        turn(WARM_UP / 2)?;
        let rate = turn(time)?;
        ensure!(rate > 0.0, "no large frame comes through");
        Ok(rate)
    };
    // On a thread of its own, as what is pinned stays pinned.
    let rate = std::thread::scope(|scope| scope.spawn(work).join().map_err(|_| anyhow::anyhow!("it panicked")))??;
    Ok(vec![rate])
}

/// Gbit/s of plain copies with the buffers and the order of [`gso`], in memory of the same kind.
fn copy(time: Duration) -> anyhow::Result<f64> {
    pin(1)?;
    let bytes = RING * BUFFER;
    let region = |name: &str, at: u64| -> anyhow::Result<_> {
        let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
        file.set_len(bytes as u64)?;
        Ok((GuestAddress(at), bytes, Some(FileOffset::new(file, 0))))
    };
    let gap = 2 * bytes as u64;
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges_with_files([region("from", 0)?, region("to", gap)?])?;
    let frame = VNET_HDR_BYTES + 54 + LARGE_PAYLOAD;
    let buffers = frame.div_ceil(BUFFER);
    let sources = CIRCLING * buffers;
    let (mut from, mut to) = (0, 0);
    let mut run = |time: Duration| -> anyhow::Result<f64> {
        let (begin, mut copied) = (Instant::now(), 0u64);
        while begin.elapsed() < time {
            for _ in 0..64 {
                let mut left = frame;
                while left > 0 {
                    let n = left.min(BUFFER);
                    let source = memory.get_slice(GuestAddress((from * BUFFER) as u64), n)?;
                    source.copy_to_volatile_slice(memory.get_slice(GuestAddress(gap + (to * BUFFER) as u64), n)?);
                    (from, to) = ((from + 1) % sources, (to + 1) % RING);
                    left -= n;
                }
                copied += frame as u64;
            }
            go_on()?;
        }
        Ok(copied as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9)
    };
    run(WARM_UP / 2)?;
    run(time)
}

/// Per cent of one processor and sleeps per second of a switch whose drivers are all connected and quiet; then µs until a
/// frame after a silence has reached the other driver, which polls (median).
///
/// # Errors
/// The switch does not come up, or a frame is lost.
pub fn quiet_ports(setup: &Setup, name: &str, time: Duration, ports: usize) -> anyhow::Result<Vec<f64>> {
    ensure!(ports >= 2, "it takes two ports to send a frame");
    let poll = name.strip_prefix("vswitch-").unwrap_or(&setup.poll);
    let lab = Ports::start(setup, poll, ports, &[])?;
    let mut fronts =
        (0..ports).map(|i| lab.connect(i, Options::default())).collect::<anyhow::Result<Vec<FrontEnd>>>()?;
    lab.switch.wait_up(ports)?;
    sleep(SETTLE)?;
    let pid = lab.switch.pid();
    let (begin, nanos, slept) = (Instant::now(), cpu_nanos(pid)?, sleeps(pid)?);
    sleep(time)?;
    let (nanos, slept, elapsed) = (cpu_nanos(pid)? - nanos, sleeps(pid)? - slept, begin.elapsed().as_secs_f64());
    let [a, b] = fronts.get_disjoint_mut([0, 1]).context("two different ports")?;
    introduce(a, b)?;
    let mut latencies = Vec::new();
    for number in 0..PROBES {
        go_on()?;
        std::thread::sleep(SILENCE);
        let begin = Instant::now();
        a.send_all(0, &[numbered(1, 0, number as u64)], PATIENCE)?;
        while b.receive(0)?.is_empty() {
            if begin.elapsed() > PATIENCE {
                bail!("frame {number} is lost");
            }
        }
        latencies.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(vec![nanos as f64 / 1e9 / elapsed * 100.0, slept as f64 / elapsed, median(&latencies)])
}

/// A driver that connects again as soon as the switch listens.
struct Loyal {
    front: FrontEnd,
    path: PathBuf,
}

impl Loyal {
    fn new(path: PathBuf) -> anyhow::Result<Loyal> {
        let front = FrontEnd::connect(&path, Options::default())?;
        Ok(Loyal { front, path })
    }

    /// Connects again if the switch is gone.
    fn keep(&mut self) -> anyhow::Result<()> {
        if self.front.connected()? {
            return Ok(());
        }
        let begin = Instant::now();
        while self.front.reconnect(&self.path).is_err() {
            ensure!(begin.elapsed() < PATIENCE, "the switch does not come back");
            go_on()?;
            std::thread::sleep(EVERY);
        }
        Ok(())
    }
}

/// What the receiving driver tells while it runs.
#[derive(Default)]
struct Flow {
    done: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    /// The longest time without a frame, in ns.
    gap: AtomicU64,
}

impl Flow {
    fn send(&self, driver: &mut Loyal) -> anyhow::Result<()> {
        while !self.done.load(Relaxed) {
            driver.keep()?;
            let number = self.sent.load(Relaxed);
            if driver.front.send(0, &[numbered(1, 0, number)])? > 0 {
                self.sent.store(number + 1, Relaxed);
            }
            std::thread::sleep(EVERY);
        }
        Ok(())
    }

    fn receive(&self, driver: &mut Loyal) -> anyhow::Result<()> {
        let mut last = Instant::now();
        while !self.done.load(Relaxed) {
            driver.keep()?;
            // The other driver's address is in these; the switch has lost it.
            let count = driver.front.receive(0)?.iter().filter(|f| frames::number_of(&f.bytes).is_some()).count();
            if count > 0 {
                self.gap.fetch_max(last.elapsed().as_nanos() as u64, Relaxed);
                last = Instant::now();
                self.received.fetch_add(count as u64, Relaxed);
            }
            std::thread::sleep(EVERY);
        }
        Ok(())
    }

    /// Waits until frames have been arriving for a while.
    fn steady(&self) -> anyhow::Result<()> {
        let from = self.received.load(Relaxed);
        wait_for("frames arrive", PATIENCE, || go_on().is_err() || self.received.load(Relaxed) > from + FLOWING)?;
        go_on()
    }
}

/// Of a stream of numbered frames between two drivers, while the switch is killed (`kill -9`) and started again, and while
/// it is told to end and started again: ms without a frame, and frames lost.
///
/// # Errors
/// The switch does not come back.
pub fn gap(setup: &Setup) -> anyhow::Result<Vec<f64>> {
    let mut ports = Ports::start(setup, &setup.poll, 2, &[])?;
    let mut drivers = [0, 1].map(|i| Loyal::new(socket(ports.directory.path(), i)));
    let [Ok(sender), Ok(receiver)] = &mut drivers else { bail!("a driver cannot connect") };
    ports.switch.wait_up(2)?;
    introduce(&mut sender.front, &mut receiver.front)?;
    let flow = Flow::default();
    std::thread::scope(|scope| {
        let threads = [scope.spawn(|| flow.send(sender)), scope.spawn(|| flow.receive(receiver))];
        let mut measure = || -> anyhow::Result<Vec<f64>> {
            let mut values = Vec::new();
            for signal in [Signal::SIGKILL, Signal::SIGTERM] {
                flow.steady()?;
                let missing = || flow.sent.load(Relaxed).saturating_sub(flow.received.load(Relaxed));
                let before = missing();
                flow.gap.store(0, Relaxed);
                ports.switch.restart(signal)?;
                ports.switch.wait_up(2)?;
                flow.steady()?;
                let lost = missing().saturating_sub(before);
                values.extend([flow.gap.load(Relaxed) as f64 / 1e6, lost as f64]);
            }
            Ok(values)
        };
        let values = measure();
        flow.done.store(true, Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a driver panicked"))??;
        }
        values
    })
}
