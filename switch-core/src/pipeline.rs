//! What happens to a batch: parse → classify → learn → decide. No I/O, no lock, no clock of its own.
//!
//! Each stage runs over the whole batch before the next begins, so that the FDB lines of all frames are on their way
//! into the cache when the first of them is needed. A frame that is dropped in one stage is absent from the next ones
//! (`Work` is compacted). The result is a [`Plan`]: for every transmit queue the slots to send and the tag edit each
//! needs. The pipeline writes to a slot only before the decision; afterwards the batch is immutable.

use crate::{
    batch::{BATCH_FRAMES, Batch},
    clean,
    clock::Now,
    fdb::{Fdb, FdbHash, FlapTable, Learned},
    frame::{flow, offload::Offload, validate, vlan::OuterTag},
    id::{DomainId, PortId, TxId},
    mac::MacBits,
    per_slot::PerSlot,
    rate::Buckets,
    stages::{Stage, Stages},
    stats::{Counter, CounterBlock},
    topology::{Attachment, DomainEntry, Dress, PortEntry, Role, StormClass, Topology},
    verdict::DropReason,
};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
const TAG: usize = 4;

/// What one egress does to the bytes at offset 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edit {
    /// Bytes of the received tag to leave out (0 or 4).
    pub strip: u8,
    /// The tag to put in, TPID before TCI; 0: none. One word, because it is compared for every copy.
    tag: u32,
}

impl Edit {
    /// The frame leaves as it came.
    pub const NONE: Edit = Edit { strip: 0, tag: 0 };

    /// Leaves out `strip` bytes and puts in a tag (TPID and TCI).
    #[inline]
    #[must_use]
    pub const fn new(strip: u8, push: Option<(u16, u16)>) -> Edit {
        let tag = match push {
            Some((tpid, tci)) => ((tpid as u32) << 16) | tci as u32,
            None => 0,
        };
        Edit { strip, tag }
    }

    /// The tag to put in: TPID and TCI.
    #[inline]
    #[must_use]
    pub const fn push(self) -> Option<(u16, u16)> {
        if self.tag == 0 { None } else { Some(((self.tag >> 16) as u16, self.tag as u16)) }
    }

    /// Whether the frame leaves as it came.
    #[inline]
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.tag | self.strip as u32 == 0
    }

    /// By how much the frame grows.
    #[inline]
    #[must_use]
    pub const fn delta(self) -> i16 {
        (if self.tag == 0 { 0 } else { TAG as i16 }) - self.strip as i16
    }
}

/// One copy to send.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// The slot.
    pub slot: u8,
    /// The tag edit.
    pub edit: Edit,
}

/// Copies by transmit queue. Allocates only in [`fit`](Self::fit).
#[derive(Debug, Default)]
pub struct Plan {
    lists: Vec<PerSlot<Copy>>,
    touched: Vec<TxId>,
}

/// What is known of the frames between the stages: scratch of one worker, so that it is made once.
#[derive(Debug)]
pub struct Judging {
    work: PerSlot<Work>,
}

impl Default for Judging {
    fn default() -> Judging {
        Judging { work: PerSlot::new(Work::EMPTY) }
    }
}

impl Plan {
    /// Makes room for the queues of a topology. Called when a topology is taken up, never per batch.
    pub fn fit(&mut self, topology: &Topology) {
        self.lists.resize_with(topology.tx().len(), || PerSlot::new(Copy { slot: 0, edit: Edit::NONE }));
        self.touched.reserve(topology.tx().len());
    }

    /// Queues that have something to send.
    #[inline]
    #[must_use]
    pub fn touched(&self) -> &[TxId] {
        &self.touched
    }

    /// What a queue has to send, in order of arrival.
    #[inline]
    #[must_use]
    pub fn copies(&self, tx: TxId) -> &[Copy] {
        &self.lists[tx.index()]
    }

    /// All copies of the plan.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.touched.iter().map(|tx| self.copies(*tx).len()).sum()
    }

    /// Whether there is nothing to send.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    /// Empties the plan.
    #[inline]
    pub fn clear(&mut self) {
        for tx in self.touched.drain(..) {
            self.lists[tx.index()].clear();
        }
    }

    #[inline]
    fn push(&mut self, tx: TxId, copy: Copy) {
        let list = &mut self.lists[tx.index()];
        if list.is_empty() {
            self.touched.push(tx);
        }
        // A slot is pushed on a queue at most once: a port is a member of a domain at most once.
        list.push(copy);
    }
}

