use super::*;
use crate::results::{MarkKind, Noise, sample::sample};

#[test]
fn numbers_are_readable() {
    let shown = [(1_234_567.4, 0), (-1234.5, 1), (999.0, 0), (0.25, 2)].map(|(value, digits)| number(value, digits));
    assert_eq!(shown, ["1,234,567", "-1,234.5", "999", "0.25"]);
    assert_eq!([1_250_000.0, 0.0, 512.0, 3e9].map(svg::short), ["1.25 M", "0", "512", "3 G"]);
}

#[test]
fn the_table_says_what_is_missing_and_what_bounds_it() {
    let mut results = sample(1);
    let text = results.table();
    for part in [
        "## tap flows=1 size=64\n",
        "| contestant | throughput frames/s | p99 latency µs | CPU time ns/frame |",
        "(generator-bound) |",
        "| vde | skipped: vde_switch is not installed; apt-get install vde2 | | |",
        "ovs: round 5 failed: iperf3: the server has terminated",
        "Every round was tried, but 1 turn(s) failed.",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("NOISY"));
    results.noise = Noise::of("ns", &[1.0, 2.0, 3.0], 0.03);
    assert!(results.table().contains("NOISY machine"));
}

#[test]
fn csv_has_a_line_per_value_and_quotes() {
    let mut results = sample(1);
    results.scenarios[1].name = "bulk, \"big\"".to_owned();
    let text = csv(&results);
    // 3 sizes x 5 contestants x 9 rounds x 3 metrics, and 4 x 5 + 4 rounds of TCP.
    assert_eq!(text.lines().count(), 1 + 405 + 24);
    assert!(text.contains("\r\ntap,flows=1 size=64,loop,0,throughput,frames/s,"), "{}", &text[..400]);
    assert!(text.contains("\"bulk, \"\"big\"\"\",,vswitch,0,TCP,Gbit/s,"));
    assert!(text.contains(MarkKind::GeneratorBound.words()));
}

#[test]
fn the_page_states_how_throughput_was_searched_for() {
    let mut results = sample(1);
    let searched = "at most 0.5 % loss, exceeded in at most 50.0 % of the time; full trials of 1 s, the first of a load of \
                    0.25 s, a load decided by 7 s of full trials; bounds within 1.0 %; loads from 0.1 % of what the \
                    generators gave at once; 60 s at most";
    let page = html(&results);
    assert!(page.contains(searched) && !page.contains("maximum receive rate"), "{}", &page[..8000]);
    results.run.search = None;
    let page = html(&results);
    assert!(page.contains("maximum receive rate") && !page.contains("MLRsearch"));
}

#[test]
fn nothing_escapes_into_the_page() {
    let mut results = sample(1);
    let evil = "</script><script>alert(1)</script><img src=x onerror='a' \"b\">&";
    results.run.command = vec![evil.to_owned()];
    results.machine.hypervisor = Some(evil.to_owned());
    results.scenarios[0].name = evil.to_owned();
    results.scenarios[0].about = evil.to_owned();
    results.scenarios[0].metrics[1].unit = evil.to_owned();
    let contestant = &mut results.scenarios[0].cases[0].contestants[1];
    contestant.name = evil.to_owned();
    contestant.settings = evil.to_owned();
    contestant.rounds[0].error = Some(evil.to_owned());
    contestant.rounds[0].latency[0].what = evil.to_owned();
    let profile = contestant.rounds[0].profile.as_mut().unwrap();
    profile.folded.push(format!("{evil};{evil} 400"));
    profile.top[0].name = evil.to_owned();
    let page = html(&results);
    assert!(!page.contains("<img") && !page.contains("<script>"), "something came through");
    assert_eq!(page.matches("<script").count(), 1);
    assert_eq!(page.matches("</script>").count(), 1);
    let json = page.split_once("id=\"results\">").unwrap().1.split_once("</script>").unwrap().0;
    assert!(
        serde_json::from_str::<crate::results::Results>(json).unwrap() == results,
        "the embedded JSON is the results"
    );
}

#[test]
fn a_page_without_anything_measured_is_a_page() {
    use crate::results::{Machine, Results, Run};
    let page = html(&Results::new(Run::default(), Machine::default()));
    assert!(page.contains("No null loop ran beside") && page.contains("The run is partial"));
    assert!(!page.contains("NaN") && !html(&sample(1)).contains("NaN"));
}

#[test]
fn a_flame_graph_is_as_wide_as_its_samples() {
    let folded = ["a;b 75", "a;c 25", "no stack"].map(str::to_owned);
    let graph = flame::graph("t", &folded).unwrap();
    assert!(graph.contains("<title>a 100.0 % (100 samples)</title>"), "{graph}");
    assert!(graph.contains("b 75.0 % (75 samples)") && graph.contains("width=\"929.2\""), "{graph}");
    assert_eq!(flame::graph("t", &[]), None);
}
