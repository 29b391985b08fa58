//! What a process costs: processor time from /proc, system calls and instructions from `perf stat`.

use std::{process::Command, time::Duration};

use anyhow::{Context, bail};
use nix::{time::ClockId, unistd::Pid};

use crate::tools::installed;

/// What `perf stat` counted of a process; NaN where the machine has no such counter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Events {
    /// System calls.
    pub syscalls: f64,
    /// Instructions in user mode.
    pub user_instructions: f64,
    /// Instructions in the kernel.
    pub kernel_instructions: f64,
    /// Cycles in both.
    pub cycles: f64,
}

const EVENTS: [&str; 4] = ["raw_syscalls:sys_enter", "instructions:u", "instructions:k", "cycles"];

/// Counts the events of all threads of a process for some time. Without `perf`, or where it may not count system calls,
/// these are counted by strace, which slows the process down.
///
/// # Errors
/// Neither program is installed.
pub fn watch(pid: u32, time: Duration) -> anyhow::Result<Events> {
    let (pid, seconds) = (pid.to_string(), time.as_secs_f64().to_string());
    let mut values = [f64::NAN; 4];
    let mut time_left = true;
    if installed("perf") {
        let words = ["stat", "-x", ",", "-e", &EVENTS.join(","), "-p", &pid, "--", "sleep", &seconds];
        let output = Command::new("perf").args(words).env("LC_ALL", "C").output().context("cannot run perf")?;
        values = parse_perf(&String::from_utf8_lossy(&output.stderr));
        time_left = values[0].is_nan();
    }
    if time_left {
        if !installed("strace") {
            bail!("to count system calls, install perf (linux-perf) or strace");
        }
        let words = ["-s", "INT", &seconds, "strace", "-c", "-f", "-q", "-p", &pid];
        let output = Command::new("timeout").args(words).env("LC_ALL", "C").output().context("cannot run strace")?;
        values[0] = parse_strace(&String::from_utf8_lossy(&output.stderr)).context("strace printed no total")?;
    }
    let [syscalls, user_instructions, kernel_instructions, cycles] = values;
    Ok(Events { syscalls, user_instructions, kernel_instructions, cycles })
}

/// One value per event; `<not supported>` and `<not counted>` are NaN.
fn parse_perf(text: &str) -> [f64; 4] {
    EVENTS.map(|event| {
        let line = text.lines().find(|l| l.split(',').nth(2) == Some(event));
        line.and_then(|l| l.split(',').next()?.parse().ok()).unwrap_or(f64::NAN)
    })
}

fn parse_strace(text: &str) -> Option<f64> {
    let total = text.lines().rev().find(|l| l.trim_end().ends_with("total"))?;
    // % time, seconds, usecs/call, calls, perhaps errors, "total".
    total.split_whitespace().nth(3)?.parse().ok()
}

/// Nanoseconds that the threads of a process, ended ones too, have had a processor.
///
/// # Errors
/// There is no such process.
pub fn cpu_nanos(pid: u32) -> anyhow::Result<u64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed())).context("the process is gone")?;
    let time = clock.now().context("the process is gone")?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// How often the threads of a process went to sleep by themselves.
///
/// # Errors
/// There is no such process.
pub fn sleeps(pid: u32) -> anyhow::Result<u64> {
    per_thread(pid, "status", |text| {
        text.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok())
    })
}

fn per_thread(pid: u32, file: &str, read: impl Fn(&str) -> Option<u64>) -> anyhow::Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        // A thread that ended meanwhile takes its account along.
        let Ok(text) = std::fs::read_to_string(thread?.path().join(file)) else { continue };
        sum += read(&text).with_context(|| format!("/proc/{pid}/task/*/{file} does not say"))?;
    }
    Ok(sum)
}

/// Resident memory of a process in KiB.
///
/// # Errors
/// There is no such process.
pub fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    text.lines()
        .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())
        .context("the kernel does not say how much memory the process has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_and_strace_print_is_read() {
        let text = "1234,,raw_syscalls:sys_enter,5,100.00,,\n<not supported>,,instructions:u,0,100.00,,\n\
            77,,instructions:k,9,100.00,,\n<not counted>,,cycles,0,0.00,,\n";
        let [syscalls, user, kernel, cycles] = parse_perf(text);
        assert_eq!((syscalls, kernel), (1234.0, 77.0));
        assert!(user.is_nan() && cycles.is_nan());
        let text = "% time     seconds  usecs/call     calls    errors syscall\n 60.00    0.1 1 100 3 read\n\
            ------ ----------- ----------- --------- --------- ----------------\n100.00    0.023 1    205     3 total\n";
        assert_eq!(parse_strace(text), Some(205.0));
    }

    #[test]
    fn this_process_has_used_some() {
        let pid = std::process::id();
        assert!(cpu_nanos(pid).expect("kept") > 0 && resident_kib(pid).expect("kept") > 0);
        assert!(sleeps(pid).is_ok());
    }
}
