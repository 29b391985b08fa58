//! `tap` ports: the switch holds the character device; the netdev is the host's end, or a namespace's.
//!
//! A plain device of one queue is opened by the `tun-tap` crate. It cannot ask for virtio-net headers or several
//! queues, and neither can be added later, so those come from our own ioctls in [`sys::tap`](crate::sys::tap). Both end
//! in the same receive and transmit halves.
//!
//! One system call per frame each way. With headers a frame may be 64 KiB: it is read into the slot and, past that, into
//! the batch's overflow area, so that small frames stay in the first-level cache.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use tun_tap::{Iface, Mode};

use super::{Opened, PortRx, PortTx, QueuePair, RxStatus, Sent, netdev::Netdev};
use crate::{
    batch::Batch,
    egress::{Egress, OutFrame},
    frame::offload::{Capabilities, Gso, Offload, VNET_HDR_BYTES},
    link::{LinkChange, Links},
    mac::MacAddr,
    netns,
    sys::{buf::Gather, tap as sys},
};

/// The longest name of a network device.
pub const MAX_NAME: usize = 15;
/// Queues that one device can have (`MAX_TAP_QUEUES` in the kernel).
pub const MAX_QUEUES: u16 = 256;
/// How often a full queue is tried again before the frame is dropped.
const TX_ATTEMPTS: u32 = 2;

/// How a TAP is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// The device's name.
    pub device: String,
    /// The namespace that it is in or is made in.
    pub netns: Option<String>,
    /// Queues (pairs).
    pub queues: u16,
    /// Virtio-net headers with checksum and segmentation offload.
    pub offload: bool,
    /// MTU to set.
    pub mtu: Option<u32>,
    /// Address of the netdev to set.
    pub mac: Option<MacAddr>,
    /// User that may attach as well.
    pub owner: Option<u32>,
    /// Group that may attach as well.
    pub group: Option<u32>,
    /// Whether the device outlives the switch; `None` leaves an adopted one as it is.
    pub persist: Option<bool>,
    /// Sets the netdev up.
    pub up: bool,
}

impl TapConfig {
    /// One queue with offloads, set up, in this namespace.
    #[must_use]
    pub fn new(device: &str) -> TapConfig {
        TapConfig {
            device: device.to_owned(),
            netns: None,
            queues: 1,
            offload: true,
            mtu: None,
            mac: None,
            owner: None,
            group: None,
            persist: None,
            up: true,
        }
    }
}

/// Why a TAP cannot be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name cannot be a device's.
    #[error("\"{0}\" cannot be a device name: use 1 to 15 characters, no '/' or blanks")]
    BadName(String),
    /// The number of queues is out of range.
    #[error("a TAP has 1 to 256 queues, not {0}")]
    BadQueues(u16),
    /// No /dev/net/tun.
    #[error("cannot open TAP \"{0}\": there is no /dev/net/tun; load it with: modprobe tun")]
    NoTun(String),
    /// Not permitted.
    #[error(
        "cannot open TAP \"{0}\": permission denied; run as root or grant CAP_NET_ADMIN, or make the device with: ip tuntap add {0} mode tap user $USER"
    )]
    Permission(String),
    /// The device node is closed to this user.
    #[error(
        "cannot open TAP \"{0}\": this user may not open /dev/net/tun; run as root, or open it to all as udev does: chmod 0666 /dev/net/tun"
    )]
    Node(String),
    /// Somebody else has it.
    #[error("cannot open TAP \"{0}\": device is busy (held by another process); find it with: fuser -v /dev/net/tun")]
    Busy(String),
    /// The device has another queue mode.
    #[error(
        "cannot open TAP \"{0}\": the existing device does not match (not a TAP, or made {1} multi_queue); delete it, or set queues= to match"
    )]
    Mismatch(String, &'static str),
    /// Too many open files.
    #[error("cannot open TAP \"{0}\": too many open files; raise the limit with: ulimit -n")]
    Files(String),
    /// Anything else.
    #[error("cannot open TAP \"{0}\": {1}")]
    Other(String, io::Error),
}

