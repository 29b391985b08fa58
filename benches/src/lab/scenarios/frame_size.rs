//! One host to another with frames of every size.

use super::{parameters, size, throughput_metrics, throughput_turn};
use crate::{
    lab::{Fabric, Options, Place, Scenario, Turn, fabric::mac, load::Lane},
    results::{Direction, Effort, Metric, Parameters, Round},
    selftest::Loop,
    traffic::{FCS_BYTES, Traffic},
};

pub const SCENARIO: Scenario = Scenario {
    name: "frame-size",
    about: "throughput by frame size: those of RFC 2544, IMIX, jumbo, and 64 KiB TCP frames that owe their segmentation",
    explain: "As netns one-to-one, with UDP over IPv4. Sizes count the checksum (FCS). Of gso frames each segment counts, \
        whether it arrives cut or not.",
    contestants: &["vswitch", "vswitch-interrupt", "vswitch-busy", "bridge", "vde", "ovs", "ovs-tso", "veth", "loop"],
    needs: &[],
    quick: false,
    metrics,
    cases,
    // Neither can carry what owes a checksum to a TAP that has no offloads, and neither lets a jumbo frame through between
    // TAPs that were moved to other namespaces.
    fits: |who, parameters| {
        let is = |name| parameters.get("size") == Some(&size(name));
        !(matches!(who, "vde" | "ovs") && (is("gso") || is("jumbo")))
    },
    turn,
};

/// RFC 2544 §9.1, and what is longer.
const SIZES: [&str; 10] = ["64", "128", "256", "512", "1024", "1280", "1518", "imix", "jumbo", "gso"];

fn metrics() -> Vec<Metric> {
    let mut all = throughput_metrics();
    all.insert(1, Metric::new("data", "Gbit/s", Direction::HigherIsBetter, 2));
    all
}

fn cases(options: &Options) -> Vec<Parameters> {
    let few: &[&str] = match (options.smoke, options.effort) {
        (true, _) => &["64", "imix", "gso"],
        (_, Effort::Quick) => &["64", "1518", "gso"],
        _ => &SIZES,
    };
    let sizes = options.sizes.clone().unwrap_or_else(|| few.iter().map(|s| (*s).to_owned()).collect());
    sizes.iter().map(|text| parameters([("size", size(text))])).collect()
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let fabric = Fabric::new(&turn.context.setup, turn.contestant, &[Place::Netns; 2], turn.jumbo())?;
    let traffic = turn.sized(Traffic::new(mac(1), mac(0)))?;
    // The mean of what is sent; a large frame has that many segments.
    let frames = 12;
    let bytes: usize = (0..frames).map(|index| traffic.bytes_of(0, index) + FCS_BYTES).sum();
    let mean = bytes as f64 / (frames * traffic.segments()) as f64;
    let round = throughput_turn(turn, &fabric, &[Lane::new(0, 1, traffic)], &[Loop::Veth])?;
    let data = round.values.get("throughput").map_or(f64::NAN, |fps| fps * mean * 8.0 / 1e9);
    Ok(round.value("data", data))
}
