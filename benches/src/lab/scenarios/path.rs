//! The frame path alone, told in steps of a loop that does nothing.

use std::{hint::black_box, time::Instant};

use anyhow::ensure;

use super::parameters;
use crate::{
    lab::{Options, Scenario, Turn},
    measure::go_on,
    noise::{STEPS, piece},
    results::{Direction, Metric, Parameters, Round},
    stats::median,
    turns::{Aim, NOW, Turns},
};

pub const SCENARIO: Scenario = Scenario {
    name: "path",
    about: "what a frame costs from receiving to sending, on ports in memory: the switch without the kernel",
    explain: "One worker in this process, 64-byte frames, 100 000 addresses in the table. Short pieces of it and of the null loop \
        take turns on one processor; the ratio of neighbours is free of what the rest of the machine does, and so tells a few \
        per cent. A step of the null loop is a multiplication, an addition and a shift that wait for each other. The build \
        that measures is the one that is measured.",
    contestants: &["vswitch"],
    needs: &[],
    quick: false,
    metrics: || vec![Metric::new("relative", "null-loop steps/frame", Direction::LowerIsBetter, 2)],
    cases,
    fits: |_, _| true,
    turn,
};

/// Turns of a piece: 6400 frames, some 300 µs.
const PIECE: usize = 100;
const PIECE_FRAMES: f64 = 6400.0;
/// Pieces before the first that counts.
const WARM_UP: usize = 20;

fn cases(options: &Options) -> Vec<Parameters> {
    let all: &[&str] = if options.smoke { &["warm"] } else { &["warm", "random"] };
    all.iter().map(|kind| parameters([("destinations", (*kind).into())])).collect()
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let aim = if turn.word("destinations")? == "random" { Aim::Random } else { Aim::Warm };
    let mut turns = Turns::new(1, aim)?;
    let worker = &mut turns.workers[0];
    let mut path = || (0..PIECE).all(|_| worker.turn(NOW));
    ensure!((0..WARM_UP).all(|_| path()), "a worker had nothing to do");
    let (mut relative, mut value) = (Vec::new(), 1);
    let begin = Instant::now();
    while begin.elapsed() < turn.context.time {
        go_on()?;
        let clock = Instant::now();
        ensure!(path(), "a worker had nothing to do");
        let per_frame = clock.elapsed().as_nanos() as f64 / PIECE_FRAMES;
        let clock = Instant::now();
        value = piece(black_box(value));
        let per_step = clock.elapsed().as_nanos() as f64 / f64::from(STEPS);
        relative.push(per_frame / per_step);
    }
    turns.check()?;
    Ok(Round::new(turn.round).value("relative", median(&relative)))
}
