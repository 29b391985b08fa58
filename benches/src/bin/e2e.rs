//! The end-to-end benchmark: two namespaces, a forwarder between them, three numbers.
//!
//! Contestants take turns run by run, so that what the machine does besides hits all of them alike; what counts is the
//! ratio within a round, of which the median and its bootstrap interval are printed. Every run makes its forwarder anew
//! and removes it again. SIGINT and SIGTERM end the program between two measurements, with everything removed.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use switch_core::mac::MacAddr;
use vswitch_benches::{
    frames::{self, Sink, Stream},
    netns::{KernelBridge, Namespace, Process, exec, unique, wait_for},
    reference::BareLoop,
    stats::{interval, median},
    tools::{installed, ping, tcp},
};

const CONTESTANTS: [&str; 8] =
    ["loop", "loop-busy", "vswitch", "vswitch-adaptive", "vswitch-busy", "bridge", "veth", "vde"];
const METRICS: [&str; 3] = ["60 B frames/s", "TCP Gbit/s", "ping µs"];
const DEVICE: &str = "eth0";
const FLOOD: u32 = 2000;
const FRAME_BYTES: usize = 60;
const PATIENCE: Duration = Duration::from_secs(10);
const USAGE: &str = "usage: e2e [--pairs N] [--seconds N] [--only NAME,...] [--vswitch PATH] \
    [--poll interrupt|adaptive|busy] [--json FILE]
contestants: loop loop-busy vswitch vswitch-adaptive vswitch-busy bridge veth vde";

static CANCELLED: AtomicBool = AtomicBool::new(false);

struct Options {
    pairs: usize,
    time: Duration,
    only: Vec<String>,
    binary: PathBuf,
    poll: String,
    json: Option<PathBuf>,
}

impl Options {
    fn parse() -> anyhow::Result<Options> {
        let beside = std::env::current_exe()?.with_file_name("vswitch");
        let mut options = Options {
            pairs: 9,
            time: Duration::from_secs(2),
            only: CONTESTANTS.map(str::to_owned).to_vec(),
            binary: beside,
            poll: "interrupt".to_owned(),
            json: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                "--pairs" => options.pairs = value()?.parse().context("--pairs: not a number")?,
                "--seconds" => options.time = Duration::from_secs(value()?.parse().context("--seconds: not a number")?),
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--vswitch" => options.binary = value()?.into(),
                "--poll" => options.poll = value()?,
                "--json" => options.json = Some(value()?.into()),
                _ => bail!("{USAGE}"),
            }
        }
        if let Some(unknown) = options.only.iter().find(|n| !CONTESTANTS.contains(&n.as_str())) {
            bail!("no contestant \"{unknown}\"\n{USAGE}");
        }
        if options.pairs == 0 || options.time.is_zero() {
            bail!("--pairs and --seconds must be at least 1");
        }
        Ok(options)
    }
}

/// The switch under test; told to stop, waited for and its files removed on drop.
struct Switch {
    child: Child,
    directory: PathBuf,
}

