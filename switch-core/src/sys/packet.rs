//! AF_PACKET sockets as ports: options that no crate offers, and a receive that says what the kernel took off the
//! frame.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use crate::{egress::OutFrame, frame::offload::VNET_HDR_BYTES, frame::vlan::OuterTag};

const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_VNET_HDR_SZ: libc::c_int = 24;
/// The header without `num_buffers`, which is all that older kernels know.
const SHORT_HDR_BYTES: usize = 10;
const BUFFER_BYTES: libc::c_int = 16 << 20;

/// `struct tpacket_auxdata`.
#[repr(C)]
#[derive(Clone, Copy)]
struct AuxData {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// Room for one control message with an [`AuxData`], aligned as the kernel's header wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set<T>(fd: RawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads at most the size of the borrowed value; all callers pass plain C structs or ints.
    checked(unsafe { libc::setsockopt(fd, level, option, (&raw const *value).cast(), size_of::<T>() as u32) }).map(drop)
}

/// A socket that takes all that a device receives, and the length of its virtio-net header.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    header: usize,
}

/// What [`PacketSocket::receive`] got.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes of the frame in the buffers.
    pub len: usize,
    /// It was longer than the buffers: the rest is lost.
    pub truncated: bool,
    /// The tag that the kernel took off.
    pub tag: Option<OuterTag>,
    /// The virtio-net header.
    pub header: [u8; VNET_HDR_BYTES],
}

impl PacketSocket {
    /// Opens a socket for a device of the calling thread's namespace: promiscuous while the socket lives, with
    /// virtio-net headers, blind to what is sent.
    ///
    /// # Errors
    /// Not permitted, or the device is gone.
    pub fn open(index: u32) -> io::Result<PacketSocket> {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0 receives nothing until the bind, so that no frame of another device slips in.
        // SAFETY: a plain system call; the result is checked and owned at once.
        let fd = unsafe { OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_PACKET, flags, 0))?) };
        let raw = fd.as_raw_fd();
        let on: libc::c_int = 1;
        let long = VNET_HDR_BYTES as libc::c_int;
        let header = if set(raw, libc::SOL_PACKET, PACKET_VNET_HDR_SZ, &long).is_ok() {
            VNET_HDR_BYTES
        } else {
            set(raw, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &on)?;
            SHORT_HDR_BYTES
        };
        set(raw, libc::SOL_PACKET, libc::PACKET_AUXDATA, &on)?;
        set(raw, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &on)?;
        set(raw, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER_BYTES)?;
        set(raw, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &BUFFER_BYTES)?;
        let member = libc::packet_mreq {
            mr_ifindex: index.cast_signed(),
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set(raw, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &member)?;
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index.cast_signed();
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the kernel reads one sockaddr_ll.
        checked(unsafe { libc::bind(raw, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) })?;
        Ok(PacketSocket { fd, header })
    }

    /// The descriptor.
    #[must_use]
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Receives one frame into two buffers, one after the other.
    ///
    /// # Errors
    /// As the kernel says; `WouldBlock` when nothing waits, `ENETDOWN` once after the device went down or away.
    #[inline]
    pub fn receive(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<Received> {
        let mut header = [0u8; VNET_HDR_BYTES];
        let room = self.header + first.len() + second.len();
        let mut parts = [
            libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: self.header },
            libc::iovec { iov_base: first.as_mut_ptr().cast(), iov_len: first.len() },
            libc::iovec { iov_base: second.as_mut_ptr().cast(), iov_len: second.len() },
        ];
        let mut control = Control([0; 64]);
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len();
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>();
        // SAFETY: every part is an exclusively borrowed buffer of the given length, the control buffer is as long as
        // the header says, and all of them outlive the call.
        let n = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, 0) };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Received {
            len: (n as usize).min(room).saturating_sub(self.header),
            truncated: message.msg_flags & libc::MSG_TRUNC != 0,
            tag: tag_of(&message),
            header,
        })
    }

    /// Sends as many frames as go into one system call; returns how many the kernel took. The error is the first
    /// frame's.
    ///
    /// # Errors
    /// As the kernel says; none of the frames was sent.
    pub fn send(&self, frames: &[OutFrame<'_>]) -> io::Result<usize> {
        super::send::messages(self.fd.as_raw_fd(), None, self.header, frames)
    }

    /// Frames that found the socket's buffer full since the last call.
    #[must_use]
    pub fn take_lost(&self) -> u64 {
        let mut stats = [0u32; 2];
        let mut len = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: the kernel writes one tpacket_stats (two u32) at most.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        if result < 0 { 0 } else { u64::from(stats[1]) }
    }
}

/// The tag in the auxiliary data of a received message.
fn tag_of(message: &libc::msghdr) -> Option<OuterTag> {
    // SAFETY: the kernel filled the control buffer that `message` points to and set its length.
    let first = unsafe { libc::CMSG_FIRSTHDR(message) };
    if first.is_null() {
        return None;
    }
    // SAFETY: not null, so a whole header lies in the (aligned) control buffer.
    let head = unsafe { *first };
    // SAFETY: CMSG_LEN only computes.
    let whole = unsafe { libc::CMSG_LEN(size_of::<AuxData>() as u32) } as usize;
    if head.cmsg_level != libc::SOL_PACKET || head.cmsg_type != libc::PACKET_AUXDATA || head.cmsg_len < whole {
        return None;
    }
    // SAFETY: the message has room for one AuxData after its header; any bytes are a valid one.
    let aux = unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(first).cast::<AuxData>()) };
    if aux.status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let with_tpid = aux.status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    Some(OuterTag { tpid: if with_tpid { aux.vlan_tpid } else { 0x8100 }, tci: aux.vlan_tci })
}
