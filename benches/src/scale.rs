//! What a switch costs besides throughput: per frame at a fixed rate, while nothing happens, and with many ports.

use std::{
    fmt::Write,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use switch_core::sys::raw::Way;

use crate::{
    contestants::{DEVICE, Setup, Vswitch, Wires},
    counters::{cpu_nanos, resident_kib, sleeps, watch},
    ends::{PacketRx, PacketTx},
    measure::{Lab, go_on},
    netns::{Namespace, wait_for},
    run::{Limit, Sink, generate},
    stats::median,
    traffic::{Composer, Rate, Tally},
};

/// Frames per second offered while the cost of one is measured: what every contestant forwards without loss.
pub const MODERATE_RATE: u64 = 100_000;
/// So many of them at once, every 200 µs.
const MODERATE_BURST: u64 = 20;
/// How long counters take to be attached, and a stream to be steady.
const MARGIN: Duration = Duration::from_millis(500);
/// After the start, until measuring an idle switch.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a thousand TAPs may take.
const START_PATIENCE: Duration = Duration::from_secs(300);
/// Ports added among many.
const ADDED: usize = 10;

/// Frames per second, then per frame: system calls, ns of processor time, instructions in user mode, instructions in
/// the kernel, cycles; of the process that forwards, while short frames flow at [`MODERATE_RATE`].
///
/// # Errors
/// The contestant is not a process, or cannot be watched.
pub fn cost(setup: &Setup, name: &str, time: Duration) -> anyhow::Result<Vec<f64>> {
    let lab = Lab::new(setup, name, Wires::Taps)?;
    let pid =
        lab.forwarder.pid().ok_or_else(|| anyhow::anyhow!("the kernel forwards: there is no process to watch"))?;
    let traffic = lab.short_frames(Rate::Paced { frames_per_s: MODERATE_RATE as f64, burst: MODERATE_BURST })?;
    let sink = Sink::start(PacketRx::open(&lab.hosts[1], DEVICE)?, Tally::new(traffic.clone())?)?;
    let mut source = Composer::new(traffic.clone())?;
    let mut tx = PacketTx::open(&lab.hosts[0], DEVICE, Way::default())?;
    let stop = AtomicBool::new(false);
    let (events, nanos, frames, elapsed) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let limit = Limit::time(time + MARGIN * 3);
            generate(&mut source, &mut tx, traffic.schedule(), limit, &stop)
        });
        std::thread::sleep(MARGIN);
        let (begin, frames, nanos) = (Instant::now(), sink.arrived(), cpu_nanos(pid)?);
        let events = watch(pid, time)?;
        let (frames, nanos, elapsed) = (sink.arrived() - frames, cpu_nanos(pid)? - nanos, begin.elapsed());
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        anyhow::Ok((events, nanos, frames as f64, elapsed.as_secs_f64()))
    })?;
    sink.finish()?;
    go_on()?;
    // Counters ran for `time`, a little less than the span in which frames and processor time were counted.
    let rate = frames / elapsed;
    let per_frame = |count: f64| count / (rate * time.as_secs_f64());
    Ok(vec![
        rate,
        per_frame(events.syscalls),
        nanos as f64 / frames,
        per_frame(events.user_instructions),
        per_frame(events.kernel_instructions),
        per_frame(events.cycles),
    ])
}

/// A namespace in which devices say nothing by themselves.
fn quiet() -> anyhow::Result<Namespace> {
    let home = Namespace::new("vi")?;
    home.exec(&["sh", "-c", "for k in all default; do echo 1 >/proc/sys/net/ipv6/conf/$k/disable_ipv6; done"])?;
    Ok(home)
}

/// Sleeps, unless the program is told to stop.
pub(crate) fn sleep(time: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        go_on()?;
        std::thread::sleep(Duration::from_millis(100).min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// Per cent of one processor, and how often per second a thread went to sleep, of a switch with so many TAPs that carry
/// nothing.
///
/// # Errors
/// The switch does not come up.
pub fn idle(setup: &Setup, name: &str, time: Duration, ports: usize) -> anyhow::Result<Vec<f64>> {
    let home = quiet()?;
    let specs: Vec<String> = (0..ports).map(|i| format!("q{i}=tap,netns={}", home.name())).collect();
    let switch = setup.vswitch(name, &specs)?;
    for i in 0..ports {
        home.exec(&["ip", "link", "set", &format!("q{i}"), "up"])?;
    }
    sleep(SETTLE)?;
    let pid = switch.pid();
    let (begin, nanos, slept) = (Instant::now(), cpu_nanos(pid)?, sleeps(pid)?);
    sleep(time)?;
    let (nanos, slept, elapsed) = (cpu_nanos(pid)? - nanos, sleeps(pid)? - slept, begin.elapsed().as_secs_f64());
    Ok(vec![nanos as f64 / 1e9 / elapsed * 100.0, slept as f64 / elapsed])
}

/// Of a switch with so many TAPs from one file: ms from its start until `vswitch status` shows all of them up, resident
/// MiB, KiB per port (beyond a switch with one), ms that `vswitch port add` takes among them (median of ten), and
/// seconds that it takes to end.
///
/// # Errors
/// The switch does not come up.
pub fn many(setup: &Setup, ports: usize) -> anyhow::Result<Vec<f64>> {
    let home = quiet()?;
    let file = std::env::temp_dir().join(format!("{}.toml", home.name()));
    let start = |ports: usize| -> anyhow::Result<(Vswitch, Duration)> {
        let mut text = String::new();
        for i in 0..ports {
            let netns = home.name();
            writeln!(text, "[[port]]\nname = \"m{i}\"\nkind = \"tap\"\nnetns = \"{netns}\"")?;
        }
        std::fs::write(&file, text)?;
        let begin = Instant::now();
        let switch = Vswitch::start(&setup.binary, &["--poll", &setup.poll, "--config", &file.display().to_string()])?;
        wait_for("all ports are up", START_PATIENCE, || {
            go_on().is_err() || switch.ports_up().is_ok_and(|up| up >= ports)
        })?;
        let took = begin.elapsed();
        go_on()?;
        Ok((switch, took))
    };
    let measure = || -> anyhow::Result<Vec<f64>> {
        let alone = resident_kib(start(1)?.0.pid())?;
        let (switch, took) = start(ports)?;
        let resident = resident_kib(switch.pid())?;
        let mut added = Vec::new();
        for i in 0..ADDED {
            let begin = Instant::now();
            switch.cli(&["port", "add", &format!("added{i}=tap,netns={}", home.name())])?;
            added.push(begin.elapsed().as_secs_f64() * 1000.0);
            go_on()?;
        }
        let begin = Instant::now();
        drop(switch);
        let ended = begin.elapsed().as_secs_f64();
        let per_port = resident.saturating_sub(alone) as f64 / (ports.max(2) - 1) as f64;
        Ok(vec![took.as_secs_f64() * 1000.0, resident as f64 / 1024.0, per_port, median(&added), ended])
    };
    let result = measure();
    let _ = std::fs::remove_file(&file);
    result
}
