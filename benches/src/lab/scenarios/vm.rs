//! Virtual machines, of which there are the drivers only.

use super::{parameters, size, throughput_metrics, throughput_turn};
use crate::{
    lab::{Fabric, Options, Place, Scenario, Turn, fabric::mac, load::Lane},
    results::{Effort, Parameter, Parameters, Round},
    selftest::Loop,
    traffic::Traffic,
};

pub const SCENARIO: Scenario = Scenario {
    name: "vm",
    about: "frames per second between virtual machines, by a virtio-net driver without a VM around it",
    explain: "vswitch and ovs-dpdk are vhost-user devices of our own driver; before the bridge, the driver writes and reads \
        TAPs as QEMU without vhost does. No guest kernel takes part.",
    contestants: &["vswitch", "vswitch-interrupt", "vswitch-busy", "bridge", "ovs-dpdk"],
    needs: &[],
    quick: false,
    metrics: throughput_metrics,
    cases,
    // Set up for two machines.
    fits: |who, parameters| who != "ovs-dpdk" || parameters.get("machines") == Some(&Parameter::Number(2)),
    turn,
};

fn cases(options: &Options) -> Vec<Parameters> {
    let sizes = options.sizes.clone().unwrap_or_else(|| match (options.smoke, options.effort) {
        (true, _) | (_, Effort::Quick) => vec!["64".to_owned()],
        _ => ["64", "1518"].map(str::to_owned).to_vec(),
    });
    let patterns: &[_] = if options.smoke || options.effort == Effort::Quick {
        &[("one-to-one", 2u64)]
    } else {
        &[("one-to-one", 2), ("fan-in", 3)]
    };
    let case = |text: &String, (pattern, machines): (&str, u64)| {
        parameters([("pattern", pattern.into()), ("machines", machines.into()), ("size", size(text))])
    };
    sizes.iter().flat_map(|text| patterns.iter().map(move |pattern| case(text, *pattern))).collect()
}

/// What generator and sink have at their ends.
pub(super) fn ways(contestant: &str) -> &'static [Loop] {
    if contestant == "bridge" { &[Loop::TapIn, Loop::TapOut] } else { &[Loop::Ring] }
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let machines = turn.number("machines")? as usize;
    let fabric = Fabric::new(&turn.context.setup, turn.contestant, &vec![Place::Vm; machines], turn.jumbo())?;
    let lane = |from| anyhow::Ok(Lane::new(from, 0, turn.sized(Traffic::new(mac(0), mac(from)))?));
    let lanes = (1..machines).map(lane).collect::<anyhow::Result<Vec<_>>>()?;
    throughput_turn(turn, &fabric, &lanes, ways(turn.contestant))
}
