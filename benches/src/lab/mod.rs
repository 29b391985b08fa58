//! The laboratory as a whole: scenarios, contestants, and the run that brings them together (`vswitch bench`).
//!
//! A [`Scenario`] is a name, an explanation, the cases to measure (sets of parameters), metrics, contestants, and a function
//! that takes one turn of one contestant. Everything else is common: `plan` declares all turns in the results file, `runner`
//! takes those that are missing, interleaved, and saves after each; `fabric` makes stations and whatever forwards between
//! them, `load` offers a load and accounts for it. A contestant's traces are gone when its turn is over, however it ends.

pub mod contest;
mod echo;
pub mod fabric;
pub mod load;
pub mod machine;
mod plan;
pub mod profile;
mod progress;
pub mod runner;
mod scenarios;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

pub use self::{
    fabric::{Fabric, Place},
    scenarios::SCENARIOS,
};
use crate::{
    contestants::Setup,
    replay::{Pace, Recording},
    results::{Effort, Metric, Parameter, Parameters, Round, Search},
    selftest::{Ceiling, Loop, ceiling},
    traffic::{JUMBO_SIZE, Layers, Sizes, Traffic, TrafficError},
};

/// A question to the contestants.
pub struct Scenario {
    /// On the command line.
    pub name: &'static str,
    /// One sentence on what is measured.
    pub about: &'static str,
    /// How, for `bench list` and the guide.
    pub explain: &'static str,
    /// Who can take part, the most telling first.
    pub contestants: &'static [&'static str],
    /// Programs that it needs besides, and the packages that have them.
    pub needs: &'static [(&'static str, &'static str)],
    /// Whether `--quick` has it when nobody names scenarios.
    pub quick: bool,
    /// What the values of a round mean.
    pub metrics: fn() -> Vec<Metric>,
    /// The cases to measure, and who of the contestants can take part in each.
    pub cases: fn(&Options) -> Vec<Parameters>,
    /// Whether a contestant can take part in a case.
    pub fits: fn(&str, &Parameters) -> bool,
    /// One turn.
    pub turn: fn(&Turn<'_>) -> anyhow::Result<Round>,
}

/// What a run was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Scenarios by name; none: those that belong to the effort.
    pub scenarios: Vec<String>,
    /// Contestants by name; `None`: all, or with [`Effort::Quick`] a few.
    pub against: Option<Vec<String>>,
    /// Frame sizes, where a scenario has frames: numbers, `imix`, `jumbo`, `gso`.
    pub sizes: Option<Vec<String>>,
    /// Length of a measurement.
    pub time: Option<Duration>,
    /// Rounds.
    pub runs: Option<u32>,
    /// How thorough.
    pub effort: Effort,
    /// The smallest case of each scenario only, to see that all works.
    pub smoke: bool,
    /// Where results go.
    pub out: PathBuf,
    /// A capture to be replayed, and how fast.
    pub pcap: Option<(PathBuf, Pace)>,
    /// Whether the switch is profiled.
    pub profile: bool,
    /// The `vswitch` under test.
    pub binary: PathBuf,
    /// The version of it.
    pub version: String,
    /// The commit it was built from, where that is known.
    pub commit: Option<String>,
    /// The command line.
    pub command: Vec<String>,
}

/// What all turns of a run share.
pub struct Context {
    /// The switch under test.
    pub setup: Setup,
    /// How throughput is searched for; `None`: it is the maximum receive rate.
    pub search: Option<Search>,
    /// Length of a measurement.
    pub time: Duration,
    /// Whether the switch is profiled.
    pub profile: bool,
    /// The capture to be replayed.
    pub recording: Option<(Recording, Pace)>,
    ceilings: Mutex<BTreeMap<String, Ceiling>>,
}

/// One turn of one contestant.
pub struct Turn<'a> {
    /// Who.
    pub contestant: &'a str,
    /// The case.
    pub parameters: &'a Parameters,
    /// Which round, from 0.
    pub round: u32,
    /// What all turns share.
    pub context: &'a Context,
}

