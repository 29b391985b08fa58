//! Makes the frames of a [`Traffic`]: for the generator to send, and for the sink to compare with.

use std::sync::LazyLock;

use switch_core::{
    frame::offload::{Gso, Offload, VNET_HDR_BYTES},
    mac::MacAddr,
};

use super::{
    ETHERTYPE, FCS_BYTES, IMIX, Layers, Pattern, Sizes, Traffic, TrafficError,
    mark::{MARK_BYTES, Mark, fold, ones_sum},
};

/// Something to be sent, frame by frame.
pub trait Source: Send {
    /// The next frames, `most` at most, each behind a virtio-net header of 12 bytes. None: that was all. The same ones
    /// come again until they are [`sent`](Self::sent).
    fn frames(&mut self, most: usize, now_ns: u64) -> &[Vec<u8>];

    /// So many of them were sent.
    fn sent(&mut self, frames: usize);
}

/// The first port of a flow; [`super::MAX_FLOWS`] flows vary both.
const PORT: u16 = 0x4000;
/// IPv4, IPv6, UDP and TCP headers.
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const TCP: usize = 20;
/// Pseudo-random bytes, and how far the beginning moves from frame to frame.
const RANDOM_BYTES: usize = 65_536 + 256 * RANDOM_STEP;
const RANDOM_STEP: usize = 8;

static RANDOM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..RANDOM_BYTES / 8).flat_map(|_| next()).collect()
});

fn counted(first: MacAddr, offset: u32) -> MacAddr {
    let value = first.0.iter().fold(0u64, |all, b| all << 8 | u64::from(*b)) + u64::from(offset);
    let mut bytes = [0; 6];
    bytes.copy_from_slice(&value.to_be_bytes()[2..]);
    MacAddr(bytes)
}

impl Traffic {
    fn large(&self) -> bool {
        matches!(self.sizes, Sizes::Large { .. })
    }

    fn transport_bytes(&self) -> usize {
        if self.large() { TCP } else { UDP }
    }