/// A set of slots is a word.
const _: () = assert!(BATCH_FRAMES <= u64::BITS as usize);

/// One frame between the stages.
#[derive(Clone, Copy, Debug)]
struct Work {
    slot: u8,
    role: Role,
    dst_hash: FdbHash,
    src_hash: FdbHash,
}

impl Work {
    const EMPTY: Work = Work { slot: 0, role: Role::PROMISCUOUS, dst_hash: FdbHash::EMPTY, src_hash: FdbHash::EMPTY };
}

/// Everything that the stages share. `queue` is the receive queue's number within its port.
pub struct Context<'a> {
    /// The snapshot of this turn.
    pub topology: &'a Topology,
    /// The MAC table.
    pub fdb: &'a Fdb,
    /// When the turn began.
    pub now: Now,
    /// This worker's number, for its counters.
    pub worker: usize,
    /// The port that the batch came in by.
    pub ingress: &'a PortEntry,
    /// Its queue.
    pub queue: u16,
}

/// Judges a batch. Afterwards `plan` holds the copies and the ingress counters are up to date.
pub fn judge(
    context: &Context<'_>,
    batch: &mut Batch,
    flaps: &mut FlapTable,
    judging: &mut Judging,
    plan: &mut Plan,
    stages: &mut Stages,
) {
    let counts = context.ingress.shared.counters.of(context.worker);
    let work = &mut judging.work;
    work.clear();
    classify(context, batch, counts, work);
    stages.end(Stage::Classify);
    if context.ingress.learning {
        learn(context, counts, flaps, work);
    }
    stages.end(Stage::Learn);
    if context.ingress.policed {
        police(context, batch, counts, work);
    }
    decide(context, batch, counts, work, plan);
    stages.end(Stage::Decide);
}

fn classify(context: &Context<'_>, batch: &mut Batch, counts: &CounterBlock, work: &mut PerSlot<Work>) {
    let mut bytes = 0u64;
    for index in 0..batch.len() {
        bytes += u64::from(batch.slot(index).len);
        if let Err(reason) = classify_one(context, batch, index, work) {
            counts.drop_frames(reason, 1);
        }
    }
    counts.add(Counter::RxFrames, batch.len() as u64);
    counts.add(Counter::RxBytes, bytes);
}

/// Puts the frame among the work, written where it stays.
#[inline(always)]
fn classify_one(
    context: &Context<'_>,
    batch: &mut Batch,
    index: usize,
    work: &mut PerSlot<Work>,
) -> Result<(), DropReason> {
    let port = context.ingress;
    if !port.up {
        return Err(DropReason::IngressPortDown);
    }
    let (mut head, mut slot) = batch.head_and_slot_mut(index);
    let addresses: &[u8; ETHERNET] = head.get(..ETHERNET).and_then(|h| h.try_into().ok()).ok_or(DropReason::Runt)?;
    let (dst, src) = MacBits::of_header(addresses);
    if src.is_multicast() {
        return Err(DropReason::MulticastSource);
    }
    if src == MacBits(0) {
        return Err(DropReason::ZeroSource);
    }
    let tag = OuterTag::read(head);
    let attachment = attachment_for(port, tag)?;
    let mut inner = tag;
    slot.strip = 0;
    slot.priority = 0;
    if let (Some(outer), false) = (tag, attachment.dress == Dress::Transparent) {
        if head.len() < ETHERNET + TAG {
            return Err(DropReason::Runt);
        }
        slot.strip = TAG as u8;
        slot.priority = outer.tci & 0xf000;
        inner = OuterTag::behind(head, slot.strip);
    }
    // Receivers look through priority tags, so one of them in front hides nothing.
    slot.inner_tag =
        inner.is_some_and(|tag| tag.vid() != 0 || OuterTag::behind(head, slot.strip + TAG as u8).is_some());
    slot.domain = attachment.domain;
    let domain = context.topology.domain(attachment.domain).ok_or(DropReason::NoDomain)?;
    if let Some(nibble) = dst.reserved_group()
        && domain.group_fwd_mask & (1 << nibble) == 0
    {
        return Err(DropReason::ReservedAddress);
    }
    if port.watched {
        clean::watch(context, domain, batch, index)?;
        (head, slot) = batch.head_and_slot_mut(index);
    }
    if !slot.offload.is_none() {
        slot.offload = validate::validate(head, slot.len as usize, slot.offload)?;
    }
    check_length(domain, slot.len, slot.strip, inner.is_some(), &slot.offload)?;
    batch.write_header(index);
    let src_hash = context.fdb.hash_bits(attachment.domain, src);
    context.fdb.prefetch(&src_hash);
    let dst_hash = context.fdb.hash_bits(attachment.domain, dst);
    context.fdb.prefetch(&dst_hash);
    work.push(Work { slot: index as u8, role: attachment.role, src_hash, dst_hash });
    Ok(())
}

