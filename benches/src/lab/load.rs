//! Offers a load to a fabric and accounts for it: from every source a thread, at every destination a thread.

use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicU8, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use hdrhistogram::Histogram;

use super::{Fabric, Turn};
use crate::{
    cpu::{Charge, Meter},
    measure::{CANCELLED, go_on},
    results::{Frames, Latency, Mark, MarkKind, Party, Round, Search, Trial},
    run::{Limit, Progress, drain, generate},
    search::{Goal, Irregular, Limits, search},
    selftest::{Ceiling, mark},
    traffic::{
        Schedule, Sizes, Tally, Traffic, compose::Composer, compose::Source, mark::Mark as FrameMark, tally::Judge,
    },
};

/// Frames from one station to some.
#[derive(Clone, Debug)]
pub struct Lane {
    /// The sender.
    pub from: usize,
    /// All who should receive every frame.
    pub to: Vec<usize>,
    /// What is sent.
    pub traffic: Traffic,
    /// What should arrive, where a port changes frames.
    pub arrives: Option<Traffic>,
}

impl Lane {
    /// From one station to another.
    #[must_use]
    pub fn new(from: usize, to: usize, traffic: Traffic) -> Lane {
        Lane { from, to: vec![to], traffic, arrives: None }
    }
}

/// What became of a load.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// In frames, segments of large ones; copies to several receivers count each.
    pub frames: Frames,
    /// Of the lost ones: no more than what sinks dropped themselves.
    pub lost_at_sink: u64,
    /// Frames per second that were taken from the generators.
    pub offered_fps: f64,
    /// Frames per second that arrived as sent.
    pub received_fps: f64,
    /// Times from sending to arriving in ns, if wanted.
    pub latency: Option<Histogram<u64>>,
    /// Processor time.
    pub charge: Charge,
    /// Frames that arrived as sent, by station.
    pub received_at: BTreeMap<usize, u64>,
    /// How long the generators sent.
    pub wall_ns: u64,
    /// Lag behind the schedule of 99 of 100 frames, the worst generator's, in ns.
    pub lag_p99_ns: u64,
}

/// Several lanes from one station, a batch of each in turn.
struct Several {
    composers: Vec<Composer>,
    sent: Vec<u64>,
    at: usize,
}

impl Source for Several {
    fn frames(&mut self, most: usize, now_ns: u64) -> &[Vec<u8>] {
        self.composers[self.at].frames(most, now_ns)
    }

    fn sent(&mut self, frames: usize) {
        self.composers[self.at].sent(frames);
        self.sent[self.at] += frames as u64;
        if frames > 0 {
            self.at = (self.at + 1) % self.composers.len();
        }
    }
}

/// The accounts of all lanes that end at one station, told apart by the run in their marks.
struct Accounts {
    lanes: Vec<(usize, Tally)>,
    runs: Vec<u8>,
    header: usize,
}

impl Judge for Accounts {
    fn note(&mut self, frame: &[u8], now_ns: u64) {
        let run = frame.get(self.header..).and_then(FrameMark::read).map(|mark| mark.run);
        let lane = self.runs.iter().position(|r| Some(*r) == run).unwrap_or(0);
        self.lanes[lane].1.note(frame, now_ns);
    }

    fn arrived(&self) -> u64 {
        self.lanes.iter().map(|(_, tally)| tally.arrived()).sum()
    }
}

/// Frames of this measurement; those of another that come late are foreign to it.
static RUN: AtomicU8 = AtomicU8::new(1);

