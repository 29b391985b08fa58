//! A virtual machine and a namespace.

use super::{parameters, size, throughput_metrics, throughput_turn, vm};
use crate::{
    lab::{Fabric, Options, Place, Scenario, Turn, fabric::mac, load::Lane},
    results::{Parameters, Round},
    selftest::Loop,
    traffic::Traffic,
};

pub const SCENARIO: Scenario = Scenario {
    name: "mixed",
    about: "frames per second between a virtual machine and a namespace, either way",
    explain: "The machine as in vm, the namespace as in netns.",
    contestants: &["vswitch", "vswitch-interrupt", "vswitch-busy", "bridge"],
    needs: &[],
    quick: false,
    metrics: throughput_metrics,
    cases,
    fits: |_, _| true,
    turn,
};

fn cases(options: &Options) -> Vec<Parameters> {
    let sizes = options.sizes.clone().unwrap_or_else(|| vec!["64".to_owned()]);
    let ways = ["vm-to-netns", "netns-to-vm"];
    let case = |text: &str, way: &str| parameters([("direction", way.into()), ("size", size(text))]);
    sizes.iter().flat_map(|text| ways.map(|way| case(text, way))).collect()
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let fabric = Fabric::new(&turn.context.setup, turn.contestant, &[Place::Vm, Place::Netns], turn.jumbo())?;
    let (from, to) = if turn.word("direction")? == "vm-to-netns" { (0, 1) } else { (1, 0) };
    let lane = Lane::new(from, to, turn.sized(Traffic::new(mac(to), mac(from)))?);
    let ways = [&[Loop::Veth], vm::ways(turn.contestant)].concat();
    throughput_turn(turn, &fabric, &[lane], &ways)
}
