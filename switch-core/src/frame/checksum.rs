//! The Internet checksum (RFC 1071) over bytes in several parts.
//!
//! Sums are taken in the machine's byte order, which RFC 1071 §2(B) allows, in a u64; a part that begins at an odd
//! position is swapped when it is added. Pieces are summed through a small private copy, because a guest may write to
//! them meanwhile. Any thread.

use crate::sys::buf::Piece;

const CHUNK_BYTES: usize = 1024;

/// A sum that parts are added to in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    total: u64,
    odd: bool,
}

#[inline]
fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[inline]
fn native_sum(bytes: &[u8]) -> u64 {
    let mut total = 0u64;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0u8; 4];
    let rest = words.remainder();
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_ne_bytes(last))
}

impl Sum {
    /// Nothing summed.
    #[must_use]
    pub const fn new() -> Sum {
        Sum { total: 0, odd: false }
    }

    /// Adds bytes at the current position.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let part = fold(native_sum(bytes));
        self.total += u64::from(if self.odd { part.swap_bytes() } else { part });
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Adds a number as two bytes in network order; the position must be even.
    #[inline]
    pub fn add_u16(&mut self, value: u16) {
        debug_assert!(!self.odd, "a number is added at an even position");
        self.total += u64::from(value.to_be());
    }

    /// Adds memory that may change under the reader: each byte is read once.
    pub fn add_piece(&mut self, piece: Piece) {
        let mut chunk = [0u8; CHUNK_BYTES];
        let mut rest = piece;
        while !rest.is_empty() {
            let n = rest.copy_to(&mut chunk);
            self.add(&chunk[..n]);
            rest = rest.skip(n);
        }
    }

    /// The checksum: the complement of the folded sum, as a number in network order.
    #[inline]
    #[must_use]
    pub fn finish(self) -> u16 {
        !u16::from_be(fold(self.total))
    }
}

/// The checksum of one slice.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add(bytes);
    sum.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn parts_add_up(bytes in prop::collection::vec(any::<u8>(), 0..5000), cuts in prop::collection::vec(0usize..5000, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let (mut sum, mut from) = (Sum::new(), 0);
            for to in cuts {
                sum.add(&bytes[from..to]);
                from = to;
            }
            prop_assert_eq!(sum.finish(), naive(&bytes));
            prop_assert_eq!(checksum(&bytes), naive(&bytes));
        }
    }
}
