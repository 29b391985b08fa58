//! The engine `xdp` of `packet` ports: AF_XDP sockets, one for each receive queue of the device.
//!
//! An XDP program in the device's driver gives us all frames that it receives, before the host's own stack or anybody's
//! packet socket has them; what we send goes to the driver directly, past the queueing discipline and the egress hook.
//! Only in the driver (native mode): behind it frames may be merged ones, longer than what AF_XDP can carry. Nothing says
//! what is owed on a frame that comes in, so a checksum that looks owed is taken for one
//! ([`partial_checksum`]); on the way out it is completed in the chunk that the frame is copied to. A VLAN tag that is kept
//! beside the frame the program puts back, where the kernel tells it.
//!
//! The program is held by a BPF link and goes with the process, however that ends. A device that goes down keeps program
//! and sockets; one that goes away ends the port by its index, as the sockets do not tell.

use std::{io, os::fd::RawFd, sync::Arc, time::Duration};

use super::{Opened, PortControl, PortRx, PortTx, QueuePair, RxStatus, Sent, netdev::Netdev};
use crate::{
    batch::{Batch, HEAD_BYTES},
    egress::Egress,
    frame::{
        offload::{Capabilities, VNET_HDR_BYTES},
        partial::partial_checksum,
    },
    link::{Link, LinkSpace},
    netns,
    sys::{
        ethtool,
        packet::Promiscuous,
        xdp::{MAX_FRAME_BYTES, Program, Pushed, Queued, Receiver, Refused, Sender, Socket, Unbound},
    },
};

/// Addresses, EtherType and two tags: what a frame has beside what the MTU counts.
const L2_BYTES: u32 = 22;
/// The largest MTU whose frames can be received.
pub const MAX_MTU: u32 = MAX_FRAME_BYTES as u32 - L2_BYTES;
/// The kernel gives a queue free some time after its last socket was closed.
const QUEUE_PATIENCE: (u32, Duration) = (20, Duration::from_millis(10));

/// Why AF_XDP does not take a device, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// No AF_XDP.
    #[error("this kernel has no AF_XDP (CONFIG_XDP_SOCKETS; links for XDP came with Linux 5.9); use engine=packet")]
    Kernel,
    /// Not permitted.
    #[error("permission denied; run as root or grant CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF, or use engine=packet")]
    Permission,
    /// A TAP, whose holder sends merged segments.
    #[error("a TAP passes on merged segments, which AF_XDP cannot carry; use engine=packet")]
    Tap,
    /// Frames longer than a chunk.
    #[error(
        "its MTU of {0} is more than the {MAX_MTU} that AF_XDP can carry; use engine=packet, or lower it with: ip link set {1} mtu 1500"
    )]
    Mtu(u32, String),
    /// Tags that the device takes off its frames, of which a socket would hear nothing.
    #[error(
        "it takes VLAN tags off its frames, which AF_XDP would not tell from untagged ones; turn that off with: ethtool -K {0} rxvlan off, or use engine=packet"
    )]
    Tags(String),
    /// The other end of a veth may send frames longer than a page.
    #[error("the MTU of its other end is more than a page can hold; lower that to 3500 or less, or use engine=packet")]
    PeerMtu,
    /// Queues of which nobody would take the frames.
    #[error(
        "it receives on {has} queue(s), and each needs a socket: use queues={has}, or change the device (ethtool -L {device}; see ethtool -l {device}), or use engine=packet"
    )]
    Queues {
        /// Of the device.
        has: u32,
        /// Its name.
        device: String,
    },
    /// The other end of a veth sends on more queues than this one receives on.
    #[error(
        "its driver takes no XDP program unless it has as many receive queues as its other end has transmit queues; give it more with ethtool -L {0}, or use engine=packet"
    )]
    PeerQueues(String),
    /// Somebody else's program.
    #[error(
        "another XDP program is on it; end what has put it there, or take it off with: ip link set dev {0} xdp off (xdpgeneric off), or use engine=packet"
    )]
    Occupied(String),
    /// Somebody else's socket.
    #[error("another AF_XDP socket has its queue {0}; end the program that holds it, or use engine=packet")]
    QueueTaken(u16),
    /// Nothing but the generic mode, or the driver lacks something.
    #[error("its driver has no native XDP, or not as the device is set up ({0}); use engine=packet")]
    Driver(io::Error),
    /// More pinned memory than is allowed.
    #[error(
        "no memory can be locked: a queue needs 12 MiB; raise the limit (ulimit -l, LimitMEMLOCK= of a systemd unit), grant CAP_IPC_LOCK, or use engine=packet"
    )]
    Memory,
    /// Anything else.
    #[error("{0}: {1}; engine=packet may work")]
    Other(&'static str, io::Error),
}

