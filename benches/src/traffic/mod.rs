//! What is sent: how many flows of which frames, and how fast.
//!
//! Each flow numbers its frames; what a frame of it looks like follows from flow and number alone, so the sink makes every
//! frame that it receives anew and compares. Frames are sent one flow after the other, round and round.
//!
//! Sizes are those of RFC 2544: of the untagged Ethernet frame with its checksum (FCS) of 4 bytes, which nothing here sees.
//! A frame of 64 bytes lies in memory as 60. Each VLAN tag adds 4 bytes to that, as it does on a wire (IEEE 802.3 §3.2.7).

pub mod compose;
pub mod mark;
pub mod schedule;
pub mod tally;

use std::{sync::LazyLock, time::Instant};

pub use switch_core::frame::vlan::OuterTag;
use switch_core::mac::MacAddr;

use self::mark::MARK_BYTES;
pub use self::{
    compose::Composer,
    schedule::Schedule,
    tally::{Outcome, Tally},
};

/// Bytes of the frame check sequence, part of every stated size and of no buffer.
pub const FCS_BYTES: usize = 4;
/// The shortest Ethernet frame, with FCS.
pub const MIN_SIZE: usize = 64;
/// The longest frame of an MTU of 9000 bytes, with FCS.
pub const JUMBO_SIZE: usize = 9018;
/// Untagged bytes without FCS at most: what an IPv4 packet may have, behind an Ethernet header.
const MAX_BYTES: usize = 65_535 + 14;
/// A mark has 16 bits for the flow.
pub const MAX_FLOWS: u32 = 1 << 16;
/// The EtherType of frames without IP (local experimental, IEEE 802-2014 §9.2.3).
pub const ETHERTYPE: u16 = 0x88b5;
/// The mix of seven frames of 64 bytes, four of 594 and one of 1518, in an order that spreads them ("simple IMIX").
pub const IMIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];

/// The clock of all marks, in ns since it was first asked: generator and sink are threads of one process.
#[must_use]
pub fn now_ns() -> u64 {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGIN.elapsed().as_nanos() as u64
}

/// Who sends to whom. Flow `f` goes from source address `f mod sources` to destination address
/// `(f / sources) mod destinations`, each counted up from the given one, and has UDP (or TCP) ports of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flows {
    /// How many, [`MAX_FLOWS`] at most.
    pub count: u32,
    /// The first source address.
    pub src: MacAddr,
    /// How many source addresses.
    pub sources: u32,
    /// The first destination address.
    pub dst: MacAddr,
    /// How many destination addresses. A switch that is to forward must not know them by the sources: keep both apart.
    pub destinations: u32,
}

impl Flows {
    /// One flow.
    #[must_use]
    pub fn one(dst: MacAddr, src: MacAddr) -> Flows {
        Flows { count: 1, src, sources: 1, dst, destinations: 1 }
    }

    /// So many flows between two addresses, told apart by their ports.
    #[must_use]
    pub fn ports(dst: MacAddr, src: MacAddr, count: u32) -> Flows {
        Flows { count, ..Flows::one(dst, src) }
    }
}

/// What is between the Ethernet header and the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// Nothing: EtherType [`ETHERTYPE`].
    Raw,
    /// IPv4 and UDP (TCP in large frames), with correct checksums.
    Ipv4,
    /// IPv6 and UDP (TCP in large frames), with correct checksums: 84 bytes at least.
    Ipv6,
}

/// How long frames are: see the module page for what a size counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All alike.
    Fixed(usize),
    /// One after the other, round and round, each flow beginning with another one.
    Cycle(Vec<usize>),
    /// [`IMIX`].
    Imix,
    /// Large TCP frames behind a virtio-net header that owes their segmentation. Each segment has a mark and counts as a
    /// frame, so they are accounted for whether they arrive whole or cut.
    Large {
        /// Segments per frame.
        segments: usize,
        /// TCP payload of each, in bytes: the mark and its pattern.
        segment_bytes: usize,
    },
}

impl Sizes {
    /// 45 segments of 1440 bytes: nearly the 64 KiB that an IP packet can have, and each fits an MTU of 1500 behind IPv6.
    pub const LARGE: Sizes = Sizes::Large { segments: 45, segment_bytes: 1440 };
}

/// The bytes behind the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The low byte of the number, repeated: frames that follow each other differ.
    Number,
    /// This byte.
    Constant(u8),
    /// Pseudo-random bytes, different in 256 frames that follow each other.
    Random,
}

/// How fast frames are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// As fast as they are taken.
    Unlimited,
    /// By an absolute schedule.
    Paced {
        /// On average, over all flows.
        frames_per_s: f64,
        /// So many at once, then none until the next burst is due.
        burst: u64,
    },
}

