//! AF_PACKET sockets as ports: options that no crate offers, and a receive of many frames that says what the kernel took
//! off each.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use crate::{
    batch::BURST_FRAMES,
    egress::OutFrame,
    frame::{offload::VNET_HDR_BYTES, vlan::OuterTag},
};

pub(super) const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_VNET_HDR_SZ: libc::c_int = 24;
/// The header without `num_buffers`, which is all that older kernels know.
const SHORT_HDR_BYTES: usize = 10;
const PACKET_FANOUT_FLAG_IGNORE_OUTGOING: u32 = 0x4000;
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
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_BYTES]);

const CONTROL_BYTES: usize = 48;
// SAFETY: CMSG_SPACE only computes.
const _: () = assert!(unsafe { libc::CMSG_SPACE(size_of::<AuxData>() as u32) } as usize <= CONTROL_BYTES);

pub(super) fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn set<T>(fd: RawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads at most the size of the borrowed value; all callers pass plain C structs or ints, and what
    // a pointer in one points to is borrowed until the call is over.
    checked(unsafe { libc::setsockopt(fd, level, option, (&raw const *value).cast(), size_of::<T>() as u32) }).map(drop)
}

/// Has a socket receive all that the device of this index receives, as far as its filter takes it.
pub(super) fn bind(fd: RawFd, index: u32) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index.cast_signed();
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: the kernel reads one sockaddr_ll.
    checked(unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) }).map(drop)
}

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Takes no frame.
const NOTHING: [libc::sock_filter; 1] = [step(0x06, 0, 0, 0)];
/// Takes what was not sent from here. A group of sockets that an older kernel made sees that too, whatever its members
/// have set.
const INCOMING: [libc::sock_filter; 4] = [
    // A = packet type (SKF_AD_OFF + SKF_AD_PKTTYPE)
    step(0x30, 0, 0, 0xffff_f004),
    // if A == PACKET_OUTGOING
    step(0x15, 0, 1, 4),
    step(0x06, 0, 0, 0),
    step(0x06, 0, 0, u32::MAX),
];

/// The EtherType of slow protocols (IEEE 802.3 annex 57A), LACP among them.
pub const SLOW_PROTOCOLS: u16 = 0x8809;
/// Takes what is no frame of a slow protocol.
const EXCEPT_SLOW: [libc::sock_filter; 4] = [
    // A = EtherType
    step(0x28, 0, 0, 12),
    // if A == SLOW_PROTOCOLS
    step(0x15, 0, 1, SLOW_PROTOCOLS as u32),
    step(0x06, 0, 0, 0),
    step(0x06, 0, 0, u32::MAX),
];
/// The rest.
pub(super) const ONLY_SLOW: [libc::sock_filter; 4] =
    [step(0x28, 0, 0, 12), step(0x15, 0, 1, SLOW_PROTOCOLS as u32), step(0x06, 0, 0, u32::MAX), step(0x06, 0, 0, 0)];

pub(super) fn set_filter(fd: RawFd, steps: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_ptr().cast_mut() };
    // The kernel copies the steps, which are only read.
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Has a device hear what is for other addresses too, as long as the socket lives.
fn add_promiscuous(socket: RawFd, index: u32) -> io::Result<()> {
    let member = libc::packet_mreq {
        mr_ifindex: index.cast_signed(),
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &member)
}

/// Keeps a device promiscuous, and takes no frame.
#[derive(Debug)]
pub struct Promiscuous {
    _socket: OwnedFd,
}

impl Promiscuous {
    /// For the device of this index in the calling thread's namespace.
    ///
    /// # Errors
    /// Not permitted, or the device is gone.
    pub fn new(index: u32) -> io::Result<Promiscuous> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: a plain system call; the result is checked and owned at once. Protocol 0 receives nothing.
        let socket = unsafe { OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_PACKET, kind, 0))?) };
        add_promiscuous(socket.as_raw_fd(), index)?;
        Ok(Promiscuous { _socket: socket })
    }
}

/// A socket that takes all that a device receives, and the length of its virtio-net header.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    header: usize,
}

