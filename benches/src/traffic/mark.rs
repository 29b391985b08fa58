//! What every generated frame carries behind its headers, so that a sink can say what became of it.
//!
//! ```text
//! 0      1     2      4         10         16      18
//! +------+-----+------+---------+----------+-------+----------- - -
//! | 0x56 | run | flow | number  | sent, ns | check | pattern …
//! +------+-----+------+---------+----------+-------+----------- - -
//! ```
//!
//! All fields are big endian. 18 bytes are what a frame of 64 bytes has room for behind IPv4 and UDP. Number and time have
//! 48 bits: at 10 million frames per second a flow counts for 325 days, and differences of times hold for 78 hours.
//! `check` makes the ones' complement sum of mark and pattern all ones. So it is a checksum of both, and as it adds nothing
//! to the sum of a UDP datagram around it, that checksum stays the same whatever the mark says.

/// Bytes of a mark.
pub const MARK_BYTES: usize = 18;
/// First byte of each.
pub const MAGIC: u8 = 0x56;
const MASK: u64 = (1 << 48) - 1;

/// See the module page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which measurement: frames of the one before may still be on their way.
    pub run: u8,
    /// Which flow of it.
    pub flow: u16,
    /// Counts the frames (for large frames: the segments) of the flow; 48 bits.
    pub number: u64,
    /// When it was given to the system, in ns of [`now_ns`](super::now_ns); 48 bits.
    pub sent_ns: u64,
}

/// The ones' complement sum of 16-bit words (RFC 1071), folded but not inverted; an odd last byte counts as the high half.
#[must_use]
pub fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    let mut chunks = bytes.chunks_exact(4);
    // Words of 32 bits fold to the same sum, and 2^32 of them fit.
    for chunk in &mut chunks {
        sum += u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    for (i, byte) in chunks.remainder().iter().enumerate() {
        sum += u64::from(*byte) << if i % 2 == 0 { 8 } else { 0 };
    }
    fold(sum)
}

/// Folds a sum of words to 16 bits.
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl Mark {
    /// Writes the mark before a pattern that is there already, and the checksum of both.
    ///
    /// # Panics
    /// `into` is shorter than a mark.
    pub fn write(&self, into: &mut [u8]) {
        into[0] = MAGIC;
        into[1] = self.run;
        into[2..4].copy_from_slice(&self.flow.to_be_bytes());
        into[4..10].copy_from_slice(&self.number.to_be_bytes()[2..]);
        into[10..16].copy_from_slice(&self.sent_ns.to_be_bytes()[2..]);
        into[16..18].fill(0);
        let check = !ones_sum(into);
        into[16..18].copy_from_slice(&check.to_be_bytes());
    }

    /// Reads the fields, whatever the magic and the checksum say. `None`: too short.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Mark> {
        let bytes = bytes.get(..MARK_BYTES)?;
        let long = |at: usize| bytes[at..at + 6].iter().fold(0u64, |all, b| all << 8 | u64::from(*b));
        Some(Mark { run: bytes[1], flow: u16::from_be_bytes([bytes[2], bytes[3]]), number: long(4), sent_ns: long(10) })
    }

    /// Nanoseconds from sending until `now_ns`.
    #[must_use]
    pub fn age_ns(&self, now_ns: u64) -> u64 {
        now_ns.wrapping_sub(self.sent_ns) & MASK
    }
}

/// Whether mark and pattern are as they were written, as far as their checksum says.
#[must_use]
pub fn intact(marked: &[u8]) -> bool {
    marked.len() >= MARK_BYTES && marked[0] == MAGIC && ones_sum(marked) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_written_and_every_damaged_byte_is_found() {
        let mark = Mark { run: 7, flow: 513, number: 0x0123_4567_89ab, sent_ns: (1 << 48) - 5 };
        for pattern in 0..9 {
            let mut bytes = vec![0xa5; MARK_BYTES + pattern];
            mark.write(&mut bytes);
            assert_eq!(Mark::read(&bytes), Some(mark));
            assert!(intact(&bytes));
            for at in 0..bytes.len() {
                for flip in [1, 0x80, 0xff] {
                    bytes[at] ^= flip;
                    assert!(!intact(&bytes), "byte {at} of {}", bytes.len());
                    bytes[at] ^= flip;
                }
            }
        }
        assert_eq!(mark.age_ns(5), 10, "the time wraps after 48 bits");
        assert_eq!(Mark::read(&[0; MARK_BYTES - 1]), None);
    }

    #[test]
    fn sums_are_those_of_rfc_1071() {
        assert_eq!(ones_sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!((ones_sum(&[]), ones_sum(&[1]), ones_sum(&[1, 2, 3])), (0, 0x100, 0x402));
    }
}
