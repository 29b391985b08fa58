//! Single numbered frames, for probes and tests: those of a [`Traffic`](crate::traffic::Traffic) of one flow without IP, in
//! run 0 and sent at time 0.

use switch_core::mac::MacAddr;

pub use crate::traffic::ETHERTYPE;
use crate::traffic::mark::{MAGIC, MARK_BYTES, Mark, intact};

/// The shortest numbered frame: header and mark.
pub const MIN_BYTES: usize = 14 + MARK_BYTES;

/// Builds frame `number` of `bytes` without FCS (at least [`MIN_BYTES`]): the payload repeats the number's low byte.
#[must_use]
pub fn build(dst: MacAddr, src: MacAddr, bytes: usize, number: u64) -> Vec<u8> {
    let mut frame = Vec::with_capacity(bytes.max(MIN_BYTES));
    frame.extend_from_slice(&dst.0);
    frame.extend_from_slice(&src.0);
    frame.extend_from_slice(&ETHERTYPE.to_be_bytes());
    frame.resize(bytes.max(MIN_BYTES), number as u8);
    Mark { run: 0, flow: 0, number, sent_ns: 0 }.write(&mut frame[14..]);
    frame
}

/// The number (48 bits) of a frame of a flow without IP: `None` if it is not one of ours, `Some(Err)` if it is damaged.
#[must_use]
pub fn number_of(frame: &[u8]) -> Option<Result<u64, ()>> {
    let marked = frame.get(14..)?;
    if frame[12..14] != ETHERTYPE.to_be_bytes() || marked.first() != Some(&MAGIC) {
        return None;
    }
    let mark = Mark::read(marked)?;
    Some(if intact(marked) { Ok(mark.number) } else { Err(()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::{Tally, Traffic, tally::Judge};

    #[test]
    fn a_number_is_read_again_and_damage_is_noticed() {
        let (dst, src) = (MacAddr::BROADCAST, MacAddr([2, 0, 0, 0, 0, 1]));
        let mut frame = build(dst, src, 60, 300);
        assert_eq!(number_of(&frame), Some(Ok(300)));
        let mut tally = Tally::new(Traffic::new(dst, src)).expect("it can be made");
        tally.note(&frame, 0);
        assert_eq!(tally.received, 1, "it is a frame of such a flow");
        frame[40] ^= 1;
        assert_eq!(number_of(&frame), Some(Err(())));
        frame[12] = 8;
        assert_eq!((number_of(&frame), number_of(&frame[..13])), (None, None));
        assert_eq!(build(dst, src, 0, 1).len(), MIN_BYTES);
    }
}
