//! The end-to-end benchmark: one scenario, some contestants, medians and paired ratios.
//!
//! Contestants take turns run by run, so that what the machine does besides hits all of them alike; what counts is the
//! ratio within a round, of which the median and its bootstrap interval are printed. Every run makes its forwarder anew
//! and removes it again. SIGINT and SIGTERM end the program between two measurements, with everything removed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use vswitch_benches::{
    contestants::{Setup, WITH_DPDK, Wires, forward},
    dpdk,
    measure::{between_holders, between_hosts, go_on, obey_signals},
    nat::through_nat,
    report::{Metric, Report, Runs},
    scale::{cost, idle, many},
    tools::installed,
    vhost,
};

/// What can be shown.
struct Scenario {
    name: &'static str,
    about: &'static str,
    contestants: &'static [&'static str],
    metrics: &'static [Metric],
    /// Rounds and seconds, unless told otherwise.
    pairs: usize,
    seconds: u64,
    /// Ports of the switch, where that can be told.
    ports: usize,
    run: fn(&str, &Options) -> anyhow::Result<Vec<f64>>,
}

const fn metric(name: &'static str, digits: usize) -> Metric {
    Metric { name, digits }
}

const BETWEEN_HOSTS: &[Metric] = &[metric("60 B frames/s", 0), metric("TCP Gbit/s", 2), metric("ping -f µs", 1)];

const SCENARIOS: [Scenario; 13] = [
    Scenario {
        name: "tap",
        about: "two hosts behind TAPs (the kernel's contestants: behind veths)",
        contestants: &[
            "loop",
            "loop-busy",
            "vswitch",
            "vswitch-adaptive",
            "vswitch-busy",
            "bridge",
            "veth",
            "vde",
            "ovs",
            "ovs-tso",
        ],
        metrics: BETWEEN_HOSTS,
        pairs: 9,
        seconds: 2,
        ports: 2,
        run: |name, o| between_hosts(&o.setup, name, Wires::Taps, o.time),
    },
    Scenario {
        name: "cost",
        about: "what one of 100,000 60-byte frames per second costs the forwarding process",
        contestants: &["loop", "loop-busy", "vswitch", "vswitch-adaptive", "vswitch-busy", "ovs", "ovs-tso"],
        metrics: &[
            metric("60 B frames/s", 0),
            metric("system calls/frame", 3),
            metric("CPU ns/frame", 0),
            metric("user instructions/frame", 0),
            metric("kernel instructions/frame", 0),
            metric("cycles/frame", 0),
        ],
        pairs: 3,
        seconds: 2,
        ports: 2,
        run: |name, o| cost(&o.setup, name, o.time),
    },
    Scenario {
        name: "packet-veth",
        about: "two hosts behind veths whose near ends the switch has as netdevs",
        contestants: &["vswitch", "vswitch-adaptive", "vswitch-busy", "bridge", "veth"],
        metrics: BETWEEN_HOSTS,
        pairs: 9,
        seconds: 2,
        ports: 2,
        run: |name, o| between_hosts(&o.setup, name, Wires::Veths, o.time),
    },
    Scenario {
        name: "packet-xdp",
        about: "the same with AF_XDP beside AF_PACKET and the kernel bridge",
        contestants: &["vswitch-xdp", "vswitch-xdp-busy", "vswitch", "vswitch-busy", "bridge"],
        metrics: BETWEEN_HOSTS,
        pairs: 9,
        seconds: 2,
        ports: 2,
        run: |name, o| between_hosts(&o.setup, name, Wires::Veths, o.time),
    },
    Scenario {
        name: "packet-tap",
        about: "two TAPs that another process holds, as a VMM without vhost; the switch has the netdevs",
        contestants: &["vswitch", "vswitch-adaptive", "vswitch-busy", "bridge"],
        metrics: &[metric("60 B frames/s", 0), metric("1514 B frames/s", 0)],
        pairs: 9,
        seconds: 2,
        ports: 2,
        run: |name, o| between_holders(&o.setup, name, o.time),
    },
    Scenario {
        name: "uplink",
        about: "a guest behind a TAP and a host outside, behind a veth as NIC (the kernel's contestant: both behind veths)",
        contestants: &["vswitch", "vswitch-adaptive", "vswitch-busy", "bridge"],
        metrics: BETWEEN_HOSTS,
        pairs: 9,
        seconds: 2,
        ports: 2,
        run: |name, o| between_hosts(&o.setup, name, Wires::Uplink, o.time),
    },
    Scenario {
        name: "nat",
        about: "TCP from a guest through its network's gateway; bridge: the kernel's, with libvirt's rules",
        contestants: &["vswitch", "vswitch-adaptive", "vswitch-busy", "bridge"],
        metrics: &[
            metric("out Gbit/s", 2),
            metric("out retransmits", 0),
            metric("in Gbit/s", 2),
            metric("in retransmits", 0),
        ],
        pairs: 9,
        seconds: 2,
        ports: 2,
        run: |name, o| through_nat(&o.setup, name, o.time),
    },
    Scenario {
        name: "idle",
        about: "a switch with quiet TAPs",
        contestants: &["vswitch", "vswitch-adaptive"],
        metrics: &[metric("% of one core", 4), metric("wake-ups/s", 2)],
        pairs: 1,
        seconds: 60,
        ports: 100,
        run: |name, o| idle(&o.setup, name, o.time, o.ports),
    },
    Scenario {
        name: "many",
        about: "a switch with many TAPs from one file (--seconds means nothing here)",
        contestants: &["vswitch"],
        metrics: &[
            metric("start until all are up ms", 0),
            metric("RSS MiB", 1),
            metric("RSS KiB/port", 1),
            metric("port add ms", 1),
            metric("end s", 2),
        ],
        pairs: 1,
        seconds: 1,
        ports: 1000,
        run: |_, o| many(&o.setup, o.ports),
    },
    Scenario {
        name: "vhost-pmd",
        about: "two DPDK drivers on vhost-user ports, packets circling between them; drivers on processor 0, device on 1",
        contestants: &["vswitch-busy", "vswitch-adaptive", "ovs-dpdk", "bare-vhost"],
        metrics: &[
            metric("64 B packets/s", 0),
            metric("64 B cycles/packet", 1),
            metric("64 B drivers at work %", 1),
            metric("1500 B packets/s", 0),
            metric("1500 B cycles/packet", 1),
            metric("1500 B drivers at work %", 1),
        ],
        pairs: 9,
        seconds: 2,
        ports: 2,
        run: |name, o| vhost::pmd(&o.setup, name, o.time),
    },
    Scenario {
        name: "vhost-gso",
        about: "64 KiB segments from driver to driver through one worker, beside plain copies of as much",
        contestants: &["vswitch-busy", "memcpy"],
        metrics: &[metric("Gbit/s", 1)],
        pairs: 9,
        seconds: 1,
        ports: 2,
        run: |name, o| vhost::gso(&o.setup, name, o.time),
    },
    Scenario {
        name: "vhost-idle",
        about: "a switch with quiet virtual machines, and the first frame after a silence",
        contestants: &["vswitch-adaptive", "vswitch-busy"],
        metrics: &[metric("% of one core", 4), metric("wake-ups/s", 2), metric("first frame µs", 1)],
        pairs: 1,
        seconds: 60,
        ports: 64,
        run: |name, o| vhost::quiet_ports(&o.setup, name, o.time, o.ports),
    },
    Scenario {
        name: "vhost-gap",
        about: "frames between two drivers while the switch is restarted (--seconds means nothing here)",
        contestants: &["vswitch"],
        metrics: &[
            metric("kill -9: gap ms", 1),
            metric("frames lost", 0),
            metric("planned restart: gap ms", 1),
            metric("frames lost", 0),
        ],
        pairs: 5,
        seconds: 1,
        ports: 2,
        run: |_, o| vhost::gap(&o.setup),
    },
];