impl Switch {
    fn start(binary: &Path, poll: &str, hosts: &[Namespace; 2]) -> anyhow::Result<Switch> {
        let directory = std::env::temp_dir().join(unique("vswitch-e2e-"));
        std::fs::create_dir(&directory)?;
        let mut command = Command::new(binary);
        command.arg("--api").arg(directory.join("api.sock")).args(["run", "--poll", poll]);
        command.arg("--state").arg(directory.join("state"));
        for (i, host) in hosts.iter().enumerate() {
            command.arg("--port").arg(format!("h{i}=tap,device={DEVICE},netns={}", host.name()));
        }
        command.env("VSWITCH_LOG", "warn").stdin(Stdio::null()).process_group(0);
        let child = command.spawn().with_context(|| {
            let _ = std::fs::remove_dir_all(&directory);
            format!("cannot run {}: build it (cargo build --release -p switch-cli) or use --vswitch", binary.display())
        })?;
        Ok(Switch { child, directory })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = kill(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A VDE switch with two TAPs; it lives as long as its standard input is open.
struct Vde {
    process: Process,
    directory: PathBuf,
}

impl Vde {
    fn start(hosts: &[Namespace; 2]) -> anyhow::Result<Vde> {
        let directory = std::env::temp_dir().join(unique("vde-e2e-"));
        let child = Command::new("ip")
            .args(["netns", "exec", hosts[0].name(), "vde_switch", "-t", DEVICE, "-t", "other", "-s"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let vde = Vde { process: Process(child), directory };
        wait_device(&hosts[0], "other")?;
        hosts[0].exec(&["ip", "link", "set", "other", "netns", hosts[1].name(), "name", DEVICE])?;
        Ok(vde)
    }
}

impl Drop for Vde {
    fn drop(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Whatever forwards, until it is dropped.
enum Forwarder {
    Loop { _guard: BareLoop },
    Switch { _guard: Switch },
    Bridge { _guard: KernelBridge },
    Vde { _guard: Vde },
    Veth,
}

fn wait_device(host: &Namespace, device: &str) -> anyhow::Result<()> {
    wait_for(&format!("device {device}"), PATIENCE, || host.exec(&["ip", "link", "show", device]).is_ok())
}

fn forwarder(name: &str, options: &Options, hosts: &[Namespace; 2]) -> anyhow::Result<Forwarder> {
    let bare = |busy| BareLoop::start((&hosts[0], DEVICE), (&hosts[1], DEVICE), busy);
    let switch = |poll: &str| Switch::start(&options.binary, poll, hosts);
    Ok(match name {
        "loop" => Forwarder::Loop { _guard: bare(false)? },
        "loop-busy" => Forwarder::Loop { _guard: bare(true)? },
        "vswitch" => Forwarder::Switch { _guard: switch(&options.poll)? },
        "vswitch-adaptive" => Forwarder::Switch { _guard: switch("adaptive")? },
        "vswitch-busy" => Forwarder::Switch { _guard: switch("busy")? },
        "bridge" => Forwarder::Bridge { _guard: KernelBridge::new(&[&hosts[0], &hosts[1]], DEVICE)? },
        "vde" => Forwarder::Vde { _guard: Vde::start(hosts)? },
        _ => {
            let (near, far) = (hosts[0].name(), hosts[1].name());
            exec(&["ip", "-n", near, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", far])?;
            Forwarder::Veth
        }
    })
}

fn go_on() -> anyhow::Result<()> {
    if CANCELLED.load(Relaxed) {
        bail!("interrupted; everything was removed");
    }
    Ok(())
}

/// One run: the three metrics, in their order.
fn run(name: &str, options: &Options) -> anyhow::Result<[f64; 3]> {
    let hosts = [Namespace::new("ve")?, Namespace::new("ve")?];
    let _forwarder = forwarder(name, options, &hosts)?;
    for (host, address) in hosts.iter().zip(["10.79.0.1/24", "10.79.0.2/24"]) {
        wait_device(host, DEVICE)?;
        host.configure(DEVICE, &[address])?;
    }
    wait_for("the hosts reach each other", PATIENCE, || {
        CANCELLED.load(Relaxed) || ping(&hosts[0], "10.79.0.2", 2, false).is_ok_and(|p| p.received > 0)
    })?;
    go_on()?;
    let mac = |host: &Namespace| -> anyhow::Result<MacAddr> {
        Ok(host.exec(&["cat", &format!("/sys/class/net/{DEVICE}/address")])?.trim().parse()?)
    };
    let stream = Stream { dst: mac(&hosts[1])?, src: mac(&hosts[0])?, bytes: FRAME_BYTES, rate: 0 };
    let sink = Sink::start(&hosts[1], DEVICE)?;
    frames::send(&hosts[0], DEVICE, &stream, options.time)?;
    let small = sink.finish()?.received as f64 / options.time.as_secs_f64();
    go_on()?;
    let bulk = tcp(&hosts[0], &hosts[1], "10.79.0.2", options.time)?.bits_per_second / 1e9;
    go_on()?;
    let rtt = ping(&hosts[0], "10.79.0.2", FLOOD, true)?;
    go_on()?;
    if rtt.received == 0 {
        bail!("no echo came back");
    }
    Ok([small, bulk, rtt.mean_us])
}

/// All runs of one contestant.
struct Runs {
    name: String,
    values: Vec<[f64; 3]>,
}

impl Runs {
    fn metric(&self, metric: usize) -> Vec<f64> {
        self.values.iter().map(|v| v[metric]).collect()
    }

    /// The ratio to another contestant, round by round.
    fn ratios(&self, base: &Runs, metric: usize) -> Vec<f64> {
        let pairs = self.values.iter().zip(&base.values);
        pairs.filter(|(_, b)| b[metric] > 0.0).map(|(a, b)| a[metric] / b[metric]).collect()
    }
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("unknown", |(_, m)| m);
    let cores = cpus.lines().filter(|l| l.starts_with("processor")).count();
    format!("{model}, {cores} core(s), Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

fn print(all: &[Runs], skipped: &[String], options: &Options) {
    println!("Machine: {}\n{} rounds of {:?}\n", machine(), options.pairs, options.time);
    println!("| contestant | {} |\n|---|---:|---:|---:|", METRICS.join(" | "));
    for runs in all {
        let [small, bulk, rtt] = [0, 1, 2].map(|m| median(&runs.metric(m)));
        println!("| {} | {small:.0} | {bulk:.2} | {rtt:.1} |", runs.name);
    }
    for base in all.iter().filter(|r| r.name == "loop" || r.name == "bridge") {
        let name = &base.name;
        println!("\nRatio to `{name}`, median of {} rounds [95 % interval]; ping: less is better\n", options.pairs);
        println!("| contestant | {} |\n|---|---:|---:|---:|", METRICS.join(" | "));
        for runs in all.iter().filter(|r| r.name != *name) {
            let cells = [0, 1, 2].map(|m| {
                let ratios = runs.ratios(base, m);
                let (low, high) = interval(&ratios);
                format!("{:.3} [{low:.3}, {high:.3}]", median(&ratios))
            });
            println!("| {} | {} |", runs.name, cells.join(" | "));
        }
    }
    for line in skipped {
        println!("\n{line}");
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse()?;
    // Blocked here and in every thread from now on, taken by one that waits for them; children start with none blocked.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            CANCELLED.store(true, Relaxed);
        }
    });
    let mut skipped = Vec::new();
    let mut all = Vec::new();
    for name in CONTESTANTS.iter().filter(|n| options.only.iter().any(|o| o == *n)) {
        if *name == "vde" && !installed("vde_switch") {
            skipped.push("vde: skipped: install vde2".to_owned());
        } else {
            all.push(Runs { name: (*name).to_owned(), values: Vec::new() });
        }
    }
    for round in 0..options.pairs {
        for runs in &mut all {
            go_on()?;
            eprintln!("round {} of {}: {}", round + 1, options.pairs, runs.name);
            let values = run(&runs.name, &options).with_context(|| runs.name.clone());
            go_on()?;
            runs.values.push(values?);
        }
    }
    print(&all, &skipped, &options);
    if let Some(path) = &options.json {
        let runs: Vec<_> =
            all.iter().map(|r| serde_json::json!({ "name": r.name, "metrics": METRICS, "runs": r.values })).collect();
        let report = serde_json::json!({
            "machine": machine(), "seconds": options.time.as_secs_f64(), "poll": options.poll, "contestants": runs,
        });
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}
