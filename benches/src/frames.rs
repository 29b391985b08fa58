//! Numbered frames: a generator that sends them and a sink that says exactly what became of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use switch_core::{
    mac::MacAddr,
    sys::raw::{BURST, RawSocket},
};

use crate::netns::Namespace;

/// The EtherType of numbered frames (local experimental, IEEE 802-2014 §9.2.3).
pub const ETHERTYPE: u16 = 0x88b5;
/// The shortest numbered frame: header, magic, number.
pub const MIN_BYTES: usize = 14 + 4 + 8;
const MAGIC: [u8; 4] = *b"vsw1";

/// Builds frame `number` of a stream: the payload after the number repeats its low byte.
#[must_use]
pub fn build(dst: MacAddr, src: MacAddr, bytes: usize, number: u64) -> Vec<u8> {
    let mut frame = Vec::with_capacity(bytes.max(MIN_BYTES));
    frame.extend_from_slice(&dst.0);
    frame.extend_from_slice(&src.0);
    frame.extend_from_slice(&ETHERTYPE.to_be_bytes());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&number.to_be_bytes());
    frame.resize(bytes.max(MIN_BYTES), number as u8);
    frame
}

/// The number of a frame: `None` if it is not one of ours, `Some(Err)` if it is damaged.
#[must_use]
pub fn number_of(frame: &[u8]) -> Option<Result<u64, ()>> {
    if frame.get(12..14)? != ETHERTYPE.to_be_bytes() || frame.get(14..18)? != MAGIC {
        return None;
    }
    let number = u64::from_be_bytes(frame.get(18..26)?.try_into().ok()?);
    let intact = frame[MIN_BYTES..].iter().all(|b| *b == number as u8);
    Some(if intact { Ok(number) } else { Err(()) })
}

/// Numbers from here on are not ours: bounds the memory of a [`Tally`], whatever arrives (one bit per number).
pub const MAX_NUMBER: u64 = 1 << 32;

/// What the sink saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Distinct or repeated, all undamaged frames of the stream.
    pub received: u64,
    /// Numbers seen for the first time, but after a higher one.
    pub reordered: u64,
    /// Numbers seen before, however long ago.
    pub duplicated: u64,
    /// Damaged payloads, and numbers that no stream has.
    pub corrupted: u64,
    /// The highest number plus one.
    pub next: u64,
    /// One bit per number, set when seen.
    seen: Vec<u64>,
}

impl Tally {
    /// Frames of `sent` that did not arrive.
    #[must_use]
    pub fn lost(&self, sent: u64) -> u64 {
        let whole = (sent / 64) as usize;
        let mut arrived: u64 = self.seen.iter().take(whole).map(|w| u64::from(w.count_ones())).sum();
        if let Some(word) = self.seen.get(whole) {
            arrived += u64::from((word & ((1 << (sent % 64)) - 1)).count_ones());
        }
        sent - arrived
    }

    /// Takes one frame into account.
    pub fn note(&mut self, frame: &[u8]) {
        match number_of(frame) {
            None => {}
            Some(Ok(number)) if number < MAX_NUMBER => self.count(number),
            Some(_) => self.corrupted += 1,
        }
    }

    fn count(&mut self, number: u64) {
        self.received += 1;
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.duplicated += 1;
        } else if number < self.next {
            self.reordered += 1;
        } else {
            self.next = number + 1;
        }
        self.seen[word] |= bit;
    }
}

/// A receiver on a thread inside a namespace.
pub struct Sink {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<anyhow::Result<(Tally, Instant)>>,
}

impl Sink {
    /// Starts to count.
    ///
    /// # Errors
    /// There is no such device.
    pub fn start(namespace: &Namespace, device: &str) -> anyhow::Result<Sink> {
        let mut socket = namespace.run(|| RawSocket::open(device, true))??;
        socket.set_timeout(Duration::from_millis(50))?;
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            let mut tally = Tally::default();
            let mut last = Instant::now();
            loop {
                let before = tally.received;
                let n = socket.receive(|frame| tally.note(frame))?;
                if tally.received > before {
                    last = Instant::now();
                    counted.store(tally.received, Relaxed);
                }
                if n == 0 && stopped.load(Relaxed) {
                    return Ok((tally, last));
                }
            }
        });
        Ok(Sink { stop, count, thread })
    }

    /// Frames so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Stops once nothing more arrives, and says what was seen.
    ///
    /// # Errors
    /// The socket failed.
    pub fn finish(self) -> anyhow::Result<Tally> {
        Ok(self.finish_timed()?.0)
    }

    /// As [`finish`](Self::finish), and says when the last frame arrived.
    ///
    /// # Errors
    /// The socket failed.
    pub fn finish_timed(self) -> anyhow::Result<(Tally, Instant)> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the sink panicked"))?
    }
}

/// How a stream is sent.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Destination.
    pub dst: MacAddr,
    /// Source.
    pub src: MacAddr,
    /// Length of a frame without checksum.
    pub bytes: usize,
    /// Frames per second; 0: as fast as the device takes them.
    pub rate: u64,
}

/// Sends numbered frames from a namespace for some time; returns how many the kernel took.
///
/// # Errors
/// There is no such device.
pub fn send(namespace: &Namespace, device: &str, stream: &Stream, time: Duration) -> anyhow::Result<u64> {
    let socket = namespace.run(|| RawSocket::open(device, false))??;
    let begin = Instant::now();
    let mut number = 0u64;
    let mut burst: Vec<Vec<u8>> = (0..BURST).map(|_| build(stream.dst, stream.src, stream.bytes, 0)).collect();
    while begin.elapsed() < time {
        let mut due = BURST;
        if stream.rate > 0 {
            let allowed = (begin.elapsed().as_secs_f64() * stream.rate as f64) as u64;
            due = (allowed.saturating_sub(number) as usize).min(BURST);
            if due == 0 {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            }
        }
        for (frame, n) in burst[..due].iter_mut().zip(number..) {
            frame[18..26].copy_from_slice(&n.to_be_bytes());
            frame[MIN_BYTES..].fill(n as u8);
        }
        match socket.send(&burst[..due]) {
            Ok(n) => number += n as u64,
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tally_says_exactly_what_happened() {
        let frame = |n| build(MacAddr::BROADCAST, MacAddr([2, 0, 0, 0, 0, 1]), 60, n);
        let mut tally = Tally::default();
        for n in [0, 1, 1, 4, 3, 5] {
            tally.note(&frame(n));
        }
        let mut damaged = frame(6);
        damaged[40] ^= 1;
        tally.note(&damaged);
        tally.note(&frame(u64::MAX));
        tally.note(&[0; 60]);
        let counts = |t: &Tally| (t.received, t.reordered, t.duplicated, t.corrupted, t.next);
        assert_eq!(counts(&tally), (6, 1, 1, 2, 6));
        assert_eq!(tally.lost(7), 2, "2 never came, 6 was damaged");
        assert_eq!(tally.lost(200), 195, "nor did those beyond");
    }

    #[test]
    fn a_late_duplicate_does_not_hide_a_loss() {
        let mut tally = Tally::default();
        for n in [0, 1, 2, 1] {
            tally.note(&build(MacAddr::BROADCAST, MacAddr([2, 0, 0, 0, 0, 1]), 60, n));
        }
        assert_eq!((tally.lost(4), tally.duplicated, tally.reordered), (1, 1, 0));
    }
}
