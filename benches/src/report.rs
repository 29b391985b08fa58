//! Tables and JSON of what the rounds found.

use std::{fmt::Write, fs};

use crate::{
    contestants::comparable,
    stats::{interval, median},
};

/// What a scenario measures.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// With its unit.
    pub name: &'static str,
    /// Digits behind the point.
    pub digits: usize,
}

/// All runs of one contestant.
#[derive(Clone, Debug)]
pub struct Runs {
    /// The contestant.
    pub name: String,
    /// One value per metric and round.
    pub values: Vec<Vec<f64>>,
}

impl Runs {
    fn metric(&self, metric: usize) -> Vec<f64> {
        self.values.iter().map(|v| v[metric]).filter(|v| !v.is_nan()).collect()
    }

    /// The ratio to another contestant, round by round.
    fn ratios(&self, base: &Runs, metric: usize) -> Vec<f64> {
        let pairs = self.values.iter().zip(&base.values).map(|(a, b)| a[metric] / b[metric]);
        pairs.filter(|ratio| ratio.is_finite()).collect()
    }
}

/// Processor, cores and kernel.
#[must_use]
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("unknown", |(_, m)| m);
    let cores = cpus.lines().filter(|l| l.starts_with("processor")).count();
    format!("{model}, {cores} core(s), Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

/// A scenario's results.
pub struct Report<'a> {
    /// Name of the scenario.
    pub scenario: &'a str,
    /// What one value each is of.
    pub metrics: &'a [Metric],
    /// Rounds asked for.
    pub rounds: usize,
    /// Of one measurement.
    pub seconds: f64,
    /// Poll mode of the contestant `vswitch`.
    pub poll: &'a str,
    /// What was found.
    pub all: &'a [Runs],
    /// What could not be measured, and why.
    pub skipped: &'a [String],
}

const UNKNOWN: &str = "not supported here";

impl Report<'_> {
    fn head(&self, out: &mut String, first: &str) {
        let names: Vec<&str> = self.metrics.iter().map(|m| m.name).collect();
        let _ = writeln!(out, "| {first} | {} |\n|---|{}", names.join(" | "), "---:|".repeat(names.len()));
    }

    /// Markdown: medians, then the paired ratios with their 95 % intervals.
    #[must_use]
    pub fn markdown(&self) -> String {
        let (rounds, seconds, mut out) = (self.rounds, self.seconds, String::new());
        let _ = writeln!(
            out,
            "Scenario `{}`, median of {rounds} round(s) of {seconds} s; `vswitch` polls: {}",
            self.scenario, self.poll
        );
        let _ = writeln!(out, "Machine: {}\n", machine());
        self.head(&mut out, "contestant");
        for runs in self.all {
            let cells = self.metrics.iter().enumerate().map(|(m, metric)| match &runs.metric(m)[..] {
                [] => UNKNOWN.to_owned(),
                values => format!("{:.*}", metric.digits, median(values)),
            });
            let _ = writeln!(out, "| {} | {} |", runs.name, cells.collect::<Vec<_>>().join(" | "));
        }
        let pairs: Vec<(&Runs, &Runs)> = self
            .all
            .iter()
            .flat_map(|ours| self.all.iter().map(move |other| (ours, other)))
            .filter(|(ours, other)| comparable(&ours.name, &other.name))
            .collect();
        if !pairs.is_empty() {
            let _ = writeln!(out, "\nRatios within a round, median [95 % bootstrap interval]\n");
            self.head(&mut out, "pair");
            for (ours, other) in pairs {
                let cells = (0..self.metrics.len()).map(|m| match &ours.ratios(other, m)[..] {
                    [] => UNKNOWN.to_owned(),
                    ratios => {
                        let (low, high) = interval(ratios);
                        format!("{:.3} [{low:.3}, {high:.3}]", median(ratios))
                    }
                });
                let _ = writeln!(out, "| {} / {} | {} |", ours.name, other.name, cells.collect::<Vec<_>>().join(" | "));
            }
        }
        for line in self.skipped {
            let _ = writeln!(out, "\n{line}");
        }
        out
    }

    /// Every value of every round.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let metrics: Vec<&str> = self.metrics.iter().map(|m| m.name).collect();
        let runs: Vec<_> = self
            .all
            .iter()
            .map(|r| serde_json::json!({ "name": r.name, "metrics": metrics, "runs": r.values }))
            .collect();
        serde_json::json!({
            "scenario": self.scenario, "machine": machine(), "seconds": self.seconds, "poll": self.poll,
            "contestants": runs, "skipped": self.skipped,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_pair_rounds_and_own_up_to_what_is_unknown() {
        let runs = |name: &str, values: &[[f64; 2]]| Runs {
            name: name.to_owned(),
            values: values.iter().map(|v| v.to_vec()).collect(),
        };
        let all = [
            runs("loop", &[[100.0, f64::NAN], [50.0, f64::NAN], [10.0, f64::NAN]]),
            runs("vswitch", &[[50.0, f64::NAN], [25.0, 1.0], [5.0, 1.0]]),
        ];
        let metrics = [Metric { name: "frames/s", digits: 0 }, Metric { name: "cycles", digits: 1 }];
        let report = Report {
            scenario: "tap",
            metrics: &metrics,
            rounds: 3,
            seconds: 1.0,
            poll: "busy",
            all: &all,
            skipped: &[],
        };
        let text = report.markdown();
        assert!(text.contains("| loop | 50 | not supported here |\n| vswitch | 25 | 1.0 |"), "{text}");
        assert!(text.contains("| vswitch / loop | 0.500 [0.500, 0.500] | not supported here |"), "{text}");
        assert!(report.json()["contestants"][0]["runs"][0][1].is_null());
    }
}
