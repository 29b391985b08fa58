//! What became of the frames of a [`Traffic`].
//!
//! Every arriving frame is exactly one of: *received* (all its bytes are as sent; the first of its number, or a
//! *duplicate*), *corrupted* (ours by its mark or its headers, but not as sent), *foreign* (anything else, frames of
//! another run too). A received frame is also *reordered* if it is the first of its number and a higher number of its flow
//! came before: that is the definition of RFC 4737 §3.3, with the mark's number as sequence number, per flow. What was
//! sent and not received is *lost*, so a frame that only arrived corrupted is lost as well as corrupted.

use hdrhistogram::Histogram;
use serde::Serialize;
use switch_core::frame::offload::VNET_HDR_BYTES;

use super::{
    Layers, Sizes, Traffic, TrafficError,
    mark::{MAGIC, MARK_BYTES, Mark, intact},
};

/// Numbers from here on are not ours: bounds the memory of a [`Tally`], whatever arrives (one bit per number).
pub const MAX_NUMBER: u64 = 1 << 32;
/// Latencies above a minute are recorded as a minute.
const MAX_LATENCY_NS: u64 = 60_000_000_000;

/// Looks at everything that arrives.
pub trait Judge: Send {
    /// Takes a frame into account that was received at `now_ns`.
    fn note(&mut self, frame: &[u8], now_ns: u64);

    /// Frames so far that were sent by us: received or corrupted.
    fn arrived(&self) -> u64;
}

/// One flow's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Numbers {
    /// The highest number seen plus one.
    next: u64,
    /// One bit per number, set when seen.
    seen: Vec<u64>,
}

impl Numbers {
    /// Takes a number into account: (seen before, reordered).
    fn note(&mut self, number: u64) -> (bool, bool) {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let before = self.seen[word] & bit != 0;
        self.seen[word] |= bit;
        let late = number < self.next;
        self.next = self.next.max(number + 1);
        (before, late && !before)
    }

    /// How many of the first `sent` numbers were seen.
    fn among(&self, sent: u64) -> u64 {
        let whole = (sent / 64) as usize;
        let mut seen: u64 = self.seen.iter().take(whole).map(|w| u64::from(w.count_ones())).sum();
        if let Some(word) = self.seen.get(whole) {
            seen += u64::from((word & ((1 << (sent % 64)) - 1)).count_ones());
        }
        seen
    }
}

/// See the module page.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Frames (segments of large ones) as sent, duplicates included.
    pub received: u64,
    /// Their bytes without FCS, headers included.
    pub bytes: u64,
    /// First of their number, after a higher one of their flow.
    pub reordered: u64,
    /// Of a number that was received before.
    pub duplicated: u64,
    /// Ours, but not as sent.
    pub corrupted: u64,
    /// Not ours.
    pub foreign: u64,
    traffic: Traffic,
    flows: Vec<Numbers>,
    latency: Option<Histogram<u64>>,
    /// Headers as expected, made for every frame.
    headers: Vec<u8>,
}

/// A run's result in numbers of frames (segments of large ones).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Given to the system.
    pub sent: u64,
    /// As sent, duplicates not counted.
    pub received: u64,
    /// Sent, not received, and not the sink's fault: the switch's loss.
    pub lost: u64,
    /// Sent, not received, and no more than what the sink's own socket or queue dropped. That dropped foreign frames too,
    /// perhaps, so this is the most that can be the sink's fault.
    pub lost_at_sink: u64,
    /// RFC 4737 §3.3, per flow.
    pub reordered: u64,
    /// Arrived once more.
    pub duplicated: u64,
    /// Arrived damaged.
    pub corrupted: u64,
    /// Of others.
    pub foreign: u64,
}

impl Tally {
    /// Nothing has arrived yet. `traffic` is what should arrive: after a port that adds a tag, it has that tag.
    ///
    /// # Errors
    /// The traffic cannot be made.
    pub fn new(traffic: Traffic) -> Result<Tally, TrafficError> {
        traffic.check()?;
        let flows = vec![Numbers::default(); traffic.flows.count as usize];
        Ok(Tally {
            received: 0,
            bytes: 0,
            reordered: 0,
            duplicated: 0,
            corrupted: 0,
            foreign: 0,
            traffic,
            flows,
            latency: None,
            headers: Vec::new(),
        })
    }

