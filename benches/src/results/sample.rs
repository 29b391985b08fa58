//! Invented results with everything in them that a file can hold: for tests, and to look at reports without measuring.

use std::collections::BTreeMap;

use super::{
    Case, Contestant, Direction, Effort, Frames, Latency, Machine, Mark, MarkKind, Metric, Noise, Party, Profile,
    Results, Role, Round, Run, Scenario, Search, Skipped, Stage, State, Symbol, Trial,
};
use crate::{search::Goal, stats::Dice};

/// Contestants of the sample: name, role, frames per second at 64 bytes, median latency in ns, CPU ns per frame of the switch
/// and of soft interrupts.
const WHO: [(&str, Role, f64, f64, [f64; 2]); 5] = [
    ("loop", Role::Null, 1_320_000.0, 5_100.0, [610.0, 95.0]),
    ("vswitch", Role::Ours, 1_010_000.0, 7_900.0, [790.0, 110.0]),
    ("vswitch-busy", Role::Ours, 1_240_000.0, 4_300.0, [805.0, 70.0]),
    ("bridge", Role::Reference, 905_000.0, 6_800.0, [0.0, 960.0]),
    ("ovs", Role::Reference, 402_000.0, 21_500.0, [2_350.0, 180.0]),
];

/// Invented results, the same for each seed. Not one of the numbers was measured.
#[must_use]
pub fn sample(seed: u64) -> Results {
    let mut dice = Dice::new(seed);
    let run = Run {
        started: "2026-01-01T12:00:00Z".to_owned(),
        ended: Some("2026-01-01T12:41:07Z".to_owned()),
        command: ["vswitch", "bench", "--full", "--out", "sample"].map(str::to_owned).to_vec(),
        vswitch_version: "0.1.0".to_owned(),
        commit: Some("0123456789ab".to_owned()),
        effort: Effort::Full,
        search: Some(Search { goal: Goal::PARTIAL_DROP, least_load_ratio: 0.001, budget_s: 60.0 }),
        state: State::Complete,
        seed,
        remarks: vec!["Invented numbers: nothing here was measured.".to_owned()],
    };
    let text = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let machine = Machine {
        cpu_model: "Sample Processor 9000 <8 cores> & more".to_owned(),
        cores: 8,
        kernel: "6.1.0-sample".to_owned(),
        memory_bytes: Some(16 << 30),
        frequency: "acpi-cpufreq, performance, boost off".to_owned(),
        mitigations: text(&[("spectre_v2", "Mitigation: Retpolines"), ("meltdown", "Not affected")]),
        hypervisor: Some("KVM".to_owned()),
        programs: text(&[("ovs-vswitchd", "3.1.0"), ("iproute2", "6.1.0")]),
    };
    let mut results = Results::new(run, machine);
    let loops: Vec<f64> = (0..60).map(|_| 1000.0 * (1.0 + 0.011 * dice.normal())).collect();
    results.noise = Noise::of("ns", &loops, Noise::THRESHOLD);
    results.scenarios.push(throughput(&mut dice));
    results.scenarios.push(bulk(&mut dice));
    results
}

fn metrics() -> Vec<Metric> {
    vec![
        Metric::new("throughput", "frames/s", Direction::HigherIsBetter, 0),
        Metric::new("p99 latency", "µs", Direction::LowerIsBetter, 1),
        Metric::new("CPU time", "ns/frame", Direction::LowerIsBetter, 0),
    ]
}

fn vde() -> Contestant {
    let skipped =
        Skipped { reason: "vde_switch is not installed".to_owned(), install: Some("apt-get install vde2".to_owned()) };
    Contestant { name: "vde".to_owned(), role: Role::Reference, skipped: Some(skipped), ..Contestant::default() }
}

fn throughput(dice: &mut Dice) -> Scenario {
    let mut cases = Vec::new();
    for size in [64u64, 512, 1514] {
        let rounds = 9;
        let load: Vec<f64> = (0..rounds).map(|_| 1.0 + 0.012 * dice.normal()).collect();
        let mut contestants: Vec<Contestant> = WHO
            .iter()
            .map(|&(name, role, fps, ns, cpu)| {
                let fps = fps * (1.0 - size as f64 / 9000.0);
                let rounds =
                    (0..rounds as u32).map(|r| round(dice, r, name, fps * load[r as usize], ns, cpu)).collect();
                let settings = if name == "ovs" { "userspace-tso-enable=false".to_owned() } else { String::new() };
                Contestant { name: name.to_owned(), role, settings, skipped: None, rounds }
            })
            .collect();
        contestants.push(vde());
        let parameters = BTreeMap::from([("flows".to_owned(), 1u64.into()), ("size".to_owned(), size.into())]);
        cases.push(Case { parameters, rounds: rounds as u32, seconds: 2.0, contestants });
    }
    let about = "Two hosts behind TAPs, UDP-like frames one way; the highest load without loss".to_owned();
    Scenario { name: "tap".to_owned(), about, metrics: metrics(), cases }
}