/// A device whose frames come to us. Dropped, the host has it back.
pub struct Taken {
    halves: Vec<(Receiver, Sender)>,
    program: Program,
    promiscuous: Promiscuous,
}

/// Takes a netdev, which is up, by AF_XDP.
///
/// # Errors
/// See [`XdpError`]; the device is as before.
pub fn take(netns: Option<&str>, link: &Link, queues: u16) -> Result<Taken, XdpError> {
    if link.kind.as_deref() == Some("tun") {
        return Err(XdpError::Tap);
    }
    if link.mtu > MAX_MTU {
        return Err(XdpError::Mtu(link.mtu, link.name.clone()));
    }
    netns::run_in(netns, || take_here(link, queues)).map_err(|e| XdpError::Other("cannot enter the namespace", e))?
}

impl Taken {
    /// The port. `guard` is dropped when no frame comes to us any more.
    #[must_use]
    pub fn into_port(self, link: &Link, space: Arc<LinkSpace>, guard: impl Send + 'static) -> Opened {
        let sockets = self.halves.iter().map(|(receiver, _)| Arc::clone(receiver.socket())).collect();
        let pair = |(receiver, sender)| QueuePair { rx: Box::new(XdpRx { receiver }), tx: Box::new(XdpTx { sender }) };
        let netdev = Netdev {
            space,
            device: link.name.clone(),
            index: Some(link.index),
            wire: true,
            on_link: None,
            // Dropped in this order.
            keep: Box::new((self.program, self.promiscuous, guard)),
        };
        Opened {
            queues: self.halves.into_iter().map(pair).collect(),
            control: Box::new(XdpControl { netdev, sockets }),
        }
    }
}

/// Puts the program on the device and binds a socket to each of its queues, in the calling thread's namespace.
fn take_here(link: &Link, queues: u16) -> Result<Taken, XdpError> {
    let name = || link.name.clone();
    let has = ethtool::receive_queues(&link.name).map_err(|e| XdpError::Other("cannot count its queues", e))?;
    if let Some(has) = has.filter(|has| *has != u32::from(queues)) {
        return Err(XdpError::Queues { has, device: name() });
    }
    // A veth tells the program of the tags that its other end leaves beside frames. What other drivers tell is not known.
    if link.kind.as_deref() != Some("veth") && ethtool::rx_vlan(&link.name).is_ok_and(|on| on) {
        return Err(XdpError::Tags(name()));
    }
    // What can fail without touching the device goes first: a program may have its driver make all queues anew.
    let mut program = Program::load(link.index, queues).map_err(|refused| {
        let (Refused::Map(e) | Refused::Load(e) | Refused::Attach(e)) = refused;
        step("cannot load an XDP program", e)
    })?;
    let sockets: Vec<Unbound> =
        (0..queues).map(|_| Unbound::new()).collect::<io::Result<_>>().map_err(|e| match e.raw_os_error() {
            Some(libc::ENOBUFS) => XdpError::Memory,
            _ => step("cannot open an AF_XDP socket", e),
        })?;
    let promiscuous = Promiscuous::new(link.index).map_err(|e| step("cannot make it promiscuous", e))?;
    program.attach(link.index).map_err(|refused| {
        let (Refused::Map(e) | Refused::Load(e) | Refused::Attach(e)) = refused;
        match e.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => XdpError::Occupied(name()),
            Some(libc::ERANGE) => XdpError::PeerMtu,
            Some(libc::ENOSPC) => XdpError::PeerQueues(name()),
            Some(libc::EOPNOTSUPP | libc::EINVAL) => XdpError::Driver(e),
            _ => step("cannot put an XDP program on it", e),
        }
    })?;
    for (queue, socket) in (0..queues).zip(&sockets) {
        bind(socket, link.index, queue).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => XdpError::QueueTaken(queue),
            _ => step("cannot bind an AF_XDP socket to it", e),
        })?;
        program
            .set_socket(queue, socket.socket().as_raw_fd())
            .map_err(|e| step("cannot give a queue to its socket", e))?;
    }
    if !program.restores_tags() {
        tracing::warn!(
            device = link.name,
            "this kernel does not tell of VLAN tags beside frames (Linux 6.8 does), which are taken for untagged; if the \
             other end has VLAN devices or a bridge, turn that off there: ethtool -K DEVICE txvlan off"
        );
    }
    Ok(Taken { halves: sockets.into_iter().map(Unbound::into_halves).collect(), program, promiscuous })
}

fn step(what: &'static str, error: io::Error) -> XdpError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => XdpError::Permission,
        Some(libc::EAFNOSUPPORT | libc::ENOSYS | libc::EOPNOTSUPP) => XdpError::Kernel,
        _ => XdpError::Other(what, error),
    }
}

