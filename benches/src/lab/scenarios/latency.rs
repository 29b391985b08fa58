//! How long frames take, at loads that belong to what the contestant can do.

use super::{ON_HOSTS, ceiling, parameters, size};
use crate::{
    lab::{Fabric, Options, Place, Scenario, Turn, echo, fabric::mac, load, load::Lane},
    measure::go_on,
    results::{Direction, Latency, Metric, Parameters, Round},
    run::Limit,
    selftest::Loop,
    traffic::Traffic,
};

pub const SCENARIO: Scenario = Scenario {
    name: "latency",
    about: "one-way latency at 10, 50 and 90 % of the throughput that was found just before, and round trips of single requests",
    explain: "Timestamps of one clock in every frame; the generator sends frame by frame on a schedule. Both ends read the \
        clock once per batch, so what a batch takes is part of the figure. Round trips: one request, its answer, the next request.",
    contestants: ON_HOSTS,
    needs: &[],
    quick: true,
    metrics,
    cases,
    fits: |_, _| true,
    turn,
};

/// In per cent of the throughput.
const LOADS: [u32; 3] = [10, 50, 90];

fn metrics() -> Vec<Metric> {
    let mut all = Vec::new();
    for load in [50, 10, 90] {
        for what in ["p50", "p99"] {
            all.push(Metric::new(&format!("{what} at {load} %"), "µs", Direction::LowerIsBetter, 1));
        }
    }
    for what in ["p50", "p99"] {
        all.push(Metric::new(&format!("round trip {what}"), "µs", Direction::LowerIsBetter, 1));
    }
    all.push(Metric::new("throughput", "frames/s", Direction::HigherIsBetter, 0));
    all
}

fn cases(options: &Options) -> Vec<Parameters> {
    let sizes = options.sizes.clone().unwrap_or_else(|| vec!["64".to_owned()]);
    sizes.iter().map(|text| parameters([("size", size(text))])).collect()
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let fabric = Fabric::new(&turn.context.setup, turn.contestant, &[Place::Netns; 2], turn.jumbo())?;
    let lanes = [Lane::new(0, 1, turn.sized(Traffic::new(mac(1), mac(0)))?)];
    let found = load::throughput(turn, &fabric, &lanes)?;
    let fps = found.fps;
    let ceiling = ceiling(turn, &[Loop::Veth], &lanes[0].traffic)?;
    let mut round = found.into_round(turn, "throughput", Some(&ceiling));
    // Of another measurement than the values are.
    round.values.remove("CPU time");
    for percent in LOADS {
        go_on()?;
        let load = fps * f64::from(percent) / 100.0;
        let measured = load::offer(&fabric, &lanes, Some(load), Limit::time(turn.context.time), true)?;
        let recorded = measured.latency.unwrap_or_else(Latency::recorder);
        anyhow::ensure!(!recorded.is_empty(), "no frame came through at {percent} % of the throughput");
        let latency = Latency::of("one way", Some(f64::from(percent)), load, &recorded);
        round = round
            .value(&format!("p50 at {percent} %"), latency.p50_ns as f64 / 1e3)
            .value(&format!("p99 at {percent} %"), latency.p99_ns as f64 / 1e3);
        round.latency.push(latency);
    }
    let trips = echo::round_trips(&fabric, turn.context.time)?;
    let latency = Latency::of("round trip", None, 0.0, &trips.times);
    round =
        round.value("round trip p50", latency.p50_ns as f64 / 1e3).value("round trip p99", latency.p99_ns as f64 / 1e3);
    round.latency.push(latency);
    Ok(round)
}
