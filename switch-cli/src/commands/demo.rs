//! `vswitch demo`: everything in namespaces of its own, with this same binary as the switch, cleaned up at the end.

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, bail};
use switch_core::{
    control::wire::{FdbView, PortView},
    sys::raw::Way,
};
use tokio::signal::unix::{SignalKind, signal};
use vswitch_benches::{
    ends::{PacketRx, PacketTx},
    netns::{KernelBridge, Namespace, exec, unique, wait_for},
    run::{Limit, run_traffic},
    tools::{self, installed, ping, tcp},
    traffic::Traffic,
};

use super::print_table;
use crate::client::Client;

const TCP_TIME: Duration = Duration::from_secs(2);
const SMALL_TIME: Duration = Duration::from_secs(2);
const NEEDED: [(&str, &str); 4] =
    [("ip", "iproute2"), ("ss", "iproute2"), ("ping", "iputils-ping"), ("iperf3", "iperf3")];

static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Runs the demonstration; Ctrl-C ends it and cleans up as well.
pub fn demo() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return enter_user_namespace();
    }
    install_missing()?;
    let work = std::thread::spawn(show);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        while !work.is_finished() {
            tokio::select! {
                _ = interrupt.recv() => CANCELLED.store(true, Relaxed),
                _ = terminate.recv() => CANCELLED.store(true, Relaxed),
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
        anyhow::Ok(())
    })?;
    let result = work.join().map_err(|_| anyhow::anyhow!("the demonstration panicked"))?;
    if CANCELLED.load(Relaxed) {
        bail!("interrupted; everything was cleaned up");
    }
    result
}

/// Starts again as root of a user namespace, where namespaces and TAPs may be made.
fn enter_user_namespace() -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    println!("Not root: entering a user namespace.");
    let error = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c"])
        .arg("mount -t tmpfs tmpfs /run && mkdir /run/netns && exec \"$0\" demo")
        .arg(program)
        .exec();
    bail!("cannot run unshare ({error}); install util-linux, or run as root: sudo vswitch demo")
}

fn install_missing() -> anyhow::Result<()> {
    let mut packages: Vec<&str> = NEEDED.iter().filter(|(p, _)| !installed(p)).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !installed("apt-get") {
        bail!("these are missing: {list}; install them with your package manager");
    }
    println!("Installing what the demonstration needs: apt-get install {list}");
    exec(&[&["apt-get", "install", "-y", "-q", "--no-install-recommends"][..], &packages].concat())
        .or_else(|_| {
            exec(&["apt-get", "update"])?;
            exec(&[&["apt-get", "install", "-y", "-q", "--no-install-recommends"][..], &packages].concat())
        })
        .with_context(|| format!("cannot install {list}"))?;
    Ok(())
}

/// This binary as a switch, told to stop and waited for on drop.
struct Switch {
    child: Child,
    directory: PathBuf,
}

impl Switch {
    fn start(ports: &[String]) -> anyhow::Result<Switch> {
        let directory = std::env::temp_dir().join(unique("vswitch-demo-"));
        std::fs::create_dir(&directory)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--api").arg(directory.join("api.sock")).args(["run", "--domain", "blue", "--domain", "red"]);
        command.arg("--state").arg(directory.join("state"));
        for port in ports {
            command.args(["--port", port]);
        }
        // A process group of its own: Ctrl-C reaches it through the drop below, after the namespaces are done with.
        let child = command.env("VSWITCH_LOG", "error").stdin(Stdio::null()).process_group(0).spawn()?;
        let switch = Switch { child, directory };
        wait_for("the switch answers", Duration::from_secs(10), || {
            switch.client().get::<Vec<PortView>>("/v1/ports").is_ok()
        })?;
        let ports: Vec<PortView> = switch.client().get("/v1/ports")?;
        if let Some(reason) = ports.into_iter().find_map(|port| port.reason) {
            bail!("{reason}");
        }
        Ok(switch)
    }

