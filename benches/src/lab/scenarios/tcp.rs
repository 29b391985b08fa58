//! TCP, by iperf3.

use super::{ON_HOSTS, parameters};
use crate::{
    contestants::Wires,
    cpu::Meter,
    lab::{Options, Scenario, Turn},
    measure::{ADDRESSES, Lab},
    results::{Direction, Effort, Metric, Parameters, Party, Round},
    tools::tcp_streams,
};

pub const SCENARIO: Scenario = Scenario {
    name: "tcp",
    about: "TCP throughput between two hosts, with 1 to N streams, by iperf3",
    explain: "One run of iperf3 for --time, a second at least; the receiver's rate, the sender's retransmits.",
    contestants: ON_HOSTS,
    needs: &[("iperf3", "iperf3"), ("ss", "iproute2")],
    quick: true,
    metrics: || {
        vec![
            Metric::new("TCP", "Gbit/s", Direction::HigherIsBetter, 2),
            Metric::new("retransmits", "", Direction::LowerIsBetter, 0),
            Metric::new("CPU time", "ns/KB", Direction::LowerIsBetter, 0),
        ]
    },
    cases,
    fits: |_, _| true,
    turn,
};

fn cases(options: &Options) -> Vec<Parameters> {
    let streams: &[u64] = match (options.smoke, options.effort) {
        (true, _) | (_, Effort::Quick) => &[1],
        (_, Effort::Normal) => &[1, 4],
        (_, Effort::Full) => &[1, 4, 16],
    };
    streams.iter().map(|streams| parameters([("streams", (*streams).into())])).collect()
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let lab = Lab::new(&turn.context.setup, turn.contestant, Wires::Taps)?;
    let [near, far] = &lab.hosts;
    let meter = Meter::start(lab.forwarder.pid())?;
    let time = turn.context.time.max(std::time::Duration::from_secs(1));
    let found = tcp_streams(near, far, ADDRESSES[1], time, turn.number("streams")?)?;
    let charge = meter.charge(0, 0)?;
    let kilobytes = found.bits_per_second * time.as_secs_f64() / 8e3;
    let mut round = Round::new(turn.round)
        .value("TCP", found.bits_per_second / 1e9)
        .value("retransmits", found.retransmits as f64)
        .value("CPU time", charge.busy as f64 / kilobytes);
    round.cpu_ns = [(Party::Switch, charge.switch), (Party::Softirq, charge.softirq)].into();
    Ok(round)
}