    /// Records the time from sending to arriving of every received frame, from 1 ns to a minute with three digits. Both
    /// ends read the clock once per batch: it is exact to the time that one batch takes.
    #[must_use]
    pub fn with_latency(mut self) -> Tally {
        self.latency = Some(Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3).expect("these bounds can be had"));
        self
    }

    /// The times from sending to arriving in ns, if wanted.
    #[must_use]
    pub fn latency(&self) -> Option<&Histogram<u64>> {
        self.latency.as_ref()
    }

    /// The result, if `frames` frames were sent and the sink's socket or queue dropped `sink_drops`.
    #[must_use]
    pub fn outcome(&self, frames: u64, sink_drops: u64) -> Outcome {
        let (mut sent, mut received) = (0, 0);
        for (flow, numbers) in (0..).zip(&self.flows) {
            let of_flow = self.traffic.numbers(flow, frames);
            sent += of_flow;
            received += numbers.among(of_flow);
        }
        let missing = sent - received;
        let lost_at_sink = missing.min(sink_drops);
        Outcome {
            sent,
            received,
            lost: missing - lost_at_sink,
            lost_at_sink,
            reordered: self.reordered,
            duplicated: self.duplicated,
            corrupted: self.corrupted,
            foreign: self.foreign,
        }
    }

    /// Frames (segments) of `frames` sent frames that were not received, whoever lost them.
    #[must_use]
    pub fn lost(&self, frames: u64) -> u64 {
        self.outcome(frames, 0).lost
    }

    /// Whether all before the mark is as it should be in a frame of this flow and length.
    fn expected(&mut self, flow: u32, frame: &[u8]) -> bool {
        let bytes = self.traffic.header_bytes();
        if flow >= self.traffic.flows.count || frame.len() < bytes {
            return false;
        }
        self.headers.clear();
        self.traffic.write_headers(flow, frame.len(), &mut self.headers);
        if let Sizes::Large { .. } = self.traffic.sizes {
            // What segmentation is entitled to change; the length is right as it is made from the frame's own.
            let ip = 14 + 4 * self.traffic.tags.len();
            let mut ignore = |at: usize, n: usize| self.headers[at..at + n].copy_from_slice(&frame[at..at + n]);
            let tcp = bytes - 20;
            if self.traffic.layers == Layers::Ipv4 {
                ignore(ip + 4, 2);
                ignore(ip + 10, 2);
            }
            ignore(tcp + 4, 4);
            ignore(tcp + 13, 1);
            ignore(tcp + 16, 2);
        }
        frame[..bytes] == *self.headers
    }

    /// One mark with its pattern, behind headers that are right or not.
    fn segment(&mut self, marked: &[u8], headers_right: bool, frame_bytes: usize, now_ns: u64) {
        let Some(mark) = Mark::read(marked) else { return self.foreign += 1 };
        let whole = intact(marked);
        if whole && mark.run != self.traffic.run {
            return self.foreign += 1;
        }
        let ours = headers_right || marked[0] == MAGIC && mark.run == self.traffic.run;
        if !ours {
            return self.foreign += 1;
        }
        let segments = self.traffic.segments();
        let length_right = segments > 1
            || mark.number < MAX_NUMBER && self.traffic.bytes_of(u32::from(mark.flow), mark.number) == frame_bytes;
        if !whole
            || !headers_right
            || !length_right
            || mark.number >= MAX_NUMBER
            || !self.traffic.has_pattern(mark.number, &marked[MARK_BYTES..])
        {
            return self.corrupted += 1;
        }
        let (before, reordered) = self.flows[usize::from(mark.flow)].note(mark.number);
        self.received += 1;
        self.bytes += (self.traffic.header_bytes() + marked.len()) as u64;
        self.duplicated += u64::from(before);
        self.reordered += u64::from(reordered);
        if let Some(latency) = &mut self.latency {
            latency.saturating_record(mark.age_ns(now_ns));
        }
    }
}