/// Sends on all lanes until a limit, at so many frames per second in all or as fast as they are taken, and accounts for it.
///
/// # Errors
/// A lane's traffic cannot be made, an end is broken, or the contestant has died.
pub fn offer(
    fabric: &Fabric,
    lanes: &[Lane],
    fps: Option<f64>,
    limit: Limit,
    latency: bool,
) -> anyhow::Result<Measured> {
    let first = RUN.fetch_add(lanes.len() as u8, Relaxed);
    let lanes: Vec<Lane> = lanes
        .iter()
        .zip(0u8..)
        .map(|(lane, i)| {
            let run = first.wrapping_add(i);
            let arrives = lane.arrives.clone().map(|traffic| Traffic { run, ..traffic });
            Lane { traffic: Traffic { run, ..lane.traffic.clone() }, arrives, ..lane.clone() }
        })
        .collect();
    let stations = || 0..fabric.len();
    let sources: Vec<usize> = stations().filter(|s| lanes.iter().any(|lane| lane.from == *s)).collect();
    let sinks: Vec<usize> = stations().filter(|s| lanes.iter().any(|lane| lane.to.contains(s))).collect();
    let progress = Progress::default();
    let mut receivers = Vec::new();
    for sink in &sinks {
        let mut accounts = Accounts { lanes: Vec::new(), runs: Vec::new(), header: 0 };
        for (i, lane) in lanes.iter().enumerate().filter(|(_, lane)| lane.to.contains(sink)) {
            let expected = lane.arrives.as_ref().unwrap_or(&lane.traffic);
            accounts.header = expected.header_bytes();
            accounts.runs.push(expected.run);
            let tally = Tally::new(expected.clone())?;
            accounts.lanes.push((i, if latency { tally.with_latency() } else { tally }));
        }
        receivers.push((fabric.rx(*sink)?, accounts));
    }
    std::thread::scope(|scope| {
        let (told, open) = mpsc::channel();
        let draining: Vec<_> = receivers
            .into_iter()
            .map(|(mut rx, accounts)| {
                let (progress, told) = (&progress, told.clone());
                scope.spawn(move || {
                    let _ = told.send(());
                    drain(&mut *rx, accounts, progress, limit.patience)
                })
            })
            .collect();
        for _ in &draining {
            let _ = open.recv();
        }
        let meter = Meter::start(fabric.pid());
        let begin = Instant::now();
        let sending: Vec<_> = sources
            .iter()
            .map(|from| {
                let own: Vec<usize> = (0..lanes.len()).filter(|i| lanes[*i].from == *from).collect();
                let (lanes, count) = (&lanes, sources.len() as u64);
                scope.spawn(move || -> anyhow::Result<_> {
                    let composers = own.iter().map(|i| Composer::new(lanes[*i].traffic.clone()));
                    let composers = composers.collect::<Result<Vec<_>, _>>()?;
                    let mut several = Several { sent: vec![0; own.len()], composers, at: 0 };
                    let large = matches!(lanes[own[0]].traffic.sizes, Sizes::Large { .. });
                    let mut tx = fabric.tx(*from, large)?;
                    let per = lanes[own[0]].traffic.segments() as f64 * count as f64;
                    let schedule = fps.map(|fps| Schedule::paced(fps / per, 1));
                    let limit = Limit { frames: limit.frames.div_ceil(count), ..limit };
                    let sent = generate(&mut several, &mut *tx, schedule, limit, &CANCELLED)?;
                    Ok((own, several.sent, sent))
                })
            })
            .collect();
        let sent: Vec<_> =
            sending.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("a generator panicked"))).collect();
        let wall_ns = begin.elapsed().as_nanos() as u64;
        let charge = meter.and_then(|meter| meter.charge(0, 0));
        // Whatever happened, or the sinks would never end.
        progress.stop();
        let seen: Vec<_> =
            draining.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("a sink panicked"))).collect();
        let charge = charge.context("the contestant has died")?;
        let mut all = Measured { charge, wall_ns, ..Measured::default() };
        let mut frames_of = vec![0; lanes.len()];
        let (mut begin_ns, mut last_ns) = (u64::MAX, 0);
        for sent in sent {
            let (own, counts, sent) = sent?.context("the generator")?;
            own.iter().zip(counts).for_each(|(lane, count)| frames_of[*lane] = count);
            begin_ns = begin_ns.min(sent.begin_ns);
            all.charge.generator += sent.cpu_ns;
            let segments = lanes[own[0]].traffic.segments();
            // With a schedule: what it promises. Otherwise all over the time.
            all.offered_fps += sent.rate * segments as f64;
            all.lag_p99_ns = all.lag_p99_ns.max(sent.lag.map_or(0, |lag| lag.p99_ns));
        }
        for (station, seen) in sinks.iter().zip(seen) {
            let seen = seen?.context("the sink")?;
            last_ns = last_ns.max(seen.last_ns);
            all.charge.sink += seen.cpu_ns;
            let mut drops = seen.sink_drops;
            for (lane, tally) in seen.judge.lanes {
                let outcome = tally.outcome(frames_of[lane], drops);
                drops -= outcome.lost_at_sink;
                all.frames.sent += outcome.sent;
                all.frames.received += outcome.received;
                *all.received_at.entry(*station).or_default() += outcome.received;
                all.frames.lost += outcome.lost + outcome.lost_at_sink;
                all.lost_at_sink += outcome.lost_at_sink;
                all.frames.reordered += outcome.reordered;
                all.frames.duplicates += outcome.duplicated;
                all.frames.corrupt += outcome.corrupted;
                if let Some(recorded) = tally.latency() {
                    let _ = all.latency.get_or_insert_with(Latency::recorder).add(recorded);
                }
            }
        }
        let time_ns = last_ns.saturating_sub(begin_ns);
        all.received_fps = if time_ns > 0 { all.frames.received as f64 * 1e9 / time_ns as f64 } else { 0.0 };
        Ok(all)
    })
}

