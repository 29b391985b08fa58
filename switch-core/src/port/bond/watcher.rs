//! The thread of a bond: follows its members' links, opens and closes their sockets, speaks LACP, and decides which members are in
//! use.

use std::{
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    BondConfig, BondStatus, MemberState, MemberStatus, Sharing, Told,
    lacp::{Lacp, Why},
    lacpdu::{LACPDU_BYTES, Lacpdu},
    member::Shared,
};
use crate::{
    link::{Link, LinkSpace},
    mac::MacAddr,
    netns,
    port::{
        Notifier,
        guard::{Guard, MARK},
    },
    sys::{packet::PacketSocket, slow::SlowSocket},
};

/// How often members that could not be opened are tried again, if nothing is reported before.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Slow protocols' frames taken from one member in a round; a partner sends a few per second.
const MAX_READS: usize = 32;

/// A member as the thread knows it.
#[derive(Default)]
struct End {
    /// The device that its sockets are of.
    index: Option<u32>,
    mac: MacAddr,
    slow: Option<SlowSocket>,
    /// Held while the sockets are open.
    #[expect(dead_code, reason = "lets the host back when it is dropped")]
    guard: Option<Guard>,
    /// It has a link.
    up: bool,
    /// Why it has none.
    trouble: Option<String>,
}

pub(super) struct Watcher {
    config: BondConfig,
    space: Arc<LinkSpace>,
    shared: Arc<Shared>,
    told: Arc<Told>,
    notifier: Notifier,
    ends: Vec<End>,
    lacp: Option<Lacp>,
    /// The member that carries everything (active-backup), and the last one that did.
    active: Option<usize>,
    last_active: Option<usize>,
    started: Instant,
}

impl Watcher {
    pub(super) fn new(
        config: BondConfig,
        space: Arc<LinkSpace>,
        shared: Arc<Shared>,
        told: Arc<Told>,
        notifier: Notifier,
    ) -> std::io::Result<Watcher> {
        let ends = config.devices.iter().map(|_| End::default()).collect();
        let lacp = match config.sharing {
            Sharing::Lacp(settings) => Some(Lacp::new(settings, config.devices.len())),
            Sharing::ActiveBackup | Sharing::BalanceXor => None,
        };
        let (active, last_active, started) = (None, None, Instant::now());
        Ok(Watcher { config, space, shared, told, notifier, ends, lacp, active, last_active, started })
    }

    /// Whether any member's sockets are open.
    pub(super) fn has_any(&self) -> bool {
        self.ends.iter().any(|end| end.index.is_some())
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Until told to stop.
    pub(super) fn run(mut self) {
        while !self.told.stop.load(Ordering::Acquire) {
            self.wait();
            let _ = self.told.bell.read();
            self.hear();
            self.look();
        }
        let last = self.lacp.as_ref().map(Lacp::farewell).unwrap_or_default();
        self.shared.set(0, 0);
        self.say(&last);
    }

    /// Until something is to be done.
    fn wait(&self) {
        let now = self.now_ms();
        let wake_at = self.lacp.as_ref().and_then(|lacp| lacp.wake_at(now));
        let limit = wake_at.map_or(LOOK_EVERY, |at| LOOK_EVERY.min(Duration::from_millis(at.saturating_sub(now))));
        let sockets = self.ends.iter().filter_map(|end| end.slow.as_ref()).map(AsFd::as_fd);
        let mut fds: Vec<PollFd<'_>> = std::iter::once(self.told.bell.as_fd())
            .chain(sockets)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        // EINTR is as good as news.
        let _ = poll(&mut fds, timeout);
    }

    /// Takes what partners say.
    fn hear(&mut self) {
        let now = self.now_ms();
        let Some(lacp) = &mut self.lacp else { return };
        for (member, end) in self.ends.iter().enumerate() {
            let Some(socket) = &end.slow else { continue };
            let mut frame = [0; LACPDU_BYTES];
            for _ in 0..MAX_READS {
                match socket.receive(&mut frame) {
                    Ok(n) => {
                        if let Some(pdu) = Lacpdu::parse(&frame[..n]) {
                            lacp.receive(member, &pdu, now);
                        }
                    }
                    // Nothing waits, or the device is down: its link says so.
                    Err(_) => break,
                }
            }
        }
    }

    fn say(&self, pdus: &[(usize, Lacpdu)]) {
        for (member, pdu) in pdus {
            let end = &self.ends[*member];
            if let Some(socket) = &end.slow
                && let Err(e) = socket.send(&pdu.frame(end.mac))
            {
                tracing::debug!(device = self.config.devices[*member], "an LACPDU was not sent: {e}");
            }
        }
    }

    /// Looks at the devices, lets time pass for LACP, and tells what has come of it.
    pub(super) fn look(&mut self) {
        for member in 0..self.ends.len() {
            self.look_at(member);
        }
        let now = self.now_ms();
        let up = self.ends.iter().enumerate().filter(|(_, end)| end.up).fold(0u32, |mask, (at, _)| mask | 1 << at);
        let mut pdus = Vec::new();
        let (sending, receiving) = match (&self.config.sharing, &mut self.lacp) {
            (_, Some(lacp)) => {
                for (member, end) in self.ends.iter().enumerate() {
                    lacp.set_enabled(member, end.up, now);
                }
                pdus = lacp.advance(now);
                (lacp.distributing(), lacp.collecting())
            }
            (Sharing::ActiveBackup, None) => {
                self.choose();
                let one = self.active.map_or(0, |member| 1 << member);
                (one, one)
            }
            (Sharing::BalanceXor | Sharing::Lacp(_), None) => (up, up),
        };
        // What a partner is told of is so by then.
        self.shared.set(sending, receiving);
        self.say(&pdus);
        self.tell(sending);
    }

    /// Which member carries everything: the one that does, while it has a link.
    fn choose(&mut self) {
        if self.active.is_none_or(|member| !self.ends[member].up) {
            self.active = self.ends.iter().position(|end| end.up);
        }
        if self.active.is_some() && self.active != self.last_active {
            if self.last_active.is_some() {
                self.told.moved.store(true, Ordering::Release);
                self.notifier.notify();
            }
            self.last_active = self.active;
        }
    }

    fn look_at(&mut self, member: usize) {
        let device = self.config.devices[member].clone();
        let link = self.space.known(&device);
        if self.ends[member].index.is_some() && link.as_ref().map(|link| link.index) != self.ends[member].index {
            self.shared.members[member].put(None);
            self.ends[member] = End::default();
        }
        let trouble = match &link {
            None => Some(format!("there is no device \"{device}\"; list devices with: ip link")),
            Some(link) if !link.up => {
                Some(format!("device \"{device}\" is down; set it up with: ip link set {device} up"))
            }
            Some(link) => {
                let opened = if self.ends[member].index.is_none() { self.open(member, link) } else { Ok(()) };
                let no_carrier =
                    || format!("device \"{device}\" has no carrier: its other end is down or the cable is out");
                opened.err().or_else(|| (!link.carrier).then(no_carrier))
            }
        };
        let end = &mut self.ends[member];
        end.up = trouble.is_none();
        end.trouble = trouble;
    }

    fn open(&mut self, member: usize, link: &Link) -> Result<(), String> {
        let device = &link.name;
        let netns = self.config.netns.as_deref();
        let guard = match &self.config.guards {
            Some(guards) => {
                Some(guards.guard(netns, link).map_err(|e| format!("cannot keep the host off \"{device}\": {e}"))?)
            }
            None => None,
        };
        let mark = guard.is_some().then_some(MARK);
        let index = link.index;
        let speaks = self.lacp.is_some();
        let opened = netns::run_in(netns, || {
            let socket =
                if speaks { PacketSocket::open_except_slow(index, mark)? } else { PacketSocket::open(index, mark)? };
            Ok((socket, speaks.then(|| SlowSocket::open(index, mark)).transpose()?))
        });
        let (socket, slow) = opened.and_then(|opened| opened).map_err(|e: std::io::Error| {
            match e.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => format!(
                    "cannot open a packet socket on \"{device}\": permission denied; run as root or grant CAP_NET_RAW and CAP_NET_ADMIN"
                ),
                _ => format!("cannot open a packet socket on \"{device}\": {e}"),
            }
        })?;
        let mac = link.mac.unwrap_or_default();
        self.ends[member] = End { index: Some(index), mac, slow, guard, up: false, trouble: None };
        self.shared.members[member].put(Some(Arc::new(socket)));
        Ok(())
    }

