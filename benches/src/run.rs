//! Sends from one thread, receives on another, and says what both did.
//!
//! The clock is read once per batch, by the generator before it sends and by the sink when it has received.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread::{JoinHandle, ScopedJoinHandle},
    time::Duration,
};

use anyhow::Context;
use serde::Serialize;
use switch_core::sys::raw::BURST;

use crate::{
    cpu::thread_ns,
    ends::{Receive, Transmit},
    measure::CANCELLED,
    traffic::{Composer, Outcome, Schedule, Tally, Traffic, compose::Source, now_ns, schedule::Lag, tally::Judge},
};

/// Nearer than this to a burst, the generator watches the clock; before, it sleeps. More than the system's timers and
/// scheduler take to wake a thread that has a processor to itself.
const WATCH_NS: u64 = 100_000;
/// How often a sink looks whether it was told to stop.
const LOOK: Duration = Duration::from_millis(20);
/// A sink that was told to stop ends when nothing of ours came for so long.
const QUIET_NS: u64 = 100_000_000;

/// When a generator stops, at whichever comes first, and how long its sink waits for what has not arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// After so many frames.
    pub frames: u64,
    /// After so long.
    pub time: Duration,
    /// A sink that has fewer frames than were sent ends when nothing of ours came for so long; the default is 100 ms, in which a
    /// switch that is measured has had every chance.
    pub patience: Duration,
}

impl Limit {
    /// After so many frames, however long that takes.
    #[must_use]
    pub const fn frames(frames: u64) -> Limit {
        Limit { frames, time: Duration::MAX, patience: Duration::ZERO }
    }

    /// After so long.
    #[must_use]
    pub const fn time(time: Duration) -> Limit {
        Limit { frames: u64::MAX, time, patience: Duration::ZERO }
    }

    /// With a sink that waits longer for what is missing: for accounts that must be exact on a machine that has other things to do.
    #[must_use]
    pub const fn patient(self, patience: Duration) -> Limit {
        Limit { patience, ..self }
    }
}

/// What a generator did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sent {
    /// Frames that were taken. A large one is one.
    pub frames: u64,
    /// When it began and when the last frame was taken, in ns of [`now_ns`].
    pub begin_ns: u64,
    /// See `begin_ns`.
    pub end_ns: u64,
    /// Frames per second from the first burst to the last, that one not counted: what a schedule promises. Without a
    /// schedule: from begin to end. 0 if there was no time to speak of.
    pub rate: f64,
    /// How late frames were; `None`: there was no schedule.
    pub lag: Option<Lag>,
    /// How often there was no room for the next frame. It was tried again, so that is no loss.
    pub refused: u64,
    /// Processor time of the thread meanwhile, in ns, in user mode and kernel (what it did there for others too).
    pub cpu_ns: u64,
}

/// Sends until a limit, the end of the source or of the schedule, or `stop`.
///
/// # Errors
/// The end is broken.
pub fn generate(
    source: &mut dyn Source,
    end: &mut dyn Transmit,
    mut schedule: Option<Schedule>,
    limit: Limit,
    stop: &AtomicBool,
) -> anyhow::Result<Sent> {
    let cpu = thread_ns()?;
    let begin_ns = now_ns();
    let limit_ns = u64::try_from(limit.time.as_nanos()).unwrap_or(u64::MAX);
    let mut sent = Sent { begin_ns, end_ns: begin_ns, ..Sent::default() };
    let (mut first, mut last) = (None, (0, begin_ns));
    while sent.frames < limit.frames && !stop.load(Relaxed) {
        let now = now_ns();
        if now - begin_ns >= limit_ns {
            break;
        }
        let mut most = BURST.min(usize::try_from(limit.frames - sent.frames).unwrap_or(BURST));
        if let Some(schedule) = &schedule {
            most = schedule.ready(now - begin_ns, most);
            if most == 0 {
                let Some(next) = schedule.next_ns() else { break };
                let left = next.min(limit_ns).saturating_sub(now - begin_ns);
                if left > WATCH_NS {
                    std::thread::sleep(Duration::from_nanos(left - WATCH_NS).min(LOOK));
                }
                continue;
            }
        }
        let frames = source.frames(most, now);
        if frames.is_empty() {
            break;
        }
        let taken = end.send(frames)?;
        source.sent(taken);
        if taken < most {
            sent.refused += 1;
            if taken == 0 {
                std::thread::yield_now();
                continue;
            }
        }
        if let Some(schedule) = &mut schedule {
            schedule.note(taken, now - begin_ns);
        }
        first.get_or_insert((sent.frames, now));
        last = (sent.frames, now);
        sent.frames += taken as u64;
        sent.end_ns = now_ns();
    }
    let (frames, time) = match (&schedule, first) {
        (Some(_), Some(first)) => (last.0 - first.0, last.1 - first.1),
        _ => (sent.frames, sent.end_ns - begin_ns),
    };
    sent.rate = if time > 0 { frames as f64 * 1e9 / time as f64 } else { 0.0 };
    sent.lag = schedule.map(|schedule| schedule.lag());
    sent.cpu_ns = thread_ns()? - cpu;
    Ok(sent)
}

