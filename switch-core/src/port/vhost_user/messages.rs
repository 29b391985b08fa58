//! Messages that the `vhost` crate refuses and that VMMs send, taken off the socket before the crate sees them.
//!
//! The header of each message is looked at first; the crate gets what is not listed here. One of them is refused only for
//! its time: QEMU enables the rings of a network device when it is reset, as soon as protocol features were offered, and
//! the crate waits until they were acknowledged. A descriptor that comes with a message is closed by the kernel, because
//! it is read without room for one: none of these needs any (`SET_LOG_FD` would have us say when the log changes, and
//! VMMs that are asked to look at it regularly do not send it).
//!
//! | message | payload | answer |
//! |---|---|---|
//! | `SET_LOG_FD` | none or u64 | on request |
//! | `SET_VRING_ENABLE` | index:u32, state:u32 | on request |
//! | `SEND_RARP` | u64, first six bytes: the station | on request |
//! | `NET_SET_MTU` | u64 | on request; non-zero: refused |
//! | `SET_STATUS` | u64, the virtio device status | on request |
//! | `GET_STATUS` | none | u64, always |

use std::{
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
};

use nix::sys::socket::{MsgFlags, recv};

const HEADER_BYTES: usize = 12;
const MAX_BODY_BYTES: usize = 8;
const SET_LOG_FD: u32 = 7;
const SET_VRING_ENABLE: u32 = 18;
const SEND_RARP: u32 = 19;
const NET_SET_MTU: u32 = 20;
const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;
const VERSION: u32 = 1;
const VERSION_BITS: u32 = 3;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What a message wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Enable or disable a ring.
    Enable {
        /// Its number.
        ring: u32,
        /// Which of both.
        on: bool,
    },
    /// Announce a station that has moved.
    Announce([u8; 6]),
    /// Carry this MTU.
    Mtu(u64),
    /// The device status is now this.
    SetStatus(u64),
    /// Say what the device status is.
    GetStatus,
    /// Say when the log changes.
    LogDescriptor,
}

/// A message that was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    code: u32,
    needs_reply: bool,
    /// What it wants.
    pub wish: Wish,
}

/// Whether the next message is one of these; `early`: protocol features were not acknowledged yet. Waits for its header;
/// false too if none comes.
pub(super) fn is_ours(stream: &UnixStream, early: impl FnOnce() -> bool) -> bool {
    let mut header = [0; HEADER_BYTES];
    let peeked = recv(stream.as_raw_fd(), &mut header, MsgFlags::MSG_PEEK | MsgFlags::MSG_WAITALL);
    peeked == Ok(HEADER_BYTES)
        && match word(&header, 0) {
            SET_VRING_ENABLE => early(),
            code => matches!(code, SET_LOG_FD | SEND_RARP | NET_SET_MTU | SET_STATUS | GET_STATUS),
        }
}

/// Takes the message that [`is_ours`] has seen.
///
/// # Errors
/// The connection ends, or the message is malformed.
pub(super) fn take(mut stream: &UnixStream) -> io::Result<Message> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let (code, flags, size) = (word(&header, 0), word(&header, 4), word(&header, 8) as usize);
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("a malformed message {code}"));
    let sizes: &[usize] = match code {
        GET_STATUS => &[0],
        SET_LOG_FD => &[0, MAX_BODY_BYTES],
        _ => &[MAX_BODY_BYTES],
    };
    if flags & (VERSION_BITS | REPLY) != VERSION || !sizes.contains(&size) {
        return Err(malformed());
    }
    let mut body = [0; MAX_BODY_BYTES];
    stream.read_exact(&mut body[..size])?;
    let wish = match (code, word(&body, 4)) {
        (SET_VRING_ENABLE, state @ 0..=1) => Wish::Enable { ring: word(&body, 0), on: state == 1 },
        (SEND_RARP, _) => Wish::Announce([body[0], body[1], body[2], body[3], body[4], body[5]]),
        (NET_SET_MTU, _) => Wish::Mtu(u64::from_ne_bytes(body)),
        (SET_STATUS, _) => Wish::SetStatus(u64::from_ne_bytes(body)),
        (GET_STATUS, _) => Wish::GetStatus,
        (SET_LOG_FD, _) => Wish::LogDescriptor,
        _ => return Err(malformed()),
    };
    Ok(Message { code, needs_reply: flags & NEED_REPLY != 0, wish })
}

impl Message {
    /// Says whether it was done, if the VMM waits for that.
    ///
    /// # Errors
    /// The connection ends.
    pub(super) fn acknowledge(&self, stream: &UnixStream, refused: bool) -> io::Result<()> {
        if self.needs_reply { self.answer(stream, u64::from(refused)) } else { Ok(()) }
    }

    /// Answers with a value.
    ///
    /// # Errors
    /// The connection ends.
    pub(super) fn answer(&self, mut stream: &UnixStream, value: u64) -> io::Result<()> {
        let mut reply = [0; HEADER_BYTES + 8];
        reply[..4].copy_from_slice(&self.code.to_ne_bytes());
        reply[4..8].copy_from_slice(&(VERSION | REPLY).to_ne_bytes());
        reply[8..12].copy_from_slice(&8u32.to_ne_bytes());
        reply[12..].copy_from_slice(&value.to_ne_bytes());
        stream.write_all(&reply)
    }
}
