//! /dev/net/tun: the ioctls that no crate offers, and reads and writes that scatter and gather.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use super::buf::Gather;
use crate::frame::offload::VNET_HDR_BYTES;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;
const TUNSETGROUP: libc::c_ulong = 0x4004_54ce;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETCARRIER: libc::c_ulong = 0x4004_54e2;
const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;

const IFF_TUN: libc::c_short = 0x0001;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
const IFF_MULTI_QUEUE: libc::c_short = 0x0100;
const IFF_PERSIST: libc::c_short = 0x0800;

const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// `struct ifreq` as the TUN ioctls read it.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    unused: [u8; 22],
}

impl IfReq {
    fn new(name: &str, flags: libc::c_short) -> IfReq {
        let mut req = IfReq { name: [0; libc::IFNAMSIZ], flags, unused: [0; 22] };
        let bytes = name.as_bytes();
        let n = bytes.len().min(libc::IFNAMSIZ - 1);
        req.name[..n].copy_from_slice(&bytes[..n]);
        req
    }
}

/// Checks the result of an ioctl.
fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the kernel says of an attached queue (`TUNGETIFF`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapFlags {
    /// The device has `IFF_MULTI_QUEUE`.
    pub multi_queue: bool,
    /// The device outlives its descriptors.
    pub persist: bool,
}

/// Opens /dev/net/tun and attaches one queue with virtio-net headers.
///
/// # Errors
/// As the kernel says: no device node, no permission, EBUSY (held), EINVAL (queue mode or kind does not match).
pub fn attach_vnet(name: &str, multi_queue: bool) -> io::Result<File> {
    attach(name, IFF_TAP | if multi_queue { IFF_MULTI_QUEUE } else { 0 })
}

/// Opens /dev/net/tun and attaches the only queue of a TUN, with virtio-net headers.
///
/// # Errors
/// As [`attach_vnet`].
pub fn attach_tun(name: &str) -> io::Result<File> {
    attach(name, IFF_TUN)
}

fn attach(name: &str, kind: libc::c_short) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let req = IfReq::new(name, kind | IFF_NO_PI | IFF_VNET_HDR);
    // SAFETY: the kernel reads and writes one ifreq (40 bytes), which `req` is.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw const req) })?;
    set_header(&file)?;
    Ok(file)
}

/// Opens the character device of a macvtap as one more queue, with virtio-net headers.
///
/// # Errors
/// As the kernel says: no permission, no more queues.
pub fn open_macvtap(node: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(node)?;
    let req = IfReq::new("", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE);
    // SAFETY: the kernel reads and writes one ifreq (40 bytes), which `req` is.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw const req) })?;
    set_header(&file)?;
    Ok(file)
}

/// Length and byte order of the virtio-net header.
fn set_header(file: &File) -> io::Result<()> {
    let size = VNET_HDR_BYTES as libc::c_int;
    // SAFETY: the kernel reads one int.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })?;
    let little_endian: libc::c_int = 1;
    // SAFETY: the kernel reads one int.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETLE, &raw const little_endian) })
}

/// Says which owed work the switch takes from the device. Returns whether segmentation of UDP is part of it.
///
/// # Errors
/// The kernel refuses even checksums and TCP segmentation.
pub fn set_offloads(fd: RawFd, on: bool) -> io::Result<bool> {
    let set = |flags: libc::c_ulong| {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        checked(unsafe { libc::ioctl(fd, TUNSETOFFLOAD, flags) })
    };
    if !on {
        return set(0).map(|()| false);
    }
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    match set(tcp | TUN_F_USO4 | TUN_F_USO6) {
        Ok(()) => Ok(true),
        Err(_) => set(tcp).map(|()| false),
    }
}

/// Reads the flags of the attached device.
///
/// # Errors
/// The descriptor is not attached.
pub fn flags(fd: RawFd) -> io::Result<TapFlags> {
    let mut req = IfReq::new("", 0);
    // SAFETY: the kernel writes one ifreq.
    checked(unsafe { libc::ioctl(fd, TUNGETIFF, &raw mut req) })?;
    Ok(TapFlags { multi_queue: req.flags & IFF_MULTI_QUEUE != 0, persist: req.flags & IFF_PERSIST != 0 })
}

/// Makes the device outlive its descriptors, or not.
///
/// # Errors
/// As the kernel says.
pub fn set_persist(fd: RawFd, on: bool) -> io::Result<()> {
    // SAFETY: the argument is passed by value.
    checked(unsafe { libc::ioctl(fd, TUNSETPERSIST, libc::c_ulong::from(on)) })
}

/// Gives the netdev a carrier, or takes it away: its users see a cable that is plugged in or out (Linux 5.0).
///
/// # Errors
/// As the kernel says.
pub fn set_carrier(fd: RawFd, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    // SAFETY: the kernel reads one int.
    checked(unsafe { libc::ioctl(fd, TUNSETCARRIER, &raw const value) })
}

/// Sets who else may attach to the device.
///
/// # Errors
/// As the kernel says.
pub fn set_owner(fd: RawFd, owner: Option<u32>, group: Option<u32>) -> io::Result<()> {
    if let Some(uid) = owner {
        // SAFETY: the argument is passed by value.
        checked(unsafe { libc::ioctl(fd, TUNSETOWNER, libc::c_ulong::from(uid)) })?;
    }
    if let Some(gid) = group {
        // SAFETY: the argument is passed by value.
        checked(unsafe { libc::ioctl(fd, TUNSETGROUP, libc::c_ulong::from(gid)) })?;
    }
    Ok(())
}

/// `readv` into two buffers.
///
/// # Errors
/// As the kernel says; `WouldBlock` when nothing waits.
#[inline]
pub fn read_two(fd: RawFd, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
    let parts = [
        libc::iovec { iov_base: first.as_mut_ptr().cast(), iov_len: first.len() },
        libc::iovec { iov_base: second.as_mut_ptr().cast(), iov_len: second.len() },
    ];
    // SAFETY: both parts are exclusively borrowed slices of the given length.
    let n = unsafe { libc::readv(fd, parts.as_ptr(), 2) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// `readv` into three buffers.
///
/// # Errors
/// As the kernel says; `WouldBlock` when nothing waits.
#[inline]
pub fn read_parts(fd: RawFd, parts: [&mut [u8]; 3]) -> io::Result<usize> {
    let parts = parts.map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
    // SAFETY: each part was an exclusively borrowed slice of the given length, and is borrowed until this call returns.
    let n = unsafe { libc::readv(fd, parts.as_ptr(), 3) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// `read` into one buffer.
///
/// # Errors
/// As the kernel says; `WouldBlock` when nothing waits.
#[inline]
pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is an exclusively borrowed slice of the given length.
    let n = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// `write` of one buffer.
///
/// # Errors
/// As the kernel says.
#[inline]
pub fn write(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the slice is readable for its length.
    let n = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// `writev` of a gather list.
///
/// # Errors
/// As the kernel says.
#[inline]
pub fn write_gather(fd: RawFd, gather: &Gather<'_>) -> io::Result<usize> {
    let parts = gather.as_iovecs();
    // SAFETY: every part is a borrowed slice or a piece that stays mapped while its batch is not cleared, which the
    // gather list's lifetime and its caller guarantee.
    let n = unsafe { libc::writev(fd, parts.as_ptr(), parts.len() as libc::c_int) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Makes a descriptor non-blocking.
///
/// # Errors
/// As the kernel says.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor with an integer argument touches no memory.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    checked(flags)?;
    // SAFETY: as above.
    checked(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) })
}