/// One frame that [`PacketSocket::receive`] got.
#[derive(Clone, Copy, Debug, Default)]
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
    /// Opens several sockets for a device, among which the kernel divides what it receives: both directions of a flow
    /// come to the same one. See [`open`](Self::open).
    ///
    /// # Errors
    /// As there; or the kernel knows no such groups.
    pub fn open_many(index: u32, mark: Option<u32>, queues: u16) -> io::Result<Vec<PacketSocket>> {
        if queues <= 1 {
            return Ok(vec![PacketSocket::open(index, mark)?]);
        }
        // Until all are in the group each would get every frame, so they take none before.
        let sockets: Vec<PacketSocket> =
            (0..queues).map(|_| PacketSocket::open_filtered(index, mark, Some(&NOTHING))).collect::<io::Result<_>>()?;
        let flags = (libc::PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_IGNORE_OUTGOING) << 16;
        let mut group = libc::PACKET_FANOUT_FLAG_UNIQUEID << 16;
        for socket in &sockets {
            set(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT, &(group | flags))?;
            group = socket.group()?;
        }
        for socket in &sockets {
            set_filter(socket.as_raw_fd(), &INCOMING)?;
        }
        Ok(sockets)
    }

    /// The number of the group that the socket is in.
    fn group(&self) -> io::Result<u32> {
        let mut value = 0u32;
        let mut len = size_of_val(&value) as libc::socklen_t;
        // SAFETY: the kernel writes one int.
        checked(unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_FANOUT,
                (&raw mut value).cast(),
                &raw mut len,
            )
        })?;
        Ok(value & 0xffff)
    }

    /// Opens a socket for a device of the calling thread's namespace: promiscuous while the socket lives, with
    /// virtio-net headers, blind to what is sent. Frames that it sends have the mark.
    ///
    /// # Errors
    /// Not permitted, or the device is gone.
    pub fn open(index: u32, mark: Option<u32>) -> io::Result<PacketSocket> {
        PacketSocket::open_filtered(index, mark, None)
    }

    /// As [`open`](Self::open), blind to [`SLOW_PROTOCOLS`] as well: those are for a [`SlowSocket`](super::slow::SlowSocket).
    ///
    /// # Errors
    /// As there.
    pub fn open_except_slow(index: u32, mark: Option<u32>) -> io::Result<PacketSocket> {
        PacketSocket::open_filtered(index, mark, Some(&EXCEPT_SLOW))
    }

    fn open_filtered(index: u32, mark: Option<u32>, filter: Option<&[libc::sock_filter]>) -> io::Result<PacketSocket> {
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
        if let Some(filter) = filter {
            set_filter(raw, filter)?;
        }
        if let Some(mark) = mark {
            set(raw, libc::SOL_SOCKET, libc::SO_MARK, &mark)?;
        }
        add_promiscuous(raw, index)?;
        bind(raw, index)?;
        Ok(PacketSocket { fd, header })
    }

    /// The descriptor.
    #[must_use]
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Receives as many frames as wait and as there are buffers, [`BURST_FRAMES`] at most; returns how many. Each begins
    /// in its first buffer after [`VNET_HDR_BYTES`] bytes (what is in those, [`Received::header`] says) and goes on in
    /// the second. Fewer than there are buffers: nothing more waits.
    ///
    /// # Errors
    /// As the kernel says; `WouldBlock` when nothing waits, `ENETDOWN` once after the device went down or away.
    #[inline]
    pub fn receive<'a>(
        &self,
        buffers: impl Iterator<Item = (&'a mut [u8], &'a mut [u8])>,
        into: &mut [Received; BURST_FRAMES],
    ) -> io::Result<usize> {
        let mut parts = [[super::send::NO_PART; 2]; BURST_FRAMES];
        let mut controls = [Control([0; CONTROL_BYTES]); BURST_FRAMES];
        // SAFETY: all-zero bytes are a valid mmsghdr.
        let mut messages: [libc::mmsghdr; BURST_FRAMES] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        for (((first, second), parts), (control, message)) in
            buffers.zip(&mut parts).zip(controls.iter_mut().zip(&mut messages))
        {
            // The header ends where the frame begins.
            let first = &mut first[VNET_HDR_BYTES - self.header..];
            parts[0] = libc::iovec { iov_base: first.as_mut_ptr().cast(), iov_len: first.len() };
            parts[1] = libc::iovec { iov_base: second.as_mut_ptr().cast(), iov_len: second.len() };
            message.msg_hdr.msg_iov = parts.as_mut_ptr();
            message.msg_hdr.msg_iovlen = parts.len();
            message.msg_hdr.msg_control = (&raw mut *control).cast();
            message.msg_hdr.msg_controllen = size_of::<Control>();
            count += 1;
        }
        // SAFETY: each of the first `count` messages points to two parts, every part to an exclusively borrowed buffer
        // of the given length, and to a control buffer as long as it says; all of them outlive the call.
        let n = unsafe { libc::recvmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), count, 0, std::ptr::null_mut()) };
        let n = checked(n)? as usize;
        for ((message, parts), received) in messages[..n].iter().zip(&parts).zip(into.iter_mut()) {
            let mut header = [0; VNET_HDR_BYTES];
            let bytes = message.msg_len as usize;
            if bytes >= self.header {
                // SAFETY: the kernel wrote at least so many bytes to the first part, which is longer, and whose buffer
                // is borrowed until the function returns.
                unsafe {
                    std::ptr::copy_nonoverlapping(parts[0].iov_base.cast(), header.as_mut_ptr(), self.header);
                }
            }
            *received = Received {
                len: bytes.saturating_sub(self.header),
                truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                tag: tag_of(&message.msg_hdr),
                header,
            };
        }
        Ok(n)
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

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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
