//! DPDK's test program, `dpdk-testpmd`: as two virtio drivers (virtio-user) that a switch is measured with and tested
//! against, and as the barest of devices, two vhost ports with a loop between them.
//!
//! It is told what to do on its standard input, which is also its life line: at the end of input it ends. What it prints
//! goes to a file in the caller's directory. All memory is anonymous, so no hugetlbfs has to be mounted, and any number of
//! them run beside each other. Without hugepages it also writes to a directory of its own in `/var/run/dpdk`, which goes
//! with it.

use std::{
    fs::File,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use crate::{
    netns::{unique, wait_for},
    tools::installed,
};

/// What is installed to have the program and its drivers (Debian 12).
pub const INSTALL: &str = "apt-get install dpdk-dev librte-net-virtio23 librte-net-vhost23 librte-mempool-ring23";
/// How long it may take to start: both back-ends must have connected.
const START: Duration = Duration::from_secs(60);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Where DPDK keeps what its processes find each other by.
pub(crate) const RUNTIME: &str = "/var/run/dpdk";
const PROMPT: &str = "testpmd> ";
const HUGE_PAGE_MIB: u64 = 2;

/// Whether a driver is among DPDK's plugins.
#[must_use]
pub fn has_driver(name: &str) -> bool {
    let directories = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|e| e.path().join("dpdk"));
    let mut plugins = directories.filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten();
    plugins.any(|d| {
        std::fs::read_dir(d.path())
            .is_ok_and(|mut files| files.any(|f| f.is_ok_and(|f| f.file_name().to_string_lossy().contains(name))))
    })
}

/// Why the program cannot be used, if it cannot.
#[must_use]
pub fn missing() -> Option<String> {
    let drivers = ["net_virtio", "net_vhost", "mempool_ring"];
    let complete = installed("dpdk-testpmd") && drivers.into_iter().all(has_driver);
    (!complete).then(|| format!("dpdk-testpmd or its drivers are missing: {INSTALL}"))
}

/// Hugepages of 2 MiB beside those that were there, given back on drop.
pub struct HugePages {
    added: u64,
}

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

fn pages() -> anyhow::Result<u64> {
    Ok(std::fs::read_to_string(NR_HUGEPAGES).context("no hugepages in this kernel")?.trim().parse()?)
}

impl HugePages {
    /// Why there can be none, if so.
    #[must_use]
    pub fn missing() -> Option<String> {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let size = format!("{} kB", HUGE_PAGE_MIB * 1024);
        let fits = info.lines().any(|l| l.strip_prefix("Hugepagesize:").is_some_and(|rest| rest.trim() == size));
        (!fits).then(|| format!("the kernel has no hugepages of {HUGE_PAGE_MIB} MiB"))
    }

    /// Sees to it that so much memory is free in hugepages.
    ///
    /// # Errors
    /// There is not so much memory in one piece; what was taken is given back.
    pub fn reserve(mib: u64) -> anyhow::Result<HugePages> {
        let before = pages()?;
        let info = std::fs::read_to_string("/proc/meminfo")?;
        let value = |name: &str| -> anyhow::Result<u64> {
            let line = info.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        ensure!(value("Hugepagesize:")? == HUGE_PAGE_MIB * 1024, "hugepages here are not of {HUGE_PAGE_MIB} MiB");
        let wanted = mib.div_ceil(HUGE_PAGE_MIB).saturating_sub(value("HugePages_Free:")?);
        std::fs::write(NR_HUGEPAGES, (before + wanted).to_string()).context("cannot reserve hugepages")?;
        let guard = HugePages { added: pages()?.saturating_sub(before) };
        ensure!(guard.added == wanted, "the kernel gave {} of {wanted} hugepages of {HUGE_PAGE_MIB} MiB", guard.added);
        Ok(guard)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Ok(now) = pages() {
            let _ = std::fs::write(NR_HUGEPAGES, now.saturating_sub(self.added).to_string());
        }
    }
}

/// How the program is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Where it forwards; its command line is on processor 0.
    pub cpu: usize,
    /// Memory in MiB.
    pub mib: u64,
    /// The memory is hugepages, which somebody has reserved.
    pub huge: bool,
    /// Devices, as DPDK's `--vdev` takes them.
    pub devices: Vec<String>,
    /// Queue pairs of each device.
    pub queues: usize,
    /// Entries of a ring.
    pub ring: usize,
    /// Packet buffers.
    pub buffers: usize,
}

/// The drivers' addresses.
pub const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];

