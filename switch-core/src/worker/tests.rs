//! Which queues a worker looks at.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::eventfd::EventFd;

use super::*;
use crate::clock::Tick;

/// A queue that has one frame per look while it is told to, and counts looks and arms.
#[derive(Clone)]
struct Watched {
    bell: Arc<EventFd>,
    frames: Arc<AtomicU64>,
    looks: Arc<AtomicU64>,
    arms: Arc<AtomicU64>,
}

impl PortRx for Watched {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        self.looks.fetch_add(1, Relaxed);
        if self.frames.load(Relaxed) > 0 {
            self.frames.fetch_sub(1, Relaxed);
            batch.push_received(60);
        }
        RxStatus::Drained
    }

    fn arm(&mut self) -> Armed {
        self.arms.fetch_add(1, Relaxed);
        Armed::Ready
    }

    fn readiness(&self) -> Option<RawFd> {
        Some(self.bell.as_fd().as_raw_fd())
    }
}

fn after(nanos: u64) -> Now {
    Now { nanos, tick: Tick(1) }
}

/// A worker with so many queues, each of which has had a frame, and what they count.
fn worker(queues: usize) -> (Worker, Vec<Watched>) {
    let Channels { inbox, report, .. } = channels();
    let fdb = Arc::new(Fdb::with_seed(1024, 1));
    let (mut worker, _) = Worker::new(0, fdb, Clock::start(), PollMode::Busy, inbox, report).expect("a descriptor");
    let watched: Vec<Watched> = (0..queues)
        .map(|index| {
            let bell = Arc::new(EventFd::new().expect("a descriptor"));
            let (frames, looks, arms) = (Arc::new(AtomicU64::new(1)), Arc::default(), Arc::default());
            let one = Watched { bell, frames, looks, arms };
            worker.own(PortId(index as u16), 0, Box::new(one.clone()), Arc::default()).expect("watched");
            one
        })
        .collect();
    assert!(worker.turn(after(0)));
    (worker, watched)
}

fn looks_of_last(queues: usize) -> (u64, u64) {
    let (mut worker, watched) = worker(queues);
    watched[0].frames.store(u64::MAX, Relaxed);
    let step = COOLING.as_nanos() as u64 / 4;
    for round in 1..=100 {
        worker.turn(after(round * step));
    }
    assert_eq!(watched[0].looks.load(Relaxed), 101, "a queue with frames is served in every round");
    (watched[queues - 1].looks.load(Relaxed), watched[queues - 1].arms.load(Relaxed))
}

#[test]
fn few_hot_queues_are_polled_for_ever() {
    assert_eq!(looks_of_last(MANY_HOT), (101, 0));
}

#[test]
fn of_many_hot_queues_the_quiet_ones_are_armed() {
    assert_eq!(looks_of_last(MANY_HOT + 1), (6, 1));
}
