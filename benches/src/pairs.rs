//! Every kind of port beside every other behind one worker, with a far end of each kind: the proof and the measure of
//! the seam (`docs/decisions/001`).

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use switch_core::{
    frame::offload::{Capabilities, Offload},
    id::{DomainId, PortId},
    link::Links,
    mac::MacAddr,
    port::{
        Notifier, Opened, PortControl,
        mem::{self, MemFrame, MemPeer},
        stream, tap, vhost_user,
    },
    switch::{Settings, Switch},
    sys::raw::{BURST, RawSocket},
    topology::{Attachment, DomainDef, Dress, Policy, PortDef, PortShared, Role, StormLimits},
    worker::PollMode,
};

use crate::{
    frames,
    frontend::{FrontEnd, Options},
    netns::{Namespace, unique, wait_for},
};

/// The kinds, in the order of a lab's ports.
pub const KINDS: [&str; 4] = ["mem", "tap", "vhost-user", "stream"];
/// Frames that an in-memory port's queue is kept filled with.
const MEM_BACKLOG: usize = 256;
const PATIENCE: Duration = Duration::from_secs(10);

/// What is at the other end of a port's wire.
pub enum FarEnd {
    /// The test itself.
    Mem(MemPeer),
    /// A namespace.
    Tap {
        /// Where the netdev is.
        namespace: Namespace,
        /// Reads and writes its frames.
        socket: RawSocket,
    },
    /// A driver in a virtual machine's place.
    VhostUser(Box<FrontEnd>),
    /// A virtual machine monitor's socket.
    Stream {
        /// The connection.
        stream: UnixStream,
        /// Read, but not yet a whole frame.
        input: Vec<u8>,
        /// Not yet written.
        output: Vec<u8>,
    },
}

impl FarEnd {
    /// Sends what there is room for; returns how many frames that was.
    ///
    /// # Errors
    /// The wire is broken.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<usize> {
        match self {
            FarEnd::Mem(peer) => {
                let room = MEM_BACKLOG.saturating_sub(peer.backlog()).min(frames.len());
                frames[..room].iter().for_each(|frame| peer.send(frame));
                Ok(room)
            }
            FarEnd::Tap { socket, .. } => match socket.send(frames) {
                Ok(n) => Ok(n),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
                Err(e) => Err(e.into()),
            },
            FarEnd::VhostUser(front) => {
                let frames: Vec<MemFrame> =
                    frames.iter().map(|f| MemFrame { bytes: f.clone(), offload: Offload::NONE }).collect();
                front.send(0, &frames)
            }
            FarEnd::Stream { stream, output, .. } => {
                let mut taken = 0;
                if output.is_empty() {
                    for frame in frames {
                        output.extend_from_slice(&(frame.len() as u32).to_be_bytes());
                        output.extend_from_slice(frame);
                    }
                    taken = frames.len();
                }
                match stream.write(output) {
                    Ok(n) => drop(output.drain(..n)),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e.into()),
                }
                Ok(taken)
            }
        }
    }

    /// Shows every numbered frame that has arrived to `look`; returns at once or within a millisecond.
    ///
    /// # Errors
    /// The wire is broken.
    pub fn receive(&mut self, mut look: impl FnMut(&[u8])) -> anyhow::Result<()> {
        let mut numbered = |frame: &[u8]| {
            if frames::number_of(frame).is_some() {
                look(frame);
            }
        };
        match self {
            FarEnd::Mem(peer) => peer.take().iter().for_each(|frame| numbered(&frame.bytes)),
            FarEnd::Tap { socket, .. } => drop(socket.receive(numbered)?),
            FarEnd::VhostUser(front) => front.receive(0)?.iter().for_each(|frame| numbered(&frame.bytes)),
            FarEnd::Stream { stream, input, .. } => {
                let mut buffer = [0; 65_536];
                match stream.read(&mut buffer) {
                    Ok(n) => input.extend_from_slice(&buffer[..n]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e.into()),
                }
                let mut at = 0;
                while let Some(prefix) = input.get(at..at + 4) {
                    let len = u32::from_be_bytes(prefix.try_into().expect("four bytes")) as usize;
                    let Some(frame) = input.get(at + 4..at + 4 + len) else { break };
                    numbered(frame);
                    at += 4 + len;
                }
                input.drain(..at);
            }
        }
        Ok(())
    }
}

/// One switch of one worker with a port of each kind in [`KINDS`], and their far ends.
pub struct Lab {
    /// The far ends, in the order of [`KINDS`].
    pub ends: Vec<FarEnd>,
    // Dropped in this order: workers give the ports up before the drivers close.
    switch: Switch,
    controls: Vec<Box<dyn PortControl>>,
    directory: PathBuf,
}