impl Turn<'_> {
    /// A parameter that is a number.
    ///
    /// # Errors
    /// There is none.
    pub fn number(&self, name: &str) -> anyhow::Result<u64> {
        match self.parameters.get(name) {
            Some(Parameter::Number(number)) => Ok(*number),
            _ => anyhow::bail!("the case has no number \"{name}\""),
        }
    }

    /// A parameter that is a word.
    ///
    /// # Errors
    /// There is none.
    pub fn word(&self, name: &str) -> anyhow::Result<&str> {
        match self.parameters.get(name) {
            Some(Parameter::Text(text)) => Ok(text),
            _ => anyhow::bail!("the case has no word \"{name}\""),
        }
    }

    /// What the case's `size` is as traffic; 64 bytes if it has none.
    ///
    /// # Errors
    /// Not a size.
    pub fn sized(&self, traffic: Traffic) -> anyhow::Result<Traffic> {
        let Some(size) = self.parameters.get("size") else { return Ok(traffic) };
        let (sizes, layers) = sizes(&size.to_string())?;
        Ok(Traffic { sizes, layers, ..traffic })
    }

    /// Whether the case's frames are longer than an ordinary MTU allows.
    #[must_use]
    pub fn jumbo(&self) -> bool {
        match self.parameters.get("size") {
            Some(Parameter::Number(size)) => *size > ORDINARY_SIZE,
            Some(Parameter::Text(size)) => size == "jumbo",
            None => false,
        }
    }
}

/// The longest frame of an MTU of 1500 bytes, with FCS.
const ORDINARY_SIZE: u64 = 1518;
/// How long a ceiling is measured at least.
const CEILING_TIME: Duration = Duration::from_millis(200);

impl Context {
    /// What generator and sink reach over a loop with such traffic, measured once per run and size.
    ///
    /// # Errors
    /// The loop cannot be made.
    pub fn ceiling(&self, way: Loop, traffic: &Traffic) -> anyhow::Result<Ceiling> {
        let key = format!("{way:?} {:?} {:?}", traffic.sizes, traffic.layers);
        let known = self.ceilings.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = ceiling(way, &Traffic { tags: Vec::new(), ..traffic.clone() }, self.time.max(CEILING_TIME))?;
        self.ceilings.lock().unwrap_or_else(PoisonError::into_inner).insert(key, found);
        Ok(found)
    }

    /// The ceilings so far, a sentence each.
    #[must_use]
    pub fn ceilings(&self) -> Vec<String> {
        let ceilings = self.ceilings.lock().unwrap_or_else(PoisonError::into_inner);
        let line = |(key, c): (&String, &Ceiling)| {
            let (sent, received) = (c.sent_per_s, c.received_per_s);
            format!("Ceiling of the generator ({key}): {sent:.0} frames/s sent, {received:.0} received")
        };
        ceilings.iter().map(line).collect()
    }
}

/// Frame sizes by name.
pub const SIZE_NAMES: [&str; 3] = ["imix", "jumbo", "gso"];

/// What a size is: a number of bytes with FCS, `imix`, `jumbo` or `gso`.
///
/// # Errors
/// It is none of these, or no frame can be so long.
pub fn sizes(text: &str) -> anyhow::Result<(Sizes, Layers)> {
    let known = match text {
        "imix" => (Sizes::Imix, Layers::Ipv4),
        "jumbo" => (Sizes::Fixed(JUMBO_SIZE), Layers::Ipv4),
        "gso" => (Sizes::LARGE, Layers::Ipv4),
        _ => {
            let size = text.parse().map_err(|_| {
                anyhow::anyhow!(
                    "size \"{text}\": give bytes with FCS (64 to {JUMBO_SIZE}) or {}",
                    SIZE_NAMES.join(", ")
                )
            })?;
            if size > JUMBO_SIZE {
                anyhow::bail!("size {size}: {JUMBO_SIZE} bytes with FCS at most; longer ones are made by \"gso\"");
            }
            (Sizes::Fixed(size), Layers::Ipv4)
        }
    };
    let mac = fabric::mac(0);
    let probe = Traffic { sizes: known.0.clone(), layers: known.1, ..Traffic::new(mac, mac) };
    probe.check().map_err(|e: TrafficError| anyhow::anyhow!("size {text}: {e}"))?;
    Ok(known)
}

/// A scenario by its name.
///
/// # Errors
/// There is none; the error lists them.
pub fn scenario(name: &str) -> anyhow::Result<&'static Scenario> {
    SCENARIOS.iter().find(|s| s.name == name).ok_or_else(|| {
        let names: Vec<&str> = SCENARIOS.iter().map(|s| s.name).collect();
        anyhow::anyhow!("no scenario \"{name}\"; there are {} (vswitch bench list explains them)", names.join(", "))
    })
}