    /// Says how things stand, and that they have changed if they have.
    fn tell(&self, sending: u32) {
        let members = self.ends.iter().zip(&self.config.devices).enumerate().map(|(index, (end, device))| {
            let active = sending & (1 << index) != 0;
            let lacp = self.lacp.as_ref().map(|lacp| (lacp.ends(index), lacp.why(index)));
            let (state, reason) = match (end.up, active, &lacp) {
                (false, _, _) => (MemberState::Down, end.trouble.clone()),
                (true, true, _) => (MemberState::Active, None),
                (true, false, Some((_, why))) => (MemberState::Out, why.map(|why| explain(device, why))),
                (true, false, None) => (MemberState::Backup, None),
            };
            let (actor, partner) = match lacp {
                Some(((actor, partner), _)) => (Some(actor.into()), partner.map(Into::into)),
                None => (None, None),
            };
            MemberStatus { device: device.clone(), state, reason, actor, partner }
        });
        let partner = self.lacp.as_ref().and_then(Lacp::partner);
        let status = BondStatus { partner, members: members.collect() };
        let lost = !self.has_any();
        let mut before = self.told.status.lock();
        if *before != status {
            for (old, new) in before.members.iter().zip(&status.members).filter(|(old, new)| old.state != new.state) {
                let reason = new.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
                tracing::info!(device = new.device, "{} instead of {}{reason}", new.state.name(), old.state.name());
            }
            *before = status;
            drop(before);
            self.told.lost.store(lost, Ordering::Relaxed);
            self.notifier.notify();
        }
    }
}

/// Why a member with a link carries nothing.
fn explain(device: &str, why: Why) -> String {
    match why {
        Why::NoPartner => format!(
            "nobody has answered by LACP on \"{device}\"; set the other end to LACP (802.3ad), or use mode=balance-xor or active-backup"
        ),
        Why::Silent => format!("the partner on \"{device}\" has not been heard for some seconds"),
        Why::Loop => format!("\"{device}\" is connected to another member of this bond"),
        Why::OtherSystem(system) => {
            format!("\"{device}\" is connected to another system ({system}) than the members in use")
        }
        Why::OtherKey(key) => {
            format!("\"{device}\" is connected to another bond of the same system (key {key}) than the members in use")
        }
        Why::Individual => format!("the partner on \"{device}\" does not aggregate, and another member is in use"),
        Why::Joining => format!("\"{device}\" is about to join"),
        Why::NotInSync => format!("the partner on \"{device}\" has not agreed yet"),
        Why::NotCollecting => format!("the partner on \"{device}\" does not take frames yet"),
    }
}
