//! Raw AF_PACKET sockets for measuring tools: many frames per system call, nothing interpreted.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use crate::frame::offload::VNET_HDR_BYTES;

/// Frames per system call.
pub const BURST: usize = 32;
const FRAME_BYTES: usize = 2048;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_VNET_HDR_SZ: libc::c_int = 24;
const RECEIVE_BUFFER_BYTES: libc::c_int = 64 << 20;

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_int(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    checked(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), size_of::<libc::c_int>() as u32)
    })
    .map(drop)
}

/// How frames go from a socket to its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Past the queueing discipline (`PACKET_QDISC_BYPASS`): a full device refuses a frame with `ENOBUFS`; otherwise the
    /// discipline may hold it or, silently, drop it.
    pub direct: bool,
    /// With their virtio-net headers, which large frames need (`PACKET_VNET_HDR_SZ`, Linux 6.5).
    pub headers: bool,
}

/// A socket bound to one device of the calling thread's namespace.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
    buffers: Vec<u8>,
    headers: bool,
}

impl RawSocket {
    /// Opens a socket that sends, and with `receive` also takes what arrives (not what is sent).
    ///
    /// # Errors
    /// No such device, or no permission.
    pub fn open(device: &str, receive: bool) -> io::Result<RawSocket> {
        // SAFETY: a plain system call; the result is checked and owned at once.
        let fd = unsafe {
            OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0))?)
        };
        let name = std::ffi::CString::new(device)?;
        // SAFETY: the name is a C string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no device \"{device}\"")));
        }
        if receive {
            set_int(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
            // In a user namespace only the system's limit can be had.
            set_int(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
                .or_else(|_| set_int(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER_BYTES))?;
        }
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        address.sll_protocol = if receive { (libc::ETH_P_ALL as u16).to_be() } else { 0 };
        // SAFETY: the kernel reads one sockaddr_ll.
        checked(unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        })?;
        Ok(RawSocket { fd, buffers: vec![0; BURST * FRAME_BYTES], headers: false })
    }

    /// Opens a socket that only sends, in this way.
    ///
    /// # Errors
    /// No such device, no permission, or the kernel does not know the way.
    pub fn open_sender(device: &str, way: Way) -> io::Result<RawSocket> {
        let mut socket = RawSocket::open(device, false)?;
        if way.direct {
            set_int(&socket.fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        }
        if way.headers {
            set_int(&socket.fd, libc::SOL_PACKET, PACKET_VNET_HDR_SZ, VNET_HDR_BYTES as libc::c_int)?;
            socket.headers = true;
        }
        Ok(socket)
    }

    /// Waits at most so long in [`receive`](Self::receive).
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let time = libc::timeval { tv_sec: timeout.as_secs() as i64, tv_usec: i64::from(timeout.subsec_micros()) };
        // SAFETY: the kernel reads one timeval.
        checked(unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const time).cast(),
                size_of::<libc::timeval>() as u32,
            )
        })
        .map(drop)
    }

    /// Sends up to [`BURST`] frames; returns how many the kernel took.
    ///
    /// # Errors
    /// As the kernel says; `ENOBUFS` when the device's queue is full.
    pub fn send(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        self.send_from(frames, 0)
    }

    /// As [`send`](Self::send), of frames behind virtio-net headers, which stay behind unless the socket was opened to
    /// send them.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// A frame is shorter than such a header.
    pub fn send_behind(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        self.send_from(frames, if self.headers { 0 } else { VNET_HDR_BYTES })
    }

    /// Sends frames without their first `skip` bytes.
    fn send_from(&self, frames: &[Vec<u8>], skip: usize) -> io::Result<usize> {
        let frames = &frames[..frames.len().min(BURST)];
        let mut parts: [libc::iovec; BURST] = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BURST];
        // SAFETY: all-zero bytes are a valid mmsghdr.
        let mut messages: [libc::mmsghdr; BURST] = unsafe { std::mem::zeroed() };
        for ((frame, part), message) in frames.iter().zip(&mut parts).zip(&mut messages) {
            let frame = &frame[skip..];
            *part = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every message points to one part, every part to a borrowed frame.
        let n = unsafe { libc::sendmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), frames.len() as u32, 0) };
        checked(n).map(|n| n as usize)
    }

    /// Receives up to [`BURST`] frames and shows each to `look` (at most 2048 bytes of it). Zero after the timeout, or
    /// sooner if the process was stopped and goes on, which ends a receive call that has a timeout (signal(7)).
    ///
    /// # Errors
    /// As the kernel says.
    pub fn receive(&mut self, mut look: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut parts: [libc::iovec; BURST] = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BURST];
        // SAFETY: all-zero bytes are a valid mmsghdr.
        let mut messages: [libc::mmsghdr; BURST] = unsafe { std::mem::zeroed() };
        for ((buffer, part), message) in self.buffers.chunks_mut(FRAME_BYTES).zip(&mut parts).zip(&mut messages) {
            *part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every message points to one part, every part to its own buffer of the given length.
        let n = unsafe {
            libc::recvmmsg(
                self.fd.as_raw_fd(),
                messages.as_mut_ptr(),
                BURST as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        match checked(n) {
            Ok(n) => {
                for (buffer, message) in self.buffers.chunks(FRAME_BYTES).zip(&messages[..n as usize]) {
                    look(&buffer[..(message.msg_len as usize).min(FRAME_BYTES)]);
                }
                Ok(n as usize)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            Err(e) => Err(e),
        }
    }
}
