use super::*;
use crate::{
    results::{Machine, Mark, Metric, Noise, Round, Run, Scenario},
    stats::Dice,
};

/// How synthetic rounds are made.
#[derive(Clone, Copy)]
struct World {
    rounds: u32,
    /// Speed of our switch, and of the machine.
    ours: f64,
    machine: f64,
    /// Deviation within a round, and of what all in a round have in common.
    sigma: f64,
    common: f64,
    /// Whether a value is 15 % lower every other time.
    bimodal: bool,
    control: bool,
}

const CALM: World =
    World { rounds: 9, ours: 1.0, machine: 1.0, sigma: 0.03, common: 0.0, bimodal: false, control: true };

fn run(seed: u64, world: &World) -> Results {
    let mut dice = Dice::new(seed);
    let load: Vec<f64> = (0..world.rounds).map(|_| 1.0 + world.common * dice.normal()).collect();
    let mut contestant = |name: &str, role, speed: f64| {
        let rounds = (0..world.rounds).map(|r| {
            let mode = if world.bimodal && dice.uniform() < 0.5 { 0.85 } else { 1.0 };
            let rate =
                1e6 * speed * mode * world.machine * load[r as usize].max(0.1) * (1.0 + world.sigma * dice.normal());
            Round::new(r).value("rate", rate).value("cost", 1e9 / rate)
        });
        Contestant { name: name.to_owned(), role, rounds: rounds.collect(), ..Contestant::default() }
    };
    let mut contestants = vec![contestant("vswitch", Role::Ours, world.ours)];
    if world.control {
        contestants.push(contestant("bridge", Role::Reference, 0.8));
        contestants.push(contestant("loop", Role::Null, 1.3));
    }
    let mut results = Results::new(Run::default(), Machine::default());
    results.scenarios.push(Scenario {
        name: "tap".to_owned(),
        about: String::new(),
        metrics: vec![
            Metric::new("rate", "frames/s", Direction::HigherIsBetter, 0),
            Metric::new("cost", "ns", Direction::LowerIsBetter, 0),
        ],
        cases: vec![Case { rounds: world.rounds, seconds: 1.0, contestants, ..Case::default() }],
    });
    results
}

fn between(seed: u64, old: &World, new: &World) -> Comparison {
    compare(&run(seed * 2, old), &run(seed * 2 + 1, new), &Options::default())
}

/// How many of 300 pairs have an exit status.
fn share(status: u8, old: &World, new: &World) -> usize {
    (0..300).filter(|seed| between(*seed, old, new).exit_status() == status).count()
}

#[test]
fn equals_are_no_regression_but_for_the_stated_rate() {
    let worlds = [
        CALM,
        World { control: false, ..CALM },
        World { common: 0.1, ..CALM },
        World { bimodal: true, ..CALM },
        World { rounds: 20, sigma: 0.1, ..CALM },
    ];
    for (i, world) in worlds.iter().enumerate() {
        let changed = |seed| {
            let rows = between(seed, world, world).rows;
            rows.iter().any(|row| matches!(row.outcome, Outcome::Regression | Outcome::Improvement))
        };
        let alarms = (0..300).filter(|seed| changed(*seed)).count();
        // 5 % of 300 are 15; chance may add two deviations.
        assert!(alarms <= 23, "world {i}: {alarms} false alarms of 300");
    }
}

#[test]
fn a_tenth_slower_is_found_in_nine_rounds() {
    for (old, least) in [
        (CALM, 285),
        (World { common: 0.1, ..CALM }, 285),
        (World { common: 0.3, sigma: 0.02, ..CALM }, 285),
        (World { control: false, ..CALM }, 285),
    ] {
        let found = share(1, &old, &World { ours: 0.9, ..old });
        assert!(found >= least, "{found} of 300 found with common noise of {}", old.common);
    }
}

