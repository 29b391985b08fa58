//! The switch in a bottle: workers turned by hand on one thread, ports in memory, a controller that changes things while
//! frames are on their way, faults, and a naive model that says after every turn what must have come out.
//!
//! Everything follows from a seed. `VSWITCH_SIM_SEED=n` runs that one, which is printed when a run fails;
//! `VSWITCH_SIM_SEEDS=n` runs the first `n`, `VSWITCH_SIM_STEPS=n` sets the length of each.

mod frames;
mod model;
mod owed;
mod world;

use world::World;

const SEEDS: u64 = 120;
const STEPS: usize = 2000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn what_comes_out_is_what_the_model_says() {
    let steps = number("VSWITCH_SIM_STEPS").map_or(STEPS, |n| n as usize);
    let seeds = match number("VSWITCH_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number("VSWITCH_SIM_SEEDS").unwrap_or(SEEDS) + 1,
    };
    let whole = seeds.end - seeds.start >= SEEDS;
    let mut seen = std::collections::BTreeMap::<&str, u64>::new();
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..steps {
            world.step();
        }
        world.finish();
        for (what, n) in world.seen() {
            *seen.entry(what).or_default() += n;
        }
    }
    // A simulation in which a thing never happens proves nothing about it.
    if whole {
        for what in [
            "rx_decided",
            "tx_frames",
            "runt",
            "giant",
            "bad_offload",
            "multicast_source",
            "zero_source",
            "reserved_address",
            "no_domain",
            "tag_not_allowed",
            "ingress_port_down",
            "flap_hold",
            "same_port",
            "not_member",
            "role_forbidden",
            "ambiguous_tag",
            "no_destination",
            "egress_port_down",
            "queue_full",
            "gone",
            "publications under way",
            "balanced",
            "balanced",
            "slept",
        ] {
            assert!(seen.get(what).is_some_and(|n| *n > 0), "\"{what}\" never happened: {seen:?}");
        }
    }
}
