//! How exactly ports keep the rates that they were given.

use super::{parameters, size};
use crate::{
    contestants::Setup,
    lab::{
        Fabric, Options, Place, Scenario, Turn,
        fabric::mac,
        load::{self, Lane},
    },
    results::{Direction, Metric, Parameters, Round},
    run::Limit,
    traffic::{FCS_BYTES, Traffic},
};

pub const SCENARIO: Scenario = Scenario {
    name: "rates",
    about: "how far what comes through is from the rate of a port, when half as much again is offered",
    explain: "to: rate-to= at the receiver's port, which drops; from: rate-from= at the sender's, which waits. Bytes of frames \
        without FCS; the burst is what the rate carries in 5 ms, so that it is no part of the figure.",
    contestants: &["vswitch", "vswitch-interrupt", "vswitch-busy"],
    needs: &[],
    quick: false,
    metrics: || {
        vec![
            Metric::new("error", "% of the rate", Direction::LowerIsBetter, 2),
            Metric::new("rate", "KiB/s", Direction::HigherIsBetter, 0),
        ]
    },
    cases,
    fits: |_, _| true,
    turn,
};

/// What passes at once after a silence: what the rate carries in this fraction of a second, three long frames at least, in KiB.
const BURST_FRACTION: u64 = 200;
const LEAST_BURST: u64 = 5;
/// What is offered, as a multiple of the rate.
const OFFERED: f64 = 1.5;

fn cases(options: &Options) -> Vec<Parameters> {
    let sizes = options.sizes.clone().unwrap_or_else(|| vec!["1518".to_owned()]);
    let rates: &[u64] = if options.smoke { &[10_000] } else { &[1000, 10_000, 100_000] };
    let mut all = Vec::new();
    for text in sizes.iter().filter(|text| text.parse::<u64>().is_ok()) {
        for way in ["to", "from"] {
            let of = |rate: &u64| parameters([("size", size(text)), ("way", way.into()), ("KiB/s", (*rate).into())]);
            all.extend(rates.iter().map(of));
        }
    }
    all
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let (way, rate) = (turn.word("way")?, turn.number("KiB/s")?);
    let bytes = turn.number("size")? - FCS_BYTES as u64;
    let common = turn.context.setup.ports.first().map_or("", String::as_str);
    let burst = (rate / BURST_FRACTION).max(LEAST_BURST);
    let bounded = format!("{common},rate-{way}={rate}::{burst}");
    let ports = if way == "from" { vec![bounded, common.to_owned()] } else { vec![common.to_owned(), bounded] };
    let setup = Setup { ports, ..turn.context.setup.clone() };
    let fabric = Fabric::new(&setup, turn.contestant, &[Place::Netns; 2], turn.jumbo())?;
    let lanes = [Lane::new(0, 1, turn.sized(Traffic::new(mac(1), mac(0)))?)];
    let load = OFFERED * (rate * 1024) as f64 / bytes as f64;
    load::warm_up(turn, &fabric, &lanes, Some(load))?;
    let measured = load::offer(&fabric, &lanes, Some(load), Limit::time(turn.context.time), false)?;
    let found = measured.received_fps * bytes as f64 / 1024.0;
    let mut round =
        Round::new(turn.round).value("error", (found / rate as f64 - 1.0).abs() * 100.0).value("rate", found);
    measured.account(&mut round, "rate", None);
    Ok(round)
}