/// Nobody else has a program on the device, so a queue that is taken is nearly always one of ours that was just closed.
fn bind(socket: &Unbound, index: u32, queue: u16) -> io::Result<()> {
    let (tries, pause) = QUEUE_PATIENCE;
    for _ in 1..tries {
        match socket.bind(index, queue) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(pause),
            done => return done,
        }
    }
    socket.bind(index, queue)
}

struct XdpRx {
    receiver: Receiver,
}

impl PortRx for XdpRx {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        let mut status = RxStatus::More;
        while batch.has_room() {
            if !self.receiver.receive(|frame| accept(batch, frame)) {
                status = RxStatus::Drained;
                break;
            }
        }
        self.receiver.release();
        status
    }

    fn arm(&mut self) -> super::Armed {
        self.receiver.socket().nudge();
        super::Armed::Ready
    }

    fn readiness(&self) -> Option<RawFd> {
        Some(self.receiver.socket().as_raw_fd())
    }

    fn take_lost(&mut self) -> u64 {
        self.receiver.take_lost()
    }

    fn take_errors(&mut self) -> u64 {
        self.receiver.take_errors()
    }
}

/// Copies a frame into the batch, which has room.
#[inline]
fn accept(batch: &mut Batch, frame: &[u8]) {
    let (slot, overflow) = batch.receive_buffers();
    let (head, rest) = frame.split_at(frame.len().min(HEAD_BYTES));
    slot[VNET_HDR_BYTES..VNET_HDR_BYTES + head.len()].copy_from_slice(head);
    overflow[..rest.len()].copy_from_slice(rest);
    let offload = partial_checksum(head, frame.len());
    batch.push_received(frame.len()).offload = offload;
}

struct XdpTx {
    sender: Sender,
}

impl PortTx for XdpTx {
    fn capabilities(&self) -> Capabilities {
        // Completed in the chunk, where the frame is one piece: no frame has a call of its own.
        Capabilities::CSUM
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        let mut sent = Sent::default();
        if self.sender.is_stalled() && self.sender.push().down {
            sent.port_down = egress.len() as u32;
            return sent;
        }
        self.sender.reap();
        for frame in egress.iter() {
            match self.sender.queue(frame) {
                Queued::Yes => {
                    sent.frames += 1;
                    sent.bytes += u64::from(frame.len);
                }
                Queued::Full => sent.queue_full += 1,
                Queued::TooLong => sent.too_big += 1,
                Queued::Refused => sent.error += 1,
            }
        }
        if sent.frames > 0 {
            let pushed = self.sender.push();
            forget_lost(&mut sent, pushed);
        }
        sent
    }
}

/// Takes what the device had no room for off what was sent. Which frames they were the kernel does not say: their bytes
/// are those of as many average ones.
fn forget_lost(sent: &mut Sent, pushed: Pushed) {
    let lost = pushed.lost.min(sent.frames);
    if lost > 0 {
        sent.bytes -= sent.bytes * u64::from(lost) / u64::from(sent.frames);
        sent.frames -= lost;
        sent.queue_full += lost;
    }
}

/// A netdev, and the sockets whose rings must not stand still.
struct XdpControl {
    netdev: Netdev,
    sockets: Vec<Arc<Socket>>,
}

impl PortControl for XdpControl {
    fn missing(&mut self) -> Option<String> {
        // Asked about once a second: what a full device left in a ring goes out even if no frame follows.
        self.sockets.iter().for_each(|socket| socket.nudge());
        self.netdev.missing()
    }

    fn gone(&mut self) -> bool {
        self.netdev.gone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_frames_are_no_sent_ones() {
        let mut sent = Sent { frames: 4, bytes: 400, ..Sent::default() };
        forget_lost(&mut sent, Pushed { lost: 1, down: false });
        assert_eq!(sent, Sent { frames: 3, bytes: 300, queue_full: 1, ..Sent::default() });
        // More than were given now: they are of an earlier call.
        forget_lost(&mut sent, Pushed { lost: 9, down: false });
        assert_eq!(sent, Sent { frames: 0, bytes: 0, queue_full: 4, ..Sent::default() });
    }

    #[test]
    fn errors_name_the_mend() {
        for error in [
            XdpError::Kernel,
            XdpError::Permission,
            XdpError::Tap,
            XdpError::Mtu(9000, "p0".to_owned()),
            XdpError::Tags("p0".to_owned()),
            XdpError::Queues { has: 2, device: "p0".to_owned() },
            XdpError::PeerMtu,
            XdpError::PeerQueues("p0".to_owned()),
            XdpError::Occupied("p0".to_owned()),
            XdpError::QueueTaken(0),
            XdpError::Driver(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            XdpError::Memory,
            XdpError::Other("cannot", io::Error::from_raw_os_error(libc::EIO)),
        ] {
            assert!(error.to_string().contains("engine=packet"), "{error}");
        }
    }
}