impl Launch {
    /// Two virtio drivers whose sockets the program makes: the switch connects.
    #[must_use]
    pub fn drivers(sockets: &[PathBuf; 2], queues: usize, ring: usize) -> Launch {
        let device = |(i, socket): (usize, &PathBuf)| {
            let (mac, path) = (MACS[i], socket.display());
            format!("net_virtio_user{i},mac={mac},path={path},server=1,queues={queues},queue_size={ring}")
        };
        let devices = sockets.iter().enumerate().map(device).collect();
        Launch { cpu: 0, mib: 256, huge: false, devices, queues, ring, buffers: 16_384 }
    }

    /// Two devices that connect to drivers.
    #[must_use]
    pub fn cross_connect(sockets: &[PathBuf; 2], cpu: usize) -> Launch {
        let device = |(i, socket): (usize, &PathBuf)| format!("net_vhost{i},iface={},client=1", socket.display());
        let devices = sockets.iter().enumerate().map(device).collect();
        Launch { cpu, mib: 512, huge: true, devices, queues: 1, ring: 1024, buffers: 32_768 }
    }
}

/// What one port of the program has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Packets received.
    pub rx: u64,
    /// Packets sent.
    pub tx: u64,
}

/// What forwarding a packet took, as the program says itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cycles {
    /// Cycles of polls that found packets.
    pub total: f64,
    /// Packets.
    pub packets: f64,
    /// The rate of the time stamp counter.
    pub mhz: f64,
}

/// A running `dpdk-testpmd`; ended on drop.
pub struct Testpmd {
    child: Child,
    input: Option<ChildStdin>,
    log: PathBuf,
    runtime: PathBuf,
    ports: usize,
}

impl Testpmd {
    /// Starts it; [`ready`](Self::ready) waits for it. `name` is for its log in `directory`.
    ///
    /// # Errors
    /// It is not installed.
    pub fn start(launch: &Launch, directory: &Path, name: &str) -> anyhow::Result<Testpmd> {
        if let Some(why) = missing() {
            bail!("{why}");
        }
        let log = directory.join(format!("{name}.log"));
        let out = File::create(&log)?;
        // Line by line, although it is a file.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "dpdk-testpmd", "--lcores", &format!("0@0,1@{}", launch.cpu)]);
        command.args(["--no-pci", "--no-telemetry", "--single-file-segments", "--iova-mode=va"]);
        command.args(["-m", &launch.mib.to_string()]);
        let prefix = unique("vswitch-");
        if launch.huge {
            command.arg("--in-memory");
        } else {
            // Not in memory at the same time: it thinks that incompatible. It is, as a file that has no name.
            command.args(["--no-huge", "--file-prefix", &prefix]);
        }
        command.args(launch.devices.iter().map(|d| format!("--vdev={d}")));
        let (queues, ring) = (launch.queues, launch.ring);
        command.args(["--", "-i", "--nb-cores=1", &format!("--rxq={queues}"), &format!("--txq={queues}")]);
        command.args([format!("--rxd={ring}"), format!("--txd={ring}")]);
        command.arg(format!("--total-num-mbufs={}", launch.buffers));
        command.stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let mut child = command.spawn().context("cannot run dpdk-testpmd")?;
        let input = child.stdin.take();
        Ok(Testpmd { child, input, log, runtime: Path::new(RUNTIME).join(prefix), ports: launch.devices.len() })
    }

