//! Takes the turns that are missing and keeps the results file up to date after each.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

use super::{Context, Options, Turn, contest, load::search_of, machine, plan, progress::Progress, scenario};
use crate::{
    contestants::Setup,
    measure::{CANCELLED, go_on},
    noise::NullLoop,
    output::{csv, html},
    replay::Recording,
    results::{Effort, Noise, Results, Round, Run, Skipped, State, Turn as Due},
};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every turn was taken.
    Complete,
    /// So many turns failed.
    Failed(usize),
    /// It was told to stop.
    Interrupted,
}

/// What is written into the directory of a run.
pub const RESULTS: &str = "results.json";
const CSV: &str = "results.csv";
const REPORT: &str = "report.html";
/// How long the null loop runs before a turn, when nothing of ours does.
const NULL_TIME: Duration = Duration::from_millis(60);
/// A contestant that fails so often in a case is given up.
const MAX_FAILURES: u32 = 2;

/// Runs all that is wanted and not done yet.
///
/// # Errors
/// An option does not fit, the machine is not able, or the directory cannot be written. Turns that fail are in the results.
pub fn run(options: &Options) -> anyhow::Result<(Results, End)> {
    let plan = plan::plan(options)?;
    let recording = match &options.pcap {
        Some((path, pace)) => Some((Recording::load(path)?, *pace)),
        None => None,
    };
    plan::able(options)?;
    ensure!(options.binary.exists(), "{} is not there", options.binary.display());
    fs::create_dir_all(&options.out).with_context(|| format!("cannot make {}", options.out.display()))?;
    let path = options.out.join(RESULTS);
    let mut results = begin(options, &path, &plan)?;
    plan.scenarios.into_iter().for_each(|wanted| results.declare(wanted));
    results.run.state = State::Partial;
    results.save(&path)?;
    let setup = Setup {
        binary: options.binary.clone(),
        poll: "adaptive".to_owned(),
        arguments: Vec::new(),
        ports: vec![NO_LIMITS.to_owned()],
        jumbo: false,
    };
    let context = Context {
        setup,
        search: results.run.search,
        time: plan.time,
        profile: options.profile,
        recording,
        ceilings: Mutex::new(BTreeMap::new()),
    };
    let end = take_turns(&mut results, &context, &path)?;
    results.run.state = if end == End::Interrupted { State::Interrupted } else { State::Complete };
    results.save(&path)?;
    render(&results, &options.out)?;
    Ok((results, end))
}

/// Nobody else limits storms.
const NO_LIMITS: &str = ",storm-broadcast=0,storm-multicast=0,storm-unknown=0";

/// New results, or those of a run to be gone on with.
fn begin(options: &Options, path: &Path, plan: &plan::Plan) -> anyhow::Result<Results> {
    if !path.exists() {
        let run = Run {
            started: machine::now(),
            command: options.command.clone(),
            vswitch_version: options.version.clone(),
            commit: options.commit.clone(),
            effort: options.effort,
            search: (options.effort == Effort::Full).then(|| search_of(plan.time)),
            ..Run::default()
        };
        return Ok(Results::new(run, machine::machine()));
    }
    let mut results = Results::load(path)?;
    let here = options.out.display();
    if results.run.state == State::Complete {
        bail!("{here} has a complete run: give another --out, or look at it with: vswitch bench report {here}");
    }
    ensure!(
        results.run.vswitch_version == options.version
            && results.run.commit == options.commit
            && results.run.effort == options.effort,
        "{here} has an unfinished run of vswitch {} ({}) with --{:?}: go on with that, or give another --out",
        results.run.vswitch_version,
        results.run.commit.as_deref().unwrap_or("of no known commit"),
        results.run.effort
    );
    let kernel = machine::machine().kernel;
    ensure!(
        results.machine.kernel == kernel,
        "{here} has an unfinished run on Linux {}, this is {kernel}: give another --out",
        results.machine.kernel
    );
    for scenario in &plan.scenarios {
        let Some(old) = results.scenarios.iter().find(|s| s.name == scenario.name) else { continue };
        for case in &scenario.cases {
            let other = old.cases.iter().find(|c| c.parameters == case.parameters && c.seconds != case.seconds);
            if let Some(other) = other {
                bail!("{here} has an unfinished run with --time {}: give that, or another --out", other.seconds);
            }
        }
    }
    results.run.remarks.push(format!("Resumed at {}.", machine::now()));
    Ok(results)
}

