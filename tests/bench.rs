//! `vswitch bench` through the real binary: every scenario once, an interruption and its resumption, and what it refuses.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vswitch_benches::{
    contestants::Directory,
    lab::SCENARIOS,
    netns::{exec, wait_for},
    results::{Results, State},
};
use vswitch_tests::binary;

/// How long the smallest run may take on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(300);

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(binary().expect("built"));
    command.arg("bench").args(words).stdin(Stdio::null());
    command
}

fn bench(words: &[&str]) -> Output {
    command(words).output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads results: they must be all that the file has, so that it is valid by the schema, which is made from the types.
fn load(directory: &Path) -> Results {
    let path = directory.join("results.json");
    let results = Results::load(&path).expect("results");
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(path).expect("read")).expect("JSON");
    assert_eq!(value, serde_json::to_value(&results).expect("JSON"), "the file has what the format does not know");
    results
}

fn rounds(results: &Results) -> usize {
    let cases = results.scenarios.iter().flat_map(|s| &s.cases);
    cases.flat_map(|c| &c.contestants).map(|c| c.rounds.iter().filter(|r| r.error.is_none()).count()).sum()
}

/// A pcap file (microseconds, little endian) of so many frames of 60 bytes, all from one address to another.
fn capture(path: &Path, frames: u32) {
    let mut bytes = Vec::new();
    [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    for n in 0..frames {
        [0, n * 100, 60, 60].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend([2, 0, 0, 9, 0, 2, 2, 0, 0, 9, 0, 1, 0x88, 0xb6]);
        bytes.extend(n.to_le_bytes());
        bytes.extend([0; 42]);
    }
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn every_scenario_runs_and_its_results_are_complete() {
    let guard = Directory::new("bench-test-").expect("room");
    let (out, pcap) = (guard.path().join("out"), guard.path().join("c.pcap"));
    capture(&pcap, 300);
    let names = SCENARIOS.iter().map(|s| s.name).filter(|name| *name != "replay");
    let options = ["--smoke", "--time", "0.3", "--runs", "1", "--against", "vswitch,bridge", "--fast", "--pcap"];
    let paths = [pcap.to_str().expect("text"), "--out", out.to_str().expect("text")];
    let output = bench(&[&names.collect::<Vec<_>>()[..], &options, &paths].concat());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("left] ") && said.contains("netns hosts=2"), "progress in lines: {said}");
    let results = load(&out);
    assert_eq!(results.run.state, State::Complete);
    assert_eq!(results.scenarios.len(), SCENARIOS.len());
    assert_eq!(results.remaining(), []);
    assert!(results.noise.is_some() && !results.machine.kernel.is_empty());
    assert!(results.run.remarks.iter().any(|r| r.starts_with("Ceiling of the generator (Veth")), "{:?}", results.run);
    for scenario in &results.scenarios {
        let first = &scenario.metrics[0].name;
        for contestant in scenario.cases.iter().flat_map(|c| &c.contestants) {
            assert_eq!(contestant.skipped, None, "{}", scenario.name);
            let [(0, value)] = contestant.values(first)[..] else { panic!("{}: {contestant:?}", scenario.name) };
            assert!(value > 0.0, "{}: {}: {first} = {value}", scenario.name, contestant.name);
            let frames = contestant.rounds[0].frames;
            assert!(frames.is_none_or(|f| f.corrupt + f.duplicates == 0), "{}: {frames:?}", scenario.name);
        }
    }
    let table = text(&output.stdout);
    let lines = std::fs::read_to_string(out.join("results.csv")).expect("CSV");
    for scenario in &SCENARIOS {
        assert!(table.contains(&format!("## {}", scenario.name)) && lines.contains(scenario.name), "{}", scenario.name);
    }
    let page = std::fs::read_to_string(out.join("report.html")).expect("report");
    assert!(page.contains("</html>") && page.contains("mac-scale") && !page.contains("http://"), "self-contained");
}

/// What a run makes has its process id in the name.
fn nothing_is_left(run: &Child) {
    let mark = format!("{:x}-", run.id() & 0xfffff);
    let of_run = |name: &str| {
        ["vl", "kb", "ve", "vg", "ov"].iter().any(|prefix| name.starts_with(&format!("{prefix}{mark}")))
            || name.contains(&format!("-{mark}"))
    };
    let namespaces = exec(&["ip", "netns", "list"]).expect("listed");
    assert!(!namespaces.lines().any(of_run), "namespaces are left: {namespaces}");
    for entry in std::fs::read_dir(std::env::temp_dir()).expect("listed").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(!(name.starts_with("vswitch-") && of_run(&name)), "{name} is left");
    }
    for process in std::fs::read_dir("/proc").expect("listed").flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = text(&line);
        assert!(
            !line.split(['\0', '/']).any(|word| word.starts_with("vswitch-") && of_run(word)),
            "it runs on: {line}"
        );
    }
}

