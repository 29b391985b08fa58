//! More workers, queues and ports.

use super::{parameters, throughput_metrics, throughput_turn};
use crate::{
    contestants::Setup,
    counters::resident_kib,
    lab::{Fabric, Options, Place, Scenario, Turn, fabric::mac, load::Lane},
    results::{Direction, Effort, Metric, Parameters, Round},
    selftest::Loop,
    traffic::{Flows, Traffic},
};

pub const SCENARIO: Scenario = Scenario {
    name: "scale",
    about: "throughput and memory with more workers, more queues per TAP and more ports",
    explain: "Pairs of hosts send at the same time, 16 flows each: two pairs, one where there are two ports only. The other \
        ports are there and quiet.",
    contestants: &["vswitch", "vswitch-interrupt", "vswitch-busy", "bridge"],
    needs: &[],
    quick: false,
    metrics,
    cases,
    // Neither means anything to a bridge.
    fits: |who, p| who != "bridge" || ["workers", "queues"].iter().all(|name| p.get(*name) == Some(&1u64.into())),
    turn,
};

/// Flows of each pair of hosts: enough for every queue.
const FLOWS: u32 = 16;
/// Pairs that send.
const PAIRS: usize = 2;

fn metrics() -> Vec<Metric> {
    let mut all = throughput_metrics();
    all.push(Metric::new("memory", "MiB", Direction::LowerIsBetter, 1));
    all
}

fn cases(options: &Options) -> Vec<Parameters> {
    let cases: &[(u64, u64, u64)] = match (options.smoke, options.effort) {
        (true, _) => &[(2, 1, 1), (4, 2, 2)],
        (_, Effort::Full) => &[(2, 1, 1), (4, 1, 1), (16, 1, 1), (64, 1, 1), (4, 2, 1), (4, 2, 2), (4, 4, 4)],
        _ => &[(2, 1, 1), (4, 1, 1), (16, 1, 1), (4, 2, 1), (4, 2, 2)],
    };
    let case = |&(ports, workers, queues): &(u64, u64, u64)| {
        parameters([("ports", ports.into()), ("workers", workers.into()), ("queues", queues.into())])
    };
    cases.iter().map(case).collect()
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let ports = turn.number("ports")? as usize;
    let (workers, queues) = (turn.number("workers")?, turn.number("queues")?);
    let mut setup: Setup = turn.context.setup.clone();
    setup.arguments.extend(["--workers".to_owned(), workers.to_string()]);
    if queues > 1 {
        setup.ports.iter_mut().for_each(|port| port.push_str(&format!(",queues={queues}")));
    }
    let fabric = Fabric::new(&setup, turn.contestant, &vec![Place::Netns; ports], false)?;
    let lane = |pair: usize| {
        let (from, to) = (2 * pair, 2 * pair + 1);
        let flows = Flows::ports(mac(to), mac(from), FLOWS);
        let layers = crate::traffic::Layers::Ipv4;
        Lane::new(from, to, Traffic { flows, layers, ..Traffic::new(mac(to), mac(from)) })
    };
    let lanes: Vec<Lane> = (0..PAIRS.min(ports / 2)).map(lane).collect();
    let round = throughput_turn(turn, &fabric, &lanes, &[Loop::Veth])?;
    let memory = fabric.pid().map_or(Ok(f64::NAN), |pid| resident_kib(pid).map(|kib| kib as f64 / 1024.0))?;
    Ok(round.value("memory", memory))
}
