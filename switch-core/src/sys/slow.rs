//! AF_PACKET sockets for slow protocols (LACP): what the frame path of a port never sees.
//!
//! They are bound to every protocol and take one by their filter: a socket bound to that protocol alone gets its frames after
//! the device's nftables ingress hook, where the [guard](crate::port::guard) drops everything. The filter runs before a
//! frame is queued or copied. Control side only.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::sys::socket::{MsgFlags, recv, send};

use super::packet::{ONLY_SLOW, PACKET_IGNORE_OUTGOING, bind, checked, set, set_filter};

/// The group that slow protocols speak to (IEEE 802.3 annex 57A).
pub const SLOW_GROUP: [u8; 6] = [0x01, 0x80, 0xc2, 0x00, 0x00, 0x02];

/// A socket that takes the slow protocols' frames of one device, and sends them.
#[derive(Debug)]
pub struct SlowSocket {
    fd: OwnedFd,
}

impl SlowSocket {
    /// Opens a socket for a device of the calling thread's namespace. Frames that it sends have the mark.
    ///
    /// # Errors
    /// Not permitted, or the device is gone.
    pub fn open(index: u32, mark: Option<u32>) -> io::Result<SlowSocket> {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: a plain system call; the result is checked and owned at once.
        let fd = unsafe { OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_PACKET, flags, 0))?) };
        let raw = fd.as_raw_fd();
        let on: libc::c_int = 1;
        set(raw, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &on)?;
        set_filter(raw, &ONLY_SLOW)?;
        if let Some(mark) = mark {
            set(raw, libc::SOL_SOCKET, libc::SO_MARK, &mark)?;
        }
        let mut member = libc::packet_mreq {
            mr_ifindex: index.cast_signed(),
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: SLOW_GROUP.len() as u16,
            mr_address: [0; 8],
        };
        member.mr_address[..SLOW_GROUP.len()].copy_from_slice(&SLOW_GROUP);
        set(raw, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &member)?;
        bind(raw, index)?;
        Ok(SlowSocket { fd })
    }

    /// Receives one frame; its length (what does not fit is cut off).
    ///
    /// # Errors
    /// As the kernel says; `WouldBlock` when nothing waits.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.fd.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT)?)
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.fd.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }
}

impl AsFd for SlowSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