    /// Everything that it has said.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn wait(&mut self, what: &str, patience: Duration, mut done: impl FnMut(&str) -> bool) -> anyhow::Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let text = self.output();
            if done(&text) {
                return Ok(text);
            }
            let ended = !matches!(self.child.try_wait(), Ok(None));
            if ended || Instant::now() > deadline || crate::measure::go_on().is_err() {
                let how = if ended { "it has ended" } else { "not in time" };
                let tail: Vec<&str> = text.lines().rev().take(12).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!("dpdk-testpmd: {what}: {how}:\n{}", tail.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until it takes commands: drivers have been connected to by then.
    ///
    /// # Errors
    /// It ended, or nobody connects.
    pub fn ready(&mut self) -> anyhow::Result<()> {
        self.wait("the start", START, |text| text.contains(PROMPT)).map(drop)
    }

    /// Gives a command and waits until it is done; what it printed.
    ///
    /// # Errors
    /// It ended, or does not answer.
    pub fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        let before = self.output();
        let (length, prompts) = (before.len(), before.matches(PROMPT).count());
        let input = self.input.as_mut().context("it was told to end")?;
        writeln!(input, "{command}").with_context(|| format!("dpdk-testpmd: {command}"))?;
        input.flush()?;
        let text = self.wait(command, ANSWER, |text| text.matches(PROMPT).count() > prompts)?;
        Ok(text.get(length..).unwrap_or_default().to_owned())
    }

    /// Forwards whatever it receives by one port to the other.
    ///
    /// # Errors
    /// It does not answer.
    pub fn forward(&mut self) -> anyhow::Result<()> {
        self.ask("set fwd io")?;
        self.ask("set record-core-cycles on")?;
        self.ask("start").map(drop)
    }

    /// Lets packets of so many bytes circle: a thousand per port, each sent on as soon as it comes back.
    ///
    /// # Errors
    /// It does not answer.
    pub fn circle(&mut self, bytes: usize) -> anyhow::Result<()> {
        let [first, second] = MACS;
        for command in [
            "set fwd io",
            "set record-core-cycles on",
            &format!("set txpkts {bytes}"),
            &format!("set eth-peer 0 {second}"),
            &format!("set eth-peer 1 {first}"),
            "start tx_first 32",
        ] {
            self.ask(command)?;
        }
        Ok(())
    }

    /// Ends the circling, with nothing under way any more.
    ///
    /// # Errors
    /// It does not answer.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.ask("stop").map(drop)
    }

    /// What its ports have counted, and when.
    ///
    /// # Errors
    /// It does not answer.
    pub fn stats(&mut self) -> anyhow::Result<(Vec<PortStats>, Instant)> {
        let text = self.ask("show port stats all")?;
        let at = Instant::now();
        let stats = parse_stats(&text);
        ensure!(stats.len() == self.ports, "dpdk-testpmd printed no statistics:\n{text}");
        Ok((stats, at))
    }

    /// Counts forwarding anew.
    ///
    /// # Errors
    /// It does not answer.
    pub fn clear_cycles(&mut self) -> anyhow::Result<()> {
        self.ask("clear fwd stats all").map(drop)
    }

    /// What forwarding took since [`clear_cycles`](Self::clear_cycles).
    ///
    /// # Errors
    /// It does not answer, or forwarded nothing.
    pub fn cycles(&mut self) -> anyhow::Result<Cycles> {
        let text = self.ask("show fwd stats all")?;
        parse_cycles(&text).with_context(|| format!("dpdk-testpmd printed no cycles:\n{text}"))
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        if let Some(mut input) = self.input.take() {
            let _ = input.write_all(b"quit\n");
        }
        // Closing a device may wait for a back-end that is gone.
        if wait_for("", Duration::from_secs(3), || !matches!(self.child.try_wait(), Ok(None))).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.runtime);
    }
}

fn number_after(line: &str, name: &str) -> Option<u64> {
    line.split_once(name)?.1.split_whitespace().next()?.parse().ok()
}

fn parse_stats(text: &str) -> Vec<PortStats> {
    let mut all = Vec::new();
    for line in text.lines() {
        if let Some(rx) = number_after(line, "RX-packets:") {
            all.push(PortStats { rx, tx: 0 });
        } else if let (Some(tx), Some(last)) = (number_after(line, "TX-packets:"), all.last_mut()) {
            last.tx = tx;
        }
    }
    all
}

fn parse_cycles(text: &str) -> Option<Cycles> {
    let line = text.lines().find(|l| l.contains("CPU cycles/packet="))?;
    let total = line.split_once("total cycles=")?.1.split_whitespace().next()?.parse().ok()?;
    let (packets, rest) = line.rsplit_once("packets=")?.1.split_once(')')?;
    let mhz = rest.split_once("at ")?.1.split_whitespace().next()?.parse().ok()?;
    Some(Cycles { total, packets: packets.parse().ok()?, mhz })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_testpmd_prints_is_read() {
        let text = "\n  ######################## NIC statistics for port 0  ########################\n  \
            RX-packets: 155840     RX-missed: 0          RX-bytes:  9973760\n  RX-errors: 0\n  \
            TX-packets: 159008     TX-errors: 0          TX-bytes:  10176512\n  \
            RX-packets: 7     RX-missed: 0\n  TX-packets: 8 TX-errors: 0\n";
        assert_eq!(parse_stats(text), [PortStats { rx: 155_840, tx: 159_008 }, PortStats { rx: 7, tx: 8 }]);
        let text = "\n  CPU cycles/packet=58.50 (total cycles=7403 / total io packets=126) at 2000 MHz Clock\n";
        assert_eq!(parse_cycles(text), Some(Cycles { total: 7403.0, packets: 126.0, mhz: 2000.0 }));
    }
}
