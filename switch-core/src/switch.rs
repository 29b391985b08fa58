//! The running switch: workers, the table they share, and the one way to change what they work with.
//!
//! A change is *published*: compiled into a new [`Topology`], handed to every worker, and acknowledged by all of them
//! before anything that the old one named is closed or reused. Receive queues are granted to and revoked from single
//! workers. Everything here runs on the control thread.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use mio::Waker;

use crate::{
    balance::{self, Load},
    clock::Clock,
    fdb::{DEFAULT_CAPACITY, Fdb},
    id::{Epoch, PortId},
    port::PortRx,
    stages,
    topology::{DomainDef, PortDef, Topology, TopologyError},
    worker::{self, Command, Event, PollMode, Worker},
};

/// Where the kernel shows devices.
pub const SYSFS: &str = "/sys";

/// How a switch is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Worker threads, at least 1.
    pub workers: usize,
    /// CPUs to pin workers to, used in turn; empty: not pinned.
    pub cpus: Vec<usize>,
    /// How workers wait.
    pub poll: PollMode,
    /// Entries of the MAC table.
    pub fdb_size: usize,
    /// Where virtual functions of NICs are looked up.
    pub sysfs: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            workers: 1,
            cpus: Vec::new(),
            poll: PollMode::Adaptive,
            fdb_size: DEFAULT_CAPACITY,
            sysfs: SYSFS.into(),
        }
    }
}

struct Handle {
    commands: Sender<Command>,
    waker: Waker,
    busy: Arc<AtomicU64>,
    stages: stages::Reading,
    thread: Option<JoinHandle<()>>,
}

/// A receive queue and who serves it.
struct Owned {
    port: PortId,
    queue: u16,
    worker: usize,
    /// Frames received since it was granted first.
    frames: Arc<AtomicU64>,
    /// What `frames` was when the queues were balanced last.
    seen: u64,
}

impl Handle {
    fn send(&self, command: Command) -> Result<(), SwitchError> {
        self.commands.send(command).map_err(|_| SwitchError::WorkerDied)?;
        self.waker.wake().map_err(SwitchError::Io)
    }
}

/// A change could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// A worker thread has ended; the process should be restarted.
    #[error("a worker thread has died; restart vswitch and report its last messages")]
    WorkerDied,
    /// The description contradicts itself.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The kernel refused.
    #[error(transparent)]
    Io(io::Error),
}

/// See the module page.
pub struct Switch {
    fdb: Arc<Fdb>,
    clock: Clock,
    epoch: Epoch,
    workers: Vec<Handle>,
    owned: Vec<Owned>,
    reports: Receiver<Event>,
}

