//! Recorded traffic: reads pcap (microseconds or nanoseconds, either byte order) and pcapng, sends it again, and accounts
//! for it by the frames' content.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};

use anyhow::{Context, bail, ensure};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};
use serde::Serialize;
use switch_core::frame::offload::VNET_HDR_BYTES;

use crate::traffic::{
    FCS_BYTES, MIN_SIZE, Schedule,
    compose::Source,
    tally::{Judge, bare},
};

/// The largest block of a file that can be read.
const BLOCK_BYTES: usize = 1 << 20;
/// Shorter frames are filled up with zeros as a network card does.
const SHORT_BYTES: usize = MIN_SIZE - FCS_BYTES;
/// Where a frame ends and its length in the file begins: both addresses and a type.
const HEADER_BYTES: usize = 14;

/// How fast a recording is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many times as fast as it was recorded; 1: as it was.
    Times(f64),
    /// As fast as frames are taken.
    Unlimited,
}

/// Frames of a file.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Each behind an empty virtio-net header.
    frames: Vec<Vec<u8>>,
    /// When each was recorded, in ns after the first one; 0 where the file says a time before that.
    times_ns: Vec<u64>,
    /// Frames of which the file has the beginning only; they are sent as they are.
    pub truncated: usize,
}

/// What the file says of an interface's times.
#[derive(Clone, Copy)]
struct Interface {
    units_per_s: u64,
    offset_s: i64,
}

impl Recording {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is damaged or cut off, is not of Ethernet, or has no frame.
    pub fn load(path: &Path) -> anyhow::Result<Recording> {
        let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Recording::read(file).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Reads from anything.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn read(input: impl std::io::Read + Send) -> anyhow::Result<Recording> {
        let failed = |e: PcapError<&[u8]>| anyhow::anyhow!("not a sound pcap or pcapng file: {e}");
        let mut reader = create_reader(BLOCK_BYTES, input).map_err(failed)?;
        let mut recording = Recording::default();
        let mut interfaces = Vec::new();
        let mut legacy = Interface { units_per_s: 1_000_000, offset_s: 0 };
        let mut first = None;
        loop {
            match reader.next() {
                Ok((consumed, block)) => {
                    recording.block(block, &mut interfaces, &mut legacy, &mut first)?;
                    reader.consume(consumed);
                }
                Err(PcapError::Eof) => break,
                Err(PcapError::Incomplete(_)) => {
                    ensure!(!reader.reader_exhausted(), "the file ends in the middle of a block");
                    reader.refill().map_err(failed)?;
                }
                Err(e) => return Err(failed(e)),
            }
        }
        ensure!(!recording.frames.is_empty(), "no frame is in it");
        Ok(recording)
    }

    fn block(
        &mut self,
        block: PcapBlockOwned<'_>,
        interfaces: &mut Vec<Interface>,
        legacy: &mut Interface,
        first: &mut Option<i128>,
    ) -> anyhow::Result<()> {
        let ethernet = |linktype: Linktype| {
            ensure!(linktype == Linktype::ETHERNET, "frames of link type {}, not of Ethernet", linktype.0);
            Ok(())
        };
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                ethernet(header.network)?;
                if header.is_nanosecond_precision() {
                    legacy.units_per_s = 1_000_000_000;
                }
            }
            PcapBlockOwned::Legacy(frame) => {
                let units = u64::from(frame.ts_sec) * legacy.units_per_s + u64::from(frame.ts_usec);
                self.push(frame.data, frame.origlen, Some((units, *legacy)), first)?;
            }
            // Interfaces are numbered anew in each section.
            PcapBlockOwned::NG(Block::SectionHeader(_)) => interfaces.clear(),
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                ethernet(interface.linktype)?;
                let units_per_s =
                    interface.ts_resolution().filter(|r| *r > 0).context("an impossible time resolution")?;
                interfaces.push(Interface { units_per_s, offset_s: interface.ts_offset() });
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(frame)) => {
                let interface = interfaces.get(frame.if_id as usize).context("a frame of an unknown interface")?;
                let units = u64::from(frame.ts_high) << 32 | u64::from(frame.ts_low);
                let data = frame.data.get(..frame.caplen as usize).context("a frame longer than its block")?;
                self.push(data, frame.origlen, Some((units, *interface)), first)?;
            }
            PcapBlockOwned::NG(Block::SimplePacket(frame)) => {
                ensure!(!interfaces.is_empty(), "a frame of an unknown interface");
                let data = &frame.data[..frame.data.len().min(frame.origlen as usize)];
                self.push(data, frame.origlen, None, first)?;
            }
            PcapBlockOwned::NG(_) => {}
        }
        Ok(())
    }

    fn push(
        &mut self,
        data: &[u8],
        whole_bytes: u32,
        time: Option<(u64, Interface)>,
        first: &mut Option<i128>,
    ) -> anyhow::Result<()> {
        if data.len() < HEADER_BYTES {
            bail!("frame {} has {} bytes: less than an Ethernet header", self.frames.len() + 1, data.len());
        }
        // A frame without a time goes with the one before.
        let mut at_ns = self.times_ns.last().copied().unwrap_or(0);
        if let Some((units, interface)) = time {
            let ns = i128::from(units) * 1_000_000_000 / i128::from(interface.units_per_s)
                + i128::from(interface.offset_s) * 1_000_000_000;
            at_ns = u64::try_from(ns - *first.get_or_insert(ns)).unwrap_or(0);
        }
        let mut frame = vec![0; VNET_HDR_BYTES];
        frame.extend_from_slice(data);
        frame.resize(frame.len().max(VNET_HDR_BYTES + SHORT_BYTES), 0);
        self.truncated += usize::from(data.len() < whole_bytes as usize);
        self.frames.push(frame);
        self.times_ns.push(at_ns);
        Ok(())
    }

    /// How many frames it has.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames.len() as u64
    }

    /// When frames are due; `None`: always.
    ///
    /// # Panics
    /// Not a pace: zero times as fast, or less.
    #[must_use]
    pub fn schedule(&self, pace: Pace) -> Option<Schedule> {
        let Pace::Times(factor) = pace else { return None };
        assert!(factor > 0.0, "{factor} times as fast");
        Some(Schedule::at(self.times_ns.iter().map(|ns| (*ns as f64 / factor) as u64).collect()))
    }

    /// Its frames, once, to be sent.
    #[must_use]
    pub fn source(&self) -> Replay<'_> {
        Replay { recording: self, next: 0 }
    }

    /// What should arrive.
    #[must_use]
    pub fn judge(&self) -> ReplayTally {
        let mut expected: HashMap<u64, VecDeque<u64>> = HashMap::new();
        for (frame, index) in self.frames.iter().zip(0..) {
            expected.entry(hash(bare(frame))).or_default().push_back(index);
        }
        ReplayTally { expected, next: 0, accounts: ReplayAccounts::default() }
    }
}

