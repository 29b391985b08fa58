//! A worker: a thread that owns receive queues and carries their frames to the end.
//!
//! `turn` is one bounded, non-blocking round: every ready queue gives one batch, which is judged, sent and released
//! before the next. The same `turn` is driven by the thread's `run`, by benches and by the simulation. `run` adds
//! waiting: readiness is edge-triggered (mio), so a queue stays on the worker's own ready list until it says `Drained`.
//!
//! Adaptive polling spins for a bounded time after work (the queues that had frames, and the descriptors of the others
//! now and then), then arms every queue and sleeps. Nothing is lost in between: a queue that finds frames while arming
//! goes back to the ready list, and an edge that came before the sleep is still in the poll set. It does not spin where
//! others want the processor.

mod pace;
mod spin;
#[cfg(test)]
mod tests;

use std::{
    io,
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use mio::{Events, Interest, Poll, Token, Waker, unix::SourceFd};

use self::spin::Spin;
use crate::{
    batch::{BATCH_FRAMES, Batch},
    burden::Burden,
    clock::{Clock, Now},
    fdb::{Fdb, FlapEvent, FlapTable},
    id::PortId,
    pipeline::{self, Context, Judging, Plan},
    port::{Armed, PortRx, RxStatus},
    stages::{self, Stage, Stages},
    stats::Counter,
    topology::Topology,
    transmit::Transmitter,
    verdict::DropReason,
};

/// How a worker waits for frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PollMode {
    /// Spins for a short time after work, then sleeps; at once where other threads want its processor.
    #[default]
    Adaptive,
    /// Never sleeps: one core is always busy.
    Busy,
    /// Sleeps whenever nothing is ready.
    Interrupt,
}

/// How long an adaptive worker spins after the last frame. Longer than a round trip through a TAP takes to come back,
/// shorter than anything a person would call load.
pub const ADAPTIVE_SPIN: Duration = Duration::from_micros(50);
/// Copies after which a turn ends before it has been round: floods to very many ports must keep neither the other queues
/// nor the control side waiting.
const TURN_COPIES: usize = 4096;
/// Rounds without work between two readings of the clock: some microseconds.
const CLOCK_EVERY: u32 = 8;
/// While queues are hot, the descriptors of all others are looked at once in so many rounds.
const POLL_EVERY: u32 = 16;
/// So many hot queues are polled for as long as the worker is awake. Of more than that, those without a frame for
/// [`COOLING`] are armed instead: in a worker that never sleeps, ports that were busy once must not cost the others a
/// system call each per round for ever.
const MANY_HOT: usize = 16;
/// See [`MANY_HOT`].
const COOLING: Duration = Duration::from_millis(10);
/// Readiness events taken per look.
const EVENTS: usize = 256;
const WAKER: Token = Token(usize::MAX);

/// What the control side asks of a worker. Every command is acknowledged on `done` after it has taken effect.
pub enum Command {
    /// Work with this topology from the next turn on.
    Publish {
        /// The snapshot.
        topology: Arc<Topology>,
        /// Acknowledged when the old one is no longer used.
        done: Sender<()>,
    },
    /// Own this receive queue.
    Grant {
        /// Its port, which the current topology knows.
        port: PortId,
        /// Its number within the port.
        queue: u16,
        /// The queue.
        rx: Box<dyn PortRx>,
        /// Counts the frames that it receives, for balancing.
        load: Arc<AtomicU64>,
        /// Acknowledged when the queue is served, with the error if it cannot be.
        done: Sender<io::Result<()>>,
    },
    /// Give one receive queue back; what it had received before is on its way.
    Yield {
        /// Its port.
        port: PortId,
        /// Its number within the port.
        queue: u16,
        /// The queue; `None` if this worker does not have it (any more).
        back: Sender<Option<Box<dyn PortRx>>>,
    },
    /// Drop all receive queues of a port.
    Revoke {
        /// The port.
        port: PortId,
        /// Acknowledged when they are closed.
        done: Sender<()>,
    },
    /// Bring the counters that drivers keep themselves up to date.
    CollectLost {
        /// Acknowledged when done.
        done: Sender<()>,
    },
    /// Drain what is ready, once, and end.
    Stop,
}

