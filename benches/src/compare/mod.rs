//! Two results files: what changed, and what is only noise.
//!
//! - **Control.** Whoever is not ours ran in the same rounds on the same machine. Each of our values is divided by the median
//!   of the controls' values of its round, so that a slower machine, and a load that came and went, fall out.
//! - **Noise or not.** The exact test of Mann and Whitney on the rounds: it asks nothing of their distribution, so two modes
//!   or a stray value cannot feign a change. Over all comparisons of the two files, Holm's method keeps the chance of even one
//!   false alarm below [`Options::alpha`].
//! - **Worth a word.** The ratio of the medians must differ from 1 by [`Options::min_effect`], or by what the null loop
//!   showed where that is more, and its bootstrap interval must not contain 1.
//!
//! With so few rounds that no outcome could pass the test, the answer is "cannot tell", not "no change".

mod show;
mod test;
#[cfg(test)]
mod tests;

use serde::Serialize;

use self::test::{holm, mann_whitney, ratio_interval, smallest_p};
use crate::{
    results::{Case, Contestant, Direction, MarkKind, Metric, Results, Role},
    stats::median,
};

/// How to compare.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Options {
    /// Chance of one or more false alarms in the whole comparison.
    pub alpha: f64,
    /// Smallest change that matters: 0.03 for 3 %.
    pub min_effect: f64,
}

impl Default for Options {
    fn default() -> Options {
        Options { alpha: 0.05, min_effect: 0.03 }
    }
}

/// What became of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Worse, beyond noise and by enough to matter.
    Regression,
    /// Better, in the same way.
    Improvement,
    /// No change beyond noise, or too small a one.
    NoChange,
    /// Too few rounds for any answer.
    CannotTell,
    /// Not ours: it shows what the machine did.
    Control,
}

/// One metric of one contestant in both files.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the scenario.
    pub scenario: String,
    /// Parameters in words.
    pub parameters: String,
    /// Name of the contestant.
    pub contestant: String,
    /// Name of the metric.
    pub metric: String,
    /// Its unit.
    pub unit: String,
    /// Its direction.
    pub direction: Direction,
    /// Rounds with a value, old and new.
    pub rounds: [usize; 2],
    /// Medians as measured, old and new.
    pub medians: [f64; 2],
    /// New median over old, relative to the controls where there are any; absent where values are not all above 0.
    pub ratio: Option<f64>,
    /// 95 % bootstrap interval of the ratio.
    pub interval: Option<(f64, f64)>,
    /// Chance of such a difference without a change, corrected for the number of comparisons.
    pub p: Option<f64>,
    /// Change below which nothing is said.
    pub threshold: f64,
    /// The contestants that it was compared with.
    pub controls: Vec<String>,
    /// The answer.
    pub outcome: Outcome,
    /// Why, where that needs saying.
    pub note: String,
}

/// All that two files have in common.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// How it was made.
    pub options: Options,
    /// What was compared.
    pub rows: Vec<Row>,
}

impl Comparison {
    /// Rows with an outcome.
    pub fn with(&self, outcome: Outcome) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.outcome == outcome)
    }

    /// For the exit of a program: 1 with a regression, 2 where not one of our values could be judged, else 0.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        let judged = |row: &Row| !matches!(row.outcome, Outcome::Control | Outcome::CannotTell);
        match self.with(Outcome::Regression).next() {
            Some(_) => 1,
            None if self.rows.iter().any(judged) => 0,
            None => 2,
        }
    }
}

type Values = Vec<(u32, f64)>;

struct Judged {
    row: Row,
    ours: bool,
    /// Not corrected.
    p: f64,
}

/// Compares two files.
#[must_use]
pub fn compare(old: &Results, new: &Results, options: &Options) -> Comparison {
    let spread = |results: &Results| results.noise.as_ref().map_or(0.0, |noise| noise.spread);
    let threshold = options.min_effect.max(spread(old)).max(spread(new));
    let mut judged: Vec<Judged> = Vec::new();
    for before in &old.scenarios {
        let Some(after) = new.scenarios.iter().find(|s| s.name == before.name) else { continue };
        for case in &before.cases {
            let Some(other) = after.cases.iter().find(|c| c.parameters == case.parameters) else { continue };
            for metric in &before.metrics {
                let same = |m: &Metric| m.name == metric.name && m.unit == metric.unit;
                if !after.metrics.iter().any(same) {
                    continue;
                }
                for contestant in &case.contestants {
                    let Some(twin) = other.contestant(&contestant.name) else { continue };
                    let values = [contestant.values(&metric.name), twin.values(&metric.name)];
                    if values.iter().any(Vec::is_empty) {
                        continue;
                    }
                    let mut row = Row {
                        scenario: before.name.clone(),
                        parameters: case.title(),
                        contestant: contestant.name.clone(),
                        metric: metric.name.clone(),
                        unit: metric.unit.clone(),
                        direction: metric.direction,
                        rounds: [values[0].len(), values[1].len()],
                        medians: [0, 1].map(|i| median(&plain(&values[i]))),
                        ratio: None,
                        interval: None,
                        p: None,
                        threshold,
                        controls: Vec::new(),
                        outcome: Outcome::NoChange,
                        note: bound_by(contestant, twin, &metric.name),
                    };
                    let ours = contestant.role == Role::Ours;
                    if ours {
                        row.controls = controls([case, other], &metric.name, &values);
                    }
                    let p = judge(&mut row, [case, other], &values);
                    judged.push(Judged { row, ours, p });
                }
            }
        }
    }
    decide(judged, options)
}