impl Judge for Tally {
    fn note(&mut self, frame: &[u8], now_ns: u64) {
        let headers = self.traffic.header_bytes();
        let Some(payload) = frame.get(headers..).filter(|payload| payload.len() >= MARK_BYTES) else {
            return self.foreign += 1;
        };
        let flow = Mark::read(payload).map_or(u32::MAX, |mark| u32::from(mark.flow));
        let right = self.expected(flow, frame);
        if let Sizes::Large { segments, segment_bytes } = self.traffic.sizes {
            let count = payload.len() / segment_bytes;
            if payload.len().is_multiple_of(segment_bytes) && (1..=segments).contains(&count) {
                payload.chunks(segment_bytes).for_each(|s| self.segment(s, right, frame.len(), now_ns));
            } else {
                self.foreign += 1;
            }
        } else {
            self.segment(payload, right, frame.len(), now_ns);
        }
    }

    fn arrived(&self) -> u64 {
        self.received + self.corrupted
    }
}

/// A frame without its virtio-net header.
#[must_use]
pub fn bare(frame: &[u8]) -> &[u8] {
    &frame[VNET_HDR_BYTES.min(frame.len())..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use switch_core::mac::MacAddr;

    use super::{
        super::{Composer, Flows, OuterTag, Pattern, compose::Source},
        *,
    };
    use crate::ends::{Fault, FaultyWire, Receive, Transmit};

    fn traffic() -> Traffic {
        Traffic { run: 3, ..Traffic::new(MacAddr([2, 0, 0, 0, 0, 2]), MacAddr([2, 0, 0, 0, 0, 1])) }
    }

    /// Sends frames over a wire with faults and looks at what arrives.
    fn over(traffic: &Traffic, faults: &[(u64, Fault)], frames: usize) -> Tally {
        let mut source = Composer::new(traffic.clone()).expect("it can be made");
        let mut wire = FaultyWire::new(faults.iter().copied(), 7);
        let mut tally = Tally::new(traffic.clone()).expect("it can be made");
        let mut left = frames;
        let mut receive = |wire: &mut FaultyWire| {
            wire.receive(std::time::Duration::ZERO, &mut |frame| tally.note(frame, 0)).expect("memory");
        };
        while left > 0 {
            let sent = wire.send(source.frames(left.min(5), 0)).expect("memory");
            source.sent(sent);
            left -= sent;
            receive(&mut wire);
        }
        wire.settle();
        receive(&mut wire);
        tally
    }

    /// What the faults mean, without any wire: frames sorted by when they arrive, then counted the slow way.
    fn model(flows: u64, faults: &[(u64, Fault)], frames: u64) -> Outcome {
        let fault = |k| faults.iter().find(|(at, _)| *at == k).map(|(_, fault)| *fault);
        let late = |k| matches!(fault(k), Some(Fault::Delay(behind)) if behind > 0);
        let on_time: Vec<u64> = (0..frames).filter(|k| fault(*k) != Some(Fault::Drop) && !late(*k)).collect();
        let mut order: Vec<(u64, bool, u64)> = Vec::new();
        for k in 0..frames {
            match fault(k) {
                Some(Fault::Drop) => {}
                Some(Fault::Delay(behind)) if behind > 0 => {
                    let after = on_time.iter().filter(|other| **other > k).nth(usize::from(behind) - 1);
                    order.push((after.copied().unwrap_or(u64::MAX), true, k));
                }
                _ => order.push((k, false, k)),
            }
        }
        order.sort_unstable();
        let mut outcome = Outcome { sent: frames, ..Outcome::default() };
        let mut seen: Vec<u64> = Vec::new();
        for (_, _, k) in order {
            if let Some(Fault::Corrupt(_)) = fault(k) {
                outcome.corrupted += 1;
                continue;
            }
            outcome.received += 1;
            outcome.reordered += u64::from(seen.iter().any(|other| other % flows == k % flows && *other > k));
            if let Some(Fault::Duplicate(more)) = fault(k) {
                outcome.duplicated += u64::from(more);
            }
            seen.push(k);
        }
        outcome.lost = frames - outcome.received;
        outcome
    }

    fn any_fault() -> impl Strategy<Value = Fault> {
        prop_oneof![
            Just(Fault::Drop),
            (0..4u8).prop_map(Fault::Duplicate),
            (0..12u8).prop_map(Fault::Delay),
            any::<u16>().prop_map(Fault::Corrupt),
        ]
    }

    fn any_traffic() -> impl Strategy<Value = Traffic> {
        let layers = prop_oneof![Just(Layers::Raw), Just(Layers::Ipv4), Just(Layers::Ipv6)];
        let pattern =
            prop_oneof![Just(Pattern::Number), any::<u8>().prop_map(Pattern::Constant), Just(Pattern::Random)];
        (layers, pattern, 1..5u32, 1..3u32, prop::collection::vec(92..400usize, 1..4), 0..3usize).prop_map(
            |(layers, pattern, count, sources, sizes, tags)| Traffic {
                layers,
                pattern,
                // Flows without IP are told apart by their addresses alone, which two of these may share: by the mark too.
                flows: Flows { count, sources, ..traffic().flows },
                sizes: Sizes::Cycle(sizes),
                tags: vec![OuterTag { tpid: 0x8100, tci: 5 }; tags],
                ..traffic()
            },
        )
    }

    proptest! {
        #[test]
        fn the_tally_says_exactly_what_the_wire_did(
            traffic in any_traffic(),
            faults in prop::collection::btree_map(0..200u64, any_fault(), 0..80),
            frames in 0..200usize,
        ) {
            let faults: Vec<(u64, Fault)> = faults.into_iter().collect();
            let outcome = over(&traffic, &faults, frames).outcome(frames as u64, 0);
            prop_assert_eq!(outcome, model(traffic.flows.count.into(), &faults, frames as u64));
        }

        #[test]
        fn nothing_that_arrives_is_taken_for_something_else(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut tally = Tally::new(traffic()).expect("it can be made");
            tally.note(&frame, 0);
            prop_assert_eq!((tally.received, tally.foreign + tally.corrupted), (0, 1));
        }
    }

    #[test]
    fn frames_of_another_run_are_foreign() {
        let sent = Traffic { run: 4, ..traffic() };
        let mut tally = Tally::new(traffic()).expect("it can be made");
        let mut source = Composer::new(sent).expect("it can be made");
        source.frames(9, 0).iter().for_each(|frame| tally.note(bare(frame), 0));
        assert_eq!((tally.foreign, tally.arrived()), (9, 0));
    }

    #[test]
    fn large_frames_are_accounted_for_by_segment_whole_or_cut() {
        let sizes = Sizes::Large { segments: 3, segment_bytes: 100 };
        let traffic = Traffic { sizes, layers: Layers::Ipv4, ..traffic() };
        let payload = u16::try_from(traffic.header_bytes() + 150).expect("short");
        let tally = over(&traffic, &[(1, Fault::Drop), (2, Fault::Corrupt(payload)), (3, Fault::Corrupt(0))], 6);
        let expected = Outcome { sent: 18, received: 11, lost: 7, corrupted: 4, ..Outcome::default() };
        assert_eq!(tally.outcome(6, 0), expected, "three dropped, one damaged, three behind a damaged header");
        // Cut as a switch does it: headers before each segment, with a length and a sequence number of its own.
        let mut source = Composer::new(traffic.clone()).expect("it can be made");
        let whole = bare(&source.frames(1, 0)[0]).to_vec();
        let mut tally = Tally::new(traffic.clone()).expect("it can be made");
        for segment in [0, 2, 1] {
            let mut cut = Vec::new();
            traffic.write_headers(0, 54 + 100, &mut cut);
            cut[14 + 20 + 7] += 100 * segment as u8;
            cut.extend_from_slice(&whole[54 + 100 * segment..][..100]);
            tally.note(&cut, 0);
        }
        assert_eq!((tally.received, tally.reordered, tally.lost(1)), (3, 1, 0));
    }

    #[test]
    fn what_the_sink_dropped_is_not_the_switchs_loss() {
        let tally = over(&traffic(), &[(1, Fault::Drop), (2, Fault::Drop), (5, Fault::Drop)], 10);
        let split = |drops| {
            let outcome = tally.outcome(10, drops);
            (outcome.lost, outcome.lost_at_sink)
        };
        assert_eq!([split(0), split(1), split(3), split(9)], [(3, 0), (2, 1), (0, 3), (0, 3)]);
    }

    #[test]
    fn latencies_are_from_sending_to_arriving() {
        let mut tally = Tally::new(traffic()).expect("it can be made").with_latency();
        let mut source = Composer::new(traffic()).expect("it can be made");
        for (sent, arrived) in [(100, 350), (200, 1200)] {
            let frame = bare(&source.frames(1, sent)[0]).to_vec();
            source.sent(1);
            tally.note(&frame, arrived);
        }
        let latency = tally.latency().expect("wanted");
        assert_eq!((latency.len(), latency.min(), latency.max()), (2, 250, 1000));
    }
}