    fn client(&self) -> Client {
        Client::new(&self.directory.join("api.sock"))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn step(text: &str) -> anyhow::Result<()> {
    if CANCELLED.load(Relaxed) {
        bail!("interrupted");
    }
    println!("\n== {text}");
    Ok(())
}

fn show() -> anyhow::Result<()> {
    step("Three namespaces stand for three hosts; each gets a TAP of one switch")?;
    let hosts = [Namespace::new("vd")?, Namespace::new("vd")?, Namespace::new("vd")?];
    let domains = ["blue", "blue", "red"];
    let ports: Vec<String> = hosts
        .iter()
        .zip(domains)
        .enumerate()
        .map(|(i, (host, domain))| format!("h{}=tap,device=eth0,netns={},domain={domain}", i + 1, host.name()))
        .collect();
    let switch = Switch::start(&ports)?;
    for (i, host) in hosts.iter().enumerate() {
        host.configure("eth0", &[&format!("10.77.0.{}/24", i + 1)])?;
        println!("   h{}  10.77.0.{}  domain {}", i + 1, i + 1, domains[i]);
    }

    step("h1 pings h2: the same domain")?;
    let same = ping(&hosts[0], "10.77.0.2", 5, false)?;
    println!("   {} of {} answered, mean {:.0} µs", same.received, same.sent, same.mean_us);
    if same.received == 0 {
        bail!("hosts of one domain do not reach each other");
    }
    step("h1 pings h3: another domain, on the same switch")?;
    let across = ping(&hosts[0], "10.77.0.3", 3, false)?;
    println!("   {} of {} answered: nothing crosses a domain", across.received, across.sent);
    if across.received != 0 {
        bail!("a frame has crossed from domain blue to domain red");
    }

    step("What the switch has learned (vswitch fdb show)")?;
    let entries: Vec<FdbView> = switch.client().get("/v1/fdb")?;
    let rows: Vec<_> = entries
        .iter()
        .map(|e| vec![format!("   {}", e.domain), e.mac.to_string(), e.port.clone(), format!("{} s", e.age_s)])
        .collect();
    print_table(&["   DOMAIN", "MAC", "PORT", "AGE"], &rows);

    step("Throughput h1 to h2, then between the same namespaces over a kernel bridge")?;
    let ours = measure(&hosts[0], &hosts[1], "eth0", "10.77.0.2")?;
    let bridge = KernelBridge::new(&[&hosts[0], &hosts[1]], "kb0")?;
    hosts[0].configure("kb0", &["10.78.0.1/24"])?;
    hosts[1].configure("kb0", &["10.78.0.2/24"])?;
    let kernel = measure(&hosts[0], &hosts[1], "kb0", "10.78.0.2")?;
    drop(bridge);
    let row = |name: &str, m: &Measured| {
        vec![
            format!("   {name}"),
            format!("{:.2} Gbit/s", m.tcp / 1e9),
            format!("{:.0} k/s", m.small / 1e3),
            format!("{:.0} µs", m.rtt_us),
        ]
    };
    print_table(
        &["   FORWARDER", "TCP", "60-BYTE FRAMES", "ROUND TRIP"],
        &[row("vswitch (TAPs)", &ours), row("kernel bridge (veths)", &kernel)],
    );
    println!("   A taste, not a benchmark: see docs/performance.md for how to measure.");

    step("Cleaning up")?;
    drop(switch);
    drop(hosts);
    println!("   namespaces, devices and the switch are gone");
    Ok(())
}

struct Measured {
    tcp: f64,
    small: f64,
    rtt_us: f64,
}

fn measure(from: &Namespace, to: &Namespace, device: &str, address: &str) -> anyhow::Result<Measured> {
    let rtt = ping(from, address, 2000, true)?;
    let tcp: tools::Tcp = tcp(from, to, address, TCP_TIME)?;
    if CANCELLED.load(Relaxed) {
        bail!("interrupted");
    }
    let mac = |host: &Namespace| -> anyhow::Result<switch_core::mac::MacAddr> {
        let text = host.exec(&["cat", &format!("/sys/class/net/{device}/address")])?;
        Ok(text.trim().parse()?)
    };
    let traffic = Traffic::new(mac(to)?, mac(from)?);
    let mut tx = PacketTx::open(from, device, Way::default())?;
    let mut rx = PacketRx::open(to, device)?;
    let run = run_traffic(&traffic, &mut tx, &mut rx, Limit::time(SMALL_TIME))?;
    Ok(Measured { tcp: tcp.bits_per_second, small: run.rate(), rtt_us: rtt.mean_us })
}