#[test]
fn a_slower_machine_is_no_regression_and_a_faster_one_hides_none() {
    let slow = World { machine: 0.7, ..CALM };
    assert!(share(1, &CALM, &slow) <= 15);
    assert!(
        share(1, &World { control: false, ..CALM }, &World { control: false, ..slow }) >= 299,
        "without control it is"
    );
    assert!(share(1, &CALM, &World { machine: 1.5, ours: 0.88, ..CALM }) >= 285);
}

#[test]
fn directions_are_minded() {
    let better = between(3, &CALM, &World { ours: 1.3, ..CALM });
    let outcomes: Vec<Outcome> = better.rows.iter().filter(|r| r.contestant == "vswitch").map(|r| r.outcome).collect();
    assert_eq!(outcomes, [Outcome::Improvement; 2], "{}", better.markdown());
    assert_eq!(better.exit_status(), 0);
    let worse = between(3, &CALM, &World { ours: 0.7, ..CALM });
    assert_eq!(worse.with(Outcome::Regression).count(), 2);
    assert_eq!(worse.with(Outcome::Control).count(), 4);
    let text = worse.markdown();
    assert!(text.contains("REGRESSION") && text.contains("\n2 regression(s)"), "{text}");
    assert_eq!(worse.json()["exit_status"], 1);
    assert_eq!(worse.json()["rows"][0]["outcome"], "regression");
}

#[test]
fn few_rounds_cannot_tell_whatever_they_show() {
    for rounds in [1, 2, 3] {
        let few = World { rounds, ..CALM };
        let comparison = between(1, &few, &World { ours: 0.5, ..few });
        assert_eq!(comparison.with(Outcome::CannotTell).count(), 2, "{}", comparison.markdown());
        assert_eq!(comparison.exit_status(), 2);
    }
    let empty = Results::new(Run::default(), Machine::default());
    assert_eq!(compare(&empty, &run(1, &CALM), &Options::default()).exit_status(), 2);
}

#[test]
fn a_noisy_machine_widens_what_is_nothing() {
    let (old, mut new) = (run(1, &CALM), run(2, &World { ours: 0.9, ..CALM }));
    new.noise = Noise::of("ns", &[100.0, 80.0, 120.0, 75.0, 125.0], Noise::THRESHOLD);
    let comparison = compare(&old, &new, &Options::default());
    assert!(comparison.rows[0].threshold >= 0.2);
    assert_eq!(comparison.with(Outcome::NoChange).count(), 2, "{}", comparison.markdown());
}

#[test]
fn a_control_at_a_ceiling_is_none_and_marks_are_said() {
    let [mut old, mut new] = [1, 2].map(|seed| run(seed, &CALM));
    for results in [&mut old, &mut new] {
        for contestant in &mut results.scenarios[0].cases[0].contestants {
            if contestant.name != "bridge" {
                let text = "the generator was busy".to_owned();
                let mark =
                    Mark { kind: MarkKind::GeneratorBound, text, metric: Some("rate".to_owned()), ceiling: None };
                contestant.rounds[0].marks.push(mark);
            }
        }
    }
    let comparison = compare(&old, &new, &Options::default());
    assert_eq!(comparison.rows[0].controls, ["bridge"]);
    assert!(comparison.rows[0].note.contains("bound by the generator"));
    let cost = comparison.rows.iter().find(|r| r.metric == "cost").unwrap();
    assert_eq!((cost.controls.len(), cost.note.as_str()), (2, ""));
}

#[test]
fn losses_that_were_none_can_get_worse() {
    let with = |lost: f64| {
        let mut results = run(1, &World { control: false, ..CALM });
        results.scenarios[0].metrics = vec![Metric::new("lost", "frames", Direction::LowerIsBetter, 0)];
        for round in &mut results.scenarios[0].cases[0].contestants[0].rounds {
            *round = Round::new(round.round).value("lost", lost);
        }
        results
    };
    let comparison = compare(&with(0.0), &with(50.0), &Options::default());
    assert_eq!((comparison.rows[0].ratio, comparison.exit_status()), (None, 1), "{}", comparison.markdown());
    assert_eq!(compare(&with(0.0), &with(0.0), &Options::default()).exit_status(), 0);
}
