//! One file per scenario, and what several of them share.

mod flood;
mod frame_size;
mod idle;
mod isolation;
mod latency;
mod mac_scale;
mod mixed;
mod netns;
mod path;
mod rates;
mod replay;
mod scale;
mod tcp;
mod vm;

use std::time::Duration;

use super::{Scenario, Turn, contest, load, profile};
use crate::{
    contestants::Api,
    results::{Direction, Metric, Parameter, Parameters, Role, Round},
    run::Limit,
    selftest::Loop,
    traffic::Traffic,
};

/// In the order of `bench list`.
pub static SCENARIOS: [Scenario; 14] = [
    netns::SCENARIO,
    vm::SCENARIO,
    mixed::SCENARIO,
    flood::SCENARIO,
    mac_scale::SCENARIO,
    isolation::SCENARIO,
    tcp::SCENARIO,
    latency::SCENARIO,
    frame_size::SCENARIO,
    idle::SCENARIO,
    scale::SCENARIO,
    rates::SCENARIO,
    path::SCENARIO,
    replay::SCENARIO,
];

/// Parameters by name.
fn parameters<const N: usize>(all: [(&str, Parameter); N]) -> Parameters {
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A size as a parameter: a number where it is one.
fn size(text: &str) -> Parameter {
    text.parse::<u64>().map_or_else(|_| Parameter::from(text), Parameter::from)
}

/// The metrics of whatever measures frames per second.
fn throughput_metrics() -> Vec<Metric> {
    vec![
        Metric::new("throughput", "frames/s", Direction::HigherIsBetter, 0),
        Metric::new("CPU time", "ns/frame", Direction::LowerIsBetter, 0),
        Metric::new("loss", "%", Direction::LowerIsBetter, 2),
    ]
}

/// All contestants on TAPs and veths.
const ON_HOSTS: &[&str] = &[
    "vswitch",
    "vswitch-interrupt",
    "vswitch-busy",
    "bridge",
    "bridge-nf",
    "vde",
    "ovs",
    "ovs-tso",
    "veth",
    "loop",
    "loop-busy",
];

/// Whether a contestant is one that connects two hosts only.
fn pairs_only(name: &str) -> bool {
    matches!(name, "loop" | "loop-busy" | "veth")
}

/// A whole turn that measures throughput: fabric, warm-up, measurement, ceiling, and a profile if wanted.
fn throughput_turn(
    turn: &Turn<'_>,
    fabric: &super::Fabric,
    lanes: &[load::Lane],
    ways: &[Loop],
) -> anyhow::Result<Round> {
    let found = load::throughput(turn, fabric, lanes)?;
    let loss = found.measured.loss_percent();
    let profile = profiled(turn, fabric, lanes)?;
    let ceiling = ceiling(turn, ways, &lanes[0].traffic)?;
    let mut round = found.into_round(turn, "throughput", Some(&ceiling)).value("loss", loss);
    round.profile = profile;
    Ok(round)
}

/// The lowest of some ceilings: what generator and sink reach at best together.
fn ceiling(turn: &Turn<'_>, ways: &[Loop], traffic: &Traffic) -> anyhow::Result<crate::selftest::Ceiling> {
    let mut lowest = turn.context.ceiling(ways[0], traffic)?;
    for way in &ways[1..] {
        let other = turn.context.ceiling(*way, traffic)?;
        if other.received_per_s < lowest.received_per_s {
            lowest = other;
        }
    }
    Ok(lowest)
}

/// The shortest that is worth a profile.
const PROFILE_TIME: Duration = Duration::from_secs(1);

/// A profile of ours under the same load, beside no measurement: sampling costs time.
fn profiled(
    turn: &Turn<'_>,
    fabric: &super::Fabric,
    lanes: &[load::Lane],
) -> anyhow::Result<Option<crate::results::Profile>> {
    let ours = contest::role(turn.contestant) == Role::Ours;
    let Some(pid) = fabric.pid().filter(|_| turn.context.profile && ours && turn.round == 0) else { return Ok(None) };
    let limit = Limit::time(turn.context.time.max(PROFILE_TIME));
    let load = || load::offer(fabric, lanes, None, limit, false).map(drop);
    let before = fabric.api().map(Api::stages).transpose()?;
    let mut profile = profile::record(pid, load)?;
    let after = fabric.api().map(Api::stages).transpose()?;
    if let (Some(before), Some(after)) = (before, after) {
        profile.stages = profile::stages(&before, &after);
    }
    Ok(Some(profile))
}