/// More than this of all processors' time: they were all at work.
const ALL_BUSY: f64 = 0.95;
/// More than this part lost at the sink: it limits.
const SINK_PART: f64 = 0.01;
/// More than this of the time given to other machines: the round is noisy.
const STOLEN: f64 = 0.02;

impl Measured {
    /// Writes accounts, CPU time and what limits their meaning into a round.
    pub fn account(&self, round: &mut Round, metric: &str, ceiling: Option<&Ceiling>) {
        let mut add = |kind, text: String, about: bool, ceiling| {
            let metric = about.then(|| metric.to_owned());
            round.marks.push(Mark { kind, text, metric, ceiling });
        };
        let f = &self.frames;
        if f.reordered + f.duplicates + f.corrupt > 0 {
            let text = format!("{} reordered, {} duplicates, {} corrupt", f.reordered, f.duplicates, f.corrupt);
            add(MarkKind::Faulty, text, false, None);
        }
        if self.lost_at_sink as f64 > SINK_PART * f.sent as f64 {
            add(MarkKind::SinkBound, format!("the sink dropped up to {} frames", self.lost_at_sink), true, None);
        }
        if let Some(c) = ceiling.filter(|c| mark(self.received_fps, c).is_some()) {
            let text = format!("generator and sink alone reach {:.0} frames/s ({:?})", c.received_per_s, c.over);
            add(MarkKind::GeneratorBound, text, true, Some(c.received_per_s));
        }
        let all_ns = self.wall_ns as f64 * processors() as f64;
        if self.charge.busy as f64 > ALL_BUSY * all_ns {
            add(MarkKind::CpuBound, "all processors were at work".to_owned(), true, None);
        }
        if self.charge.steal as f64 > STOLEN * all_ns {
            let percent = self.charge.steal as f64 / all_ns * 100.0;
            add(MarkKind::Noisy, format!("the hypervisor gave {percent:.0} % of the time to others"), false, None);
        }
        round.frames = Some(self.frames);
        round.cpu_ns = [
            (Party::Switch, self.charge.switch),
            (Party::Softirq, self.charge.softirq),
            (Party::Generator, self.charge.generator),
            (Party::Sink, self.charge.sink),
        ]
        .into();
    }

    /// Processor time of the whole machine per frame that arrived, in ns; NaN if none did.
    #[must_use]
    pub fn cpu_ns_per_frame(&self) -> f64 {
        self.charge.busy as f64 / self.frames.received as f64
    }

    /// Loss in per cent of what was sent.
    #[must_use]
    pub fn loss_percent(&self) -> f64 {
        self.frames.lost as f64 / self.frames.sent as f64 * 100.0
    }
}

/// Processors that this program may use.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What a throughput measurement found.
pub struct Throughput {
    /// Frames per second: the maximum receive rate, or (with `--full`) what MLRsearch found.
    pub fps: f64,
    /// The measurement behind it.
    pub measured: Measured,
    /// All trials.
    pub trials: Vec<Trial>,
    /// Why the search has no regular result.
    pub irregular: Option<Irregular>,
}

