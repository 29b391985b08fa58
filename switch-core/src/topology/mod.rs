//! The topology: an immutable snapshot of ports, domains and flood lists that all workers share.
//!
//! The control side describes ports and domains ([`PortDef`], [`DomainDef`]); [`Topology::build`] compiles them once per
//! change. A worker holds one snapshot for a whole turn, so nothing it looks at changes under it. Lookups are by dense
//! id; a port's attachments are sorted by domain, and nearly every port has one.
//!
//! Flood lists exist per (domain, role class), not per ingress port: 1000 ports in a domain cost 1000 entries, and the
//! ingress is skipped at use.

mod flows;
mod storm;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::Mutex;

pub use self::{
    flows::FlowQueues,
    storm::{StormClass, StormLimits, StormState},
};

use crate::{
    clean::{Clean, bindings::Bindings},
    id::{DomainId, Epoch, PortId, TxId},
    port::PortTx,
    rate::Limiter,
    stats::PortCounters,
};

/// The two tag protocol identifiers that the switch reads (IEEE 802.1Q-2022 §9.5).
pub const TPIDS: [u16; 2] = [0x8100, 0x88a8];

/// How frames of a domain look on the wire of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dress {
    /// Untagged and priority-tagged frames in, no tag out.
    Untagged,
    /// Frames with this tag in; the tag is pushed on the way out.
    Tagged {
        /// 0x8100 or 0x88a8.
        tpid: u16,
        /// 1 to 4094.
        vid: u16,
    },
    /// As `Tagged`, and untagged and priority-tagged frames in as well: the native VLAN of a trunk, tagged on the way out.
    Native {
        /// 0x8100 or 0x88a8.
        tpid: u16,
        /// 1 to 4094.
        vid: u16,
    },
    /// Tags are payload. Excludes any other attachment of the port.
    Transparent,
}

/// Which members of its domain an attachment may exchange frames with (private VLAN).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Role(u16);

impl Role {
    /// Everybody.
    pub const PROMISCUOUS: Role = Role(0);
    /// Promiscuous members only.
    pub const ISOLATED: Role = Role(1);

    /// Promiscuous members and members of the same community; `number` is unique in the domain.
    #[must_use]
    pub const fn community(number: u16) -> Role {
        Role(number.saturating_add(2))
    }

    /// Whether a frame may go from one role to the other.
    #[inline]
    #[must_use]
    pub const fn may_reach(self, other: Role) -> bool {
        self.0 == 0 || other.0 == 0 || (self.0 >= 2 && self.0 == other.0)
    }
}

/// A port's membership of one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The domain.
    pub domain: DomainId,
    /// Tags on the wire.
    pub dress: Dress,
    /// Reach inside the domain.
    pub role: Role,
}

/// A transmit queue, locked once per batch by whichever worker sends.
pub struct TxQueue {
    /// The driver.
    pub tx: Mutex<Box<dyn PortTx>>,
}

impl std::fmt::Debug for TxQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TxQueue")
    }
}

/// What the control side says of a port.
#[derive(Clone, Debug)]
pub struct PortDef {
    /// Its id, free or its own already.
    pub id: PortId,
    /// Its memberships; at most one per domain.
    pub attachments: Vec<Attachment>,
    /// Frames may leave by the port on which they came in.
    pub hairpin: bool,
    /// Administratively up: if not, everything is dropped both ways.
    pub up: bool,
    /// Not known to be without a carrier (a peer): if not, nothing is sent to it.
    pub carrier: bool,
    /// Source addresses are learned.
    pub learning: bool,
    /// Storm control levels.
    pub storm: StormLimits,
    /// Protection and shaping.
    pub policy: Policy,
    /// State that outlives a topology.
    pub shared: Arc<PortShared>,
}

/// What a port is protected by and held to. The default is nothing of it.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Its one station speaks for itself alone.
    pub clean: Option<Arc<Clean>>,
    /// Frames to unknown unicast addresses are not flooded to it.
    pub no_flood: bool,
    /// What may leave by it.
    pub rate_to: Option<Arc<Limiter>>,
    /// What is read from it.
    pub rate_from: Option<Arc<Limiter>>,
}

