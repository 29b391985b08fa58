//! Results for people: a table for the terminal, lines for a spreadsheet, and one HTML page with everything.

mod flame;
mod html;
mod svg;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, fmt::Write};

use crate::{
    results::{Case, Contestant, MarkKind, Results, Scenario, State, Verdict},
    stats::{interval, median},
};

pub use self::html::html;

/// A number with thousands apart, as wide as it need be.
fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), None), |(w, r)| (w, Some(r)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |w| ("-", w));
    let mut out = sign.to_owned();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    rest.map_or(out.clone(), |rest| format!("{out}.{rest}"))
}

impl MarkKind {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            MarkKind::GeneratorBound => "generator-bound",
            MarkKind::SinkBound => "sink-bound",
            MarkKind::CpuBound => "CPU-bound",
            MarkKind::Throttled => "throttled",
            MarkKind::Noisy => "noisy",
            MarkKind::Irregular => "irregular",
            MarkKind::Faulty => "faulty",
        }
    }
}

/// What limits a contestant's values of a metric.
fn marks(contestant: &Contestant, metric: &str) -> BTreeSet<MarkKind> {
    let all = contestant.rounds.iter().flat_map(|r| &r.marks);
    all.filter(|m| m.metric.as_deref().is_none_or(|name| name == metric)).map(|m| m.kind).collect()
}

fn plain(values: &[(u32, f64)]) -> Vec<f64> {
    values.iter().map(|(_, value)| *value).collect()
}

/// One contestant's row: a cell for each metric.
fn cells(scenario: &Scenario, contestant: &Contestant) -> Vec<String> {
    let cell = |metric: &crate::results::Metric| {
        let values = plain(&contestant.values(&metric.name));
        if values.is_empty() {
            return "not measured".to_owned();
        }
        let (low, high) = interval(&values);
        let show = |value| number(value, metric.digits);
        let bound: Vec<&str> = marks(contestant, &metric.name).into_iter().map(MarkKind::words).collect();
        let bound = if bound.is_empty() { String::new() } else { format!(" ({})", bound.join(", ")) };
        format!("{} [{}, {}]{bound}", show(median(&values)), show(low), show(high))
    };
    scenario.metrics.iter().map(cell).collect()
}

/// What a reader has to know before any number, a line each.
fn warnings(results: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    match &results.noise {
        Some(noise) if noise.verdict == Verdict::Noisy => lines.push(format!(
            "NOISY machine: the null loop varied by ±{:.1} % (threshold ±{:.1} %). Small differences mean nothing.",
            noise.spread * 100.0,
            noise.threshold * 100.0
        )),
        Some(_) => {}
        None => lines.push("No null loop ran beside: how noisy the machine was is not known.".to_owned()),
    }
    let missing = results.remaining().len();
    match results.run.state {
        State::Complete if missing == 0 => {}
        State::Complete => lines.push(format!("Every round was tried, but {missing} turn(s) failed.")),
        State::Interrupted => lines.push(format!("The run was interrupted: {missing} turn(s) are missing.")),
        State::Partial => lines.push(format!("The run is partial: {missing} turn(s) are missing.")),
    }
    lines
}

/// Failed rounds of a case, a line each.
fn failures(case: &Case) -> Vec<String> {
    let of = |c: &Contestant| {
        let failed = c.rounds.iter().filter_map(|r| Some((r.round, r.error.clone()?)));
        failed.map(|(round, why)| format!("{}: round {} failed: {why}", c.name, round + 1)).collect::<Vec<_>>()
    };
    case.contestants.iter().flat_map(of).collect()
}

impl Results {
    /// A markdown table of medians and their 95 % intervals for each scenario and set of parameters.
    #[must_use]
    pub fn table(&self) -> String {
        let (machine, mut out) = (&self.machine, String::new());
        let _ = writeln!(
            out,
            "vswitch {}, {}; {}, {} core(s), Linux {}\nMedian [95 % bootstrap interval]",
            self.run.vswitch_version, self.run.started, machine.cpu_model, machine.cores, machine.kernel
        );
        for line in warnings(self) {
            let _ = writeln!(out, "\n{line}");
        }
        for scenario in &self.scenarios {
            for case in &scenario.cases {
                let _ = writeln!(out, "\n## {} {}\n", scenario.name, case.title());
                let heads = scenario.metrics.iter().map(|m| format!("{} {}", m.name, m.unit)).collect::<Vec<_>>();
                let _ = writeln!(out, "| contestant | {} |\n|---|{}", heads.join(" | "), "---:|".repeat(heads.len()));
                for contestant in &case.contestants {
                    let Some(skipped) = &contestant.skipped else {
                        let _ = writeln!(out, "| {} | {} |", contestant.name, cells(scenario, contestant).join(" | "));
                        continue;
                    };
                    let install = skipped.install.as_ref().map_or(String::new(), |how| format!("; {how}"));
                    let blank = " |".repeat(heads.len().saturating_sub(1));
                    let _ = writeln!(out, "| {} | skipped: {}{install} |{blank}", contestant.name, skipped.reason);
                }
                for line in failures(case) {
                    let _ = writeln!(out, "\n{line}");
                }
            }
        }
        out
    }
}

/// One line per value (RFC 4180): scenario, parameters, contestant, round, metric, unit, value, marks.
#[must_use]
pub fn csv(results: &Results) -> String {
    let quoted = |text: &str| {
        if text.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    };
    let mut out = "scenario,parameters,contestant,round,metric,unit,value,marks\r\n".to_owned();
    for scenario in &results.scenarios {
        for case in &scenario.cases {
            for contestant in &case.contestants {
                for metric in &scenario.metrics {
                    let marks: Vec<&str> = marks(contestant, &metric.name).into_iter().map(MarkKind::words).collect();
                    for (round, value) in contestant.values(&metric.name) {
                        let (round, value) = (round.to_string(), value.to_string());
                        let title = case.title();
                        let fields = [
                            &scenario.name,
                            &title,
                            &contestant.name,
                            &round,
                            &metric.name,
                            &metric.unit,
                            &value,
                            &marks.join(" "),
                        ];
                        out += &fields.map(|f| quoted(f)).join(",");
                        out += "\r\n";
                    }
                }
            }
        }
    }
    out
}
