//! Frames out of a byte stream: each is preceded by its length, four bytes, big endian. What one read gives begins and
//! ends anywhere.

use crate::{batch::MAX_FRAME_BYTES, sys::send::LENGTH_BYTES};

/// Room for the longest frame, and for as much again so that one read brings many short ones.
const BUFFER_BYTES: usize = 128 << 10;
const _: () = assert!(BUFFER_BYTES > LENGTH_BYTES + MAX_FRAME_BYTES);

/// What comes next in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut<'a> {
    /// A whole frame.
    Frame(&'a [u8]),
    /// Not all of a frame has arrived.
    Short,
    /// The length is none that a frame can have: there is no telling where the next one begins.
    OutOfStep,
}

/// Bytes received and not yet cut.
pub(super) struct Cutter {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Cutter {
    pub(super) fn new() -> Cutter {
        Cutter { buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Takes the next frame out.
    pub(super) fn cut(&mut self) -> Cut<'_> {
        let bytes = &self.buffer[self.start..self.end];
        let Some((length, rest)) = bytes.split_first_chunk() else { return Cut::Short };
        let len = u32::from_be_bytes(*length) as usize;
        if len == 0 || len > MAX_FRAME_BYTES {
            return Cut::OutOfStep;
        }
        match rest.get(..len) {
            Some(frame) => {
                self.start += LENGTH_BYTES + len;
                Cut::Frame(frame)
            }
            None => Cut::Short,
        }
    }

    /// Where to read to; never empty after [`Cut::Short`]. Follow with [`filled`](Self::filled).
    pub(super) fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes of the spare room have been read to.
    pub(super) fn filled(&mut self, n: usize) {
        self.end += n;
    }

    /// The stream is another from here.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(frames: &[Vec<u8>]) -> Vec<u8> {
        frames.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect()
    }

    fn feed(cutter: &mut Cutter, bytes: &[u8], to: &mut Vec<Vec<u8>>) -> bool {
        let spare = cutter.spare();
        spare[..bytes.len()].copy_from_slice(bytes);
        cutter.filled(bytes.len());
        loop {
            match cutter.cut() {
                Cut::Frame(frame) => to.push(frame.to_vec()),
                Cut::Short => return true,
                Cut::OutOfStep => return false,
            }
        }
    }

    #[test]
    fn frames_are_found_wherever_the_reads_end() {
        let frames: Vec<Vec<u8>> = [1, 60, 4, 3, 300].iter().map(|n| vec![*n as u8; *n]).collect();
        let bytes = wire(&frames);
        for step in 1..=bytes.len() {
            let (mut cutter, mut seen) = (Cutter::new(), Vec::new());
            assert!(bytes.chunks(step).all(|part| feed(&mut cutter, part, &mut seen)));
            assert_eq!(seen, frames, "in steps of {step}");
        }
        for cut in 0..bytes.len() {
            let (mut cutter, mut seen) = (Cutter::new(), Vec::new());
            assert!(feed(&mut cutter, &bytes[..cut], &mut seen) && feed(&mut cutter, &bytes[cut..], &mut seen));
            assert_eq!(seen, frames, "cut at {cut}");
        }
    }

    #[test]
    fn the_longest_frame_fits_and_other_lengths_are_out_of_step() {
        let longest = vec![7; MAX_FRAME_BYTES];
        let (mut cutter, mut seen) = (Cutter::new(), Vec::new());
        let bytes = wire(&[vec![1; 1500], longest.clone(), longest.clone()]);
        for part in bytes.chunks(40_000) {
            assert!(feed(&mut cutter, part, &mut seen));
        }
        assert!(seen[1..] == [longest.clone(), longest]);
        for length in [0, MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
            let mut cutter = Cutter::new();
            let bytes = [&wire(&[vec![9; 60]])[..], &length.to_be_bytes()].concat();
            let mut seen = Vec::new();
            assert!(!feed(&mut cutter, &bytes, &mut seen), "{length}");
            assert_eq!(seen.len(), 1, "what came before is good");
            cutter.clear();
            assert_eq!(cutter.cut(), Cut::Short);
        }
    }
}
