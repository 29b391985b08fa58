//! The frame path of a bond: one receive queue per member, and by which member a frame leaves.
//!
//! A frame leaves by the member that the hash of its flow says among those that send, so a flow keeps its order and its
//! member while they stay the same. With one member that sends nothing is hashed. Frames of a member that is not in use are
//! read, counted and thrown away: left in the socket, they would be news when its turn comes.

use std::{os::fd::RawFd, sync::Arc};

use arrayvec::ArrayVec;

use super::member::{Held, Shared};
use crate::{
    batch::{BATCH_FRAMES, Batch},
    egress::{Egress, OutFrame},
    frame::{
        flow::flow_hash,
        offload::{Capabilities, VNET_HDR_BYTES},
    },
    port::{
        PortRx, PortTx, RxStatus, Sent,
        packet::{PacketRx, PacketTx},
    },
};

/// Bytes of a frame that tell its flow: Ethernet with two tags, IPv6 with some extension headers, ports.
const LOOKED_AT: usize = 128;

pub(super) struct BondRx {
    shared: Arc<Shared>,
    member: usize,
    held: Held<PacketRx>,
    /// Frames thrown away.
    inactive: u64,
}

impl BondRx {
    pub(super) fn new(shared: &Arc<Shared>, member: usize) -> BondRx {
        BondRx { shared: Arc::clone(shared), member, held: Held::default(), inactive: 0 }
    }
}

impl PortRx for BondRx {
    fn rx(&mut self, batch: &mut Batch) -> RxStatus {
        self.held.refresh(&self.shared.members[self.member], PacketRx::new);
        let Some(rx) = &mut self.held.half else { return RxStatus::Drained };
        let status = rx.rx(batch);
        if !self.shared.is_receiving(self.member) {
            self.inactive += batch.len() as u64;
            batch.clear();
        }
        match status {
            // The bond stays; its thread looks after the member.
            RxStatus::Gone => RxStatus::Drained,
            status => status,
        }
    }

    fn readiness(&self) -> Option<RawFd> {
        Some(self.shared.members[self.member].readiness())
    }

    fn take_lost(&mut self) -> u64 {
        self.held.half.as_mut().map_or(0, PortRx::take_lost)
    }

    fn take_inactive(&mut self) -> u64 {
        std::mem::take(&mut self.inactive)
    }
}

pub(super) struct BondTx {
    shared: Arc<Shared>,
    held: Vec<Held<PacketTx>>,
    capabilities: Capabilities,
}

impl BondTx {
    pub(super) fn new(shared: &Arc<Shared>, capabilities: Capabilities) -> BondTx {
        let held = shared.members.iter().map(|_| Held::default()).collect();
        BondTx { shared: Arc::clone(shared), held, capabilities }
    }

    fn send(&mut self, member: usize, frames: &Egress<'_>) -> Sent {
        let capabilities = self.capabilities;
        let held = &mut self.held[member];
        held.refresh(&self.shared.members[member], |socket| PacketTx::new(socket, capabilities));
        match &mut held.half {
            Some(tx) => tx.tx(frames),
            None => Sent { port_down: frames.len() as u32, ..Sent::default() },
        }
    }
}

/// The member with this number among those of the mask.
#[inline]
fn nth(mask: u32, n: u32) -> usize {
    let mut left = mask;
    for _ in 0..n {
        left &= left - 1;
    }
    left.trailing_zeros() as usize
}

/// By which of the members a frame leaves.
#[inline]
fn member_of(frame: &OutFrame<'_>, sending: u32) -> usize {
    let first = &frame.first[VNET_HDR_BYTES..];
    let hash = if frame.rest.is_empty() {
        flow_hash(first, None)
    } else {
        // A tag was edited: the head is in two parts.
        let mut head = [0; LOOKED_AT];
        let begin = first.len().min(LOOKED_AT);
        head[..begin].copy_from_slice(&first[..begin]);
        let more = frame.rest.len().min(LOOKED_AT - begin);
        head[begin..begin + more].copy_from_slice(&frame.rest[..more]);
        flow_hash(&head[..begin + more], None)
    };
    nth(sending, hash % sending.count_ones())
}

impl PortTx for BondTx {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn tx(&mut self, egress: &Egress<'_>) -> Sent {
        let sending = self.shared.sending();
        match sending.count_ones() {
            0 => return Sent { port_down: egress.len() as u32, ..Sent::default() },
            1 => return self.send(sending.trailing_zeros() as usize, egress),
            _ => {}
        }
        let mut sent = Sent::default();
        for frames in egress.frames().chunks(BATCH_FRAMES) {
            let members: ArrayVec<u8, BATCH_FRAMES> =
                frames.iter().map(|frame| member_of(frame, sending) as u8).collect();
            let mut left = sending;
            while left != 0 {
                let member = left.trailing_zeros() as usize;
                left &= left - 1;
                let mut own: ArrayVec<OutFrame<'_>, BATCH_FRAMES> = ArrayVec::new();
                let mine = frames.iter().zip(&members).filter(|(_, of)| usize::from(**of) == member);
                own.extend(mine.map(|(frame, _)| *frame));
                if !own.is_empty() {
                    sent += self.send(member, &Egress::new(&own));
                }
            }
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::offload::Offload;
    use etherparse::PacketBuilder;

    fn datagram(port: u16) -> Vec<u8> {
        let mut out = vec![0; VNET_HDR_BYTES];
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
            .udp(port, 53)
            .write(&mut out, b"x")
            .expect("fits");
        out
    }

    fn out<'a>(first: &'a [u8], rest: &'a [u8]) -> OutFrame<'a> {
        let len = (first.len() - VNET_HDR_BYTES + rest.len()) as u32;
        OutFrame { first, rest, tail: &[], offload: Offload::NONE, len }
    }

    #[test]
    fn flows_spread_over_the_members_that_send_and_a_new_tag_changes_nothing() {
        let sending = 0b1011_0100;
        let mut seen = 0;
        for port in 0..200 {
            let bytes = datagram(port);
            let member = member_of(&out(&bytes, &[]), sending);
            assert_ne!(sending & (1 << member), 0);
            seen |= 1 << member;
            let tagged = [&bytes[..VNET_HDR_BYTES + 12], &[0x81, 0, 0, 42]].concat();
            assert_eq!(member_of(&out(&tagged, &bytes[VNET_HDR_BYTES + 12..]), sending), member);
        }
        assert_eq!(seen, sending);
        assert_eq!((nth(0b1011_0100, 0), nth(0b1011_0100, 3), nth(1, 0)), (2, 7, 0));
    }
}
