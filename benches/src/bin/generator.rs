//! What the generator can do on this machine, printed: its ceilings, and how exactly it keeps a rate. As root.

use std::time::Duration;

use switch_core::mac::MacAddr;
use vswitch_benches::{
    noise::NullLoop,
    run::Limit,
    selftest::{Loop, ceiling, over},
    traffic::Traffic,
};

const TIME: Duration = Duration::from_secs(2);
/// Frames with FCS.
const SIZES: [usize; 2] = [64, 1518];
const RATES: [f64; 3] = [1000.0, 50_000.0, 200_000.0];

fn main() -> anyhow::Result<()> {
    let traffic = Traffic::new(MacAddr([2, 0, 0, 0, 0, 2]), MacAddr([2, 0, 0, 0, 0, 1]));
    let noise = NullLoop::start()?;
    for way in Loop::ALL {
        for size in SIZES {
            let ceiling = ceiling(way, &traffic.clone().size(size), TIME)?;
            println!(
                "{way:?}, {size} bytes: {:.0} sent, {:.0} received per s",
                ceiling.sent_per_s, ceiling.received_per_s
            );
        }
    }
    for rate in RATES {
        let run = over(Loop::Veth, &traffic.clone().rate(rate), Limit::time(TIME))?;
        let lag = run.sent.lag.unwrap_or_default();
        println!(
            "{rate:.0} wanted: {:.1} per s ({:+.4} %), lag median {} p99 {} max {} ns, lost {}",
            run.sent.rate,
            (run.sent.rate / rate - 1.0) * 100.0,
            lag.median_ns,
            lag.p99_ns,
            lag.max_ns,
            run.outcome().lost
        );
    }
    println!("null loop: {:?}", noise.finish()?);
    Ok(())
}
