//! Reading, writing and growing a results file.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use super::{Case, Contestant, Machine, Parameters, Results, Round, Run, Scenario, Skipped, VERSION};

/// What can be wrong with a results file, or with what is added to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot {what} results file {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not the JSON that it should be.
    #[error("{} is not a results file: {source}", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// What was met instead.
        source: serde_json::Error,
    },
    /// Written by a later program.
    #[error("{} has version {found} of the format; this program reads up to {VERSION}", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It contradicts itself.
    #[error("results are inconsistent: {0}")]
    Inconsistent(String),
}

/// One turn: which contestant in which round of which case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Name of the scenario.
    pub scenario: String,
    /// Of the case.
    pub parameters: Parameters,
    /// Name of the contestant.
    pub contestant: String,
    /// Round, from 0.
    pub round: u32,
}

impl Results {
    /// Results without a scenario yet.
    #[must_use]
    pub fn new(run: Run, machine: Machine) -> Results {
        Results { version: VERSION, run, machine, noise: None, scenarios: Vec::new() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is no results file, is of a later version, or contradicts itself.
    pub fn load(path: &Path) -> Result<Results, Error> {
        let json = |source| Error::Json { path: path.into(), source };
        let text = fs::read_to_string(path).map_err(|source| Error::Io { what: "read", path: path.into(), source })?;
        // The version first: a later format need not have the fields that this one has.
        let value: serde_json::Value = serde_json::from_str(&text).map_err(json)?;
        if let Some(found) = value["version"].as_u64().filter(|v| *v != u64::from(VERSION)) {
            return Err(Error::Version { path: path.into(), found: u32::try_from(found).unwrap_or(u32::MAX) });
        }
        let results: Results = serde_json::from_value(value).map_err(json)?;
        results.check()?;
        Ok(results)
    }

    /// Writes a file, or replaces it in one step: a reader and a crash find the old or the new one, never half of one.
    ///
    /// # Errors
    /// It cannot be written, or the results contradict themselves.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        self.check()?;
        let text = serde_json::to_string_pretty(self).map_err(|source| Error::Json { path: path.into(), source })?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        let write = || {
            let mut file = fs::File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, path)
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&new);
            Error::Io { what: "write", path: path.into(), source }
        })
    }

    /// Whether names are unique and all values finite and declared.
    fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Inconsistent(text));
        for (s, scenario) in self.scenarios.iter().enumerate() {
            let name = &scenario.name;
            if self.scenarios[..s].iter().any(|other| other.name == *name) {
                return wrong(format!("scenario {name} is there twice"));
            }
            for (c, case) in scenario.cases.iter().enumerate() {
                if scenario.cases[..c].iter().any(|other| other.parameters == case.parameters) {
                    return wrong(format!("scenario {name} has the same parameters twice"));
                }
                for (i, contestant) in case.contestants.iter().enumerate() {
                    let who = format!("scenario {name}, contestant {}", contestant.name);
                    if case.contestants[..i].iter().any(|other| other.name == contestant.name) {
                        return wrong(format!("{who} is there twice"));
                    }
                    for (r, round) in contestant.rounds.iter().enumerate() {
                        if contestant.rounds[..r].iter().any(|other| other.round == round.round) {
                            return wrong(format!("{who}: round {} is there twice", round.round));
                        }
                        let known = |m: &str| scenario.metrics.iter().any(|metric| metric.name == m);
                        if let Some((m, v)) = round.values.iter().find(|(m, v)| !known(m) || !v.is_finite()) {
                            return wrong(format!(
                                "{who}, round {}: {m} = {v}: not declared or not finite",
                                round.round
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds a scenario, or what is new of one: cases and contestants that are there already stay with their rounds, those
    /// skipped before and available now lose that mark, and the greater number of rounds counts. So a resumed run declares
    /// all that it wants, and then asks for what [`Results::remaining`] lists.
    pub fn declare(&mut self, wanted: Scenario) {
        let Some(scenario) = self.scenarios.iter_mut().find(|s| s.name == wanted.name) else {
            self.scenarios.push(wanted);
            return;
        };
        for metric in wanted.metrics {
            if !scenario.metrics.iter().any(|m| m.name == metric.name) {
                scenario.metrics.push(metric);
            }
        }
        for case in wanted.cases {
            let Some(known) = scenario.cases.iter_mut().find(|c| c.parameters == case.parameters) else {
                scenario.cases.push(case);
                continue;
            };
            known.rounds = known.rounds.max(case.rounds);
            for contestant in case.contestants {
                match known.contestants.iter_mut().find(|c| c.name == contestant.name) {
                    Some(old) if old.rounds.is_empty() => *old = contestant,
                    Some(_) => {}
                    None => known.contestants.push(contestant),
                }
            }
        }
    }

    /// The turns not done yet, in the order in which to take them: round by round through all cases, each contestant once in each.
    /// So the rounds of a case lie far apart in time, and a disturbed minute spoils one of them instead of all. Failed rounds
    /// are among them.
    #[must_use]
    pub fn remaining(&self) -> Vec<Turn> {
        let rounds = self.scenarios.iter().flat_map(|s| &s.cases).map(|case| case.rounds).max().unwrap_or(0);
        let mut turns = Vec::new();
        for round in 0..rounds {
            for scenario in &self.scenarios {
                for case in scenario.cases.iter().filter(|case| round < case.rounds) {
                    let missing = case.contestants.iter().filter(|c| c.skipped.is_none() && !c.is_done(round));
                    turns.extend(missing.map(|contestant| Turn {
                        scenario: scenario.name.clone(),
                        parameters: case.parameters.clone(),
                        contestant: contestant.name.clone(),
                        round,
                    }));
                }
            }
        }
        turns
    }

    /// Adds what a turn found. A round that failed before is replaced.
    ///
    /// # Errors
    /// There is no such scenario, case or contestant, or the round is done already.
    pub fn record(&mut self, scenario: &str, parameters: &Parameters, who: &str, round: Round) -> Result<(), Error> {
        let wrong = |what: &str| {
            Error::Inconsistent(format!("scenario {scenario}, contestant {who}, round {}: {what}", round.round))
        };
        let contestant = self.contestant_mut(scenario, parameters, who).ok_or_else(|| wrong("was not declared"))?;
        if contestant.is_done(round.round) {
            return Err(wrong("is done already"));
        }
        contestant.rounds.retain(|r| r.round != round.round);
        contestant.rounds.push(round);
        Ok(())
    }

    /// Notes that a contestant cannot take part after all, with the reason. What it has measured stays.
    ///
    /// # Errors
    /// There is no such contestant.
    pub fn skip(&mut self, scenario: &str, parameters: &Parameters, who: &str, why: Skipped) -> Result<(), Error> {
        let wrong = || Error::Inconsistent(format!("scenario {scenario} has no contestant {who} to skip"));
        self.contestant_mut(scenario, parameters, who).ok_or_else(wrong)?.skipped = Some(why);
        Ok(())
    }

    fn contestant_mut(&mut self, scenario: &str, parameters: &Parameters, who: &str) -> Option<&mut Contestant> {
        let scenario = self.scenarios.iter_mut().find(|s| s.name == scenario)?;
        let case = scenario.cases.iter_mut().find(|c| c.parameters == *parameters)?;
        case.contestants.iter_mut().find(|c| c.name == who)
    }
}

impl Case {
    /// The parameters in words: `flows=1 size=64`; empty without any.
    #[must_use]
    pub fn title(&self) -> String {
        self.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    /// A contestant by its name.
    #[must_use]
    pub fn contestant(&self, name: &str) -> Option<&Contestant> {
        self.contestants.iter().find(|c| c.name == name)
    }
}

impl Contestant {
    /// Whether a round was measured, and did not fail.
    #[must_use]
    pub fn is_done(&self, round: u32) -> bool {
        self.rounds.iter().any(|r| r.round == round && r.error.is_none())
    }

    /// A metric's value of each round that has one, in the order of rounds.
    #[must_use]
    pub fn values(&self, metric: &str) -> Vec<(u32, f64)> {
        let of = |r: &Round| Some((r.round, *r.values.get(metric)?));
        let mut values: Vec<_> = self.rounds.iter().filter(|r| r.error.is_none()).filter_map(of).collect();
        values.sort_by_key(|(round, _)| *round);
        values
    }
}
