//! The machine that a run was made on, and the time of day.

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use super::load::processors;
use crate::results::Machine;

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The first line that a program prints about its version.
fn version(words: &[&str]) -> Option<String> {
    let output = Command::new(words[0]).args(&words[1..]).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// What is asked for its version, by the name in the results.
const PROGRAMS: [(&str, &[&str]); 6] = [
    ("iproute2", &["ip", "-V"]),
    ("iperf3", &["iperf3", "--version"]),
    ("ovs", &["ovs-vswitchd", "--version"]),
    ("vde", &["vde_switch", "--version"]),
    ("dpdk", &["pkg-config", "--modversion", "libdpdk"]),
    ("perf", &["perf", "--version"]),
];

/// What can be found out about this machine.
#[must_use]
pub fn machine() -> Machine {
    let info = read("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory_kib = read("/proc/meminfo").and_then(|text| {
        text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
    });
    let mut mitigations = BTreeMap::new();
    for entry in fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten() {
        if let Some(state) = entry.path().to_str().and_then(read) {
            mitigations.insert(entry.file_name().to_string_lossy().into_owned(), state);
        }
    }
    let virtual_machine = field("flags").is_some_and(|flags| flags.split(' ').any(|f| f == "hypervisor"));
    let hypervisor =
        virtual_machine.then(|| read("/sys/class/dmi/id/sys_vendor").unwrap_or_else(|| "unknown".to_owned()));
    let programs = PROGRAMS.iter().filter_map(|(name, words)| Some(((*name).to_owned(), version(words)?)));
    Machine {
        cpu_model: field("model name").unwrap_or_else(|| "unknown".to_owned()),
        cores: processors() as u32,
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        memory_bytes: memory_kib.map(|kib| kib * 1024),
        frequency: frequency(),
        mitigations,
        hypervisor,
        programs: programs.collect(),
    }
}

fn frequency() -> String {
    let policy = |name: &str| read(&format!("/sys/devices/system/cpu/cpu0/cpufreq/{name}"));
    let Some(governor) = policy("scaling_governor") else { return "hidden".to_owned() };
    let driver = policy("scaling_driver").unwrap_or_default();
    let boost = read("/sys/devices/system/cpu/cpufreq/boost")
        .map(|b| b == "1")
        .or_else(|| read("/sys/devices/system/cpu/intel_pstate/no_turbo").map(|b| b == "0"));
    let boost = boost.map_or("", |on| if on { ", boost on" } else { ", boost off" });
    format!("{governor} ({driver}{boost})")
}

/// Now, UTC, as in RFC 3339.
#[must_use]
pub fn now() -> String {
    utc(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Seconds since 1970 as a date of the Gregorian calendar: days are counted from 0000-03-01, so that the leap day is a
/// year's last.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (d, m) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let y = era * 400 + year + u64::from(m <= 2);
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_521_599), "2026-11-24T11:59:59Z");
        assert_eq!(utc(4_107_542_399), "2100-02-28T23:59:59Z");
    }

    #[test]
    fn this_machine_has_processors_and_a_kernel() {
        let machine = machine();
        assert!(machine.cores > 0 && !machine.kernel.is_empty() && !machine.frequency.is_empty(), "{machine:?}");
    }
}