fn plain(values: &Values) -> Vec<f64> {
    values.iter().map(|(_, value)| *value).collect()
}

/// A generator-bound value hides what its contestant can do: it must be said, and can hide a change.
fn bound_by(old: &Contestant, new: &Contestant, metric: &str) -> String {
    let about = |c: &&Contestant| {
        let marks = c.rounds.iter().flat_map(|r| &r.marks);
        marks
            .filter(|m| m.metric.as_deref().is_none_or(|name| name == metric))
            .any(|m| matches!(m.kind, MarkKind::GeneratorBound | MarkKind::SinkBound))
    };
    if [old, new].iter().any(about) {
        "bound by the generator or sink: a change may be hidden".to_owned()
    } else {
        String::new()
    }
}

/// Who is not ours and has positive values in all rounds that ours has, in both files.
fn controls(cases: [&Case; 2], metric: &str, ours: &[Values; 2]) -> Vec<String> {
    let fits = |c: &&Contestant| {
        c.role != Role::Ours
            && [0, 1].iter().all(|&i| {
                let Some(control) = cases[i].contestant(&c.name) else { return false };
                let theirs = control.values(metric);
                ours[i].iter().all(|(round, _)| theirs.iter().any(|(r, v)| r == round && *v > 0.0))
                    // A ceiling does not move with the machine.
                    && bound_by(control, control, metric).is_empty()
            })
    };
    cases[0].contestants.iter().filter(fits).map(|c| c.name.clone()).collect()
}

/// Fills ratio and interval; the p, not corrected.
fn judge(row: &mut Row, cases: [&Case; 2], values: &[Values; 2]) -> f64 {
    let positive = values.iter().flatten().all(|(_, v)| *v > 0.0);
    let mut samples = [plain(&values[0]), plain(&values[1])];
    if positive {
        for i in [0, 1] {
            let theirs: Vec<Values> =
                row.controls.iter().filter_map(|name| Some(cases[i].contestant(name)?.values(&row.metric))).collect();
            let load = |round: u32| {
                let found: Vec<f64> =
                    theirs.iter().flatten().filter(|(r, _)| *r == round).map(|(_, v)| v.ln()).collect();
                median(&found)
            };
            samples[i] = values[i].iter().map(|&(round, value)| value.ln() - load(round)).collect();
        }
        row.ratio = Some((median(&samples[1]) - median(&samples[0])).exp());
        row.interval = Some(ratio_interval(&samples[0], &samples[1]));
    } else {
        row.controls.clear();
    }
    mann_whitney(&samples[0], &samples[1])
}

fn decide(judged: Vec<Judged>, options: &Options) -> Comparison {
    let p: Vec<f64> = judged.iter().filter(|j| j.ours).map(|j| j.p).collect();
    let family = p.len();
    let mut corrected = holm(&p).into_iter();
    let mut rows = Vec::new();
    for Judged { mut row, ours, .. } in judged {
        if !ours {
            row.outcome = Outcome::Control;
            rows.push(row);
            continue;
        }
        row.p = corrected.next();
        let least = smallest_p(row.rounds[0], row.rounds[1]);
        let (old, new) = (row.medians[0], row.medians[1]);
        let change = row.ratio.unwrap_or(if new == old {
            1.0
        } else if new > old {
            f64::INFINITY
        } else {
            0.0
        });
        let certain = row.p.is_some_and(|p| p <= options.alpha) && row.interval.is_none_or(|(l, h)| l > 1.0 || h < 1.0);
        let matters = (change - 1.0).abs() >= row.threshold;
        let worse = (change < 1.0) == (row.direction == Direction::HigherIsBetter);
        row.outcome = match (certain, matters) {
            (true, true) if worse => Outcome::Regression,
            (true, true) => Outcome::Improvement,
            (true, false) => Outcome::NoChange,
            (false, _) if least * family as f64 > options.alpha => Outcome::CannotTell,
            (false, _) => Outcome::NoChange,
        };
        if row.outcome == Outcome::CannotTell {
            row.note = format!("{} and {} rounds are too few for {family} comparison(s)", row.rounds[0], row.rounds[1]);
        }
        rows.push(row);
    }
    Comparison { options: *options, rows }
}
