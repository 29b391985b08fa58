//! Measures every kind of port against every other: `pairs [SECONDS]`, as root. One worker; the far ends have a thread each.

use std::time::Duration;

use anyhow::Context;
use switch_core::worker::PollMode;
use vswitch_benches::pairs::{KINDS, Lab};

fn main() -> anyhow::Result<()> {
    let seconds: u64 = std::env::args().nth(1).map_or(Ok(1), |text| text.parse()).context("usage: pairs [SECONDS]")?;
    let mut lab = Lab::new(PollMode::Adaptive)?;
    println!("| thousand frames of 60 / 1514 bytes per second | to {} |", KINDS.join(" | to "));
    println!("|---|{}", "---:|".repeat(KINDS.len()));
    for (from, kind) in KINDS.iter().enumerate() {
        let mut cells = Vec::new();
        for to in 0..KINDS.len() {
            if from == to {
                cells.push("–".to_owned());
                continue;
            }
            let mut rate = |bytes| lab.measure(from, to, bytes, Duration::from_secs(seconds)).map(|r| r / 1e3);
            cells.push(format!("{:.0} / {:.0}", rate(60)?, rate(1514)?));
        }
        println!("| from {kind} | {} |", cells.join(" | "));
    }
    Ok(())
}