/// A description of traffic that cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TrafficError {
    /// None, or more than a mark can tell apart.
    #[error("{0} flows: 1 to {MAX_FLOWS} can be had")]
    Flows(u32),
    /// No addresses at all.
    #[error("a flow needs a source and a destination address")]
    Addresses,
    /// No size at all.
    #[error("a list of sizes needs one at least")]
    NoSize,
    /// Too short for headers and mark, or too long for a frame.
    #[error("frames of {size} bytes (with FCS): {least} to {most} can be had with these headers")]
    Size {
        /// What was asked for, in bytes with FCS.
        size: usize,
        /// The shortest that has room for the mark.
        least: usize,
        /// The longest.
        most: usize,
    },
    /// Segmentation is of TCP.
    #[error("large frames need IPv4 or IPv6")]
    LargeRaw,
    /// Not a rate.
    #[error("a rate needs more than 0 frames per second, and bursts of one frame at least")]
    Rate,
}

/// What is sent. Checked once by [`Composer::new`] and [`Tally::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct Traffic {
    /// Tells frames of this run from those of others (which are foreign to it).
    pub run: u8,
    /// Who sends to whom.
    pub flows: Flows,
    /// Headers between Ethernet and mark.
    pub layers: Layers,
    /// Lengths.
    pub sizes: Sizes,
    /// VLAN tags, the outer one first. A sink behind a port that adds or takes tags is given what it should see.
    pub tags: Vec<OuterTag>,
    /// The rest of the payload.
    pub pattern: Pattern,
    /// How fast.
    pub rate: Rate,
}

impl Traffic {
    /// One flow of frames of 64 bytes without IP, as fast as they are taken.
    #[must_use]
    pub fn new(dst: MacAddr, src: MacAddr) -> Traffic {
        Traffic {
            run: 0,
            flows: Flows::one(dst, src),
            layers: Layers::Raw,
            sizes: Sizes::Fixed(MIN_SIZE),
            tags: Vec::new(),
            pattern: Pattern::Number,
            rate: Rate::Unlimited,
        }
    }

    /// With frames of so many bytes (with FCS).
    #[must_use]
    pub fn size(self, size: usize) -> Traffic {
        Traffic { sizes: Sizes::Fixed(size), ..self }
    }

    /// With so many frames per second, one by one.
    #[must_use]
    pub fn rate(self, frames_per_s: f64) -> Traffic {
        Traffic { rate: Rate::Paced { frames_per_s, burst: 1 }, ..self }
    }

    /// Frames (segments of large ones) that `sent` sent frames count for in flow `flow`.
    #[must_use]
    pub fn numbers(&self, flow: u32, sent: u64) -> u64 {
        let count = u64::from(self.flows.count);
        (sent / count + u64::from(u64::from(flow) < sent % count)) * self.segments()
    }

    /// Numbers per sent frame: 1, or the segments of a large one.
    #[must_use]
    pub fn segments(&self) -> u64 {
        if let Sizes::Large { segments, .. } = self.sizes { segments as u64 } else { 1 }
    }

    /// When frames are due; `None`: always.
    #[must_use]
    pub fn schedule(&self) -> Option<Schedule> {
        match self.rate {
            Rate::Unlimited => None,
            Rate::Paced { frames_per_s, burst } => Some(Schedule::paced(frames_per_s, burst)),
        }
    }

    /// Whether it can be made.
    ///
    /// # Errors
    /// It cannot, and why.
    pub fn check(&self) -> Result<(), TrafficError> {
        let flows = &self.flows;
        if !(1..=MAX_FLOWS).contains(&flows.count) {
            return Err(TrafficError::Flows(flows.count));
        }
        if flows.sources == 0 || flows.destinations == 0 {
            return Err(TrafficError::Addresses);
        }
        if let Rate::Paced { frames_per_s, burst } = self.rate
            && !(frames_per_s > 0.0 && frames_per_s.is_finite() && burst > 0)
        {
            return Err(TrafficError::Rate);
        }
        let headers = self.header_bytes() - 4 * self.tags.len();
        let (least, most) = ((headers + MARK_BYTES + FCS_BYTES).max(MIN_SIZE), MAX_BYTES + FCS_BYTES);
        let fits = |size: usize| {
            if (least..=most).contains(&size) { Ok(()) } else { Err(TrafficError::Size { size, least, most }) }
        };
        match &self.sizes {
            Sizes::Fixed(size) => fits(*size),
            Sizes::Cycle(sizes) if sizes.is_empty() => Err(TrafficError::NoSize),
            Sizes::Cycle(sizes) => sizes.iter().try_for_each(|size| fits(*size)),
            Sizes::Imix => IMIX.iter().try_for_each(|size| fits(*size)),
            Sizes::Large { .. } if self.layers == Layers::Raw => Err(TrafficError::LargeRaw),
            Sizes::Large { segments: 0, .. } => Err(TrafficError::NoSize),
            Sizes::Large { segments, segment_bytes } => {
                fits(headers + segment_bytes + FCS_BYTES)?;
                fits(headers.saturating_add(segments.saturating_mul(*segment_bytes)).saturating_add(FCS_BYTES))
            }
        }
    }
}
