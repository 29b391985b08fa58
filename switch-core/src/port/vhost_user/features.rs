//! What is offered to a driver, and what the driver's choice means for the frame path (virtio 1.3 §5.1.3, §6).

use crate::frame::offload::Capabilities;

const fn bit(n: u32) -> u64 {
    1 << n
}

/// The driver may owe checksums.
pub const CSUM: u64 = bit(0);
/// The driver takes frames with owed checksums.
pub const GUEST_CSUM: u64 = bit(1);
/// The VMM may tell the guest an MTU, after asking whether it is carried.
const MTU: u64 = bit(3);
const GUEST_TSO4: u64 = bit(7);
const GUEST_TSO6: u64 = bit(8);
const GUEST_ECN: u64 = bit(9);
const HOST_TSO4: u64 = bit(11);
const HOST_TSO6: u64 = bit(12);
const HOST_ECN: u64 = bit(13);
/// A frame may be spread over several chains.
pub const MRG_RXBUF: u64 = bit(15);
const GUEST_ANNOUNCE: u64 = bit(21);
const MQ: u64 = bit(22);
/// All writes to the guest's memory are logged (`VHOST_F_LOG_ALL`): between VMM and device, not for the driver.
pub const LOG_ALL: u64 = bit(26);
/// Chains may be tables.
pub const INDIRECT_DESC: u64 = bit(28);
/// Kicks and interrupts are asked for by index.
pub const EVENT_IDX: u64 = bit(29);
/// The connection has protocol features; rings begin disabled.
pub const PROTOCOL_FEATURES: u64 = bit(30);
/// The driver is one of virtio 1.0 or later.
pub const VERSION_1: u64 = bit(32);
const GUEST_USO4: u64 = bit(54);
const GUEST_USO6: u64 = bit(55);
const HOST_USO: u64 = bit(56);

const BASIC: u64 =
    MTU | MRG_RXBUF | GUEST_ANNOUNCE | MQ | LOG_ALL | INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES | VERSION_1;
const OFFLOADS: u64 = CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | GUEST_USO4
    | GUEST_USO6
    | HOST_USO;

/// What a port offers.
#[must_use]
pub const fn offered(offload: bool) -> u64 {
    if offload { BASIC | OFFLOADS } else { BASIC }
}

/// What driver and device agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Whether a feature was negotiated.
    #[inline]
    #[must_use]
    pub const fn has(self, feature: u64) -> bool {
        self.0 & feature != 0
    }

    /// Length of the header before each frame: without `num_buffers` only for drivers from before virtio 1.0.
    #[inline]
    #[must_use]
    pub const fn header_bytes(self) -> usize {
        if self.has(VERSION_1 | MRG_RXBUF) { 12 } else { 10 }
    }

    /// What may be left owed on frames to the guest.
    #[must_use]
    pub fn capabilities(self) -> Capabilities {
        if !self.has(GUEST_CSUM) {
            return Capabilities::NONE;
        }
        [
            (GUEST_TSO4, Capabilities::TSO4),
            (GUEST_TSO6, Capabilities::TSO6),
            (GUEST_ECN, Capabilities::ECN),
            (GUEST_USO4, Capabilities::USO4),
            (GUEST_USO6, Capabilities::USO6),
        ]
        .into_iter()
        .filter(|(feature, _)| self.has(*feature))
        .fold(Capabilities::CSUM, |all, (_, one)| all.with(one))
    }
}
