//! The memory that frames lie in while the kernel or we have them: pages of our own, pinned by the kernel, in chunks.
//!
//! Who may touch a chunk is decided by who has its address. A chunk that is in a ring for the kernel is the kernel's; it
//! comes back by the other ring. The receiving half has the chunks `0 .. RX_CHUNKS`, the sending half the others, so the
//! halves never meet in one.

use std::{io, ops::Range};

use super::{CHUNK_BYTES, MAX_FRAME_BYTES, RX_CHUNKS, TX_CHUNKS, ring::Mapped};

/// See the module page.
#[derive(Debug)]
pub(super) struct Umem {
    memory: Mapped,
}

/// A received frame: where it lies, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Of the first byte, from the beginning of the memory.
    start: usize,
    len: usize,
}

impl Place {
    /// Checks what a receive descriptor says: the whole frame lies in one chunk of the receiving half.
    pub(super) fn of_received(address: u64, len: u32) -> Option<Place> {
        let (start, len) = (usize::try_from(address).ok()?, len as usize);
        let inside =
            start / CHUNK_BYTES < RX_CHUNKS && len <= MAX_FRAME_BYTES && start % CHUNK_BYTES + len <= CHUNK_BYTES;
        inside.then_some(Place { start, len })
    }

    /// The address of the chunk, for the fill ring.
    pub(super) fn chunk(self) -> u64 {
        (self.start - self.start % CHUNK_BYTES) as u64
    }
}

/// The number of a chunk to send from, if this is the address of one.
pub(super) fn sent_chunk(address: u64) -> Option<usize> {
    let address = usize::try_from(address).ok()?;
    let chunk = (address / CHUNK_BYTES).checked_sub(RX_CHUNKS)?;
    (address.is_multiple_of(CHUNK_BYTES) && chunk < TX_CHUNKS).then_some(chunk)
}

/// The address of a chunk to send from.
pub(super) fn sent_address(chunk: usize) -> u64 {
    ((RX_CHUNKS + chunk) * CHUNK_BYTES) as u64
}

impl Umem {
    pub(super) fn new() -> io::Result<Umem> {
        Ok(Umem { memory: Mapped::new((RX_CHUNKS + TX_CHUNKS) * CHUNK_BYTES, None)? })
    }

    /// Address and length, for the kernel.
    pub(super) fn range(&self) -> Range<u64> {
        let base = self.memory.base().expose_provenance() as u64;
        base..base + self.memory.bytes() as u64
    }

    /// A received frame.
    ///
    /// # Safety
    /// The chunk has come by the receive ring and is not in the fill ring again while the slice lives.
    pub(super) unsafe fn received(&self, place: Place) -> &[u8] {
        // SAFETY: a Place lies in the receiving half of the memory, which is mapped as long as `self` and was zeroed, so
        // all bytes are valid. As the caller promises, the kernel does not write to the chunk meanwhile; on our side
        // nobody ever does.
        unsafe { std::slice::from_raw_parts(self.memory.base().add(place.start), place.len) }
    }

    /// A chunk to send from.
    ///
    /// # Safety
    /// The chunk is not in the transmit ring or on its way, and there is no other slice of it.
    #[expect(clippy::mut_from_ref, reason = "chunks are divided among owners by their numbers, as the contract says")]
    pub(super) unsafe fn to_send(&self, chunk: usize) -> &mut [u8] {
        assert!(chunk < TX_CHUNKS, "a chunk of the sending half");
        let start = (RX_CHUNKS + chunk) * CHUNK_BYTES;
        // SAFETY: the range lies in the sending half, mapped as long as `self` and zeroed. As the caller promises, neither
        // the kernel nor another slice has it.
        unsafe { std::slice::from_raw_parts_mut(self.memory.base().add(start), CHUNK_BYTES) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_one_chunk_of_the_receiving_half_is_a_received_frame() {
        let chunk = CHUNK_BYTES as u64;
        let last = (RX_CHUNKS as u64 - 1) * chunk;
        let place = Place::of_received(last + 256, 1514).expect("behind the headroom");
        assert_eq!(place.chunk(), last);
        assert!(Place::of_received(256, MAX_FRAME_BYTES as u32).is_some());
        for (address, len) in
            [(last + chunk, 60), (256, MAX_FRAME_BYTES as u32 + 1), (chunk - 59, 60), (u64::MAX, 1), (0, u32::MAX)]
        {
            assert_eq!(Place::of_received(address, len), None, "{address} {len}");
        }
    }

    #[test]
    fn addresses_of_the_sending_half_are_chunks_and_nothing_else_is() {
        assert!((0..TX_CHUNKS).all(|chunk| sent_chunk(sent_address(chunk)) == Some(chunk)));
        for wrong in [0, sent_address(0) - CHUNK_BYTES as u64, sent_address(0) + 1, sent_address(TX_CHUNKS), u64::MAX] {
            assert_eq!(sent_chunk(wrong), None, "{wrong}");
        }
    }
}
