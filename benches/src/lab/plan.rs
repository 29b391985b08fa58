//! What a run is to measure: checks the options and declares every turn.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{bail, ensure};

use super::{Options, SCENARIOS, Scenario, contest, scenario, sizes};
use crate::{
    results::{Case, Contestant, Effort, Scenario as Declared, Skipped},
    tools::installed,
};

/// Rounds and length of a measurement where nobody says otherwise.
fn defaults(effort: Effort) -> (u32, Duration) {
    match effort {
        Effort::Quick => (3, Duration::from_millis(500)),
        Effort::Normal => (5, Duration::from_secs(1)),
        Effort::Full => (5, Duration::from_secs(1)),
    }
}

/// Who takes part with `--quick`, unless told otherwise.
const QUICK: [&str; 3] = ["vswitch", "vswitch-busy", "bridge"];
/// The shortest measurement: below, a rate says nothing.
const MIN_TIME: Duration = Duration::from_millis(50);
const MAX_TIME: Duration = Duration::from_secs(3600);
const MAX_RUNS: u32 = 1000;
/// Programs that every run needs, and where they are from.
const NEEDED: [(&str, &str); 2] = [("ip", "iproute2"), ("ping", "iputils-ping")];

/// What is fixed before the first turn.
pub struct Plan {
    /// Length of a measurement.
    pub time: Duration,
    /// All that is wanted.
    pub scenarios: Vec<Declared>,
}

/// Plans a run.
///
/// # Errors
/// An option does not fit; the error says which, and what does.
pub fn plan(options: &Options) -> anyhow::Result<Plan> {
    let (rounds, time) = defaults(options.effort);
    let (rounds, time) = (options.runs.unwrap_or(rounds), options.time.unwrap_or(time));
    ensure!((1..=MAX_RUNS).contains(&rounds), "--runs {rounds}: give 1 to {MAX_RUNS}");
    ensure!(
        (MIN_TIME..=MAX_TIME).contains(&time),
        "--time {}: give {} to {} seconds",
        time.as_secs_f64(),
        MIN_TIME.as_secs_f64(),
        MAX_TIME.as_secs()
    );
    for size in options.sizes.iter().flatten() {
        sizes(size)?;
    }
    let mut names: Vec<&str> = options.scenarios.iter().map(String::as_str).collect();
    if options.pcap.is_some() && !names.contains(&"replay") {
        names.push("replay");
    }
    if names.is_empty() {
        names = SCENARIOS.iter().filter(|s| s.quick || options.effort == Effort::Full).map(|s| s.name).collect();
        names.retain(|name| *name != "replay");
    }
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    let against = against(options)?;
    let mut scenarios = Vec::new();
    for name in names {
        let scenario = scenario(name)?;
        if name == "replay" && options.pcap.is_none() {
            bail!("scenario replay needs a capture: --pcap FILE");
        }
        let takes_part = |who: &&&str| against.as_ref().is_none_or(|list| list.contains(&(**who).to_owned()));
        let who: Vec<&str> = scenario.contestants.iter().filter(takes_part).copied().collect();
        ensure!(
            !who.is_empty(),
            "scenario {name} has none of the contestants {}; it has {}",
            against.unwrap_or_default().join(", "),
            scenario.contestants.join(", ")
        );
        let mut cases = Vec::new();
        for parameters in (scenario.cases)(options) {
            let fitting = who.iter().filter(|who| (scenario.fits)(who, &parameters));
            let lacks = lacks(scenario);
            let contestants: Vec<_> = fitting
                .map(|who| {
                    let contestant = contest::contestant(who);
                    Contestant { skipped: contestant.skipped.clone().or_else(|| lacks.clone()), ..contestant }
                })
                .collect();
            if !contestants.is_empty() {
                cases.push(Case { parameters, rounds, seconds: time.as_secs_f64(), contestants });
            }
        }
        scenarios.push(Declared {
            name: name.to_owned(),
            about: scenario.about.to_owned(),
            metrics: (scenario.metrics)(),
            cases,
        });
    }
    Ok(Plan { time, scenarios })
}

/// What this machine lacks for a scenario, whoever takes part.
#[must_use]
pub fn lacks(scenario: &Scenario) -> Option<Skipped> {
    let missing = scenario.needs.iter().filter(|(program, _)| !installed(program));
    let (programs, packages): (Vec<&str>, Vec<&str>) = missing.copied().unzip();
    (!programs.is_empty()).then(|| Skipped {
        reason: format!("{} is not installed", programs.join(", ")),
        install: Some(format!("apt-get install {}", packages.join(" "))),
    })
}

/// The contestants wanted; `None`: all.
fn against(options: &Options) -> anyhow::Result<Option<Vec<String>>> {
    let Some(list) = &options.against else {
        let quick = options.effort == Effort::Quick;
        return Ok(quick.then(|| QUICK.map(str::to_owned).to_vec()));
    };
    let known: Vec<&str> = contest::ALL.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = list.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("no contestant \"{unknown}\"; there are {}", known.join(", "));
    }
    let mut list = list.clone();
    if !list.iter().any(|name| name.starts_with("vswitch")) {
        list.insert(0, "vswitch".to_owned());
    }
    Ok(Some(list))
}

/// Whether this machine can run anything at all.
///
/// # Errors
/// It cannot; the error says what to do.
pub fn able(options: &Options) -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the laboratory makes network namespaces and TAPs: run it as root (sudo vswitch bench …)"
    );
    ensure!(
        std::path::Path::new("/dev/net/tun").exists(),
        "there is no /dev/net/tun: load it with modprobe tun, or pass it into the container (--device /dev/net/tun)"
    );
    let missing: BTreeSet<&str> =
        NEEDED.iter().filter(|(program, _)| !installed(program)).map(|(_, package)| *package).collect();
    ensure!(
        missing.is_empty(),
        "these are missing: apt-get install {}",
        missing.into_iter().collect::<Vec<_>>().join(" ")
    );
    ensure!(!options.profile || installed("perf"), "--profile needs perf: apt-get install linux-perf");
    Ok(())
}