fn round(dice: &mut Dice, number: u32, name: &str, fps: f64, ns: f64, cpu: [f64; 2]) -> Round {
    let fps = fps * (1.0 + 0.015 * dice.normal());
    let (sent, lost) = ((fps * 2.0) as u64, (dice.uniform() * 20.0) as u64);
    let latency: Vec<Latency> = [10.0, 50.0, 90.0]
        .iter()
        .map(|&percent| {
            let mut recorder = Latency::recorder();
            for _ in 0..3000 {
                let tail = if dice.uniform() < 0.004 { 6.0 + 14.0 * dice.uniform() } else { 1.0 };
                let value = ns * (1.0 + percent / 150.0) * (0.18 * dice.normal()).exp() * tail;
                let _ = recorder.record(value as u64);
            }
            Latency::of("one way", Some(percent), fps * percent / 100.0, &recorder)
        })
        .collect();
    let trials = [0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5].map(|part| {
        let (load, seconds) = (fps * part, 1.0);
        let over = ((part - 1.0) / part).max(0.0) + 2e-5 * dice.uniform() * part.powi(6);
        Trial { load_fps: load, seconds, sent: load as u64, lost: (load * over) as u64 }
    });
    let per_frame = |cost: f64| (cost * (1.0 + 0.02 * dice.normal()) * sent as f64).max(0.0) as u64;
    let charged = [cpu[0], cpu[1], 380.0, 290.0].map(per_frame);
    let parties = [Party::Switch, Party::Softirq, Party::Generator, Party::Sink];
    let total = (charged[0] + charged[1]) as f64 / sent as f64;
    let p99_us = latency[1].p99_ns as f64 / 1000.0;
    let mut round = Round::new(number).value("throughput", fps).value("p99 latency", p99_us).value("CPU time", total);
    round.frames = Some(Frames { sent, received: sent - lost, lost, reordered: 0, duplicates: 0, corrupt: 0 });
    round.cpu_ns = parties.into_iter().zip(charged).collect();
    round.latency = latency;
    round.trials = trials.to_vec();
    if name == "loop" {
        let text = "the generator was at 100 % of its processor".to_owned();
        let metric = Some("throughput".to_owned());
        round.marks.push(Mark { kind: MarkKind::GeneratorBound, text, metric, ceiling: Some(1_350_000.0) });
    }
    if name.starts_with("vswitch") && number == 0 {
        round.profile = Some(profile());
    }
    round
}

fn profile() -> Profile {
    let symbol =
        |name: &str, object: &str, percent| Symbol { name: name.to_owned(), object: object.to_owned(), percent };
    let folded = [
        "vswitch;worker::run;turn;tap::read;[kernel];tun_chr_read_iter 310",
        "vswitch;worker::run;turn;tap::read;[kernel];copy_to_iter 95",
        "vswitch;worker::run;turn;pipeline::forward;fdb::lookup 62",
        "vswitch;worker::run;turn;pipeline::forward;fdb::learn 18",
        "vswitch;worker::run;turn;pipeline::forward 40",
        "vswitch;worker::run;turn;tap::write;[kernel];tun_get_user;netif_receive_skb 240",
        "vswitch;worker::run;turn;tap::write;[kernel];tun_get_user;alloc_skb_with_frags 110",
        "vswitch;worker::run;epoll_wait;[kernel];schedule 125",
    ];
    let stage = |name: &str, cycles_per_frame| Stage { name: name.to_owned(), cycles_per_frame };
    Profile {
        event: "cycles".to_owned(),
        samples: 1000,
        top: vec![
            symbol("tun_chr_read_iter", "", 31.0),
            symbol("netif_receive_skb", "", 24.0),
            symbol("schedule", "", 12.5),
            symbol("fdb::lookup<MacAddr>", "vswitch", 6.2),
        ],
        folded: folded.map(str::to_owned).to_vec(),
        stages: vec![stage("receive", 910.0), stage("classify", 62.0), stage("FDB", 148.0), stage("transmit", 1020.0)],
    }
}

fn bulk(dice: &mut Dice) -> Scenario {
    let contestants = WHO
        .iter()
        .map(|&(name, role, fps, ..)| {
            let rounds =
                (0..5).map(|r| Round::new(r).value("TCP", 14.0 + fps / 60_000.0 * (1.0 + 0.04 * dice.normal())));
            let mut rounds: Vec<Round> = rounds.collect();
            if name == "ovs" {
                rounds.truncate(4);
                let error = Some("iperf3: the server has terminated".to_owned());
                rounds.push(Round { error, ..Round::new(4) });
            }
            Contestant { name: name.to_owned(), role, rounds, ..Contestant::default() }
        })
        .collect();
    Scenario {
        name: "bulk".to_owned(),
        about: "One TCP connection through the switch".to_owned(),
        metrics: vec![Metric::new("TCP", "Gbit/s", Direction::HigherIsBetter, 1)],
        cases: vec![Case { parameters: BTreeMap::new(), rounds: 5, seconds: 2.0, contestants }],
    }
}
