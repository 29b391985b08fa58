//! How many addresses a switch keeps, and how fast it learns them (RFC 2889 §5.7 and §5.8).

use switch_core::mac::MacAddr;

use super::parameters;
use crate::{
    lab::{Fabric, Options, Place, Scenario, Turn, fabric::mac, load, load::Lane},
    measure::go_on,
    results::{Direction, Effort, Metric, Parameters, Round},
    run::Limit,
    traffic::{Flows, Traffic},
};

pub const SCENARIO: Scenario = Scenario {
    name: "mac-scale",
    about: "how many of N addresses a switch keeps, and how fast it learns them (RFC 2889)",
    explain: "A learning port sends from N addresses, a test port to each of them; what reaches a third, monitoring port was \
        flooded, so not learned. Learned at a moderate rate; then, for up to 10,000, as fast as possible and at ever half the \
        rate until none is flooded.",
    contestants: &["vswitch", "bridge", "vde", "ovs"],
    needs: &[],
    quick: false,
    metrics: || {
        vec![
            Metric::new("learned", "% of addresses", Direction::HigherIsBetter, 2),
            Metric::new("learning rate", "addresses/s", Direction::HigherIsBetter, 0),
        ]
    },
    cases,
    fits: |_, _| true,
    turn,
};

/// Ports: of the test, of the learning, of the monitor.
const TEST: usize = 0;
const LEARNING: usize = 1;
const MONITOR: usize = 2;
/// What no contestant loses frames at.
const MODERATE_FPS: f64 = 20_000.0;
/// Above, learning rates are not searched for: every try needs new addresses, and tables are full some time.
const MAX_FOR_RATE: u64 = 10_000;
const TRIES: u32 = 6;

fn cases(options: &Options) -> Vec<Parameters> {
    let counts: &[u64] = match (options.smoke, options.effort) {
        (true, _) => &[500],
        (_, Effort::Full) => &[1000, 10_000, 30_000, 60_000],
        _ => &[1000, 10_000],
    };
    counts.iter().map(|n| parameters([("addresses", (*n).into())])).collect()
}

/// The first of the addresses of a try.
fn base(attempt: u32) -> MacAddr {
    MacAddr([2, 0x10 + attempt as u8, 0, 0, 0, 0])
}

/// Learns so many new addresses at a rate; frames per second that were sent, and how many addresses were flooded to.
fn learn(fabric: &Fabric, attempt: u32, count: u64, fps: Option<f64>) -> anyhow::Result<(f64, u64)> {
    go_on()?;
    let (addresses, limit) = (count as u32, Limit::frames(count));
    let flows = Flows { count: addresses, src: base(attempt), sources: addresses, dst: mac(TEST), destinations: 1 };
    let traffic = Traffic { flows, ..Traffic::new(mac(TEST), base(attempt)) };
    let learned = load::offer(fabric, &[Lane::new(LEARNING, TEST, traffic)], fps, limit, false)?;
    let flows = Flows { count: addresses, src: mac(TEST), sources: 1, dst: base(attempt), destinations: addresses };
    let traffic = Traffic { flows, ..Traffic::new(base(attempt), mac(TEST)) };
    let lane = Lane { from: TEST, to: vec![LEARNING, MONITOR], traffic, arrives: None };
    let tested = load::offer(fabric, &[lane], Some(MODERATE_FPS), limit, false)?;
    Ok((learned.offered_fps, tested.received_at.get(&MONITOR).copied().unwrap_or(0)))
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let count = turn.number("addresses")?;
    let fabric = Fabric::new(&turn.context.setup, turn.contestant, &[Place::Netns; 3], false)?;
    let (_, flooded) = learn(&fabric, 0, count, Some(MODERATE_FPS))?;
    let mut round = Round::new(turn.round).value("learned", (count - flooded) as f64 / count as f64 * 100.0);
    if count <= MAX_FOR_RATE {
        // New addresses each time, in a table that has the others already: together they fit where 60,000 do.
        let part = count.min(MAX_FOR_RATE / 2);
        let mut fps = None;
        for attempt in 1..=TRIES {
            let (sent_fps, flooded) = learn(&fabric, attempt, part, fps)?;
            if flooded == 0 {
                round = round.value("learning rate", sent_fps);
                break;
            }
            fps = Some(fps.unwrap_or(sent_fps) / 2.0);
        }
    }
    Ok(round)
}
