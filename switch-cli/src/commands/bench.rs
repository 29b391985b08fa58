//! `vswitch bench`: the laboratory, with this same binary as the switch.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use vswitch_benches::{
    compare::{self, compare},
    contestants,
    lab::{
        Options, machine,
        runner::{self, End, RESULTS, list, render},
    },
    measure::obey_signals,
    replay::Pace,
    results::{Effort, Results},
};

use super::print_json;
use crate::args::{Bench, BenchCommand};

/// As shells say of a program that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Measures, or does what else the laboratory can.
pub fn bench(wish: Bench) -> anyhow::Result<ExitCode> {
    match wish.command {
        Some(BenchCommand::List) => {
            print!("{}", list());
            Ok(ExitCode::SUCCESS)
        }
        Some(BenchCommand::Compare { old, new, json }) => {
            let [old, new] = [old, new].map(|path| Results::load(&file(&path)));
            let comparison = compare(&old?, &new?, &compare::Options::default());
            if json {
                print_json(&comparison.json())?;
            } else {
                print!("{}", comparison.markdown());
            }
            Ok(ExitCode::from(comparison.exit_status()))
        }
        Some(BenchCommand::Report { results, json }) => {
            let path = file(&results);
            let results = Results::load(&path)?;
            let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
            render(&results, directory)?;
            show(&results, directory, json)?;
            Ok(ExitCode::SUCCESS)
        }
        None => measure(wish),
    }
}

/// A results file, by itself or its directory.
fn file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(RESULTS) } else { path.to_owned() }
}

fn show(results: &Results, directory: &Path, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(results);
    }
    println!("{}\n{} has results.json, results.csv and report.html", results.table(), directory.display());
    Ok(())
}

fn measure(wish: Bench) -> anyhow::Result<ExitCode> {
    let effort = match (wish.quick, wish.full) {
        (true, _) => Effort::Quick,
        (_, true) => Effort::Full,
        _ => Effort::Normal,
    };
    if wish.scenarios.is_empty() && wish.pcap.is_none() && effort == Effort::Normal {
        bail!("name a scenario (vswitch bench list explains them), or take --quick or --full");
    }
    let seconds =
        |s: f64| Duration::try_from_secs_f64(s).map_err(|_| anyhow::anyhow!("--time {s}: give seconds, such as 0.5"));
    ensure!(wish.speed > 0.0 && wish.speed.is_finite(), "--speed {}: give a factor above 0", wish.speed);
    let pace = if wish.fast { Pace::Unlimited } else { Pace::Times(wish.speed) };
    let options = Options {
        scenarios: wish.scenarios,
        against: wish.against,
        sizes: wish.size,
        time: wish.time.map(seconds).transpose()?,
        runs: wish.runs,
        effort,
        smoke: wish.smoke,
        out: wish.out.unwrap_or_else(|| format!("bench-{}", machine::now().replace([':', '-'], "")).into()),
        pcap: wish.pcap.map(|path| (path, pace)),
        profile: wish.profile,
        binary: std::env::current_exe().context("where is this program?")?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("VSWITCH_COMMIT").map(str::to_owned),
        command: std::env::args().collect(),
    };
    obey_signals()?;
    let (results, end) = runner::run(&options)?;
    show(&results, &options.out, wish.json)?;
    Ok(match end {
        End::Complete => ExitCode::SUCCESS,
        End::Failed(turns) => {
            eprintln!("vswitch: {turns} turn(s) failed; the results say why");
            ExitCode::FAILURE
        }
        End::Interrupted => {
            eprintln!("vswitch: interrupted; nothing is left behind; go on with: --out {}", options.out.display());
            ExitCode::from(INTERRUPTED)
        }
    })
}

/// The bare loop between two TAPs, in a process of its own.
pub fn forward(ends: &[String], busy: bool) -> anyhow::Result<()> {
    let [a, b] = ends else { bail!("the loop needs two ends, each NETNS:DEVICE") };
    contestants::forward([a, b], busy)
}