/// What a port keeps from one topology to the next.
#[derive(Debug)]
pub struct PortShared {
    /// The transmit queues, in queue order.
    pub tx: Vec<Arc<TxQueue>>,
    /// The counters.
    pub counters: PortCounters,
    /// Storm control.
    pub storm: StormState,
    /// Addresses that its station has obtained, if it is a clean port.
    pub bindings: Bindings,
    /// Flow affinity, for ports with more than one queue.
    pub flows: Option<FlowQueues>,
}

impl PortShared {
    /// State of a new port.
    #[must_use]
    pub fn new(tx: Vec<Box<dyn PortTx>>, workers: usize) -> PortShared {
        PortShared {
            flows: (tx.len() > 1).then(FlowQueues::default),
            tx: tx.into_iter().map(|tx| Arc::new(TxQueue { tx: Mutex::new(tx) })).collect(),
            counters: PortCounters::new(workers),
            storm: StormState::default(),
            bindings: Bindings::default(),
        }
    }
}

/// What the control side says of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainDef {
    /// Its id.
    pub id: DomainId,
    /// The largest layer-3 packet.
    pub mtu: u32,
    /// Which of 01-80-C2-00-00-00…0F are forwarded, by last nibble.
    pub group_fwd_mask: u16,
    /// What may come in by all its ports together.
    pub rate: Option<Arc<Limiter>>,
}

/// The mask with which BPDUs (…-00) pass and nothing else: what a bridge without STP does.
pub const DEFAULT_GROUP_FWD_MASK: u16 = 1;

/// A compiled port.
#[derive(Debug)]
pub struct PortEntry {
    /// Its id.
    pub id: PortId,
    /// See [`PortDef`].
    pub hairpin: bool,
    /// See [`PortDef`].
    pub up: bool,
    /// Up, and with a carrier: frames may leave by it.
    pub reachable: bool,
    /// See [`PortDef`].
    pub learning: bool,
    /// See [`crate::clean::watch`]: it is clean, or in a domain with clean ports.
    pub watched: bool,
    /// One of its domains has a rate.
    pub policed: bool,
    /// See [`Policy`].
    pub no_flood: bool,
    /// See [`PortDef`].
    pub storm: StormLimits,
    /// See [`Policy`].
    pub clean: Option<Arc<Clean>>,
    /// See [`Policy`].
    pub rate_to: Option<Arc<Limiter>>,
    /// See [`Policy`].
    pub rate_from: Option<Arc<Limiter>>,
    /// See [`PortDef`].
    pub shared: Arc<PortShared>,
    first_tx: u32,
    attachments: Vec<Attachment>,
    untagged: Option<Attachment>,
    transparent: Option<Attachment>,
    tagged: Vec<(u32, Attachment)>,
}

impl PortEntry {
    /// The attachment that takes untagged and priority-tagged frames.
    #[inline]
    #[must_use]
    pub fn untagged(&self) -> Option<&Attachment> {
        self.untagged.as_ref()
    }

    /// The attachment that takes every frame as it is.
    #[inline]
    #[must_use]
    pub fn transparent(&self) -> Option<&Attachment> {
        self.transparent.as_ref()
    }

    /// The attachment that takes frames with this tag.
    #[inline]
    #[must_use]
    pub fn tagged(&self, tpid: u16, vid: u16) -> Option<&Attachment> {
        let key = tag_key(tpid, vid);
        self.tagged.binary_search_by_key(&key, |entry| entry.0).ok().map(|at| &self.tagged[at].1)
    }

    /// The port's membership of a domain.
    #[inline]
    #[must_use]
    pub fn attachment_in(&self, domain: DomainId) -> Option<&Attachment> {
        match self.attachments.as_slice() {
            [one] => (one.domain == domain).then_some(one),
            many => many.binary_search_by_key(&domain, |a| a.domain).ok().map(|at| &many[at]),
        }
    }

    /// The transmit queue for a flow; the hash is asked for only where there is a choice.
    #[inline(always)]
    pub fn tx_for(&self, flow_hash: impl FnOnce() -> u32) -> TxId {
        match &self.shared.flows {
            None => TxId(self.first_tx),
            Some(flows) => TxId(self.first_tx + u32::from(flows.pick(flow_hash(), self.shared.tx.len() as u16))),
        }
    }
}

