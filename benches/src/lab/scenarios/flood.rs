//! Broadcast frames, of which everybody gets a copy.

use switch_core::mac::MacAddr;

use super::{parameters, throughput_metrics, throughput_turn};
use crate::{
    lab::{Fabric, Options, Place, Scenario, Turn, fabric::mac, load::Lane},
    results::{Effort, Parameters, Round},
    selftest::Loop,
    traffic::Traffic,
};

pub const SCENARIO: Scenario = Scenario {
    name: "flood",
    about: "copies per second of broadcast frames from one host to all others",
    explain: "One generator, N - 1 sinks; throughput counts the copies that arrive. Storm control, which vswitch has and the \
        others have not, is off.",
    contestants: &["vswitch", "vswitch-interrupt", "vswitch-busy", "bridge", "vde", "ovs", "ovs-tso"],
    needs: &[],
    quick: false,
    metrics: throughput_metrics,
    cases,
    fits: |_, _| true,
    turn,
};

fn cases(options: &Options) -> Vec<Parameters> {
    let hosts: &[u64] = match (options.smoke, options.effort) {
        (true, _) => &[3],
        (_, Effort::Full) => &[3, 9, 17],
        _ => &[3, 9],
    };
    hosts.iter().map(|hosts| parameters([("hosts", (*hosts).into())])).collect()
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let hosts = turn.number("hosts")? as usize;
    let fabric = Fabric::new(&turn.context.setup, turn.contestant, &vec![Place::Netns; hosts], false)?;
    let traffic = Traffic::new(MacAddr::BROADCAST, mac(0));
    let lane = Lane { from: 0, to: (1..hosts).collect(), traffic, arrives: None };
    throughput_turn(turn, &fabric, &[lane], &[Loop::Veth])
}