#[test]
fn an_interrupted_run_keeps_its_results_leaves_nothing_and_goes_on() {
    let guard = Directory::new("bench-test-").expect("room");
    let out = guard.path().join("out");
    let path = out.to_str().expect("text");
    let words = ["flood", "--smoke", "--time", "0.1", "--runs", "6", "--against", "vswitch", "--out", path];
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let before = if out.exists() { rounds(&load(&out)) } else { 0 };
        let mut run = command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        let id = Pid::from_raw(run.id().cast_signed());
        let more = || Results::load(&out.join("results.json")).is_ok_and(|r| rounds(&r) > before);
        wait_for("a round is done", PATIENCE, more).expect("it is");
        kill(id, signal).expect("it runs");
        assert_eq!(run.wait().expect("ends").code(), Some(130));
        let results = load(&out);
        assert_eq!(results.run.state, State::Interrupted);
        assert!((1..6).contains(&rounds(&results)), "{}", rounds(&results));
        assert!(out.join("report.html").exists() && out.join("results.csv").exists());
        nothing_is_left(&run);
    }
    let mut other = words;
    other[3] = "0.2";
    let refused = bench(&other);
    assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains("--time 0.1"), "{refused:?}");
    let output = bench(&words);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let results = load(&out);
    assert_eq!((results.run.state, rounds(&results)), (State::Complete, 6));
    assert_eq!(results.run.remarks.iter().filter(|r| r.starts_with("Resumed")).count(), 2);
    let again = bench(&words);
    assert!(again.status.code() == Some(1) && text(&again.stderr).contains("complete run"), "{again:?}");

    let same = bench(&["compare", path, path]);
    assert_eq!(same.status.code(), Some(0), "{}", text(&same.stdout));
    assert!(text(&same.stdout).contains("0 regression(s), 0 improvement(s)"), "{}", text(&same.stdout));
    std::fs::remove_file(out.join("report.html")).expect("removed");
    assert!(bench(&["report", path]).status.success() && out.join("report.html").exists());
}

#[test]
fn refusals_name_the_thing_and_the_mend() {
    for (words, part) in [
        (&["warp"][..], "no scenario \"warp\"; there are netns, vm"),
        (&[], "bench list"),
        (&["netns", "--against", "vswitch,hub"], "no contestant \"hub\"; there are vswitch"),
        (&["netns", "--against", "ovs-dpdk,loop", "--size", "63"], "64 to"),
        (&["frame-size", "--size", "64,huge"], "size \"huge\""),
        (&["frame-size", "--size", "9999"], "gso"),
        (&["netns", "--time", "0"], "--time 0"),
        (&["netns", "--time", "-1"], "--time"),
        (&["netns", "--runs", "0"], "--runs 0"),
        (&["replay"], "--pcap FILE"),
        (&["--pcap", "/nowhere/c.pcap"], "/nowhere/c.pcap"),
        (&["netns", "--speed", "2"], "--pcap"),
        (&["compare", "/nowhere", "/nowhere"], "cannot read results file /nowhere"),
    ] {
        let output = bench(words);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{words:?}: {:?}", output.status);
        assert!(text(&output.stderr).contains(part), "{words:?}: {}", text(&output.stderr));
    }
    // In a namespace of users without root.
    let program = binary().expect("built");
    let output = Command::new("unshare").arg("--user").arg(program).args(["bench", "netns"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("run it as root"), "{}", text(&output.stderr));
    let list = text(&bench(&["list"]).stdout);
    assert!(SCENARIOS.iter().all(|s| list.contains(s.about)), "{list}");
}