    /// Bytes before the first mark: Ethernet with tags, IP and transport.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        let above = match self.layers {
            Layers::Raw => 0,
            Layers::Ipv4 => IPV4 + self.transport_bytes(),
            Layers::Ipv6 => IPV6 + self.transport_bytes(),
        };
        14 + 4 * self.tags.len() + above
    }

    /// Length without FCS, tags included, of frame `index` of a flow.
    #[must_use]
    pub fn bytes_of(&self, flow: u32, index: u64) -> usize {
        let pick = |sizes: &[usize]| sizes[((index + u64::from(flow)) % sizes.len() as u64) as usize];
        let size = match &self.sizes {
            Sizes::Fixed(size) => *size,
            Sizes::Cycle(sizes) => pick(sizes),
            Sizes::Imix => pick(&IMIX),
            Sizes::Large { segments, segment_bytes } => return self.header_bytes() + segments * segment_bytes,
        };
        size - FCS_BYTES + 4 * self.tags.len()
    }

    /// The addresses of a flow: destination and source.
    #[must_use]
    pub fn addresses(&self, flow: u32) -> (MacAddr, MacAddr) {
        let flows = &self.flows;
        (counted(flows.dst, flow / flows.sources % flows.destinations), counted(flows.src, flow % flows.sources))
    }

    /// Writes all before the first mark for a frame of `bytes` in all.
    pub(super) fn write_headers(&self, flow: u32, bytes: usize, into: &mut Vec<u8>) {
        let (dst, src) = self.addresses(flow);
        into.extend_from_slice(&dst.0);
        into.extend_from_slice(&src.0);
        for tag in &self.tags {
            into.extend_from_slice(&tag.tpid.to_be_bytes());
            into.extend_from_slice(&tag.tci.to_be_bytes());
        }
        let packet = bytes - 14 - 4 * self.tags.len();
        let (d, s) = (dst.0, src.0);
        let protocol = if self.large() { 6 } else { 17 };
        let pseudo = match self.layers {
            Layers::Raw => return into.extend_from_slice(&ETHERTYPE.to_be_bytes()),
            Layers::Ipv4 => {
                into.extend_from_slice(&[8, 0]);
                let mut ip =
                    [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, s[3], s[4], s[5], 10, d[3], d[4], d[5]];
                ip[2..4].copy_from_slice(&(packet as u16).to_be_bytes());
                let check = !ones_sum(&ip);
                ip[10..12].copy_from_slice(&check.to_be_bytes());
                into.extend_from_slice(&ip);
                u64::from(ones_sum(&ip[12..20])) + (packet - IPV4) as u64
            }
            Layers::Ipv6 => {
                into.extend_from_slice(&[0x86, 0xdd]);
                let mut ip = [0; IPV6];
                ip[0] = 0x60;
                ip[4..6].copy_from_slice(&((packet - IPV6) as u16).to_be_bytes());
                (ip[6], ip[7]) = (protocol, 64);
                for (at, mac) in [(8, s), (24, d)] {
                    ip[at] = 0xfd;
                    ip[at + 10..at + 16].copy_from_slice(&mac);
                }
                into.extend_from_slice(&ip);
                u64::from(ones_sum(&ip[8..40])) + (packet - IPV6) as u64
            }
        } + u64::from(protocol);
        let ports = [PORT.wrapping_add(flow as u16 & 0x0fff), PORT + (flow >> 12) as u16];
        let at = into.len();
        ports.iter().for_each(|port| into.extend_from_slice(&port.to_be_bytes()));
        if self.large() {
            // Acknowledgement and window mean nothing here; the checksum is owed, so only the pseudo header's is in.
            into.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
            into.extend_from_slice(&fold(pseudo).to_be_bytes());
            into.extend_from_slice(&[0, 0]);
        } else {
            let len = (UDP + bytes - self.header_bytes()) as u16;
            into.extend_from_slice(&len.to_be_bytes());
            // Mark and pattern sum up to all ones, which is a zero of this arithmetic.
            let check = match !fold(pseudo + u64::from(ones_sum(&into[at..]))) {
                0 => 0xffff,
                check => check,
            };
            into.extend_from_slice(&check.to_be_bytes());
        }
    }

    /// The pattern of a frame, as far as `bytes`.
    pub(super) fn write_pattern(&self, number: u64, into: &mut [u8]) {
        match self.pattern {
            Pattern::Number => into.fill(number as u8),
            Pattern::Constant(byte) => into.fill(byte),
            Pattern::Random => into.copy_from_slice(random(number, into.len())),
        }
    }

    /// Whether a pattern is what [`write_pattern`](Self::write_pattern) wrote.
    pub(super) fn has_pattern(&self, number: u64, pattern: &[u8]) -> bool {
        match self.pattern {
            Pattern::Number => pattern.iter().all(|b| *b == number as u8),
            Pattern::Constant(byte) => pattern.iter().all(|b| *b == byte),
            Pattern::Random => pattern == random(number, pattern.len()),
        }
    }

    /// What a sender owes on a frame.
    fn offload(&self) -> Offload {
        let Sizes::Large { segments, segment_bytes } = self.sizes else { return Offload::NONE };
        let v6 = self.layers == Layers::Ipv6;
        let header = self.header_bytes() as u16;
        let gso = match (segments, v6) {
            (1, _) => Gso::None,
            (_, true) => Gso::TcpV6,
            (_, false) => Gso::TcpV4,
        };
        Offload {
            needs_csum: true,
            gso,
            hdr_len: header,
            gso_size: if segments > 1 { segment_bytes as u16 } else { 0 },
            csum_start: header - TCP as u16,
            csum_offset: 16,
            ..Offload::NONE
        }
    }

    /// Makes frame `index` of a flow, behind its virtio-net header.
    pub fn write_frame(&self, flow: u32, index: u64, sent_ns: u64, into: &mut Vec<u8>) {
        let bytes = self.bytes_of(flow, index);
        into.clear();
        into.resize(VNET_HDR_BYTES, 0);
        let mut header = [0; VNET_HDR_BYTES];
        self.offload().encode(&mut header);
        into.copy_from_slice(&header);
        self.write_headers(flow, bytes, into);
        let begin = into.len();
        into.resize(VNET_HDR_BYTES + bytes, 0);
        let segments = self.segments();
        let each = (bytes - self.header_bytes()) / segments as usize;
        for (i, segment) in into[begin..].chunks_mut(each).enumerate() {
            let number = index * segments + i as u64;
            self.write_pattern(number, &mut segment[MARK_BYTES..]);
            Mark { run: self.run, flow: flow as u16, number, sent_ns }.write(segment);
        }
    }
}

fn random(number: u64, bytes: usize) -> &'static [u8] {
    let at = RANDOM_STEP * (number % 256) as usize;
    &RANDOM[at..at + bytes]
}

/// The frames of a [`Traffic`], from the first one on.
#[derive(Debug)]
pub struct Composer {
    traffic: Traffic,
    next: u64,
    slots: Vec<Vec<u8>>,
}

impl Composer {
    /// Begins.
    ///
    /// # Errors
    /// The traffic cannot be made.
    pub fn new(traffic: Traffic) -> Result<Composer, TrafficError> {
        traffic.check()?;
        Ok(Composer { traffic, next: 0, slots: Vec::new() })
    }
}

impl Source for Composer {
    fn frames(&mut self, most: usize, now_ns: u64) -> &[Vec<u8>] {
        if self.slots.len() < most {
            self.slots.resize_with(most, Vec::new);
        }
        let flows = u64::from(self.traffic.flows.count);
        for (frame, k) in self.slots[..most].iter_mut().zip(self.next..) {
            self.traffic.write_frame((k % flows) as u32, k / flows, now_ns, frame);
        }
        &self.slots[..most]
    }

