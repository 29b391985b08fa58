//! A capture, sent again.

use anyhow::Context as _;

use super::ON_HOSTS;
use crate::{
    cpu::Meter,
    lab::{Fabric, Options, Place, Scenario, Turn},
    results::{Direction, Frames, Metric, Parameters, Party, Round},
    run::{Limit, run},
};

pub const SCENARIO: Scenario = Scenario {
    name: "replay",
    about: "a capture (--pcap FILE), sent from one host to another at its own pace, --speed X times as fast, or --fast",
    explain: "Frames are accounted for by their content. All are sent by one host: a switch that has learned an address \
        there sends no frame to it back, so of a two-way capture each contestant that learns loses the answers.",
    contestants: ON_HOSTS,
    needs: &[],
    quick: false,
    metrics: || {
        vec![
            Metric::new("throughput", "frames/s", Direction::HigherIsBetter, 0),
            Metric::new("loss", "%", Direction::LowerIsBetter, 2),
            Metric::new("CPU time", "ns/frame", Direction::LowerIsBetter, 0),
        ]
    },
    cases: |_: &Options| vec![Parameters::new()],
    fits: |_, _| true,
    turn,
};

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let (recording, pace) = turn.context.recording.as_ref().context("no capture was given: --pcap FILE")?;
    let fabric = Fabric::new(&turn.context.setup, turn.contestant, &[Place::Netns; 2], true)?;
    let (mut tx, mut rx) = (fabric.tx(0, false)?, fabric.rx(1)?);
    let meter = Meter::start(fabric.pid())?;
    let limit = Limit::frames(recording.frames());
    let run = run(&mut recording.source(), &mut *tx, &mut *rx, recording.schedule(*pace), recording.judge(), limit)?;
    let charge = meter.charge(run.sent.cpu_ns, run.seen.cpu_ns)?;
    let (sent, accounts) = (run.sent.frames, run.seen.judge.accounts());
    let lost = run.seen.judge.lost(sent);
    let mut round = Round::new(turn.round)
        .value("throughput", run.per_second(accounts.received))
        .value("loss", lost as f64 / sent as f64 * 100.0)
        .value("CPU time", charge.busy as f64 / accounts.received as f64);
    round.frames = Some(Frames {
        sent,
        received: accounts.received,
        lost,
        reordered: accounts.reordered,
        duplicates: accounts.duplicated,
        // By content, what is damaged cannot be told from what others sent.
        corrupt: 0,
    });
    round.cpu_ns = [
        (Party::Switch, charge.switch),
        (Party::Softirq, charge.softirq),
        (Party::Generator, charge.generator),
        (Party::Sink, charge.sink),
    ]
    .into();
    Ok(round)
}
