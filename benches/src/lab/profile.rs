//! Where a process spends its time: `perf record` beside a load, folded for a flame graph.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use switch_core::{control::wire::StagesView, stages::STAGES};

use crate::{
    contestants::{Directory, PATIENCE},
    netns::{Process, wait_for},
    results::{Profile, Stage, Symbol},
};

/// Samples per second: not a divisor of what timers do.
const FREQUENCY: &str = "997";
/// Between the file and the first sample.
const MARGIN: Duration = Duration::from_millis(200);
/// Symbols listed.
const TOP: usize = 25;

/// Samples a process while `load` runs.
///
/// # Errors
/// `perf` is missing or not permitted, or the load fails.
pub fn record(pid: u32, load: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Profile> {
    let directory = Directory::new("vswitch-perf-")?;
    let file = directory.path().join("data");
    // Stacks by the unwinder: neither release builds nor the C library keep frame pointers.
    let words = ["record", "-q", "-F", FREQUENCY, "--call-graph", "dwarf,8192", "-p", &pid.to_string(), "-o"];
    let child = Command::new("perf").args(words).arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut perf = Process(child.context("cannot run perf: apt-get install linux-perf")?);
    // It makes its file when it has attached itself to all threads, or nearly.
    let begun = || std::fs::metadata(&file).is_ok_and(|m| m.len() > 0) || !matches!(perf.0.try_wait(), Ok(None));
    wait_for("perf has started", PATIENCE, begun)?;
    std::thread::sleep(MARGIN);
    load()?;
    let _ = kill(Pid::from_raw(perf.0.id().cast_signed()), Signal::SIGINT);
    perf.0.wait()?;
    ensure!(file.exists(), "perf recorded nothing: may it watch processes? (sysctl kernel.perf_event_paranoid)");
    let text = script(&file)?;
    let profile = fold(&text);
    ensure!(profile.samples > 0, "perf took no sample");
    Ok(profile)
}

/// What each stage cost per frame between two readings, in the order in which a frame passes them; nothing where they are not
/// counted.
#[must_use]
pub fn stages(before: &StagesView, after: &StagesView) -> Vec<Stage> {
    let frames = after.frames.saturating_sub(before.frames);
    let of = |view: &StagesView, name: &str| view.cycles.get(name).copied().unwrap_or(0);
    let cycles = |name: &str| of(after, name).saturating_sub(of(before, name)) as f64 / frames as f64;
    let counted = STAGES.iter().filter(|_| frames > 0);
    counted.map(|name| Stage { name: (*name).to_owned(), cycles_per_frame: cycles(name) }).collect()
}

fn script(file: &Path) -> anyhow::Result<String> {
    let words = ["script", "--no-inline", "-F", "comm,event,ip,sym,dso", "-i"];
    let output = Command::new("perf").args(words).arg(file).stderr(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `perf script` prints: a head with the thread's name and the event, then a line per frame from the innermost on,
/// then an empty line.
fn fold(text: &str) -> Profile {
    let mut folded: BTreeMap<String, u64> = BTreeMap::new();
    let mut leaves: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut profile = Profile::default();
    for sample in text.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.trim().is_empty());
        let Some(head) = lines.next() else { continue };
        let mut words = head.split_whitespace().rev();
        let event = words.next().unwrap_or_default().trim_end_matches(':');
        let thread = words.next_back().unwrap_or("?");
        let stack: Vec<(String, String)> = lines.filter_map(frame).collect();
        let Some(leaf) = stack.first() else { continue };
        event.split(':').next().unwrap_or(event).clone_into(&mut profile.event);
        profile.samples += 1;
        *leaves.entry(leaf.clone()).or_default() += 1;
        let names = stack.iter().rev().map(|(name, _)| name.as_str());
        let stack = std::iter::once(thread).chain(names).collect::<Vec<_>>().join(";");
        *folded.entry(stack).or_default() += 1;
    }
    let mut top: Vec<_> = leaves.into_iter().collect();
    top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let all = profile.samples.max(1) as f64;
    profile.top = top
        .into_iter()
        .take(TOP)
        .map(|((name, object), n)| Symbol { name, object, percent: n as f64 * 100.0 / all })
        .collect();
    profile.folded = folded.into_iter().map(|(stack, n)| format!("{stack} {n}")).collect();
    profile
}

/// `  ffffffff81 symbol (object)`: the symbol, and the object by its last name; empty for the kernel.
fn frame(line: &str) -> Option<(String, String)> {
    let (_, rest) = line.trim().split_once(' ')?;
    let (symbol, object) = rest.rsplit_once(" (")?;
    let object = object.trim_end_matches(')');
    let kernel = object.starts_with("[kernel") || object.starts_with("[guest.kernel");
    let object = if kernel { "" } else { object.rsplit('/').next().unwrap_or(object) };
    // What separates frames in a folded stack cannot be in one.
    Some((symbol.trim().replace(';', ":"), object.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_folded_from_the_outermost_on() {
        let text = "worker-0 cycles:P: \n\tffff81 tun_chr_read_iter ([kernel.kallsyms])\n\t55aa turn<a; b> (/usr/bin/vswitch)\n\n\
            worker-0 cycles:P: \n\t55ab look (/usr/bin/vswitch)\n\t55aa turn<a; b> (/usr/bin/vswitch)\n\n\
            worker-0 cycles:P: \n\t55ab look (/usr/bin/vswitch)\n\t55aa turn<a; b> (/usr/bin/vswitch)\n\n";
        let profile = fold(text);
        assert_eq!((profile.event.as_str(), profile.samples), ("cycles", 3));
        assert_eq!(profile.folded, ["worker-0;turn<a: b>;look 2", "worker-0;turn<a: b>;tun_chr_read_iter 1"]);
        assert_eq!((profile.top[0].name.as_str(), profile.top[0].object.as_str()), ("look", "vswitch"));
        assert_eq!(profile.top[1].object, "");
    }

    #[test]
    fn stages_are_the_difference_of_two_readings() {
        let view = |frames, rx, decide| StagesView {
            frames,
            cycles: BTreeMap::from([("rx".to_owned(), rx), ("decide".to_owned(), decide)]),
            ..StagesView::default()
        };
        let found = stages(&view(100, 1000, 500), &view(300, 3000, 6500));
        let of = |name: &str| found.iter().find(|s| s.name == name).map(|s| s.cycles_per_frame);
        assert_eq!(
            (of("rx"), of("decide"), of("learn"), found.len()),
            (Some(10.0), Some(30.0), Some(0.0), STAGES.len())
        );
        assert_eq!(stages(&view(0, 0, 0), &view(0, 0, 0)), []);
    }
}
