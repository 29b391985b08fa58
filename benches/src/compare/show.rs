//! A comparison in words.

use std::fmt::Write;

use super::{Comparison, Outcome, Row};

impl Outcome {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Outcome::Regression => "REGRESSION",
            Outcome::Improvement => "improvement",
            Outcome::NoChange => "no change",
            Outcome::CannotTell => "cannot tell",
            Outcome::Control => "control",
        }
    }
}

impl Row {
    fn change(&self) -> String {
        let percent = |ratio: f64| format!("{:+.1} %", (ratio - 1.0) * 100.0);
        match (self.ratio, self.interval) {
            (Some(ratio), Some((low, high))) => format!("{} [{}, {}]", percent(ratio), percent(low), percent(high)),
            _ => "-".to_owned(),
        }
    }
}

impl Comparison {
    /// A markdown table, the verdict below it.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = "| scenario | contestant | metric | old | new | change [95 %] | p | verdict |\n".to_owned();
        out += "|---|---|---|---:|---:|---:|---:|---|\n";
        for row in &self.rows {
            let case = format!("{} {}", row.scenario, row.parameters);
            let p = row.p.map_or("-".to_owned(), |p| format!("{p:.4}"));
            let note = if row.note.is_empty() { String::new() } else { format!(" ({})", row.note) };
            let _ = writeln!(
                out,
                "| {} | {} | {} {} | {:.4} | {:.4} | {} | {p} | {}{note} |",
                case.trim(),
                row.contestant,
                row.metric,
                row.unit,
                row.medians[0],
                row.medians[1],
                row.change(),
                row.outcome.words()
            );
        }
        let count = |outcome| self.with(outcome).count();
        let thresholds = || self.rows.iter().map(|row| row.threshold);
        let least = thresholds().fold(f64::INFINITY, f64::min).min(1.0) * 100.0;
        let most = thresholds().fold(self.options.min_effect, f64::max) * 100.0;
        let below = if most - least < 0.05 { format!("{most:.1}") } else { format!("{least:.1} to {most:.1}") };
        let _ = writeln!(
            out,
            "\n{} regression(s), {} improvement(s), {} without change, {} that cannot be told. \
             Chance of any false alarm: at most {:.0} %. Changes below {below} % are not reported.",
            count(Outcome::Regression),
            count(Outcome::Improvement),
            count(Outcome::NoChange),
            count(Outcome::CannotTell),
            self.options.alpha * 100.0
        );
        let controlled = self.rows.iter().any(|row| !row.controls.is_empty());
        if controlled {
            out += "Changes of ours are relative to the control contestants of the same rounds.\n";
        }
        out
    }

    /// The same as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "exit_status": self.exit_status(), "options": self.options, "rows": self.rows })
    }
}
