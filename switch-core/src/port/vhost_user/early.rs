//! One message that the `vhost` crate refuses and that QEMU sends: `SET_VRING_ENABLE` before `SET_FEATURES`.
//!
//! QEMU enables the rings of a network device when it is reset, as soon as protocol features were offered; the crate waits
//! until they were acknowledged. So the header of each message is looked at before the crate takes it, and such a message
//! is taken here. It carries no descriptors.

use std::{
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
};

use nix::sys::socket::{MsgFlags, recv};

const HEADER_BYTES: usize = 12;
const BODY_BYTES: usize = 8;
const SET_VRING_ENABLE: u32 = 18;
const VERSION: u32 = 1;
const VERSION_BITS: u32 = 3;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Whether the next message is one to enable (or disable) a ring. Waits for its header; false too if none comes.
pub(super) fn is_enable(stream: &UnixStream) -> bool {
    let mut header = [0; HEADER_BYTES];
    let peeked = recv(stream.as_raw_fd(), &mut header, MsgFlags::MSG_PEEK | MsgFlags::MSG_WAITALL);
    peeked == Ok(HEADER_BYTES) && word(&header, 0) == SET_VRING_ENABLE
}

/// Takes such a message: the ring's number, whether it is enabled, and whether the VMM waits for a reply.
///
/// # Errors
/// The connection ends, or the message is malformed.
pub(super) fn take_enable(mut stream: &UnixStream) -> io::Result<(u32, bool, bool)> {
    let mut message = [0; HEADER_BYTES + BODY_BYTES];
    stream.read_exact(&mut message)?;
    let (flags, size) = (word(&message, 4), word(&message, 8));
    let (ring, state) = (word(&message, HEADER_BYTES), word(&message, HEADER_BYTES + 4));
    if flags & (VERSION_BITS | REPLY) != VERSION || size as usize != BODY_BYTES || state > 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a malformed SET_VRING_ENABLE"));
    }
    Ok((ring, state == 1, flags & NEED_REPLY != 0))
}

/// Answers it.
///
/// # Errors
/// The connection ends.
pub(super) fn acknowledge(mut stream: &UnixStream, refused: bool) -> io::Result<()> {
    let mut reply = [0; HEADER_BYTES + 8];
    reply[..4].copy_from_slice(&SET_VRING_ENABLE.to_ne_bytes());
    reply[4..8].copy_from_slice(&(VERSION | REPLY).to_ne_bytes());
    reply[8..12].copy_from_slice(&8u32.to_ne_bytes());
    reply[12..].copy_from_slice(&u64::from(refused).to_ne_bytes());
    stream.write_all(&reply)
}
