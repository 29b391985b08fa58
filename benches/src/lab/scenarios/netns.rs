//! Hosts in namespaces that send to each other in patterns.

use super::{ON_HOSTS, pairs_only, parameters, size, throughput_metrics, throughput_turn};
use crate::{
    lab::{Fabric, Options, Place, Scenario, Turn, fabric::mac, load::Lane},
    results::{Effort, Parameter, Parameters, Round},
    selftest::Loop,
    traffic::Traffic,
};

pub const SCENARIO: Scenario = Scenario {
    name: "netns",
    about: "frames per second between hosts in namespaces: one to one, many to one, all to all",
    explain: "AF_PACKET generators and sinks in N namespaces, numbered frames, as fast as they are taken (--full: the \
        greatest load with at most 0.5 % loss, RFC 9971).",
    contestants: ON_HOSTS,
    needs: &[],
    quick: true,
    metrics: throughput_metrics,
    cases,
    fits: |who, parameters| !pairs_only(who) || parameters.get("hosts") == Some(&Parameter::Number(2)),
    turn,
};

/// Hosts of the patterns with more than two.
const HOSTS: u64 = 4;

fn cases(options: &Options) -> Vec<Parameters> {
    let sizes = options.sizes.clone().unwrap_or_else(|| vec!["64".to_owned()]);
    let mut cases = Vec::new();
    let patterns: &[_] = match (options.smoke, options.effort) {
        (false, Effort::Quick) => &[("one-to-one", 2)],
        _ => &[("one-to-one", 2), ("fan-in", HOSTS), ("mesh", HOSTS)],
    };
    for text in &sizes {
        for (pattern, hosts) in patterns {
            cases.push(parameters([
                ("pattern", Parameter::from(*pattern)),
                ("hosts", Parameter::from(*hosts)),
                ("size", size(text)),
            ]));
        }
    }
    cases
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let hosts = turn.number("hosts")? as usize;
    let fabric = Fabric::new(&turn.context.setup, turn.contestant, &vec![Place::Netns; hosts], turn.jumbo())?;
    let pairs: Vec<(usize, usize)> = match turn.word("pattern")? {
        "one-to-one" => vec![(0, 1)],
        "fan-in" => (1..hosts).map(|from| (from, 0)).collect(),
        _ => (0..hosts).flat_map(|a| (0..hosts).filter(move |b| *b != a).map(move |b| (a, b))).collect(),
    };
    let lane = |(from, to)| anyhow::Ok(Lane::new(from, to, turn.sized(Traffic::new(mac(to), mac(from)))?));
    let lanes = pairs.into_iter().map(lane).collect::<anyhow::Result<Vec<_>>>()?;
    throughput_turn(turn, &fabric, &lanes, &[Loop::Veth])
}
