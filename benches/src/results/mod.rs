//! What a run of the laboratory found: the contents of `results.json`.
//!
//! One file holds one run: where it was made, how noisy the machine was, and for each scenario, set of parameters,
//! contestant and round what was measured. Nothing in it is computed from something else in it except where a reader
//! without our code would need it (percentiles, the verdict on noise). The runner fills it round by round and writes it after
//! each ([`Results::save`] replaces the file in one step), so a run that ends early leaves a file that says what is done,
//! and [`Results::remaining`] says what is not.
//!
//! The comments of the fields are the documentation of the format: `docs/benchmarking/results.schema.json` is made from
//! them, and a test holds it to them. Adding an optional field keeps [`VERSION`]; anything else raises it.

mod file;
mod latency;
pub mod sample;
mod schema;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::search::Goal;

pub use self::{
    file::{Error, Turn},
    latency::Latency,
    schema::json_schema,
};

/// The version of the format that this library writes.
pub const VERSION: u32 = 1;

/// One run of the laboratory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Results {
    /// Version of this format: 1. A reader refuses a higher one.
    pub version: u32,
    /// When, what and how far.
    pub run: Run,
    /// Where.
    pub machine: Machine,
    /// How steady the machine was meanwhile; absent where no null loop ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
    /// What was measured, in the order in which it was asked for.
    #[serde(default)]
    pub scenarios: Vec<Scenario>,
}

/// When a run was made, of what, and how far it came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Start of the run, UTC, as in RFC 3339: `2026-11-24T12:00:00Z`.
    pub started: String,
    /// End of the last measurement so far, in the same form; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// The command line, word by word.
    pub command: Vec<String>,
    /// Version of vswitch, as `vswitch --version` says it.
    pub vswitch_version: String,
    /// The commit it was built from, with `-dirty` behind it where the tree had changes; absent where unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// How thorough.
    pub effort: Effort,
    /// How throughput is searched for; absent where it is the maximum receive rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// How far it came.
    pub state: State,
    /// Seed of whatever is drawn by lot: the order within a round, addresses, payloads.
    #[serde(default)]
    pub seed: u64,
    /// What a reader of the numbers should know besides, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// How each turn of a run searches for throughput (RFC 9971).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Search {
    /// What counts as forwarding, and what decides a load.
    pub goal: Goal,
    /// The least load, as part of the greatest; that is what the generators gave at once in the same turn.
    pub least_load_ratio: f64,
    /// All trials of one search together take at most so long, in seconds.
    pub budget_s: f64,
}

/// How thorough a run was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Effort {
    /// Few and short rounds: shows that all works, and large differences.
    #[default]
    Quick,
    /// Enough rounds for intervals; throughput as the maximum receive rate.
    Normal,
    /// As many and as long rounds as the scenario asks for, throughput searched for.
    Full,
}

/// How far a run came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is going on, or its process was killed: what is missing can be added.
    #[default]
    Partial,
    /// It was told to stop: what is missing can be added.
    Interrupted,
    /// Every round was tried.
    Complete,
}

/// The machine of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// The processor's `model name`.
    pub cpu_model: String,
    /// Processors that the run may use.
    pub cores: u32,
    /// Release of the kernel (`uname -r`).
    pub kernel: String,
    /// Memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Who decides on the clock rate: governor and driver, boost; "hidden" in most virtual machines.
    #[serde(default)]
    pub frequency: String,
    /// State of each mitigation, by its file name below `/sys/devices/system/cpu/vulnerabilities`.
    #[serde(default)]
    pub mitigations: BTreeMap<String, String>,
    /// The hypervisor, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
    /// Versions of the programs that took part, by name, as they say it themselves.
    #[serde(default)]
    pub programs: BTreeMap<String, String>,
}

/// What a loop that does nothing but spin took, again and again beside the measurements: how much of the spread of the other
/// values is the machine's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Noise {
    /// Unit of the values, such as `ns`.
    pub unit: String,
    /// What each pass of the null loop took.
    pub values: Vec<f64>,
    /// Median of the values.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Half the width of the middle 90 % of the values, as part of the median: 0.02 means ±2 %.
    pub spread: f64,
    /// The verdict is `noisy` where the spread is above this.
    pub threshold: f64,
    /// Whether differences of a few per cent can be told on this machine.
    pub verdict: Verdict,
}

