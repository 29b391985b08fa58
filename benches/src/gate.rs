//! The gate: instructions per frame now beside those of a file that is kept with the code.
//!
//! Instructions are counted by valgrind, so a busy machine changes nothing; another compiler or another C library does.
//! The file says what made it, and counts that something else made are shown and not judged.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::netns::exec;

/// A rise of more than this fails, a fall of more than this should be kept.
const LIMIT: f64 = 0.05;

/// What the counts depend on beside the code that is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The compiler, in its own words.
    pub rustc: String,
    /// The cargo profile.
    pub profile: String,
    /// The C library, whose memory functions are counted with the rest.
    pub libc: String,
    /// The counting program. The processor that it shows to the program has AVX2 or not, like the real one.
    pub valgrind: String,
}

impl Origin {
    /// This program on this machine.
    ///
    /// # Errors
    /// There is no valgrind.
    pub fn here() -> anyhow::Result<Origin> {
        let executable = std::env::current_exe()?;
        let profile =
            executable.parent().and_then(|dir| dir.file_name()).map(|name| name.to_string_lossy().into_owned());
        let vectors = if avx2() { "AVX2" } else { "no AVX2" };
        let valgrind = exec(&["valgrind", "--version"]).context("apt-get install valgrind")?;
        Ok(Origin {
            rustc: env!("VSWITCH_RUSTC").to_owned(),
            profile: profile.unwrap_or_default(),
            libc: exec(&["getconf", "GNU_LIBC_VERSION"]).unwrap_or_default().trim().to_owned(),
            valgrind: format!("{}, {vectors}", valgrind.trim()),
        })
    }
}

fn avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// What made it.
    pub made_by: Origin,
    /// Instructions per frame by case.
    pub instructions: BTreeMap<String, f64>,
}

impl Baseline {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> anyhow::Result<Baseline> {
        Ok(toml::from_str(text)?)
    }

    /// The text of a file.
    ///
    /// # Errors
    /// Never, for names and numbers.
    pub fn to_text(&self) -> anyhow::Result<String> {
        let mut kept = self.clone();
        kept.instructions.values_mut().for_each(|count| *count = (*count * 10.0).round() / 10.0);
        Ok(format!(
            "# Instructions per frame, counted by valgrind; a rise of more than {:.0} % fails. Not edited by hand:\n\
             #   benches/gate.sh --accept\n\n{}",
            100.0 * LIMIT,
            toml::to_string(&kept)?
        ))
    }
}

/// How a comparison ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing has risen.
    Passed,
    /// Something has risen, or is not in the file.
    Failed,
    /// The file was made by something else.
    NotJudged,
}

/// The table of cases (in order: name and instructions per frame), and what to do.
#[must_use]
pub fn compare(kept: &Baseline, here: &Origin, now: &[(String, f64)]) -> (String, Verdict) {
    let mut text = "| case | baseline | now | change | |\n|---|---:|---:|---:|---|\n".to_owned();
    let (mut failed, mut fell) = (false, false);
    for (name, count) in now {
        let Some(before) = kept.instructions.get(name) else {
            failed = true;
            text += &format!("| {name} | none | {count:.1} | | not in the file |\n");
            continue;
        };
        let change = count / before - 1.0;
        let (rise, fall) = (change > LIMIT, change < -LIMIT);
        let remark = if rise {
            "RISE"
        } else if fall {
            "fall"
        } else {
            ""
        };
        failed |= rise;
        fell |= fall;
        text += &format!("| {name} | {before:.1} | {count:.1} | {:+.1} % | {remark} |\n", 100.0 * change);
    }
    if kept.made_by != *here {
        text += &format!("\nNot judged: the file was made by\n  {:?}\nand this is\n  {here:?}\n", kept.made_by);
        return (text, Verdict::NotJudged);
    }
    if failed {
        text += &format!(
            "\nFailed: more than {:.0} % above the baseline, or not in it. If that is what it should cost, benches/gate.sh \
             --accept keeps it.\n",
            100.0 * LIMIT
        );
    } else if fell {
        text += "\nPassed, and less than before: benches/gate.sh --accept keeps it, so that it does not rise again unseen.\n";
    } else {
        text += "\nPassed.\n";
    }
    (text, if failed { Verdict::Failed } else { Verdict::Passed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        let word = str::to_owned;
        Origin { rustc: word("rustc 1"), profile: word("gate"), libc: word("glibc 2"), valgrind: word("valgrind 3") }
    }

    /// What is said of a case that had 100 instructions.
    fn check(now: f64, here: &Origin, verdict: Verdict, words: &[&str]) {
        let kept = Baseline { made_by: origin(), instructions: [("a".to_owned(), 100.0)].into() };
        let (text, got) = compare(&kept, here, &[("a".to_owned(), now)]);
        assert_eq!(got, verdict, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
    }

    #[test]
    fn only_a_rise_beyond_the_limit_fails() {
        check(104.9, &origin(), Verdict::Passed, &["| a | 100.0 | 104.9 | +4.9 % |  |", "Passed.\n"]);
        check(105.1, &origin(), Verdict::Failed, &["| +5.1 % | RISE |", "Failed: more than 5 %"]);
        check(94.9, &origin(), Verdict::Passed, &["| -5.1 % | fall |", "less than before"]);
    }

    #[test]
    fn what_something_else_made_is_shown_and_not_judged() {
        let here = Origin { rustc: "rustc 2".to_owned(), ..origin() };
        check(200.0, &here, Verdict::NotJudged, &["+100.0 %", "Not judged", "rustc 1", "rustc 2"]);
    }

    #[test]
    fn a_case_that_is_not_in_the_file_fails() {
        let kept = Baseline { made_by: origin(), instructions: BTreeMap::new() };
        let (text, verdict) = compare(&kept, &origin(), &[("new".to_owned(), 5.0)]);
        assert!(verdict == Verdict::Failed && text.contains("| new | none | 5.0 |"), "{text}");
    }

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let made = Baseline { made_by: origin(), instructions: [("a".to_owned(), 1.0 / 3.0)].into() };
        let text = made.to_text().expect("written");
        assert!(text.starts_with("# Instructions per frame"), "{text}");
        let read = Baseline::parse(&text).expect("read");
        assert_eq!((read.made_by, read.instructions["a"]), (origin(), 0.3));
    }
}
