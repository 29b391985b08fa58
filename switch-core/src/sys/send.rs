//! Frames to sockets, many per system call: as messages of their own, or one after the other in a byte stream.

use std::{io, ops::Range, os::fd::RawFd};

use nix::sys::socket::{SockaddrLike, UnixAddr};

use crate::{egress::OutFrame, frame::offload::VNET_HDR_BYTES};

/// Frames per call.
const BURST: usize = 64;
/// Parts per call. One frame always fits: it has at most [`MAX_GATHER`](super::buf::MAX_GATHER) pieces.
const PARTS: usize = 4 * BURST;
pub(super) const NO_PART: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
/// Bytes of the length before each frame of a stream.
pub const LENGTH_BYTES: usize = 4;

/// What the kernel gathers from: addresses of borrowed slices, and of pieces that stay mapped while their batch is not
/// cleared. Filled and used inside one call of this module, while the frames are borrowed.
struct Parts {
    list: [libc::iovec; PARTS],
    used: usize,
}

impl Parts {
    fn new() -> Parts {
        Parts { list: [NO_PART; PARTS], used: 0 }
    }

    fn push(&mut self, base: *const u8, len: usize) {
        if len > 0 {
            self.list[self.used] = libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len };
            self.used += 1;
        }
    }

    /// Appends `before` and the frame without its virtio-net header; `None`, and nothing is appended, if there is no room.
    fn push_frame(&mut self, before: &[u8], frame: &OutFrame<'_>) -> Option<Range<usize>> {
        if self.used + 3 + frame.tail.len() > PARTS {
            return None;
        }
        let begin = self.used;
        self.push(before.as_ptr(), before.len());
        let body = &frame.first[VNET_HDR_BYTES..];
        self.push(body.as_ptr(), body.len());
        self.push(frame.rest.as_ptr(), frame.rest.len());
        for piece in frame.tail {
            self.push(piece.as_ptr(), piece.len());
        }
        Some(begin..self.used)
    }
}

fn checked(result: isize) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

fn too_many_parts(count: usize, frames: &[OutFrame<'_>]) -> io::Result<()> {
    if count == 0 && !frames.is_empty() { Err(io::Error::from_raw_os_error(libc::EMSGSIZE)) } else { Ok(()) }
}

/// Sends as many frames as go into one system call, each as a message; returns how many the kernel took. `header` bytes
/// of the virtio-net header go before each frame; `to` is where it goes, unless the socket is connected.
///
/// # Errors
/// As the kernel says, of the first frame; none was sent.
pub fn messages(fd: RawFd, to: Option<&UnixAddr>, header: usize, frames: &[OutFrame<'_>]) -> io::Result<usize> {
    let mut parts = Parts::new();
    // SAFETY: all-zero bytes are a valid mmsghdr.
    let mut messages: [libc::mmsghdr; BURST] = unsafe { std::mem::zeroed() };
    let mut count = 0;
    for (frame, message) in frames.iter().zip(&mut messages) {
        let Some(range) = parts.push_frame(&frame.first[..header], frame) else { break };
        message.msg_hdr.msg_iovlen = range.len();
        message.msg_hdr.msg_iov = parts.list[range].as_mut_ptr();
        if let Some(address) = to {
            message.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
            message.msg_hdr.msg_namelen = address.len();
        }
        count += 1;
    }
    too_many_parts(count, frames)?;
    // SAFETY: the first `count` messages point into `parts`, which holds what its own description says, and to an address
    // that is borrowed for the call and only read.
    let n = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count as u32, libc::MSG_NOSIGNAL) };
    checked(n as isize)
}

/// Writes as many frames as go into one system call to a byte stream, each behind its length (big endian); returns how
/// many were offered, and how many bytes of them (with the lengths) the kernel took.
///
/// # Errors
/// As the kernel says; nothing was written.
pub fn stream(fd: RawFd, frames: &[OutFrame<'_>]) -> io::Result<(usize, usize)> {
    let mut lengths = [[0u8; LENGTH_BYTES]; BURST];
    for (frame, length) in frames.iter().zip(&mut lengths) {
        *length = frame.len.to_be_bytes();
    }
    let mut parts = Parts::new();
    let mut count = 0;
    for (frame, length) in frames.iter().zip(&lengths) {
        if parts.push_frame(length, frame).is_none() {
            break;
        }
        count += 1;
    }
    too_many_parts(count, frames)?;
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.list.as_mut_ptr();
    message.msg_iovlen = parts.used;
    // SAFETY: the parts are what their description says, and the lengths live in this frame of the stack.
    let n = unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    Ok((count, checked(n)?))
}