/// What a worker reports of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A receive queue's device is gone; the worker has closed the queue.
    Gone {
        /// The port.
        port: PortId,
    },
    /// An address flaps.
    Flap(FlapEvent),
}

/// Both ends of what connects a worker with the control side.
pub struct Channels {
    /// The control side sends commands here (and wakes the worker).
    pub commands: Sender<Command>,
    /// The worker's end.
    pub inbox: Receiver<Command>,
    /// The worker reports here; clones go to further workers.
    pub report: Sender<Event>,
    /// The control side's end.
    pub reports: Receiver<Event>,
}

/// Commands that may wait for a worker.
const COMMANDS: usize = 64;
/// Reports that may wait for the control thread; further ones are lost, their counters are not.
const REPORTS: usize = 1024;

/// Makes the bounded channels of one worker.
#[must_use]
pub fn channels() -> Channels {
    let (commands, inbox) = bounded(COMMANDS);
    let (report, reports) = bounded(REPORTS);
    Channels { commands, inbox, report, reports }
}

struct RxQueue {
    port: PortId,
    queue: u16,
    rx: Box<dyn PortRx>,
    load: Arc<AtomicU64>,
    readiness: Option<RawFd>,
    ready: bool,
    hot: bool,
    /// When it last had a frame, in nanoseconds of the clock.
    worked: u64,
    /// Its port has a rate from it: see [`pace`].
    paced: bool,
    /// It is left alone until then: the rate is used up.
    paused: Option<u64>,
}

impl RxQueue {
    /// Stops polling it: it says when it has frames.
    fn cool(&mut self) {
        self.hot = false;
        if self.rx.arm() == Armed::Work {
            self.ready = true;
        }
    }
}

/// See the module page.
pub struct Worker {
    index: usize,
    fdb: Arc<Fdb>,
    clock: Clock,
    mode: PollMode,
    topology: Arc<Topology>,
    queues: Vec<Option<RxQueue>>,
    /// Where the next turn begins.
    next: usize,
    /// The last turn found more than [`MANY_HOT`] queues hot.
    crowded: bool,
    batch: Batch,
    plan: Plan,
    flaps: FlapTable,
    judging: Judging,
    transmitter: Transmitter,
    stages: Stages,
    burden: Burden,
    poll: Poll,
    events: Events,
    commands: Receiver<Command>,
    reports: Sender<Event>,
    busy: Arc<AtomicU64>,
    stopping: bool,
}

impl Worker {
    /// A worker without queues, and the waker for its commands.
    ///
    /// # Errors
    /// No epoll descriptor can be had.
    pub fn new(
        index: usize,
        fdb: Arc<Fdb>,
        clock: Clock,
        mode: PollMode,
        commands: Receiver<Command>,
        reports: Sender<Event>,
    ) -> io::Result<(Worker, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let worker = Worker {
            index,
            fdb,
            clock,
            mode,
            topology: Arc::default(),
            queues: Vec::new(),
            next: 0,
            crowded: false,
            batch: Batch::new(),
            plan: Plan::default(),
            flaps: FlapTable::default(),
            judging: Judging::default(),
            transmitter: Transmitter::new(),
            stages: Stages::default(),
            burden: Burden::from_environment(),
            poll,
            events: Events::with_capacity(EVENTS),
            commands,
            reports,
            busy: Arc::default(),
            stopping: false,
        };
        Ok((worker, waker))
    }

