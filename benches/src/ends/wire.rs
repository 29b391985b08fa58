//! A wire in memory that does stated harm to stated frames: what the accounts are tested against.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{Receive, Transmit};
use crate::traffic::tally::bare;

/// What happens to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is gone.
    Drop,
    /// It arrives so many more times, at once.
    Duplicate(u8),
    /// It arrives behind so many of the frames sent after it (those that arrive at once).
    Delay(u8),
    /// The byte at this place (counted from the destination address, modulo the length) is inverted.
    Corrupt(u16),
}

#[derive(Debug, Default)]
struct State {
    faults: BTreeMap<u64, Fault>,
    sent: u64,
    /// Frames to be overtaken by so many more.
    late: Vec<(u8, Vec<u8>)>,
    arrived: VecDeque<Vec<u8>>,
    room: usize,
}

/// See the module page. Both ends are one and the same; a clone is the other one.
#[derive(Clone, Debug)]
pub struct FaultyWire(Arc<Mutex<State>>);

impl FaultyWire {
    /// A wire that does this to the frames of these ordinals (from 0), and holds `room` frames.
    #[must_use]
    pub fn new(faults: impl IntoIterator<Item = (u64, Fault)>, room: usize) -> FaultyWire {
        FaultyWire(Arc::new(Mutex::new(State { faults: faults.into_iter().collect(), room, ..State::default() })))
    }

    /// All that is still late arrives now.
    pub fn settle(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = std::mem::take(&mut state.late);
        state.arrived.extend(late.into_iter().map(|(_, frame)| frame));
    }
}

impl State {
    fn arrive(&mut self, frame: Vec<u8>) {
        self.arrived.push_back(frame);
        let mut due = Vec::new();
        self.late.retain_mut(|(left, frame)| {
            *left = left.saturating_sub(1);
            if *left == 0 {
                due.push(std::mem::take(frame));
            }
            *left > 0
        });
        // Late ones overtake nobody.
        self.arrived.extend(due);
    }
}

impl Transmit for FaultyWire {
    fn send(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<usize> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (taken, frame) in frames.iter().enumerate() {
            if state.arrived.len() >= state.room {
                return Ok(taken);
            }
            let mut frame = bare(frame).to_vec();
            let ordinal = state.sent;
            state.sent += 1;
            match state.faults.get(&ordinal).copied() {
                None => state.arrive(frame),
                Some(Fault::Drop) => {}
                Some(Fault::Duplicate(more)) => {
                    state.arrive(frame.clone());
                    state.arrived.extend(std::iter::repeat_n(frame, usize::from(more)));
                }
                Some(Fault::Delay(0)) => state.arrive(frame),
                Some(Fault::Delay(behind)) => state.late.push((behind, frame)),
                Some(Fault::Corrupt(at)) => {
                    let at = usize::from(at) % frame.len();
                    frame[at] ^= 0xff;
                    state.arrive(frame);
                }
            }
        }
        Ok(frames.len())
    }
}

impl Receive for FaultyWire {
    fn receive(&mut self, _: Duration, look: &mut dyn FnMut(&[u8])) -> anyhow::Result<usize> {
        let arrived = std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).arrived);
        arrived.iter().for_each(|frame| look(frame));
        Ok(arrived.len())
    }
}