/// The descriptor of one queue and whoever owns it.
enum Device {
    Plain(Iface),
    Vnet(File),
}

impl Device {
    fn fd(&self) -> RawFd {
        match self {
            Device::Plain(iface) => iface.as_raw_fd(),
            Device::Vnet(file) => file.as_raw_fd(),
        }
    }
}

fn name_the_mend(config: &TapConfig, error: io::Error) -> TapError {
    let name = config.device.clone();
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoTun(name),
        Some(libc::EACCES) => TapError::Node(name),
        Some(libc::EPERM) => TapError::Permission(name),
        Some(libc::EBUSY) => TapError::Busy(name),
        Some(libc::EINVAL) => TapError::Mismatch(name, if config.queues > 1 { "without" } else { "with" }),
        Some(libc::EMFILE | libc::ENFILE) => TapError::Files(name),
        _ => TapError::Other(name, error),
    }
}

/// Creates or adopts a TAP.
///
/// # Errors
/// See [`TapError`]. A device that was made on the way is gone again.
pub fn open(config: &TapConfig, links: &Links) -> Result<Opened, TapError> {
    let name = &config.device;
    if name.is_empty() || name.len() > MAX_NAME || name.contains(|c: char| c == '/' || c == '%' || c.is_whitespace()) {
        return Err(TapError::BadName(name.clone()));
    }
    if config.queues == 0 || config.queues > MAX_QUEUES {
        return Err(TapError::BadQueues(config.queues));
    }
    let other = |e: io::Error| TapError::Other(name.clone(), e);
    let namespace = config.netns.as_deref();
    let space = links.space(namespace).map_err(other)?;
    let devices = netns::run_in(namespace, || attach(config)).map_err(other)?.map_err(|e| name_the_mend(config, e))?;
    let fd = devices[0].fd();
    let uso = sys::set_offloads(fd, config.offload).map_err(other)?;
    sys::set_owner(fd, config.owner, config.group).map_err(other)?;
    let change =
        LinkChange { up: config.up.then_some(true), mtu: config.mtu, mac: config.mac, ..LinkChange::default() };
    space.change(name, &change).map_err(other)?;
    // Last: until here a device that was made on the way goes away with its descriptors.
    if let Some(persist) = config.persist {
        sys::set_persist(fd, persist).map_err(other)?;
    }
    let capabilities = capabilities(config.offload, uso);
    let devices: Vec<_> = devices.into_iter().map(Arc::new).collect();
    let first = Arc::clone(&devices[0]);
    let control = Netdev {
        space,
        device: name.clone(),
        index: None,
        wire: false,
        on_link: Some(Box::new(move |up| {
            if let Err(e) = sys::set_carrier(first.fd(), up) {
                tracing::debug!("a TAP does not take its carrier: {e}");
            }
        })),
        keep: Box::new(()),
    };
    let queues = devices.into_iter().map(|device| queue(device, config.offload, capabilities)).collect();
    Ok(Opened { queues, control: Box::new(control) })
}

fn attach(config: &TapConfig) -> io::Result<Vec<Device>> {
    if config.offload || config.queues > 1 {
        return (0..config.queues)
            .map(|_| sys::attach_vnet(&config.device, config.queues > 1).map(Device::Vnet))
            .collect();
    }
    let iface = Iface::without_packet_info(&config.device, Mode::Tap)?;
    sys::set_nonblocking(iface.as_raw_fd())?;
    Ok(vec![Device::Plain(iface)])
}

/// What a device may be left to do itself.
pub(super) fn capabilities(offload: bool, uso: bool) -> Capabilities {
    match (offload, uso) {
        (false, _) => Capabilities::NONE,
        (true, true) => Capabilities::ALL,
        (true, false) => Capabilities::CSUM.with(Capabilities::TSO4).with(Capabilities::TSO6).with(Capabilities::ECN),
    }
}

