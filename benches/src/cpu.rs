//! Where processor time went during a run.

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::counters::cpu_nanos;

/// A unit of /proc/stat: 1/100 s (USER_HZ) on every platform that this runs on.
const TICK_NS: u64 = 10_000_000;

/// Processor time of the calling thread since it began, in ns, user mode and kernel together (`CLOCK_THREAD_CPUTIME_ID`).
/// Interrupts that hit it are in it, unless the kernel accounts for them apart.
///
/// # Errors
/// The system has no such clock.
pub fn thread_ns() -> anyhow::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("no clock of the thread's processor time")?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Processor time by who had it, in ns. The parts overlap: most kernels charge a thread for softirqs that run on top of it,
/// and `busy` has everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Charge {
    /// Of the switch's process, all threads, ended ones too; 0 where the kernel forwards.
    pub switch: u64,
    /// Softirqs of all processors (sampled, to 10 ms per processor).
    pub softirq: u64,
    /// Of the generator's thread.
    pub generator: u64,
    /// Of the sink's thread.
    pub sink: u64,
    /// All processors, whatever they did but idle (to 10 ms per processor).
    pub busy: u64,
    /// What a hypervisor gave to others (to 10 ms per processor).
    pub steal: u64,
}

/// Sums over all processors, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// All but idle, waiting for disks, and stolen.
    pub busy: u64,
    /// In softirqs.
    pub softirq: u64,
    /// Given to others by a hypervisor.
    pub steal: u64,
}

impl Machine {
    /// Now, since the start of the machine.
    ///
    /// # Errors
    /// There is no /proc/stat.
    pub fn read() -> anyhow::Result<Machine> {
        let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        parse_stat(&text).context("/proc/stat does not say what the processors did")
    }

    /// From `before` to now; a counter that went back (idle time may) counts as unchanged.
    #[must_use]
    pub fn since(&self, before: &Machine) -> Machine {
        Machine {
            busy: self.busy.saturating_sub(before.busy),
            softirq: self.softirq.saturating_sub(before.softirq),
            steal: self.steal.saturating_sub(before.steal),
        }
    }
}

fn parse_stat(text: &str) -> Option<Machine> {
    let mut all = Machine::default();
    let mut processors = 0;
    // "cpu" without a number is the sum, which loses a processor that is taken off line.
    for line in text.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")) {
        let mut fields = [0u64; 8];
        for (field, word) in fields.iter_mut().zip(line.split_whitespace().skip(1)) {
            *field = word.parse().ok()?;
        }
        let [user, nice, system, _idle, _iowait, irq, softirq, steal] = fields;
        // What guests had is in user and nice already.
        all.busy += (user + nice + system + irq + softirq) * TICK_NS;
        all.softirq += softirq * TICK_NS;
        all.steal += steal * TICK_NS;
        processors += 1;
    }
    (processors > 0).then_some(all)
}

/// Measures from [`start`](Meter::start) to [`charge`](Meter::charge).
#[derive(Clone, Debug)]
pub struct Meter {
    switch: Option<u32>,
    switch_ns: u64,
    machine: Machine,
}

impl Meter {
    /// Begins; `switch` is the process that forwards, if one does.
    ///
    /// # Errors
    /// It is gone, or the machine does not say.
    pub fn start(switch: Option<u32>) -> anyhow::Result<Meter> {
        let switch_ns = switch.map_or(Ok(0), cpu_nanos)?;
        Ok(Meter { switch, switch_ns, machine: Machine::read()? })
    }

    /// Until now. Generator and sink have measured themselves ([`Sent::cpu_ns`](crate::run::Sent::cpu_ns),
    /// [`Seen::cpu_ns`](crate::run::Seen::cpu_ns)).
    ///
    /// # Errors
    /// The switch is gone.
    pub fn charge(&self, generator: u64, sink: u64) -> anyhow::Result<Charge> {
        let machine = Machine::read()?.since(&self.machine);
        let switch = self.switch.map_or(Ok(0), cpu_nanos)?.saturating_sub(self.switch_ns);
        Ok(Charge { switch, softirq: machine.softirq, generator, sink, busy: machine.busy, steal: machine.steal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processors_did_is_read() {
        let text = "cpu  99 99 99 99 99 99 99 99 9 9\ncpu0 1 2 3 100 50 4 5 6 7 8\ncpu1 10 0 0 7 0 0 1 2\nintr 1 2\n";
        let expected = Machine { busy: 26 * TICK_NS, softirq: 6 * TICK_NS, steal: 8 * TICK_NS };
        assert_eq!(parse_stat(text), Some(expected));
        assert_eq!((parse_stat("intr 1\n"), parse_stat("cpu0 x\n")), (None, None));
        assert_eq!(Machine::default().since(&expected), Machine::default());
    }

    #[test]
    fn work_is_charged_to_the_thread_and_the_process_that_did_it() {
        let meter = Meter::start(Some(std::process::id())).expect("read");
        let before = thread_ns().expect("read");
        let mut spent = 0;
        while spent < 30_000_000 {
            std::hint::black_box((0..10_000u64).sum::<u64>());
            spent = thread_ns().expect("read") - before;
        }
        let charge = meter.charge(spent, 0).expect("read");
        assert!(charge.switch >= spent, "the process has all that its thread had: {charge:?}");
        assert_eq!((charge.generator, charge.sink), (spent, 0));
    }
}