const fn tag_key(tpid: u16, vid: u16) -> u32 {
    ((tpid as u32) << 16) | vid as u32
}

/// One line of a flood list.
#[derive(Clone, Copy, Debug)]
pub struct FloodTarget {
    /// The port.
    pub port: PortId,
    /// Tags on its wire.
    pub dress: Dress,
}

/// A compiled domain.
#[derive(Debug)]
pub struct DomainEntry {
    /// See [`DomainDef`].
    pub mtu: u32,
    /// See [`DomainDef`].
    pub group_fwd_mask: u16,
    /// See [`DomainDef`].
    pub rate: Option<Arc<Limiter>>,
    guarded: Vec<PortId>,
    floods: Vec<(Role, Vec<FloodTarget>)>,
}

impl DomainEntry {
    /// Its clean ports whose addresses are judged.
    #[inline]
    #[must_use]
    pub fn guarded(&self) -> &[PortId] {
        &self.guarded
    }

    /// Where frames of a sender with `role` are flooded to; the sender itself is in the list.
    #[inline]
    #[must_use]
    pub fn flood(&self, role: Role) -> &[FloodTarget] {
        match self.floods.as_slice() {
            [one] if one.0 == role => &one.1,
            many => many.binary_search_by_key(&role, |f| f.0).map_or(&[][..], |at| &many[at].1),
        }
    }
}

/// A transmit queue of the snapshot.
#[derive(Debug)]
pub struct TxEntry {
    /// The port that it belongs to.
    pub port: PortId,
    /// The queue.
    pub queue: Arc<TxQueue>,
}

/// The snapshot. See the module page.
#[derive(Debug, Default)]
pub struct Topology {
    /// Its number.
    pub epoch: Epoch,
    ports: Vec<Option<PortEntry>>,
    domains: Vec<Option<DomainEntry>>,
    tx: Vec<TxEntry>,
}

/// A description that cannot be compiled; the control side checks before, so this names a bug or a race.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// An attachment names a domain that is not there.
    #[error("{0} is attached to {1}, which does not exist")]
    NoDomain(PortId, DomainId),
    /// Two attachments of one port take the same frames or are in the same domain.
    #[error("{0} has two attachments for the same frames or the same domain")]
    Conflict(PortId),
    /// A VID outside 1 to 4094 or an unknown TPID.
    #[error("{0} has a tag that does not exist: tpid {1:#06x} vid {2}")]
    BadTag(PortId, u16, u16),
    /// An id is used twice.
    #[error("{0} is described twice")]
    Twice(PortId),
}

impl Topology {
    /// Compiles a snapshot.
    ///
    /// # Errors
    /// The description contradicts itself; nothing has happened.
    pub fn build(epoch: Epoch, ports: Vec<PortDef>, domains: &[DomainDef]) -> Result<Topology, TopologyError> {
        let mut topology = Topology { epoch, ..Topology::default() };
        let domain_slots = domains.iter().map(|d| d.id.index() + 1).max().unwrap_or(0);
        topology.domains.resize_with(domain_slots, || None);
        for def in domains {
            topology.domains[def.id.index()] = Some(DomainEntry {
                mtu: def.mtu,
                group_fwd_mask: def.group_fwd_mask,
                rate: def.rate.clone(),
                guarded: Vec::new(),
                floods: Vec::new(),
            });
        }
        let port_slots = ports.iter().map(|p| p.id.index() + 1).max().unwrap_or(0);
        topology.ports.resize_with(port_slots, || None);
        let mut members: Vec<Vec<(Role, FloodTarget)>> = vec![Vec::new(); domain_slots];
        for def in ports {
            let entry = compile_port(&def, topology.tx.len() as u32, &topology.domains)?;
            for a in &entry.attachments {
                members[a.domain.index()].push((a.role, FloodTarget { port: def.id, dress: a.dress }));
            }
            topology.tx.extend(def.shared.tx.iter().map(|q| TxEntry { port: def.id, queue: Arc::clone(q) }));
            if topology.ports[def.id.index()].replace(entry).is_some() {
                return Err(TopologyError::Twice(def.id));
            }
        }
        for (domain, members) in topology.domains.iter_mut().zip(&members) {
            if let Some(domain) = domain {
                domain.floods = flood_lists(members);
            }
        }
        topology.mark();
        Ok(topology)
    }