fn take_turns(results: &mut Results, context: &Context, path: &Path) -> anyhow::Result<End> {
    let due = results.remaining();
    let mut progress = Progress::new(due.len());
    let mut failures: BTreeMap<(String, String, String), u32> = BTreeMap::new();
    let mut failed = 0;
    let mut quiet: Vec<f64> = results.noise.as_ref().map(|n| n.values.clone()).unwrap_or_default();
    for turn in due {
        if go_on().is_err() {
            break;
        }
        let case = turn.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
        let what = format!("{} {case}: {} (round {})", turn.scenario, turn.contestant, turn.round + 1);
        let key = (turn.scenario.clone(), case, turn.contestant.clone());
        if failures.get(&key).is_some_and(|n| *n >= MAX_FAILURES) {
            progress.end();
            continue;
        }
        progress.begin(&what);
        quiet.push(null_loop()?);
        match take(&turn, context) {
            Ok(round) => results.record(&turn.scenario, &turn.parameters, &turn.contestant, round)?,
            Err(_) if CANCELLED.load(Relaxed) => break,
            Err(error) => {
                progress.say(&format!("{what}: {error:#}"));
                failed += 1;
                let count = failures.entry(key).or_default();
                *count += 1;
                let round = Round { error: Some(format!("{error:#}")), ..Round::new(turn.round) };
                results.record(&turn.scenario, &turn.parameters, &turn.contestant, round)?;
                if *count == MAX_FAILURES && turn.round + 1 == MAX_FAILURES {
                    let reason = format!("it failed {MAX_FAILURES} times: {error:#}");
                    let why = Skipped { reason, install: None };
                    results.skip(&turn.scenario, &turn.parameters, &turn.contestant, why)?;
                }
            }
        }
        results.noise = Noise::of("ns", &quiet, Noise::THRESHOLD);
        results.run.ended = Some(machine::now());
        results.run.remarks.retain(|remark| !remark.starts_with("Ceiling of the generator"));
        results.run.remarks.extend(context.ceilings());
        results.save(path)?;
        progress.end();
    }
    progress.finish();
    Ok(match (CANCELLED.load(Relaxed), failed) {
        (true, _) => End::Interrupted,
        (false, 0) => End::Complete,
        (false, failed) => End::Failed(failed),
    })
}

fn take(due: &Due, context: &Context) -> anyhow::Result<Round> {
    let scenario = scenario(&due.scenario)?;
    let turn = Turn { contestant: &due.contestant, parameters: &due.parameters, round: due.round, context };
    let round = (scenario.turn)(&turn)?;
    go_on()?;
    Ok(round)
}

/// What the null loop's piece takes now, in ns (median), between two turns: what spreads here is the machine's.
fn null_loop() -> anyhow::Result<f64> {
    let looped = NullLoop::start()?;
    std::thread::sleep(NULL_TIME);
    Ok(looped.finish()?.median_ns as f64)
}

/// Writes the table of values and the report beside the results.
///
/// # Errors
/// The directory cannot be written.
pub fn render(results: &Results, directory: &Path) -> anyhow::Result<()> {
    for (name, text) in [(CSV, csv(results)), (REPORT, html(results))] {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Every scenario and contestant, and what this machine lacks.
#[must_use]
pub fn list() -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for scenario in &super::SCENARIOS {
        let quick = if scenario.quick { " (in --quick)" } else { "" };
        let _ = writeln!(out, "{}{quick}\n    {}\n    {}", scenario.name, scenario.about, scenario.explain);
        let _ = writeln!(out, "    contestants: {}", scenario.contestants.join(" "));
        if let Some(why) = plan::lacks(scenario) {
            let _ = writeln!(out, "    NOT HERE: {}; {}", why.reason, why.install.unwrap_or_default());
        }
        let _ = writeln!(out);
    }
    let _ = writeln!(out, "Contestants");
    for (name, settings) in contest::ALL {
        let _ = writeln!(out, "    {name:<18} {settings}");
        if let Some(why) = contest::missing(name) {
            let install = why.install.map_or(String::new(), |how| format!("; {how}"));
            let _ = writeln!(out, "    {:<18} NOT HERE: {}{install}", "", why.reason);
        }
    }
    out
}