/// Frames of a recording, in order.
#[derive(Debug)]
pub struct Replay<'a> {
    recording: &'a Recording,
    next: usize,
}

impl Source for Replay<'_> {
    fn frames(&mut self, most: usize, _now_ns: u64) -> &[Vec<u8>] {
        let rest = &self.recording.frames[self.next..];
        &rest[..most.min(rest.len())]
    }

    fn sent(&mut self, frames: usize) {
        self.next += frames;
    }
}

fn hash(frame: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    frame.hash(&mut hasher);
    hasher.finish()
}

/// What became of a recording's frames. A frame is told by its content: those alike are taken for each other in their
/// order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplayAccounts {
    /// Of the recording, each once.
    pub received: u64,
    /// Received, after one that was sent later (RFC 4737 §3.3, with the place in the recording as sequence number).
    pub reordered: u64,
    /// Of the recording, but all alike had been received.
    pub duplicated: u64,
    /// Not of the recording: damaged, or of others.
    pub foreign: u64,
}

/// Judges by a hash of 64 bits of the whole frame.
#[derive(Clone, Debug)]
pub struct ReplayTally {
    /// Places in the recording of what has not arrived, by hash.
    expected: HashMap<u64, VecDeque<u64>>,
    /// The latest place seen, plus one.
    next: u64,
    accounts: ReplayAccounts,
}

impl ReplayTally {
    /// So far.
    #[must_use]
    pub fn accounts(&self) -> ReplayAccounts {
        self.accounts
    }

    /// How many of the first `sent` frames did not arrive.
    #[must_use]
    pub fn lost(&self, sent: u64) -> u64 {
        self.expected.values().flatten().filter(|place| **place < sent).count() as u64
    }
}

impl Judge for ReplayTally {
    fn note(&mut self, frame: &[u8], _now_ns: u64) {
        match self.expected.get_mut(&hash(frame)) {
            None => self.accounts.foreign += 1,
            Some(places) => match places.pop_front() {
                None => self.accounts.duplicated += 1,
                Some(place) => {
                    self.accounts.received += 1;
                    self.accounts.reordered += u64::from(place < self.next);
                    self.next = self.next.max(place + 1);
                }
            },
        }
    }