    /// Says of every domain who is clean in it, and of every port whether the frame path has to look closer.
    fn mark(&mut self) {
        for port in self.ports.iter().flatten().filter(|p| p.clean.as_ref().is_some_and(|clean| !clean.ip.any)) {
            for a in &port.attachments {
                if let Some(Some(domain)) = self.domains.get_mut(a.domain.index()) {
                    domain.guarded.push(port.id);
                }
            }
        }
        for port in self.ports.iter_mut().flatten() {
            let domains = || port.attachments.iter().filter_map(|a| self.domains.get(a.domain.index())?.as_ref());
            let watched = port.clean.is_some() || domains().any(|domain| !domain.guarded.is_empty());
            let policed = domains().any(|domain| domain.rate.is_some());
            (port.watched, port.policed) = (watched, policed);
        }
    }

    /// A port, if it exists.
    #[inline]
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&PortEntry> {
        self.ports.get(id.index())?.as_ref()
    }

    /// A domain, if it exists.
    #[inline]
    #[must_use]
    pub fn domain(&self, id: DomainId) -> Option<&DomainEntry> {
        self.domains.get(id.index())?.as_ref()
    }

    /// All transmit queues; a [`TxId`] is an index.
    #[inline]
    #[must_use]
    pub fn tx(&self) -> &[TxEntry] {
        &self.tx
    }
}

fn compile_port(def: &PortDef, first_tx: u32, domains: &[Option<DomainEntry>]) -> Result<PortEntry, TopologyError> {
    let mut entry = PortEntry {
        id: def.id,
        hairpin: def.hairpin,
        up: def.up,
        reachable: def.up && def.carrier,
        learning: def.learning,
        watched: false,
        policed: false,
        no_flood: def.policy.no_flood,
        storm: def.storm,
        clean: def.policy.clean.clone(),
        rate_to: def.policy.rate_to.clone(),
        rate_from: def.policy.rate_from.clone(),
        shared: Arc::clone(&def.shared),
        first_tx,
        attachments: def.attachments.clone(),
        untagged: None,
        transparent: None,
        tagged: Vec::new(),
    };
    entry.attachments.sort_by_key(|a| a.domain);
    if entry.attachments.windows(2).any(|pair| pair[0].domain == pair[1].domain) {
        return Err(TopologyError::Conflict(def.id));
    }
    for a in &entry.attachments {
        if domains.get(a.domain.index()).is_none_or(Option::is_none) {
            return Err(TopologyError::NoDomain(def.id, a.domain));
        }
        match a.dress {
            Dress::Untagged => {
                if entry.untagged.replace(*a).is_some() {
                    return Err(TopologyError::Conflict(def.id));
                }
            }
            Dress::Transparent => {
                if entry.attachments.len() > 1 {
                    return Err(TopologyError::Conflict(def.id));
                }
                entry.transparent = Some(*a);
            }
            Dress::Tagged { tpid, vid } | Dress::Native { tpid, vid } => {
                if !(1..=4094).contains(&vid) || !TPIDS.contains(&tpid) {
                    return Err(TopologyError::BadTag(def.id, tpid, vid));
                }
                entry.tagged.push((tag_key(tpid, vid), *a));
                if matches!(a.dress, Dress::Native { .. }) && entry.untagged.replace(*a).is_some() {
                    return Err(TopologyError::Conflict(def.id));
                }
            }
        }
    }
    entry.tagged.sort_by_key(|t| t.0);
    if entry.tagged.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(TopologyError::Conflict(def.id));
    }
    Ok(entry)
}

fn flood_lists(members: &[(Role, FloodTarget)]) -> Vec<(Role, Vec<FloodTarget>)> {
    let mut roles: Vec<Role> = members.iter().map(|m| m.0).collect();
    roles.sort_unstable();
    roles.dedup();
    roles
        .into_iter()
        .map(|from| {
            let reach = members.iter().filter(|(to, _)| from.may_reach(*to)).map(|(_, target)| *target).collect();
            (from, reach)
        })
        .collect()
}