impl Switch {
    /// Starts the workers, with nothing to do yet.
    ///
    /// # Errors
    /// Threads or descriptors cannot be had, or a CPU to pin to does not exist.
    pub fn start(settings: &Settings) -> io::Result<Switch> {
        let fdb = Arc::new(Fdb::new(settings.fdb_size));
        let clock = Clock::start();
        let worker::Channels { report, reports, .. } = worker::channels();
        let mut workers = Vec::new();
        for index in 0..settings.workers.max(1) {
            let worker::Channels { commands, inbox, .. } = worker::channels();
            let (worker, waker) = Worker::new(index, Arc::clone(&fdb), clock, settings.poll, inbox, report.clone())?;
            let (busy, stages) = (worker.busy(), worker.stages());
            let cpu = (!settings.cpus.is_empty()).then(|| settings.cpus[index % settings.cpus.len()]);
            if let Some(cpu) = cpu {
                check_cpu(cpu)?;
            }
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                if let Some(cpu) = cpu {
                    // Checked above; a CPU that went away since only costs the pinning.
                    let _ = pin_to(cpu);
                }
                worker.run();
            })?;
            workers.push(Handle { commands, waker, busy, stages, thread: Some(thread) });
        }
        Ok(Switch { fdb, clock, epoch: Epoch(0), workers, owned: Vec::new(), reports })
    }

    /// The MAC table.
    #[must_use]
    pub fn fdb(&self) -> &Arc<Fdb> {
        &self.fdb
    }

    /// The clock of ages and limits.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Nanoseconds that each worker has spent moving frames, see [`Worker::busy`].
    #[must_use]
    pub fn busy(&self) -> Vec<u64> {
        self.workers.iter().map(|w| w.busy.load(Relaxed)).collect()
    }

    /// What the stages of each worker's turns cost; nothing if that is not compiled in.
    #[must_use]
    pub fn stages(&self) -> Vec<stages::Sums> {
        self.workers.iter().filter_map(|w| (w.stages)()).collect()
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The number of the published topology.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What workers report of their own accord.
    #[must_use]
    pub fn reports(&self) -> &Receiver<Event> {
        &self.reports
    }

    /// Compiles and publishes a topology; returns when every worker uses it and the old one is out of use.
    ///
    /// # Errors
    /// The description contradicts itself (nothing has changed), or a worker has died.
    pub fn publish(&mut self, ports: Vec<PortDef>, domains: &[DomainDef]) -> Result<(), SwitchError> {
        let epoch = Epoch(self.epoch.0 + 1);
        let topology = Arc::new(Topology::build(epoch, ports, domains)?);
        self.ask_all(|done| Command::Publish { topology: Arc::clone(&topology), done })?;
        self.epoch = epoch;
        Ok(())
    }

    /// Gives the receive queues of a published port to the workers with the fewest queues.
    ///
    /// # Errors
    /// A descriptor cannot be watched, or a worker has died. Queues granted before that stay granted: revoke the port.
    pub fn grant(&mut self, port: PortId, queues: Vec<Box<dyn PortRx>>) -> Result<(), SwitchError> {
        for (queue, rx) in queues.into_iter().enumerate() {
            let held = |worker: &usize| self.owned.iter().filter(|o| o.worker == *worker).count();
            let worker = (0..self.workers.len()).min_by_key(held).expect("a switch has at least one worker");
            let frames = Arc::new(AtomicU64::new(0));
            self.owned.push(Owned { port, queue: queue as u16, worker, frames: Arc::clone(&frames), seen: 0 });
            self.hand_over(worker, port, queue as u16, rx, frames)?;
        }
        Ok(())
    }

    fn hand_over(
        &self,
        worker: usize,
        port: PortId,
        queue: u16,
        rx: Box<dyn PortRx>,
        load: Arc<AtomicU64>,
    ) -> Result<(), SwitchError> {
        let (done, answer) = bounded(1);
        self.workers[worker].send(Command::Grant { port, queue, rx, load, done })?;
        answer.recv().map_err(|_| SwitchError::WorkerDied)?.map_err(SwitchError::Io)
    }

    /// Moves at most one receive queue from the worker that received most since the last call to the one that received
    /// least, if that evens them out. The old owner has carried everything that it had received before the new one begins,
    /// so the order of a flow is kept. Returns what was moved: port, queue, from, to.
    ///
    /// # Errors
    /// A worker has died, or the new one cannot watch the descriptor: revoke the port.
    pub fn balance(&mut self) -> Result<Option<(PortId, u16, usize, usize)>, SwitchError> {
        let mut loads = Vec::with_capacity(self.owned.len());
        for owned in &mut self.owned {
            let frames = owned.frames.load(Relaxed);
            loads.push(Load { worker: owned.worker, frames: frames - owned.seen });
            owned.seen = frames;
        }
        let Some((index, to)) = balance::choose(&loads, self.workers.len()) else { return Ok(None) };
        let Owned { port, queue, worker: from, .. } = self.owned[index];
        let (back, answer) = bounded(1);
        self.workers[from].send(Command::Yield { port, queue, back })?;
        // A queue whose device went away a moment ago is no longer there; its port is about to be revoked.
        let Some(rx) = answer.recv().map_err(|_| SwitchError::WorkerDied)? else { return Ok(None) };
        self.owned[index].worker = to;
        self.hand_over(to, port, queue, rx, Arc::clone(&self.owned[index].frames))?;
        Ok(Some((port, queue, from, to)))
    }

    /// Which worker serves which receive queue: port, queue, worker.
    #[must_use]
    pub fn assignments(&self) -> Vec<(PortId, u16, usize)> {
        self.owned.iter().map(|o| (o.port, o.queue, o.worker)).collect()
    }

    /// Takes all receive queues of a port from their workers and closes them.
    ///
    /// # Errors
    /// A worker has died.
    pub fn revoke(&mut self, port: PortId) -> Result<(), SwitchError> {
        self.ask_all(|done| Command::Revoke { port, done })?;
        self.owned.retain(|owned| owned.port != port);
        Ok(())
    }

    /// Brings `rx_lost` and `rx_errors` of all ports up to date.
    ///
    /// # Errors
    /// A worker has died.
    pub fn collect_lost(&self) -> Result<(), SwitchError> {
        self.ask_all(|done| Command::CollectLost { done })
    }

    fn ask_all(&self, command: impl Fn(Sender<()>) -> Command) -> Result<(), SwitchError> {
        let (done, answers) = bounded(self.workers.len());
        for worker in &self.workers {
            worker.send(command(done.clone()))?;
        }
        drop(done);
        for _ in &self.workers {
            answers.recv().map_err(|_| SwitchError::WorkerDied)?;
        }
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for worker in &self.workers {
            let _ = worker.send(Command::Stop);
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn check_cpu(cpu: usize) -> io::Result<()> {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    if cpu < nix::sched::CpuSet::count() && allowed.is_set(cpu)? {
        Ok(())
    } else {
        Err(io::Error::other(format!("CPU {cpu} does not exist or is not allowed for this process; see taskset -p $$")))
    }
}

fn pin_to(cpu: usize) -> io::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    Ok(nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}