fn usage() -> String {
    let mut text = "usage: e2e [--scenario NAME] [--pairs N] [--seconds N] [--only NAME,...] [--ports N] [--vswitch PATH] \
        [--poll interrupt|adaptive|busy] [--json FILE] [--markdown FILE]\n\nscenarios, their contestants, rounds and seconds:\n"
        .to_owned();
    for s in &SCENARIOS {
        text += &format!("  {:<12} {}\n{:15}{}\n", s.name, s.about, "", s.contestants.join(" "));
        text += &format!("{:15}--pairs {} --seconds {} --ports {}\n", "", s.pairs, s.seconds, s.ports);
    }
    text + "\n--poll is the mode of the contestant `vswitch` (interrupt); the others have theirs in the name.\n\
        --ports is for the scenarios idle, many and vhost-idle."
}

struct Options {
    scenario: &'static Scenario,
    pairs: usize,
    time: Duration,
    ports: usize,
    only: Vec<String>,
    setup: Setup,
    json: Option<PathBuf>,
    markdown: Option<PathBuf>,
}

impl Options {
    fn parse(words: Vec<String>) -> anyhow::Result<Options> {
        let mut words = words.into_iter();
        let mut scenario = &SCENARIOS[0];
        let (mut pairs, mut seconds, mut ports, mut only) = (None, None, None, None);
        let (mut json, mut markdown) = (None, None);
        let binary = std::env::current_exe()?.with_file_name("vswitch");
        let poll = "interrupt".to_owned();
        let mut setup = Setup { binary, poll, arguments: Vec::new(), ports: Vec::new(), jumbo: false };
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value\n{}", usage()));
            let number = |text: String| text.parse::<usize>().with_context(|| format!("{word}: not a number"));
            match word.as_str() {
                "--scenario" => {
                    let name = value()?;
                    let found = SCENARIOS.iter().find(|s| s.name == name);
                    scenario = found.with_context(|| format!("no scenario \"{name}\"\n{}", usage()))?;
                }
                "--pairs" => pairs = Some(number(value()?)?),
                "--seconds" => seconds = Some(number(value()?)?),
                "--ports" => ports = Some(number(value()?)?),
                "--only" => only = Some(value()?.split(',').map(str::to_owned).collect::<Vec<_>>()),
                "--vswitch" => setup.binary = value()?.into(),
                "--poll" => setup.poll = value()?,
                "--json" => json = Some(value()?.into()),
                "--markdown" => markdown = Some(value()?.into()),
                _ => bail!("no option \"{word}\"\n{}", usage()),
            }
        }
        let only = only.unwrap_or_else(|| scenario.contestants.iter().map(|n| (*n).to_owned()).collect());
        if let Some(unknown) = only.iter().find(|n| !scenario.contestants.contains(&n.as_str())) {
            bail!("scenario {} has no contestant \"{unknown}\"\n{}", scenario.name, usage());
        }
        let time = Duration::from_secs(seconds.map_or(scenario.seconds, |s| s as u64));
        let (pairs, ports) = (pairs.unwrap_or(scenario.pairs), ports.unwrap_or(scenario.ports));
        if pairs == 0 || ports == 0 || time.is_zero() {
            bail!("--pairs, --seconds and --ports must be at least 1");
        }
        Ok(Options { scenario, pairs, time, ports, only, setup, json, markdown })
    }

    /// Why a contestant cannot take part.
    fn missing(&self, name: &str) -> Option<String> {
        if self.scenario.name == "vhost-pmd" {
            let ovs = name == "ovs-dpdk" && !(Path::new(WITH_DPDK).exists() && installed("ovsdb-server"));
            let why =
                ovs.then(|| "install it: apt-get install openvswitch-switch-dpdk".to_owned()).or_else(dpdk::missing);
            return why.map(|why| format!("{name}: skipped: {why}"));
        }
        let install = |program, package| {
            (!installed(program)).then(|| format!("{name}: skipped: install it: apt-get install {package}"))
        };
        match name {
            "vde" => install("vde_switch", "vde2"),
            "ovs" | "ovs-tso" => install("ovs-vswitchd", "openvswitch-switch"),
            _ if self.scenario.name == "nat" => install("nft", "nftables"),
            _ => None,
        }
    }
}

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // What the contestants `loop` and `loop-busy` are.
        ["loop", a, b] => return forward([a, b], false),
        ["loop", a, b, "--busy"] => return forward([a, b], true),
        ["--help" | "-h"] => {
            println!("{}", usage());
            return Ok(());
        }
        _ => {}
    }
    let options = Options::parse(words)?;
    obey_signals()?;
    let mut skipped = Vec::new();
    let mut failed: Vec<String> = Vec::new();
    let mut all = Vec::new();
    for name in options.scenario.contestants.iter().filter(|n| options.only.iter().any(|o| o == *n)) {
        match options.missing(name) {
            Some(why) => skipped.push(why),
            None => all.push(Runs { name: (*name).to_owned(), values: Vec::new() }),
        }
    }
    for round in 0..options.pairs {
        for runs in &mut all {
            go_on()?;
            eprintln!("{}: round {} of {}: {}", options.scenario.name, round + 1, options.pairs, runs.name);
            let values = (options.scenario.run)(&runs.name, &options).or_else(|error| {
                go_on()?;
                // The other contestants and rounds stay worth something.
                failed.push(format!("{}: round {} failed: {error:#}", runs.name, round + 1));
                anyhow::Ok(vec![f64::NAN; options.scenario.metrics.len()])
            });
            go_on()?;
            runs.values.push(values?);
        }
    }
    skipped.extend(failed.iter().cloned());
    let report = Report {
        scenario: options.scenario.name,
        metrics: options.scenario.metrics,
        rounds: options.pairs,
        seconds: options.time.as_secs_f64(),
        poll: &options.setup.poll,
        all: &all,
        skipped: &skipped,
    };
    print!("{}", report.markdown());
    if let Some(path) = &options.markdown {
        std::fs::write(path, report.markdown())?;
    }
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report.json())?)?;
    }
    if !failed.is_empty() {
        bail!("{} run(s) failed; the report says which", failed.len());
    }
    Ok(())
}
