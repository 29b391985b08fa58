//! What a switch takes while nothing happens, and the first frame after a silence.

use std::time::{Duration, Instant};

use super::parameters;
use crate::{
    counters::{cpu_nanos, sleeps},
    lab::{Fabric, Options, Place, Scenario, Turn, fabric::mac, load, load::Lane},
    results::{Direction, Effort, Latency, Metric, Parameters, Round},
    run::Limit,
    scale::sleep,
    traffic::Traffic,
};

pub const SCENARIO: Scenario = Scenario {
    name: "idle",
    about: "processor time and wake-ups of a switch at rest, and the first frame after a silence",
    explain: "Hosts that say nothing; then one frame every 20 ms, many times what an adaptive worker spins. The kernel's \
        bridge has no process whose time could be told.",
    contestants: &["vswitch", "vswitch-interrupt", "vswitch-busy", "bridge", "vde", "ovs", "veth"],
    needs: &[],
    quick: true,
    metrics: || {
        vec![
            Metric::new("first frame p50", "µs", Direction::LowerIsBetter, 1),
            Metric::new("CPU at rest", "% of one processor", Direction::LowerIsBetter, 3),
            Metric::new("wake-ups", "/s", Direction::LowerIsBetter, 1),
        ]
    },
    cases,
    fits: |who, parameters| !super::pairs_only(who) || parameters.get("hosts") == Some(&2u64.into()),
    turn,
};

/// Frames per second after which a switch has gone to rest in between.
const PROBES_PER_S: f64 = 50.0;
const PROBES: u64 = 100;
const FEW_PROBES: Duration = Duration::from_millis(400);
/// Until a switch is at rest, at most.
const SETTLE: Duration = Duration::from_secs(5);

fn cases(options: &Options) -> Vec<Parameters> {
    let hosts: &[u64] = if options.smoke || options.effort == Effort::Quick { &[2] } else { &[2, 32] };
    hosts.iter().map(|hosts| parameters([("hosts", (*hosts).into())])).collect()
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let hosts = turn.number("hosts")? as usize;
    let fabric = Fabric::new(&turn.context.setup, turn.contestant, &vec![Place::Netns; hosts], false)?;
    let time = turn.context.time * 2;
    sleep(time.min(SETTLE))?;
    let mut round = Round::new(turn.round);
    if let Some(pid) = fabric.pid() {
        let (begin, nanos, slept) = (Instant::now(), cpu_nanos(pid)?, sleeps(pid)?);
        sleep(time)?;
        let seconds = begin.elapsed().as_secs_f64();
        round = round
            .value("CPU at rest", (cpu_nanos(pid)? - nanos) as f64 / 1e7 / seconds)
            .value("wake-ups", sleeps(pid)?.saturating_sub(slept) as f64 / seconds);
    }
    let lanes = [Lane::new(0, 1, Traffic::new(mac(1), mac(0)))];
    let probes = if turn.context.time < FEW_PROBES { PROBES / 5 } else { PROBES };
    let measured = load::offer(&fabric, &lanes, Some(PROBES_PER_S), Limit::frames(probes), true)?;
    round.frames = Some(measured.frames);
    let recorded = measured.latency.unwrap_or_else(Latency::recorder);
    anyhow::ensure!(!recorded.is_empty(), "no frame came through");
    let latency = Latency::of("first frame after 20 ms of silence", None, PROBES_PER_S, &recorded);
    round = round.value("first frame p50", latency.p50_ns as f64 / 1e3);
    round.latency.push(latency);
    Ok(round)
}