#[inline]
fn attachment_for(port: &PortEntry, tag: Option<OuterTag>) -> Result<&Attachment, DropReason> {
    if let Some(all) = port.transparent() {
        return Ok(all);
    }
    match tag {
        Some(tag) if tag.vid() != 0 => port.tagged(tag.tpid, tag.vid()).ok_or(DropReason::TagNotAllowed),
        _ => port.untagged().ok_or(DropReason::NoDomain),
    }
}

/// The MTU bounds the layer-3 packet; one tag of payload is allowed on top, as the kernel bridge does. A GSO frame is
/// judged by the segments that it will become.
#[inline]
fn check_length(domain: &DomainEntry, len: u32, strip: u8, inner: bool, offload: &Offload) -> Result<(), DropReason> {
    let allowed = domain.mtu + ETHERNET as u32 + u32::from(strip) + if inner { TAG as u32 } else { 0 };
    if len <= allowed {
        return Ok(());
    }
    let judged = if offload.gso == crate::frame::offload::Gso::None { len } else { validate::gso_packet_len(offload) };
    if judged <= allowed { Ok(()) } else { Err(DropReason::Giant) }
}

fn learn(context: &Context<'_>, counts: &CounterBlock, flaps: &mut FlapTable, work: &mut PerSlot<Work>) {
    let port = context.ingress.id;
    let mut last: Option<&FdbHash> = None;
    let mut keep = true;
    // One bit for each slot whose frame is held back.
    let mut held = 0u64;
    for item in work.iter() {
        // Frames come in bursts of one sender: the repeated ones are not looked up again.
        if !last.is_some_and(|src| src.same(&item.src_hash)) {
            keep = true;
            match context.fdb.learn(&item.src_hash, port, context.now, flaps) {
                Learned::Fresh | Learned::Refreshed | Learned::Raced => {}
                Learned::New => counts.add(Counter::FdbLearned, 1),
                Learned::Moved { .. } => counts.add(Counter::FdbMoved, 1),
                Learned::Full => counts.add(Counter::FdbFull, 1),
                Learned::Violation { .. } => counts.add(Counter::FdbPinned, 1),
                Learned::Held => keep = false,
            }
            last = Some(&item.src_hash);
        }
        held |= u64::from(!keep) << item.slot;
    }
    if held != 0 {
        work.retain(|item| held & (1 << item.slot) == 0);
        counts.drop_frames(DropReason::FlapHold, u64::from(held.count_ones()));
    }
}