/// The queue behind a descriptor that reads and writes frames with virtio-net headers as a TAP's does.
pub(super) fn vnet_queue(file: File, capabilities: Capabilities) -> QueuePair {
    queue(Arc::new(Device::Vnet(file)), true, capabilities)
}

fn queue(device: Arc<Device>, offload: bool, capabilities: Capabilities) -> QueuePair {
    // A device of several queues has headers even without offloads: one attach mode less to test.
    let header = matches!(*device, Device::Vnet(_));
    let fd = device.fd();
    let rx = TapRx { device: Arc::clone(&device), fd, header };
    QueuePair {
        rx: Box::new(rx),
        tx: Box::new(TapTx {
            device,
            fd,
            header,
            capabilities: if offload { capabilities } else { Capabilities::NONE },
        }),
    }
}

struct TapRx {
    #[expect(dead_code, reason = "keeps the descriptor open")]
    device: Arc<Device>,
    fd: RawFd,
    header: bool,
}

impl PortRx for TapRx {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        while batch.has_room() {
            let (slot, overflow) = batch.receive_buffers();
            let skip = if self.header { 0 } else { VNET_HDR_BYTES };
            let n = match sys::read_two(self.fd, &mut slot[skip..], overflow) {
                Ok(n) => n,
                Err(error) => return status_of(&error),
            };
            let offload = if self.header && n >= VNET_HDR_BYTES {
                let wire: &[u8; VNET_HDR_BYTES] =
                    slot[..VNET_HDR_BYTES].try_into().expect("the slot begins with a header");
                // An unknown type is carried on as the one that is always refused, so that it is counted.
                Offload::decode(wire).unwrap_or(Offload { gso: Gso::Ufo, ..Offload::NONE })
            } else {
                Offload::NONE
            };
            let len = if self.header { n.saturating_sub(VNET_HDR_BYTES) } else { n };
            batch.push_received(len).offload = offload;
        }
        RxStatus::More
    }

    fn readiness(&self) -> Option<RawFd> {
        Some(self.fd)
    }
}

pub(super) fn status_of(error: &io::Error) -> RxStatus {
    match error.raw_os_error() {
        // The netdev was deleted: the descriptor is detached from any device.
        Some(libc::EBADFD | libc::ENODEV | libc::ENXIO | libc::EBADF) => RxStatus::Gone,
        Some(libc::EINTR) => RxStatus::More,
        // Nothing waits, or (EIO) the device is down.
        _ => RxStatus::Drained,
    }
}

/// Counts a frame that the device did not take.
pub(super) fn count_refusal(sent: &mut Sent, error: &io::Error) {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR | libc::ENOMEM) => sent.queue_full += 1,
        Some(libc::EIO | libc::ENETDOWN | libc::EBADFD | libc::ENODEV) => sent.port_down += 1,
        Some(libc::EMSGSIZE) => sent.too_big += 1,
        _ => sent.error += 1,
    }
}

struct TapTx {
    #[expect(dead_code, reason = "keeps the descriptor open")]
    device: Arc<Device>,
    fd: RawFd,
    header: bool,
    capabilities: Capabilities,
}

impl TapTx {
    fn write(&self, frame: &OutFrame<'_>) -> io::Result<usize> {
        if let Some(bytes) = frame.contiguous(self.header) {
            return sys::write(self.fd, bytes);
        }
        let mut gather = Gather::new();
        if !frame.gather(self.header, &mut gather) {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        sys::write_gather(self.fd, &gather)
    }
}

impl PortTx for TapTx {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        let mut sent = Sent::default();
        for frame in egress.iter() {
            let mut result = self.write(frame);
            for _ in 1..TX_ATTEMPTS {
                match &result {
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR)) => {
                        result = self.write(frame);
                    }
                    _ => break,
                }
            }
            match result {
                Ok(_) => {
                    sent.frames += 1;
                    sent.bytes += u64::from(frame.len);
                }
                Err(e) => count_refusal(&mut sent, &e),
            }
        }
        sent
    }
}
