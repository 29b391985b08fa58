//! What the switch itself costs, without the kernel: cycles and instructions per frame and per table hit, and what a
//! second worker adds.
//!
//! Cycles and instructions are those of user mode, counted by `perf stat` over two runs of different length, whose
//! difference leaves out the start. Where the processor's counters are not to be had (most virtual machines), cycles are
//! those of the time stamp counter, the median of many short slices, and instructions are counted by valgrind.
//!
//! `--gate` counts by valgrind alone, all cases, and compares: see `gate.rs`.

use std::{
    hint::black_box,
    path::PathBuf,
    process::{Command, ExitCode},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use switch_core::{batch::BATCH_FRAMES, sys::tsc, worker::Worker};
use vswitch_benches::{
    cases::{CASES, Case},
    gate::{Baseline, Origin, Verdict, compare},
    report::machine,
    stats::{interval, median},
    tools::installed,
    turns::{Aim, NOW, Turns},
};

const USAGE: &str = "usage: core-cost [--seconds N] [--rounds N] [--json FILE] [--markdown FILE]
       core-cost --gate FILE [--accept] [--only CASE,...] [--burden N]

  --gate FILE   count instructions per frame and compare them with those in FILE; fails if they rose by more than 5 %
  --accept      write FILE anew instead
  --only        only these cases
  --burden N    add N rounds of arithmetic to each frame, to see the gate fail";
/// The cases of the report: those in which nothing has to be prepared between two steps.
const REPORTED: usize = 3;
/// Batches (or as many lookups as they have frames) per slice of the time stamp counter.
const SLICE: u64 = 100;
/// Batches of the shorter run under perf, and under valgrind, which is a hundred times slower.
const PERF_BATCHES: u64 = 200_000;
const VALGRIND_BATCHES: u64 = 2000;

/// Steps of a case before the counted ones.
const WARM_UP: u64 = 50;
/// Counted steps of the gate.
const GATE_STEPS: u64 = 300;

/// What valgrind counts, and nothing around it: the switch's part of one step, and `burden` rounds of arithmetic for each
/// of its frames. By its name.
#[inline(never)]
fn counted_step(case: &mut Case, burden: u64) {
    case.work();
    if burden > 0 {
        rounds(case.frames * burden);
    }
}

/// Arithmetic in registers: one dependent multiplication, one rotation, one exclusive or, each round.
#[inline]
fn rounds(count: u64) {
    let mut state = black_box(1u64);
    for _ in 0..count {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(17) ^ 0x9e37;
    }
    black_box(state);
}

/// What the counting programs run.
fn run_case(name: &str, steps: u64, burden: u64) -> anyhow::Result<()> {
    let mut case = Case::new(name)?;
    for _ in 0..WARM_UP {
        case.prepare()?;
        case.work();
    }
    for _ in 0..steps {
        case.prepare()?;
        counted_step(&mut case, burden);
    }
    case.check(WARM_UP + steps)
}

/// Cycles of the time stamp counter and nanoseconds, each per frame.
fn clocked(name: &str, time: Duration) -> anyhow::Result<(f64, f64)> {
    let mut case = Case::new(name)?;
    let (mut cycles, mut nanos) = (Vec::new(), Vec::new());
    let frames = (SLICE * case.frames) as f64;
    let end = Instant::now() + time;
    while Instant::now() < end {
        let (begin, ticks) = (Instant::now(), tsc::read());
        (0..SLICE).for_each(|_| case.work());
        cycles.push(ticks.zip(tsc::read()).map_or(f64::NAN, |(from, to)| (to - from) as f64 / frames));
        nanos.push(begin.elapsed().as_nanos() as f64 / frames);
    }
    Ok((median(&cycles), median(&nanos)))
}

/// What a counting program says of this one, running a case for so many steps.
fn counted(program: &[&str], run: &[&str], read: fn(&str) -> Vec<f64>) -> anyhow::Result<Vec<f64>> {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(std::env::current_exe()?).arg("run").args(run);
    let output = command.env("LC_ALL", "C").output().with_context(|| format!("cannot run {}", program[0]))?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {text}", program[0]);
    Ok(read(&text))
}

/// perf's counts per frame: the difference of two runs.
fn by_perf(name: &str) -> anyhow::Result<Vec<f64>> {
    let perf = ["perf", "stat", "-x", ",", "-e", "cycles:u,instructions:u", "--"];
    let run = |steps: u64| counted(&perf, &[name, &steps.to_string(), "0"], read_perf);
    let (short, long) = (run(PERF_BATCHES)?, run(2 * PERF_BATCHES)?);
    let frames = (PERF_BATCHES * BATCH_FRAMES as u64) as f64;
    Ok(short.iter().zip(&long).map(|(short, long)| (long - short) / frames).collect())
}

/// Instructions per frame, exactly: only [`counted_step`] is counted.
fn by_valgrind(name: &str, steps: u64, burden: u64) -> anyhow::Result<f64> {
    let valgrind = [
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        "--collect-atstart=no",
        "--toggle-collect=*counted_step*",
    ];
    let run = [name, &steps.to_string(), &burden.to_string()];
    let counts = counted(&valgrind, &run, read_valgrind).with_context(|| format!("case \"{name}\""))?;
    let frames = (steps * Case::new(name)?.frames) as f64;
    let count = counts.first().copied().filter(|count| *count > 0.0).context("valgrind counted nothing")?;
    Ok(count / frames)
}

fn read_perf(text: &str) -> Vec<f64> {
    ["cycles:u", "instructions:u"]
        .iter()
        .filter_map(|event| text.lines().find(|l| l.split(',').nth(2) == Some(event))?.split(',').next()?.parse().ok())
        .collect()
}

fn read_valgrind(text: &str) -> Vec<f64> {
    text.lines().filter_map(|l| l.split_once("Collected :")?.1.trim().parse().ok()).collect()
}

/// Of a case: cycles and instructions per frame, where both are from, and nanoseconds.
struct Cost {
    cycles: f64,
    instructions: f64,
    source: &'static str,
    nanos: f64,
}

fn cost(name: &str, time: Duration) -> anyhow::Result<Cost> {
    let (ticks, nanos) = clocked(name, time)?;
    if installed("perf")
        && let [cycles, instructions] = by_perf(name)?[..]
    {
        return Ok(Cost { cycles, instructions, source: "processor's counters", nanos });
    }
    if installed("valgrind") {
        let instructions = by_valgrind(name, VALGRIND_BATCHES, 0)?;
        return Ok(Cost { cycles: ticks, instructions, source: "time stamp counter, valgrind", nanos });
    }
    Ok(Cost { cycles: ticks, instructions: f64::NAN, source: "time stamp counter", nanos })
}

/// The processors that this program may use.
fn processors() -> anyhow::Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect())
}