/// Lets pass what the rates of the domains allow; a rate's buckets are held for a run of frames.
#[cold]
#[inline(never)]
fn police(context: &Context<'_>, batch: &Batch, counts: &CounterBlock, work: &mut PerSlot<Work>) {
    let mut held: Option<(DomainId, Option<Buckets<'_>>)> = None;
    let mut over = 0;
    work.retain(|item| {
        let slot = batch.slot(usize::from(item.slot));
        if held.as_ref().is_none_or(|(domain, _)| *domain != slot.domain) {
            // The one before is let go first: a worker holds one rate at a time.
            held = None;
            let rate = context.topology.domain(slot.domain).and_then(|domain| domain.rate.as_ref());
            held = Some((slot.domain, rate.map(|rate| rate.at(context.now.nanos))));
        }
        let buckets = held.as_mut().and_then(|(_, buckets)| buckets.as_mut());
        let passes = buckets.is_none_or(|buckets| buckets.admit(slot.len.into()));
        over += u64::from(!passes);
        passes
    });
    counts.drop_frames(DropReason::RateDomain, over);
}

fn decide(context: &Context<'_>, batch: &Batch, counts: &CounterBlock, work: &[Work], plan: &mut Plan) {
    let ingress = context.ingress;
    let mut decided = 0u64;
    let mut copies = 0u64;
    let mut flooded = 0u64;
    let mut last: Option<(&FdbHash, Option<PortId>)> = None;
    for item in work {
        let slot = usize::from(item.slot);
        let mut hash = None;
        let mut flow = || *hash.get_or_insert_with(|| flow::flow_hash(batch.head(slot), None));
        if let Some(flows) = &ingress.shared.flows {
            flows.note(flow(), context.queue);
        }
        let known = if item.dst_hash.mac().is_multicast() {
            None
        } else if let Some((dst, port)) = last
            && dst.same(&item.dst_hash)
        {
            port
        } else {
            let port = context.fdb.lookup(&item.dst_hash);
            last = Some((&item.dst_hash, port));
            port
        };
        let result = match known {
            Some(port) => unicast(context, batch, item, port, &mut flow, plan),
            None => flood(context, batch, item, &mut flow, plan).inspect(|_| flooded += 1),
        };
        match result {
            Ok(n) => {
                decided += 1;
                copies += n;
            }
            Err(reason) => counts.drop_frames(reason, 1),
        }
    }
    counts.add(Counter::RxDecided, decided);
    counts.add(Counter::CopiesDecided, copies);
    if flooded > 0 {
        counts.add(Counter::RxFlooded, flooded);
    }
}

#[inline(always)]
fn unicast(
    context: &Context<'_>,
    batch: &Batch,
    item: &Work,
    to: PortId,
    flow: &mut impl FnMut() -> u32,
    plan: &mut Plan,
) -> Result<u64, DropReason> {
    if to == context.ingress.id && !context.ingress.hairpin {
        return Err(DropReason::SamePort);
    }
    let port = context.topology.port(to).ok_or(DropReason::NotMember)?;
    let member = port.attachment_in(item.dst_hash.domain()).ok_or(DropReason::NotMember)?;
    if !item.role.may_reach(member.role) {
        return Err(DropReason::RoleForbidden);
    }
    send(context, batch, item, port, member.dress, flow, plan);
    Ok(1)
}

#[inline(never)]
fn flood(
    context: &Context<'_>,
    batch: &Batch,
    item: &Work,
    flow: &mut impl FnMut() -> u32,
    plan: &mut Plan,
) -> Result<u64, DropReason> {
    let ingress = context.ingress;
    let (class, over) = if item.dst_hash.mac().is_broadcast() {
        (StormClass::Broadcast, DropReason::StormBroadcast)
    } else if item.dst_hash.mac().is_multicast() {
        (StormClass::Multicast, DropReason::StormMulticast)
    } else {
        (StormClass::Unknown, DropReason::StormUnknown)
    };
    if !ingress.shared.storm.admit(class, &ingress.storm, context.now.nanos) {
        return Err(over);
    }
    let domain = context.topology.domain(item.dst_hash.domain()).ok_or(DropReason::NoDomain)?;
    let mut copies = 0;
    for target in domain.flood(item.role) {
        if target.port == ingress.id && !ingress.hairpin {
            continue;
        }
        let Some(port) = context.topology.port(target.port) else { continue };
        // A port without a carrier is no destination of a flood; a frame for a host behind it is an egress drop.
        if !port.reachable || (port.no_flood && class == StormClass::Unknown) {
            continue;
        }
        send(context, batch, item, port, target.dress, flow, plan);
        copies += 1;
    }
    if copies == 0 { Err(DropReason::NoDestination) } else { Ok(copies) }
}

#[inline(always)]
fn send(
    context: &Context<'_>,
    batch: &Batch,
    item: &Work,
    port: &PortEntry,
    dress: Dress,
    flow: &mut impl FnMut() -> u32,
    plan: &mut Plan,
) {
    let slot = batch.slot(usize::from(item.slot));
    let refused = if !port.reachable {
        Some(DropReason::EgressPortDown)
    } else if slot.inner_tag && dress == Dress::Untagged {
        Some(DropReason::AmbiguousTag)
    } else {
        None
    };
    if let Some(reason) = refused {
        port.shared.counters.of(context.worker).drop_frames(reason, 1);
        return;
    }
    let push = match dress {
        Dress::Tagged { tpid, vid } | Dress::Native { tpid, vid } => Some((tpid, slot.priority | vid)),
        Dress::Untagged | Dress::Transparent => None,
    };
    plan.push(port.tx_for(flow), Copy { slot: item.slot, edit: Edit::new(slot.strip, push) });
}
