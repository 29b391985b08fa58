//! AF_XDP: frames of a device's receive queue in memory that we share with the kernel, without a socket buffer on the way
//! in.
//!
//! ```text
//! UMEM      | chunk 0 | chunk 1 | ... receive ... | ... transmit ... |   4 KiB each
//! in:       fill ring (ours: chunks to fill)   ->  kernel  ->  receive ring (frames)
//! out:      transmit ring (ours: frames)       ->  kernel  ->  completion ring (chunks that are free again)
//! ```
//!
//! [`Program`] has the driver redirect what a queue receives to the socket of that queue; [`Unbound`] makes the socket and
//! hands out its two halves, which share nothing but the memory: the first chunks are the [`Receiver`]'s, the others the
//! [`Sender`]'s. The driver copies (`XDP_COPY`): frames lie in a chunk behind the kernel's headroom, and one that is longer
//! than the rest of the chunk is dropped and counted by the kernel.

mod btf;
mod program;
mod ring;
mod socket;
mod umem;

pub use program::{Program, Refused};
pub use socket::{Pushed, Queued, Receiver, Sender, Socket, Unbound};

/// Bytes of a chunk: a page, which is what the driver of a veth has for a frame as well.
pub const CHUNK_BYTES: usize = 4096;
/// Chunks to receive into.
pub const RX_CHUNKS: usize = 2048;
/// Chunks to send from.
pub const TX_CHUNKS: usize = 1024;
/// `XDP_PACKET_HEADROOM`: what the kernel leaves free before a received frame.
const HEADROOM_BYTES: usize = 256;
/// The longest frame that can be received.
pub const MAX_FRAME_BYTES: usize = CHUNK_BYTES - HEADROOM_BYTES;

fn checked(result: libc::c_int) -> std::io::Result<libc::c_int> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}