/// What a sink saw.
#[derive(Clone, Debug)]
pub struct Seen<J> {
    /// With the accounts.
    pub judge: J,
    /// When the last frame of ours arrived, in ns of [`now_ns`]; 0: none did.
    pub last_ns: u64,
    /// Frames that the sink's own socket or queue dropped.
    pub sink_drops: u64,
    /// Processor time of the thread, in ns.
    pub cpu_ns: u64,
}

/// What a sink is told, and tells, while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    stop: AtomicBool,
    /// Frames that were sent, known when `stop` is set; 0: nobody says.
    sent: AtomicU64,
    arrived: AtomicU64,
}

impl Progress {
    /// Tells the sink to end once nothing of ours has come for 100 ms.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }
}

/// Receives on this thread until it is told to stop, and what is missing has not come for `patience`.
///
/// # Errors
/// The end is broken.
pub fn drain<J: Judge>(
    end: &mut dyn Receive,
    mut judge: J,
    progress: &Progress,
    patience: Duration,
) -> anyhow::Result<Seen<J>> {
    let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX).max(QUIET_NS);
    let cpu = thread_ns()?;
    // What was dropped before is nobody's.
    end.take_lost()?;
    let (mut last_ns, mut quiet_since, mut sink_drops) = (0, None, 0);
    loop {
        let mut now = None;
        let before = judge.arrived();
        // The clock is read when the first frame of the batch is there.
        end.receive(LOOK, &mut |frame| judge.note(frame, *now.get_or_insert_with(now_ns)))?;
        if judge.arrived() > before {
            last_ns = now.unwrap_or_else(now_ns);
            progress.arrived.store(judge.arrived(), Relaxed);
            quiet_since = None;
        } else if progress.stop.load(Acquire) {
            let now = now_ns();
            let is_complete = judge.arrived() >= progress.sent.load(Relaxed);
            let enough_ns = if is_complete { QUIET_NS } else { patience_ns };
            if now - *quiet_since.get_or_insert(now) >= enough_ns {
                sink_drops += end.take_lost()?;
                return Ok(Seen { judge, last_ns, sink_drops, cpu_ns: thread_ns()? - cpu });
            }
        }
    }
}

/// A receiver on a thread of its own.
pub struct Sink<J> {
    progress: Arc<Progress>,
    thread: JoinHandle<anyhow::Result<Seen<J>>>,
}

impl<J: Judge + 'static> Sink<J> {
    /// Starts to look at what arrives.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(mut end: impl Receive + 'static, judge: J) -> anyhow::Result<Sink<J>> {
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        let thread = std::thread::Builder::new()
            .name("sink".into())
            .spawn(move || drain(&mut end, judge, &shared, Duration::ZERO))?;
        Ok(Sink { progress, thread })
    }

    /// Frames of ours so far, intact or not.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.progress.arrived.load(Relaxed)
    }

    /// Stops once nothing of ours has come for 100 ms, and says what was seen.
    ///
    /// # Errors
    /// The end is broken.
    pub fn finish(self) -> anyhow::Result<Seen<J>> {
        self.progress.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the sink panicked"))?
    }
}

/// A generator and a sink, and what they did.
#[derive(Clone, Debug)]
pub struct Run<J> {
    /// The generator.
    pub sent: Sent,
    /// The sink.
    pub seen: Seen<J>,
}

impl<J> Run<J> {
    /// So many frames per second, from the generator's beginning to the last arrival: what still waited somewhere when the
    /// generator ended is counted with the time that it took.
    #[must_use]
    pub fn per_second(&self, frames: u64) -> f64 {
        let time = self.seen.last_ns.saturating_sub(self.sent.begin_ns);
        if time > 0 { frames as f64 * 1e9 / time as f64 } else { 0.0 }
    }
}

impl Run<Tally> {
    /// What became of the frames.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.seen.judge.outcome(self.sent.frames, self.seen.sink_drops)
    }

    /// Frames (segments) per second that arrived as sent.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.per_second(self.outcome().received)
    }
}

/// Sends and receives until a limit, or until the program is told to stop.
///
/// # Errors
/// An end is broken.
pub fn run<J: Judge>(
    source: &mut dyn Source,
    tx: &mut dyn Transmit,
    rx: &mut dyn Receive,
    schedule: Option<Schedule>,
    judge: J,
    limit: Limit,
) -> anyhow::Result<Run<J>> {
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let sink: ScopedJoinHandle<'_, _> = scope.spawn(|| drain(rx, judge, &progress, limit.patience));
        let sent = generate(source, tx, schedule, limit, &CANCELLED);
        progress.sent.store(sent.as_ref().map_or(0, |sent| sent.frames), Relaxed);
        // Whatever happened, or the sink would never end.
        progress.stop.store(true, Release);
        let seen = sink.join().map_err(|_| anyhow::anyhow!("the sink panicked"))?;
        Ok(Run { sent: sent.context("the generator")?, seen: seen.context("the sink")? })
    })
}

/// Sends traffic and receives it as it was sent.
///
/// # Errors
/// The traffic cannot be made, or an end is broken.
pub fn run_traffic(
    traffic: &Traffic,
    tx: &mut dyn Transmit,
    rx: &mut dyn Receive,
    limit: Limit,
) -> anyhow::Result<Run<Tally>> {
    let tally = Tally::new(traffic.clone())?;
    run(&mut Composer::new(traffic.clone())?, tx, rx, traffic.schedule(), tally, limit)
}