impl Lab {
    /// Starts the switch, and waits until every far end is connected.
    ///
    /// # Errors
    /// Not root, or a port cannot be opened.
    pub fn new(poll: PollMode) -> anyhow::Result<Lab> {
        let directory = std::env::temp_dir().join(unique("vswitch-pairs-"));
        std::fs::create_dir(&directory)?;
        let links = Links::new(Notifier::new(|| {}));
        let switch = Switch::start(&Settings { poll, ..Settings::default() })?;
        let mut lab = Lab { ends: Vec::new(), switch, controls: Vec::new(), directory };
        let namespace = Namespace::new("vpa")?;
        let (queue, peer) = mem::pair(Capabilities::NONE)?;
        let tap_config = tap::TapConfig { netns: Some(namespace.name().to_owned()), ..tap::TapConfig::new("eth0") };
        let (vhost_path, stream_path) = (lab.directory.join("vhost"), lab.directory.join("stream"));
        let opened = vec![
            Opened { queues: vec![queue], control: Box::new(Always) },
            tap::open(&tap_config, &links)?,
            vhost_user::open(&vhost_user::VhostConfig::new(&vhost_path), Notifier::new(|| {}))?,
            stream::open(
                &stream::StreamConfig {
                    place: stream::Place::Path(stream_path.clone()),
                    server: true,
                    owner: None,
                    group: None,
                    perm: None,
                },
                Notifier::new(|| {}),
            )?,
        ];
        let mut defs = Vec::new();
        let mut receivers = Vec::new();
        for (index, Opened { queues, control }) in opened.into_iter().enumerate() {
            let (rx, tx): (Vec<_>, Vec<_>) = queues.into_iter().map(|q| (q.rx, q.tx)).unzip();
            let id = PortId(index as u16);
            defs.push(PortDef {
                id,
                attachments: vec![Attachment { domain: DomainId(0), dress: Dress::Untagged, role: Role::PROMISCUOUS }],
                hairpin: false,
                up: true,
                carrier: true,
                learning: true,
                storm: StormLimits { broadcast: 0, multicast: 0, unknown: 0 },
                policy: Policy::default(),
                shared: Arc::new(PortShared::new(tx, 1)),
            });
            receivers.push((id, rx));
            lab.controls.push(control);
        }
        lab.switch.publish(defs, &[DomainDef { id: DomainId(0), mtu: 1500, group_fwd_mask: 1, rate: None }])?;
        for (id, rx) in receivers {
            lab.switch.grant(id, rx)?;
        }
        namespace.configure("eth0", &[])?;
        let socket = namespace.run(|| RawSocket::open("eth0", true))??;
        socket.set_timeout(Duration::from_millis(1))?;
        let stream = UnixStream::connect(&stream_path)?;
        stream.set_nonblocking(true)?;
        lab.ends = vec![
            FarEnd::Mem(peer),
            FarEnd::Tap { namespace, socket },
            FarEnd::VhostUser(Box::new(FrontEnd::connect(&vhost_path, Options::default())?)),
            FarEnd::Stream { stream, input: Vec::new(), output: Vec::new() },
        ];
        let controls = &mut lab.controls;
        wait_for("all far ends are connected", PATIENCE, || controls.iter_mut().all(|c| c.missing().is_none()))?;
        // Every address is known from here on.
        for (index, end) in lab.ends.iter_mut().enumerate() {
            let frame = frames::build(MacAddr::BROADCAST, Lab::mac(index), 60, 0);
            wait_for("the wire takes a frame", PATIENCE, || {
                end.send(std::slice::from_ref(&frame)).is_ok_and(|n| n == 1)
            })?;
        }
        let fdb = Arc::clone(lab.switch.fdb());
        wait_for("all addresses are known", PATIENCE, || {
            (0..KINDS.len()).all(|i| fdb.lookup(&fdb.hash(DomainId(0), Lab::mac(i))) == Some(PortId(i as u16)))
        })?;
        Ok(lab)
    }

    /// The address behind a port.
    #[must_use]
    pub const fn mac(index: usize) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0x77, index as u8])
    }

    /// Sends frames of `bytes` from one port's far end to another's as fast as they go; frames per second that arrive.
    ///
    /// # Errors
    /// A wire is broken.
    pub fn measure(&mut self, from: usize, to: usize, bytes: usize, time: Duration) -> anyhow::Result<f64> {
        let frame = frames::build(Lab::mac(to), Lab::mac(from), bytes, 1);
        let burst: Vec<Vec<u8>> = (0..BURST).map(|_| frame.clone()).collect();
        let [source, sink] = self.ends.get_disjoint_mut([from, to]).context("two different ports")?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| -> anyhow::Result<()> {
                while !stop.load(Relaxed) {
                    if source.send(&burst)? == 0 {
                        std::thread::yield_now();
                    }
                }
                Ok(())
            });
            let mut count = |until: Duration| -> anyhow::Result<(u64, Duration)> {
                let (begin, mut seen) = (Instant::now(), 0u64);
                while begin.elapsed() < until {
                    let before = seen;
                    sink.receive(|frame| seen += u64::from(frame[6..12] == Lab::mac(from).0))?;
                    if seen == before {
                        std::thread::yield_now();
                    }
                }
                Ok((seen, begin.elapsed()))
            };
            let counted = count(time / 4).and_then(|_| count(time));
            stop.store(true, Relaxed);
            sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            let (frames, elapsed) = counted?;
            Ok(frames as f64 / elapsed.as_secs_f64())
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// An in-memory port is always connected.
struct Always;

impl PortControl for Always {
    fn missing(&mut self) -> Option<String> {
        None
    }
}