    fn arrived(&self) -> u64 {
        self.accounts.received + self.accounts.duplicated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: [(u64, u8); 3] =
        [(1_700_000_000_123_456_000, 1), (1_700_000_000_123_457_000, 2), (1_700_000_002_000_000_000, 1)];

    fn content(id: u8) -> Vec<u8> {
        vec![id; 61]
    }

    fn bytes(value: u64, n: usize, big: bool) -> Vec<u8> {
        if big { value.to_be_bytes()[8 - n..].to_vec() } else { value.to_le_bytes()[..n].to_vec() }
    }

    /// A classic file: of units of so many ns.
    fn classic(unit_ns: u64, big: bool) -> Vec<u8> {
        let magic = if unit_ns == 1 { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let header = [(magic, 4), (2, 2), (4, 2), (0, 4), (0, 4), (65_535, 4), (1, 4)];
        let mut file: Vec<u8> = header.iter().flat_map(|(v, n)| bytes(*v, *n, big)).collect();
        for (ns, id) in FRAMES {
            let data = content(id);
            for value in [ns / 1_000_000_000, ns % 1_000_000_000 / unit_ns, data.len() as u64, 100] {
                file.extend(bytes(value, 4, big));
            }
            file.extend(data);
        }
        file
    }

    fn block(kind: u64, body: &[u8], big: bool) -> Vec<u8> {
        let body = [body, &vec![0; body.len().next_multiple_of(4) - body.len()]].concat();
        let len = bytes(body.len() as u64 + 12, 4, big);
        [bytes(kind, 4, big), len.clone(), body, len].concat()
    }

    /// A pcapng file whose times are in units of 10^-`digits` s; `None`: it does not say, which means 6.
    fn next_generation(digits: Option<u8>, big: bool) -> Vec<u8> {
        let section = [bytes(0x1a2b_3c4d, 4, big), bytes(1, 2, big), bytes(0, 2, big), vec![0xff; 8]].concat();
        let mut interface = [bytes(1, 2, big), bytes(0, 2, big), bytes(0, 4, big)].concat();
        if let Some(digits) = digits {
            interface.extend([bytes(9, 2, big), bytes(1, 2, big), vec![digits, 0, 0, 0], vec![0; 4]].concat());
        }
        let mut file = [block(0x0a0d_0d0a, &section, big), block(1, &interface, big)].concat();
        let unit_ns = 10u64.pow(u32::from(9 - digits.unwrap_or(6)));
        for (ns, id) in FRAMES {
            let units = ns / unit_ns;
            let data = content(id);
            let head = [0, units >> 32, units & 0xffff_ffff, data.len() as u64, data.len() as u64];
            let head: Vec<u8> = head.iter().flat_map(|v| bytes(*v, 4, big)).collect();
            file.extend(block(6, &[head, data].concat(), big));
        }
        file
    }

    #[test]
    fn all_kinds_of_files_are_read_alike() {
        let times = [0, 1000, 1_876_544_000];
        for big in [false, true] {
            let files = [
                (classic(1000, big), 3),
                (classic(1, big), 3),
                (next_generation(None, big), 0),
                (next_generation(Some(9), big), 0),
            ];
            for (file, truncated) in files {
                let recording = Recording::read(&file[..]).expect("sound");
                assert_eq!((recording.times_ns.as_slice(), recording.truncated), (&times[..], truncated), "{big}");
                let contents: Vec<&[u8]> = recording.frames.iter().map(|f| bare(f)).collect();
                assert_eq!(contents, FRAMES.map(|(_, id)| content(id)));
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let refused = |file: &[u8]| format!("{:#}", Recording::read(file).expect_err("refused"));
        let file = classic(1000, false);
        assert!(refused(&file[..file.len() - 1]).contains("end of file"));
        assert!(refused(&file[..24]).contains("no frame"));
        let mut wireless = file.clone();
        wireless[20] = 105;
        assert!(refused(&wireless).contains("link type 105"));
        assert!(refused(b"GIF89a, certainly not a capture file").contains("not a sound"));
        assert!(
            format!("{:#}", Recording::load(Path::new("/nowhere/x.pcap")).expect_err("none"))
                .contains("/nowhere/x.pcap")
        );
    }

    #[test]
    fn the_pace_is_the_recorded_one_or_a_multiple() {
        let recording = Recording::read(&classic(1000, false)[..]).expect("sound");
        assert!(recording.schedule(Pace::Unlimited).is_none());
        let twice = recording.schedule(Pace::Times(2.0)).expect("a schedule");
        assert_eq!([0, 1, 2, 3].map(|k| twice.due_ns(k)), [Some(0), Some(500), Some(938_272_000), None]);
        let mut source = recording.source();
        assert_eq!(source.frames(2, 0).len(), 2);
        source.sent(2);
        assert_eq!(source.frames(2, 0).len(), 1);
        source.sent(1);
        assert!(source.frames(2, 0).is_empty());
    }

    #[test]
    fn frames_are_accounted_for_by_their_content() {
        let recording = Recording::read(&classic(1000, false)[..]).expect("sound");
        let mut tally = recording.judge();
        // Frames 0 and 2 are alike: the first to arrive counts as the first.
        for id in [1, 1, 2, 2, 9] {
            tally.note(&content(id), 0);
        }
        let expected = ReplayAccounts { received: 3, reordered: 1, duplicated: 1, foreign: 1 };
        assert_eq!((tally.accounts(), tally.lost(3), tally.arrived()), (expected, 0, 4));
        let mut tally = recording.judge();
        tally.note(&content(1), 0);
        assert_eq!((tally.lost(3), tally.lost(2), tally.lost(1)), (2, 1, 0));
    }
}