/// The shortest warm-up.
const WARM_UP: Duration = Duration::from_millis(50);
/// How a run with measurements of `time` searches. Two of three trials decide a load: less than RFC 9971's examples ask
/// for, because each round searches anew, and the rounds, which lie further apart, say more than more trials in a row. Two
/// per cent of width are less than rounds differ by.
#[must_use]
pub fn search_of(time: Duration) -> Search {
    let seconds = time.as_secs_f64();
    let goal = Goal {
        initial_trial_s: seconds / 4.0,
        final_trial_s: seconds,
        duration_sum_s: seconds * 3.0,
        width: 0.02,
        ..Goal::PARTIAL_DROP
    };
    Search { goal, least_load_ratio: 0.001, budget_s: seconds * 60.0 }
}

/// Sends for a while without looking, so that caches, tables and clocks are warm.
///
/// # Errors
/// As [`offer`].
pub fn warm_up(turn: &Turn<'_>, fabric: &Fabric, lanes: &[Lane], fps: Option<f64>) -> anyhow::Result<()> {
    let time = (turn.context.time / 5).max(WARM_UP).min(Duration::from_secs(1));
    offer(fabric, lanes, fps, Limit::time(time), false).map(drop)
}

/// The throughput of a fabric on these lanes, after a warm-up: one trial with all that the generators can give (MRR), or,
/// with `--full`, a search (RFC 9971).
///
/// # Errors
/// As [`offer`], or nothing arrives.
pub fn throughput(turn: &Turn<'_>, fabric: &Fabric, lanes: &[Lane]) -> anyhow::Result<Throughput> {
    warm_up(turn, fabric, lanes, None)?;
    go_on()?;
    let time = turn.context.time;
    let measured = offer(fabric, lanes, None, Limit::time(time), false)?;
    anyhow::ensure!(measured.frames.received > 0, "no frame came through");
    // Copies of each frame that should arrive.
    let factor = lanes.iter().map(|l| l.to.len()).sum::<usize>() as f64 / lanes.len() as f64;
    let most = measured.offered_fps;
    let trial =
        Trial { load_fps: most, seconds: time.as_secs_f64(), sent: measured.frames.sent, lost: measured.frames.lost };
    let Some(Search { goal, least_load_ratio, budget_s }) = turn.context.search else {
        return Ok(Throughput { fps: measured.received_fps, measured, trials: vec![trial], irregular: None });
    };
    let limits = Limits { min_load_fps: most * least_load_ratio, max_load_fps: most, budget_s };
    let mut best: Option<Measured> = None;
    let found = search(&goal, &limits, |load, seconds| -> anyhow::Result<(u64, u64)> {
        go_on()?;
        let trial = offer(fabric, lanes, Some(load), Limit::time(Duration::from_secs_f64(seconds)), false)?;
        // What the generator could not give at this load is lost as well.
        let due = (load * seconds * factor) as u64;
        let answer = (due.max(trial.frames.sent), due.max(trial.frames.sent) - trial.frames.received.min(due));
        if answer.1 as f64 <= goal.loss_ratio * answer.0 as f64 {
            best = Some(trial);
        }
        Ok(answer)
    })?;
    let mut trials = vec![trial];
    trials.extend(found.trials);
    // At no load within the goal: the receive rate is what there is, and the mark says so.
    let fps = found.throughput_fps.map_or(measured.received_fps, |fps| fps * factor);
    Ok(Throughput { fps, measured: best.unwrap_or(measured), trials, irregular: found.irregular })
}

impl Throughput {
    /// Writes all into a round, as `metric`.
    #[must_use]
    pub fn into_round(self, turn: &Turn<'_>, metric: &str, ceiling: Option<&Ceiling>) -> Round {
        let mut round = Round::new(turn.round).value(metric, self.fps);
        self.measured.account(&mut round, metric, ceiling);
        if let Some(why) = self.irregular {
            let text = format!("the search ended without both bounds: {why:?}");
            round.marks.push(Mark { kind: MarkKind::Irregular, text, metric: Some(metric.to_owned()), ceiling: None });
        }
        let cpu = self.measured.cpu_ns_per_frame();
        round.trials = self.trials;
        round.value("CPU time", cpu)
    }
}