    fn sent(&mut self, frames: usize) {
        self.next += frames as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Flows, OuterTag, Rate},
        *,
    };

    const DST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xff]);
    const SRC: MacAddr = MacAddr([2, 0, 0, 0, 1, 0]);

    fn traffic(layers: Layers) -> Traffic {
        Traffic { layers, ..Traffic::new(DST, SRC).size(128) }
    }

    #[test]
    fn headers_have_the_checksums_that_receivers_want() {
        for (layers, ip, pseudo) in [(Layers::Ipv4, 20, 12..20), (Layers::Ipv6, 40, 8..40)] {
            for pattern in [Pattern::Number, Pattern::Constant(9), Pattern::Random] {
                for size in [128, 129, 1518] {
                    let traffic = Traffic { pattern, ..traffic(layers).size(size) };
                    let mut frame = Vec::new();
                    traffic.write_frame(0, 77, 12_345, &mut frame);
                    assert_eq!(frame.len(), VNET_HDR_BYTES + size - 4);
                    let packet = &frame[VNET_HDR_BYTES + 14..];
                    if layers == Layers::Ipv4 {
                        assert_eq!(ones_sum(&packet[..20]), 0xffff, "of the header");
                    }
                    let datagram = &packet[ip..];
                    assert_eq!(usize::from(u16::from_be_bytes([datagram[4], datagram[5]])), datagram.len());
                    let sums = [&packet[pseudo.clone()], datagram].map(|part| u64::from(ones_sum(part)));
                    let all = sums.iter().sum::<u64>() + 17 + datagram.len() as u64;
                    assert_eq!(fold(all), 0xffff, "{layers:?} {pattern:?} {size}");
                }
            }
        }
    }

    #[test]
    fn flows_sizes_and_tags_are_as_described() {
        let tags = vec![OuterTag { tpid: 0x88a8, tci: 5 }, OuterTag { tpid: 0x8100, tci: 6 }];
        let flows = Flows { count: 6, sources: 2, destinations: 3, ..Flows::one(DST, SRC) };
        let traffic = Traffic { flows, tags, sizes: Sizes::Imix, ..traffic(Layers::Ipv4) };
        let mut composer = Composer::new(traffic.clone()).expect("it can be made");
        let frames = composer.frames(12, 0).to_vec();
        let bare: Vec<&[u8]> = frames.iter().map(|f| &f[VNET_HDR_BYTES..]).collect();
        let last_bytes: Vec<(u8, u8, u8)> = bare[..6].iter().map(|f| (f[4], f[5], f[11])).collect();
        assert_eq!(last_bytes, [(0, 255, 0), (0, 255, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)]);
        assert_eq!(bare[0][12..22], [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0]);
        let sizes: Vec<usize> = bare.iter().map(|f| f.len() + 4 - 8).collect();
        assert_eq!(sizes[..6], IMIX[..6], "each flow begins with another size");
        assert_eq!(sizes[6..], IMIX[1..7]);
        composer.sent(5);
        assert_eq!(composer.frames(1, 0)[0], frames[5], "what was not sent comes again");
        assert_eq!((0..6).map(|f| traffic.numbers(f, 8)).collect::<Vec<_>>(), [2, 2, 1, 1, 1, 1]);
    }

    #[test]
    fn a_large_frame_owes_its_segmentation() {
        let traffic = Traffic { sizes: Sizes::LARGE, ..traffic(Layers::Ipv4) };
        let mut composer = Composer::new(traffic).expect("it can be made");
        let frame = composer.frames(1, 0)[0].clone();
        let header = frame[..VNET_HDR_BYTES].try_into().expect("twelve bytes");
        let offload = Offload::decode(header).expect("a header");
        assert_eq!((offload.gso, offload.gso_size, offload.hdr_len), (Gso::TcpV4, 1440, 54));
        assert_eq!(frame.len(), VNET_HDR_BYTES + 54 + 45 * 1440);
        let marks = frame[VNET_HDR_BYTES + 54..].chunks(1440).map(|s| Mark::read(s).expect("a mark").number);
        assert!(marks.eq(0..45));
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let refused = |traffic: &Traffic| traffic.check().expect_err("refused").to_string();
        assert!(refused(&traffic(Layers::Ipv6).size(83)).contains("84 to"));
        assert!(refused(&traffic(Layers::Ipv4).size(63)).contains("64 to"));
        assert!(refused(&traffic(Layers::Raw).size(70_000)).contains("70000"));
        let large = Sizes::Large { segments: 46, segment_bytes: 1448 };
        assert!(refused(&Traffic { sizes: large, ..traffic(Layers::Ipv4) }).contains("66666"));
        assert!(refused(&Traffic { sizes: Sizes::LARGE, ..traffic(Layers::Raw) }).contains("IPv4 or IPv6"));
        assert!(refused(&Traffic { sizes: Sizes::Cycle(vec![]), ..traffic(Layers::Raw) }).contains("one at least"));
        assert!(refused(&traffic(Layers::Raw).rate(0.0)).contains("rate"));
        assert_eq!(Traffic { rate: Rate::Unlimited, ..traffic(Layers::Ipv6).size(84) }.check(), Ok(()));
    }
}