/// Repeats a batch on one processor until told to stop; frames per second.
fn repeat_on(mut batch: impl FnMut(), cpu: usize, start: &Barrier, stop: &AtomicBool) -> anyhow::Result<f64> {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    start.wait();
    pinned?;
    let (begin, mut batches) = (Instant::now(), 0u64);
    while !stop.load(Relaxed) {
        batch();
        batches += 1;
    }
    Ok((batches * BATCH_FRAMES as u64) as f64 / begin.elapsed().as_secs_f64())
}

fn turning(worker: &mut Worker) -> impl FnMut() + Send {
    move || _ = worker.turn(NOW)
}

/// Arithmetic about as long as a batch: what two processors can do together if they share nothing that the program can
/// see.
fn arithmetic() {
    rounds(BATCH_FRAMES as u64 * 32);
}

/// Frames per second of some batches together, each on a processor of its own.
fn together(batches: Vec<impl FnMut() + Send>, cpus: &[usize], time: Duration) -> anyhow::Result<f64> {
    let (start, stop) = (&Barrier::new(batches.len() + 1), &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let pairs = batches.into_iter().zip(cpus);
        let threads: Vec<_> =
            pairs.map(|(batch, cpu)| scope.spawn(move || repeat_on(batch, *cpu, start, stop))).collect();
        start.wait();
        std::thread::sleep(time);
        stop.store(true, Relaxed);
        threads.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?).sum()
    })
}

/// Frames per second of one worker and of two that share the table, round by round; without an aim, of arithmetic.
fn scaling(aim: Option<Aim>, rounds: usize, time: Duration) -> anyhow::Result<Vec<[f64; 2]>> {
    let cpus = processors()?;
    ensure!(cpus.len() >= 2, "two workers need two processors");
    let mut turns = aim.map(|aim| Turns::new(2, aim)).transpose()?;
    let mut run = |workers: usize| match &mut turns {
        None => together(vec![arithmetic; workers], &cpus, time),
        Some(turns) => together(turns.workers[..workers].iter_mut().map(turning).collect(), &cpus, time),
    };
    let rates = (0..rounds).map(|_| Ok([run(1)?, run(2)?])).collect::<anyhow::Result<_>>()?;
    turns.map_or(Ok(()), |turns| turns.check())?;
    Ok(rates)
}