/// Whether a machine was steady.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The null loop took about the same time always.
    Quiet,
    /// It did not: small differences mean nothing.
    Noisy,
}

impl Noise {
    /// The threshold where nobody names one: ±3 %.
    pub const THRESHOLD: f64 = 0.03;

    /// The verdict on some passes of the null loop; `None` of no values.
    #[must_use]
    pub fn of(unit: &str, values: &[f64], threshold: f64) -> Option<Noise> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let at = |q: f64| sorted[(q * (sorted.len() - 1) as f64).round() as usize];
        let median = crate::stats::median(&sorted);
        let spread = if median > 0.0 { (at(0.95) - at(0.05)) / 2.0 / median } else { 0.0 };
        let verdict = if spread > threshold { Verdict::Noisy } else { Verdict::Quiet };
        let values = values.iter().copied().filter(|v| v.is_finite()).collect();
        Some(Noise { unit: unit.to_owned(), values, median, min, max, spread, threshold, verdict })
    }
}

/// A question to the contestants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: String,
    /// One sentence on what is measured.
    pub about: String,
    /// What the values of a round mean. The first is the one that reports show first.
    pub metrics: Vec<Metric>,
    /// One for each set of parameters.
    pub cases: Vec<Case>,
}

/// What a value of a round is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metric {
    /// Unique within the scenario, such as `throughput`.
    pub name: String,
    /// Of the value, such as `frames/s`; empty for a plain number.
    pub unit: String,
    /// Which change is for the better.
    pub direction: Direction,
    /// Digits behind the point that are worth printing.
    #[serde(default)]
    pub digits: usize,
}

impl Metric {
    /// A metric.
    #[must_use]
    pub fn new(name: &str, unit: &str, direction: Direction, digits: usize) -> Metric {
        Metric { name: name.to_owned(), unit: unit.to_owned(), direction, digits }
    }
}

/// Which values are the better ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Throughput and the like.
    HigherIsBetter,
    /// Times, costs and losses.
    LowerIsBetter,
}

/// The parameters of a case by name: `size`, `flows`, `ports`, …
pub type Parameters = BTreeMap<String, Parameter>;

/// Value of a parameter: a number, or a word where it is none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Parameter {
    /// A whole number.
    Number(u64),
    /// A word, such as `imix`.
    Text(String),
}

impl From<u64> for Parameter {
    fn from(number: u64) -> Parameter {
        Parameter::Number(number)
    }
}

impl From<&str> for Parameter {
    fn from(text: &str) -> Parameter {
        Parameter::Text(text.to_owned())
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Parameter::Number(number) => number.fmt(f),
            Parameter::Text(text) => text.fmt(f),
        }
    }
}

/// A scenario with one set of parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Case {
    /// What is fixed in this case; unique within the scenario.
    pub parameters: Parameters,
    /// Rounds asked for. In a round each contestant has one turn.
    pub rounds: u32,
    /// Length of one turn's measurement in seconds.
    pub seconds: f64,
    /// Who took part, or could not.
    pub contestants: Vec<Contestant>,
}

/// One who forwards, with what was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Contestant {
    /// Unique within the case, such as `vswitch-busy` or `bridge`.
    pub name: String,
    /// Whose it is.
    pub role: Role,
    /// Settings that matter, as a reader would have to repeat them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub settings: String,
    /// Why it took no part; there are no rounds then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
    /// The rounds that are done, each once, in the order in which they were measured.
    #[serde(default)]
    pub rounds: Vec<Round>,
}

/// Whose a contestant is. A comparison of two runs takes whoever is not ours as control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The switch under test.
    #[default]
    Ours,
    /// Another forwarder, which does not change with our code.
    Reference,
    /// The least that forwarding can be: a bare loop, a plain veth, a memory copy.
    Null,
}

/// Why a contestant took no part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// In words.
    pub reason: String,
    /// The command that makes it available; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub install: Option<String>,
}

/// One turn of one contestant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Round {
    /// Which round, from 0.
    pub round: u32,
    /// Why there are no values; such a round counts as not done, and is tried again when the run is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// A value by name of the metric. One that this machine cannot measure is absent.
    #[serde(default)]
    pub values: BTreeMap<String, f64>,
    /// What became of the frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<Frames>,
    /// CPU time charged to each party during the measurement, in nanoseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cpu_ns: BTreeMap<Party, u64>,
    /// What limits the meaning of the values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
    /// Latencies, one for each load.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<Latency>,
    /// Loss over load: every trial at a known load, those of a throughput search included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trials: Vec<Trial>,
    /// Where the time went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

