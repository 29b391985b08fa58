//! The virtio-net header: what a sender still owes on a frame (virtio 1.3 §5.1.6, `struct virtio_net_hdr_v1`).

/// Length of the header on every wire that carries one (`num_buffers` included).
pub const VNET_HDR_BYTES: usize = 12;

const FLAG_NEEDS_CSUM: u8 = 1;
const FLAG_DATA_VALID: u8 = 2;
const GSO_ECN: u8 = 0x80;

/// Which segmentation is owed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Gso {
    /// None: the frame is one packet.
    #[default]
    None = 0,
    /// TCP over IPv4.
    TcpV4 = 1,
    /// UDP fragmentation (UFO, obsolete): never accepted.
    Ufo = 3,
    /// TCP over IPv6.
    TcpV6 = 4,
    /// UDP segmentation over IPv4 or IPv6 (USO).
    UdpL4 = 5,
}

/// Work owed on a frame. All offsets count from the first byte of the destination address. In this order, because the
/// first four bytes are asked for together, as one word, for every frame and copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct Offload {
    /// The transport checksum is partial: fold the bytes from `csum_start` on into `csum_start + csum_offset`.
    pub needs_csum: bool,
    /// The sender vouches for the checksum (`VIRTIO_NET_HDR_F_DATA_VALID`).
    pub data_valid: bool,
    /// The owed segmentation.
    pub gso: Gso,
    /// TCP segments carry CWR on the first one only (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// Length of all headers; advisory, ours after validation.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where the checksummed part begins.
    pub csum_start: u16,
    /// Where the checksum is stored, from `csum_start`.
    pub csum_offset: u16,
}

/// The header names a segmentation type that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown gso_type {0:#x} in a virtio-net header")]
pub struct UnknownGso(pub u8);

impl Offload {
    /// Nothing owed, nothing vouched for.
    pub const NONE: Offload = Offload {
        needs_csum: false,
        data_valid: false,
        gso: Gso::None,
        ecn: false,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Reads a header as it lies on the wire (little-endian). Says nothing about whether it fits a frame.
    ///
    /// # Errors
    /// The `gso_type` is unknown.
    #[inline]
    pub fn decode(wire: &[u8; VNET_HDR_BYTES]) -> Result<Offload, UnknownGso> {
        // Without a flag and a type the other fields mean nothing; nearly every small frame is like this.
        if wire[0] & (FLAG_NEEDS_CSUM | FLAG_DATA_VALID) == 0 && wire[1] == 0 {
            return Ok(Offload::NONE);
        }
        let half = |at: usize| u16::from_le_bytes([wire[at], wire[at + 1]]);
        let gso = match wire[1] & !GSO_ECN {
            0 => Gso::None,
            1 => Gso::TcpV4,
            3 => Gso::Ufo,
            4 => Gso::TcpV6,
            5 => Gso::UdpL4,
            _ => return Err(UnknownGso(wire[1])),
        };
        Ok(Offload {
            needs_csum: wire[0] & FLAG_NEEDS_CSUM != 0,
            data_valid: wire[0] & FLAG_DATA_VALID != 0,
            gso,
            ecn: wire[1] & GSO_ECN != 0,
            hdr_len: half(2),
            gso_size: half(4),
            csum_start: half(6),
            csum_offset: half(8),
        })
    }

    /// Writes the header (`num_buffers` = 0).
    #[inline]
    pub fn encode(&self, wire: &mut [u8; VNET_HDR_BYTES]) {
        if self.is_none() {
            *wire = [0; VNET_HDR_BYTES];
            return;
        }
        wire[0] = (u8::from(self.needs_csum) * FLAG_NEEDS_CSUM) | (u8::from(self.data_valid) * FLAG_DATA_VALID);
        wire[1] = self.gso as u8 | (u8::from(self.ecn) * GSO_ECN);
        wire[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
        wire[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        wire[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        wire[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
        wire[10..12].copy_from_slice(&[0, 0]);
    }

    /// Whether the header says nothing at all.
    #[inline]
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.says() == 0
    }

    /// Flags and type in one word, which the compiler reads as one.
    #[inline]
    fn says(&self) -> u32 {
        u32::from_le_bytes([self.needs_csum.into(), self.data_valid.into(), self.gso as u8, self.ecn.into()])
    }

    /// Whether anything must be done before a port without capabilities can send the frame.
    #[inline]
    #[must_use]
    pub fn owes(&self) -> bool {
        self.needs_csum || self.gso != Gso::None
    }

    /// The capabilities that a port needs to take the frame as it is.
    #[inline]
    #[must_use]
    pub fn needs(&self, ipv6: bool) -> Capabilities {
        let mut needed = if self.needs_csum { Capabilities::CSUM } else { Capabilities::NONE };
        needed = match self.gso {
            Gso::None => needed,
            Gso::TcpV4 => needed.with(Capabilities::TSO4),
            Gso::TcpV6 => needed.with(Capabilities::TSO6),
            Gso::UdpL4 if ipv6 => needed.with(Capabilities::USO6),
            Gso::UdpL4 => needed.with(Capabilities::USO4),
            Gso::Ufo => Capabilities(u8::MAX),
        };
        if self.ecn { needed.with(Capabilities::ECN) } else { needed }
    }

    /// The header of the same frame after its layer-2 header grew (or shrank) by `delta` bytes.
    #[inline]
    #[must_use]
    pub fn shifted(mut self, delta: i16) -> Offload {
        if self.needs_csum {
            self.csum_start = self.csum_start.wrapping_add_signed(delta);
        }
        if self.gso != Gso::None {
            self.hdr_len = self.hdr_len.wrapping_add_signed(delta);
        }
        self
    }
}

/// What may be left owed on frames given to a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(pub u8);

impl Capabilities {
    /// Every frame must be complete.
    pub const NONE: Capabilities = Capabilities(0);
    /// Partial checksums.
    pub const CSUM: Capabilities = Capabilities(1);
    /// TCP segmentation over IPv4.
    pub const TSO4: Capabilities = Capabilities(2);
    /// TCP segmentation over IPv6.
    pub const TSO6: Capabilities = Capabilities(4);
    /// TCP segmentation with ECN.
    pub const ECN: Capabilities = Capabilities(8);
    /// UDP segmentation over IPv4.
    pub const USO4: Capabilities = Capabilities(16);
    /// UDP segmentation over IPv6.
    pub const USO6: Capabilities = Capabilities(32);
    /// Everything that this switch knows.
    pub const ALL: Capabilities = Capabilities(63);

    /// The union of two sets.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }

    /// Whether all of `needed` is in the set.
    #[inline]
    #[must_use]
    pub const fn contains(self, needed: Capabilities) -> bool {
        needed.0 & !self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trips() {
        let offload = Offload {
            needs_csum: true,
            data_valid: false,
            gso: Gso::TcpV6,
            ecn: true,
            hdr_len: 74,
            gso_size: 1428,
            csum_start: 54,
            csum_offset: 16,
        };
        let mut wire = [0xaa; VNET_HDR_BYTES];
        offload.encode(&mut wire);
        assert_eq!(wire, [1, 0x84, 74, 0, 0x94, 5, 54, 0, 16, 0, 0, 0]);
        assert_eq!(Offload::decode(&wire), Ok(offload));
        assert_eq!(Offload::decode(&[0; 12]), Ok(Offload::NONE));
        assert_eq!(Offload::decode(&[0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(UnknownGso(2)));
    }
}