fn report(time: Duration, rounds: usize) -> anyhow::Result<(String, serde_json::Value)> {
    let unknown = |value: f64| if value.is_nan() { "not supported here".to_owned() } else { format!("{value:.1}") };
    let mut text = format!("The switch without the kernel, user mode, one worker\nMachine: {}\n\n", machine());
    text += "| what | cycles | instructions | ns | counted by |\n|---|---:|---:|---:|---|\n";
    let mut costs = Vec::new();
    for (name, title) in &CASES[..REPORTED] {
        eprintln!("core-cost: {title}");
        let Cost { cycles, instructions, source, nanos } = cost(name, time)?;
        text += &format!("| {title} | {} | {} | {nanos:.1} | {source} |\n", unknown(cycles), unknown(instructions));
        costs.push(serde_json::json!({
            "case": title, "cycles": cycles, "instructions": instructions, "ns": nanos, "counted_by": source,
        }));
    }
    text += "\nTwo workers with ports of their own and one table, in million frames per second\n\n";
    text += "| destinations | one worker | two | ratio within a round, median [95 % bootstrap interval] |\n";
    text += "|---|---:|---:|---:|\n";
    let mut pairs = Vec::new();
    let aims = [(Some(Aim::Warm), "1000 warm"), (Some(Aim::Random), "random"), (None, "none: arithmetic only")];
    for (aim, title) in aims {
        eprintln!("core-cost: two workers, {title}");
        let rates = scaling(aim, rounds, time.min(Duration::from_millis(500)))?;
        let [one, two] = [0, 1].map(|i| median(&rates.iter().map(|r| r[i] / 1e6).collect::<Vec<_>>()));
        let ratios: Vec<f64> = rates.iter().map(|[one, two]| two / one).collect();
        let (low, high) = interval(&ratios);
        text += &format!("| {title} | {one:.2} | {two:.2} | {:.3} [{low:.3}, {high:.3}] |\n", median(&ratios));
        pairs.push(serde_json::json!({ "destinations": title, "frames_per_second": rates }));
    }
    let json = serde_json::json!({ "machine": machine(), "costs": costs, "two_workers": pairs });
    Ok((text, json))
}

/// What the gate is to do.
#[derive(Default)]
struct Gate {
    file: PathBuf,
    accept: bool,
    only: Option<Vec<String>>,
    burden: u64,
}

impl Gate {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let here = Origin::here()?;
        let wanted = |name: &str| self.only.as_ref().is_none_or(|only| only.iter().any(|n| n == name));
        if let Some(unknown) = self.only.iter().flatten().find(|n| CASES.iter().all(|(name, _)| name != n)) {
            bail!("no case \"{unknown}\"");
        }
        let counts = CASES
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(name, _)| Ok(((*name).to_owned(), by_valgrind(name, GATE_STEPS, self.burden)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        if self.accept {
            let kept = std::fs::read_to_string(&self.file).ok().and_then(|text| Baseline::parse(&text).ok());
            // A part of the cases replaces a part of the file.
            let kept = kept.filter(|kept| self.only.is_some() && kept.made_by == here);
            let mut instructions = kept.map(|kept| kept.instructions).unwrap_or_default();
            instructions.extend(counts);
            let text = Baseline { made_by: here, instructions }.to_text()?;
            std::fs::write(&self.file, &text).with_context(|| format!("cannot write {}", self.file.display()))?;
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        let named = || format!("cannot read {}", self.file.display());
        let kept = Baseline::parse(&std::fs::read_to_string(&self.file).with_context(named)?).with_context(named)?;
        let (text, verdict) = compare(&kept, &here, &counts);
        print!("{text}");
        Ok(if verdict == Verdict::Failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [run, name, steps, burden] = &words[..]
        && run == "run"
    {
        run_case(name, steps.parse()?, burden.parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (mut time, mut rounds, mut json, mut markdown) = (Duration::from_secs(2), 9, None::<PathBuf>, None::<PathBuf>);
    let mut gate = Gate::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--help" => {
                println!("{USAGE}");
                return Ok(ExitCode::SUCCESS);
            }
            "--accept" => {
                gate.accept = true;
                continue;
            }
            _ => {}
        }
        let value = words.next().with_context(|| format!("{word} needs a value\n{USAGE}"))?;
        match word.as_str() {
            "--seconds" => time = Duration::from_secs(value.parse::<u64>()?.max(1)),
            "--rounds" => rounds = value.parse::<usize>()?.max(1),
            "--json" => json = Some(value.into()),
            "--markdown" => markdown = Some(value.into()),
            "--gate" => gate.file = value.into(),
            "--only" => gate.only = Some(value.split(',').map(str::to_owned).collect()),
            "--burden" => gate.burden = value.parse()?,
            _ => bail!("no option \"{word}\"\n{USAGE}"),
        }
    }
    if !gate.file.as_os_str().is_empty() {
        return gate.run();
    }
    let (text, values) = report(time, rounds)?;
    print!("{text}");
    if let Some(path) = markdown {
        std::fs::write(path, &text)?;
    }
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&values)?)?;
    }
    Ok(ExitCode::SUCCESS)
}