impl Round {
    /// A round without values yet.
    #[must_use]
    pub fn new(round: u32) -> Round {
        Round { round, ..Round::default() }
    }

    /// Adds a value; what is not finite (the machine cannot measure it) stays absent.
    #[must_use]
    pub fn value(mut self, metric: &str, value: f64) -> Round {
        if value.is_finite() {
            self.values.insert(metric.to_owned(), value);
        }
        self
    }

    /// CPU time of each party per received frame in nanoseconds; nothing where frames or times were not counted.
    #[must_use]
    pub fn cpu_ns_per_frame(&self) -> BTreeMap<Party, f64> {
        let received = self.frames.map_or(0, |f| f.received);
        if received == 0 {
            return BTreeMap::new();
        }
        self.cpu_ns.iter().map(|(party, ns)| (*party, *ns as f64 / received as f64)).collect()
    }
}

/// What became of the numbered frames of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Frames {
    /// Handed to the contestant.
    pub sent: u64,
    /// Arrived, each once.
    pub received: u64,
    /// Never arrived.
    pub lost: u64,
    /// Arrived behind a later one.
    pub reordered: u64,
    /// Arrived again.
    pub duplicates: u64,
    /// Arrived with other contents.
    pub corrupt: u64,
}

/// To whom CPU time is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Party {
    /// The process that forwards, in user space and in its system calls.
    Switch,
    /// Soft interrupts and kernel threads, wherever they ran.
    Softirq,
    /// Who makes the frames.
    Generator,
    /// Who takes them.
    Sink,
}

/// What limits the meaning of a round's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Mark {
    /// Which.
    pub kind: MarkKind,
    /// A sentence with the evidence.
    pub text: String,
    /// The metric that it is about; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// The most that the measurement could have shown, in the metric's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<f64>,
}

/// The marks that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MarkKind {
    /// The generator could give no more: the contestant can do at least this.
    GeneratorBound,
    /// The sink could take no more: the contestant can do at least this.
    SinkBound,
    /// All processors were at work: what the parties take, they take from each other.
    CpuBound,
    /// The clock rate fell during the measurement.
    Throttled,
    /// The null loop was slow during this round.
    Noisy,
    /// The throughput search ended without the bounds that its goal asks for.
    Irregular,
    /// Frames were damaged, duplicated or reordered.
    Faulty,
}

/// A trial at one load: RFC 2544 §26.1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trial {
    /// Frames per second that were to be offered.
    pub load_fps: f64,
    /// How long, in seconds.
    pub seconds: f64,
    /// Frames that were to be offered in that time; those that could not be sent count as lost.
    pub sent: u64,
    /// Frames that did not arrive.
    pub lost: u64,
}

impl Trial {
    /// Lost frames as part of those sent; of nothing sent, everything.
    #[must_use]
    pub fn loss_ratio(&self) -> f64 {
        if self.sent == 0 { 1.0 } else { self.lost as f64 / self.sent as f64 }
    }

    /// Frames per second that arrived.
    #[must_use]
    pub fn forwarding_rate_fps(&self) -> f64 {
        self.load_fps * (1.0 - self.loss_ratio())
    }
}

/// Where the time went during a round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Profile {
    /// What was sampled, such as `cycles` or `cpu-clock`.
    pub event: String,
    /// Samples taken.
    pub samples: u64,
    /// Symbols with the most samples, largest first.
    #[serde(default)]
    pub top: Vec<Symbol>,
    /// Folded stacks: frames from the outermost to the innermost with `;` between them, a space, and the samples.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folded: Vec<String>,
    /// Cycles per frame of each stage of the switch, in the order in which a frame passes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
}

/// A symbol of a profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Symbol {
    /// Its name.
    pub name: String,
    /// Program or library that it is in; empty for the kernel.
    #[serde(default)]
    pub object: String,
    /// Its part of all samples, 0 to 100.
    pub percent: f64,
}

/// A stage of the switch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Cycles per frame.
    pub cycles_per_frame: f64,
}