    /// Nanoseconds that this worker spent in turns that moved frames, as opposed to asking empty queues and sleeping:
    /// rounded up by the few empty rounds since it last read the clock.
    #[must_use]
    pub fn busy(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.busy)
    }

    /// What the stages of this worker's turns cost, see [`stages`].
    #[must_use]
    pub fn stages(&self) -> stages::Reading {
        self.stages.reading()
    }

    /// One round over the queues that are ready (or hot), in parts if they have very much to send or a command waits;
    /// true if any frame was moved.
    pub fn turn(&mut self, now: Now) -> bool {
        let mut worked = false;
        let mut copies = 0;
        let mut hot = 0;
        for _ in 0..self.queues.len() {
            let index = self.next % self.queues.len();
            self.next = index + 1;
            let Some(queue) = &mut self.queues[index] else { continue };
            if !queue.ready && !queue.hot {
                continue;
            }
            if queue.paced && !self.may_read(index, now) {
                continue;
            }
            let Some(queue) = &mut self.queues[index] else { continue };
            self.stages.begin();
            let status = queue.rx.rx(&mut self.batch);
            queue.ready = status == RxStatus::More;
            hot += usize::from(queue.hot);
            if self.batch.is_empty() {
                if queue.paced {
                    self.batch.set_limit(BATCH_FRAMES);
                }
                let quiet = now.nanos.saturating_sub(queue.worked) > COOLING.as_nanos() as u64;
                if self.crowded && quiet && queue.hot && queue.readiness.is_some() {
                    queue.cool();
                }
            } else {
                queue.hot = true;
                queue.worked = now.nanos;
                // Only this thread writes: no read-modify-write is needed.
                queue.load.store(queue.load.load(Relaxed) + self.batch.len() as u64, Relaxed);
                if queue.paced {
                    self.pay(index, now);
                }
                worked = true;
                copies += self.forward(index, now);
            }
            if status == RxStatus::Gone {
                self.close(index);
            }
            if copies > TURN_COPIES || !self.commands.is_empty() {
                break;
            }
        }
        self.crowded = hot > MANY_HOT;
        while let Some(event) = self.flaps.take_event() {
            let _ = self.reports.try_send(Event::Flap(event));
        }
        worked
    }

    /// Carries the batch of one queue to the end; returns how many copies that made.
    fn forward(&mut self, index: usize, now: Now) -> usize {
        let Some(queue) = &mut self.queues[index] else { return 0 };
        self.stages.end(Stage::Rx);
        self.stages.frames(self.batch.len());
        self.burden.spend(self.batch.len());
        let mut copies = 0;
        if let Some(ingress) = self.topology.port(queue.port) {
            let context = Context {
                topology: &self.topology,
                fdb: &self.fdb,
                now,
                worker: self.index,
                ingress,
                queue: queue.queue,
            };
            pipeline::judge(
                &context,
                &mut self.batch,
                &mut self.flaps,
                &mut self.judging,
                &mut self.plan,
                &mut self.stages,
            );
            self.transmitter.send(&self.topology, self.index, &self.batch, &self.plan, now);
            self.stages.end(Stage::Transmit);
            copies = self.plan.len();
            self.plan.clear();
        }
        queue.rx.release(&mut self.batch);
        self.batch.clear();
        self.stages.end(Stage::Release);
        copies
    }

    fn close(&mut self, index: usize) {
        if let Some(queue) = self.queues[index].take() {
            self.deregister(&queue);
            let _ = self.reports.try_send(Event::Gone { port: queue.port });
        }
    }

    fn deregister(&self, queue: &RxQueue) {
        if let Some(fd) = queue.readiness {
            // It fails only if the descriptor left the set by itself.
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
    }

    /// Works until told to stop.
    pub fn run(mut self) {
        let mut now = self.clock.now();
        let mut last_work = now;
        let mut spinning = Spin::default();
        let mut round = 0u32;
        while !self.stopping {
            round = round.wrapping_add(1);
            let worked = self.turn(now);
            if worked || round.is_multiple_of(CLOCK_EVERY) {
                let before = std::mem::replace(&mut now, self.clock.now());
                if worked {
                    // Only this thread writes: no read-modify-write is needed.
                    self.busy.store(self.busy.load(Relaxed) + (now.nanos - before.nanos), Relaxed);
                    last_work = now;
                }
                if self.mode == PollMode::Adaptive {
                    spinning.passed(before.nanos, now.nanos, spin::lost);
                }
            }
            let ready = self.has_ready();
            let spin = match self.mode {
                PollMode::Busy => true,
                PollMode::Adaptive => {
                    now.nanos - last_work.nanos < ADAPTIVE_SPIN.as_nanos() as u64 && spinning.allowed(now.nanos)
                }
                PollMode::Interrupt => false,
            };
            if ready || spin {
                if round.is_multiple_of(POLL_EVERY)
                    || !self.commands.is_empty()
                    || !self.queues.iter().flatten().any(|q| q.hot)
                {
                    self.look();
                }
                continue;
            }
            if self.may_sleep() {
                self.wait(self.longest_sleep(now));
                now = self.clock.now();
            }
        }
        // What had arrived before the stop is still carried.
        self.turn(self.clock.now());
    }

    fn has_ready(&self) -> bool {
        self.queues.iter().flatten().any(|q| q.ready && q.paused.is_none())
    }

    /// Takes note of what has become ready, and obeys commands; never blocks.
    pub fn look(&mut self) {
        self.wait(Some(Duration::ZERO));
    }

    /// Asks every queue for a wake-up; false if one has frames, known before or found now. After true, the next frame
    /// or command is an event of the poll set.
    pub fn may_sleep(&mut self) -> bool {
        let mut quiet = !self.has_ready();
        for queue in self.queues.iter_mut().flatten().filter(|q| q.paused.is_none()) {
            queue.cool();
            quiet &= !queue.ready;
        }
        quiet
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        if self.poll.poll(&mut self.events, timeout).is_err() {
            // Only EINTR is possible on a descriptor that is ours; the loop comes back.
            return;
        }
        let mut called = false;
        for event in &self.events {
            if event.token() == WAKER {
                called = true;
            } else if let Some(Some(queue)) = self.queues.get_mut(event.token().0) {
                queue.ready = true;
            }
        }
        if called {
            self.obey();
        }
    }

    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Publish { topology, done } => {
                    self.take_up(topology);
                    let _ = done.send(());
                }
                Command::Grant { port, queue, rx, load, done } => {
                    let _ = done.send(self.own(port, queue, rx, load));
                }
                Command::Yield { port, queue, back } => {
                    let _ = back.send(self.yield_queue(port, queue));
                }
                Command::Revoke { port, done } => {
                    self.disown(port);
                    let _ = done.send(());
                }
                Command::CollectLost { done } => {
                    self.collect_lost();
                    let _ = done.send(());
                }
                Command::Stop => self.stopping = true,
            }
        }
    }

    /// Works with `topology` from now on.
    pub fn take_up(&mut self, topology: Arc<Topology>) {
        self.plan.fit(&topology);
        self.topology = topology;
        self.set_paces();
    }

    /// Serves a receive queue from now on.
    ///
    /// # Errors
    /// Its descriptor cannot be watched; the queue is closed.
    pub fn own(&mut self, port: PortId, queue: u16, rx: Box<dyn PortRx>, load: Arc<AtomicU64>) -> io::Result<()> {
        let index = self.queues.iter().position(Option::is_none).unwrap_or_else(|| {
            self.queues.push(None);
            self.queues.len() - 1
        });
        let readiness = rx.readiness();
        if let Some(fd) = readiness {
            self.poll.registry().register(&mut SourceFd(&fd), Token(index), Interest::READABLE)?;
        }
        // Frames may have come before the descriptor was watched.
        let paced = self.is_paced(port);
        self.queues[index] =
            Some(RxQueue { port, queue, rx, load, readiness, ready: true, hot: false, worked: 0, paced, paused: None });
        Ok(())
    }

    /// Stops serving a receive queue and hands it back.
    fn yield_queue(&mut self, port: PortId, number: u16) -> Option<Box<dyn PortRx>> {
        let place =
            self.queues.iter_mut().find(|place| place.as_ref().is_some_and(|q| q.port == port && q.queue == number))?;
        let mut queue = place.take()?;
        self.deregister(&queue);
        // It may have been polled until now, with its wake-up off; the new owner looks once and then waits for that.
        let _ = queue.rx.arm();
        Some(queue.rx)
    }

    /// Closes all receive queues of a port.
    pub fn disown(&mut self, port: PortId) {
        for index in 0..self.queues.len() {
            if self.queues[index].as_ref().is_some_and(|q| q.port == port)
                && let Some(queue) = self.queues[index].take()
            {
                self.deregister(&queue);
            }
        }
    }

    fn collect_lost(&mut self) {
        for queue in self.queues.iter_mut().flatten() {
            let (lost, errors, inactive) = (queue.rx.take_lost(), queue.rx.take_errors(), queue.rx.take_inactive());
            if let (true, Some(port)) = (lost + errors + inactive > 0, self.topology.port(queue.port)) {
                let counters = port.shared.counters.of(self.index);
                counters.add(Counter::RxFrames, inactive);
                counters.drop_frames(DropReason::InactiveMember, inactive);
                counters.add(Counter::RxLost, lost);
                counters.add(Counter::RxErrors, errors);
            }
        }
    }
}
