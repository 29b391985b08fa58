//! VLAN tags as bytes (IEEE 802.1Q-2022 §9.6): reading the outer one, seeing what lies behind it, putting one back.
//!
//! Pure functions on a frame's private head; they cannot panic on short frames. Any thread.

/// TPID of a customer tag.
pub const TPID_C: u16 = 0x8100;
/// TPID of a service tag.
pub const TPID_S: u16 = 0x88a8;
/// Bytes of one tag.
pub const TAG_BYTES: usize = 4;
/// Where the outer tag lies: behind the two addresses.
pub const TAG_OFFSET: usize = 12;

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterTag {
    /// [`TPID_C`] or [`TPID_S`].
    pub tpid: u16,
    /// Priority, drop-eligible bit and VID.
    pub tci: u16,
}

/// Whether an EtherType announces a tag.
#[inline]
#[must_use]
pub const fn is_tpid(ether_type: u16) -> bool {
    ether_type == TPID_C || ether_type == TPID_S
}

/// Two bytes in network order, if they are there.
#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

impl OuterTag {
    /// The tag behind the addresses, if the frame has one.
    #[inline]
    #[must_use]
    pub fn read(head: &[u8]) -> Option<OuterTag> {
        OuterTag::behind(head, 0)
    }

    /// The tag with which the payload begins after `strip` bytes (0 or 4) of tag were taken off: what the next switch
    /// would read as a VLAN if the frame left untagged.
    #[inline]
    #[must_use]
    pub fn behind(head: &[u8], strip: u8) -> Option<OuterTag> {
        let at = TAG_OFFSET + usize::from(strip);
        let tpid = be16(head, at)?;
        if !is_tpid(tpid) {
            return None;
        }
        Some(OuterTag { tpid, tci: be16(head, at + 2)? })
    }

    /// The VLAN, 0 for a priority tag.
    #[inline]
    #[must_use]
    pub const fn vid(self) -> u16 {
        self.tci & 0xfff
    }

    /// The priority, 0 to 7.
    #[inline]
    #[must_use]
    pub const fn pcp(self) -> u8 {
        (self.tci >> 13) as u8
    }

    /// The drop-eligible bit.
    #[inline]
    #[must_use]
    pub const fn dei(self) -> bool {
        self.tci & 0x1000 != 0
    }

    /// The tag on the wire.
    #[inline]
    #[must_use]
    pub const fn to_bytes(self) -> [u8; TAG_BYTES] {
        let (t, c) = (self.tpid.to_be_bytes(), self.tci.to_be_bytes());
        [t[0], t[1], c[0], c[1]]
    }
}

/// Puts a tag back into a frame that was received at `buffer[4..]`: the addresses move 4 bytes to the front, and the
/// frame then begins at `buffer[0]`. False, and nothing changed, if the buffer does not hold two addresses.
/// Offsets in an [`Offload`](super::offload::Offload) of the frame move by 4: see `Offload::shifted`.
#[inline]
pub fn insert_tag(buffer: &mut [u8], tag: OuterTag) -> bool {
    if buffer.len() < TAG_OFFSET + TAG_BYTES {
        return false;
    }
    buffer.copy_within(TAG_BYTES..TAG_BYTES + TAG_OFFSET, 0);
    buffer[TAG_OFFSET..TAG_OFFSET + TAG_BYTES].copy_from_slice(&tag.to_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_tag_is_read_back() {
        let mut buffer = [0u8; 22];
        for (i, b) in buffer[4..16].iter_mut().enumerate() {
            *b = i as u8;
        }
        buffer[16..20].copy_from_slice(&[0x88, 0xa8, 0x00, 0x07]);
        let tag = OuterTag { tpid: TPID_C, tci: 0xb064 };
        assert!(insert_tag(&mut buffer, tag));
        assert_eq!(buffer[..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(OuterTag::read(&buffer), Some(tag));
        assert_eq!((tag.vid(), tag.pcp(), tag.dei()), (100, 5, true));
        assert_eq!(OuterTag::behind(&buffer, 4).map(OuterTag::vid), Some(7));
        assert_eq!(OuterTag::behind(&buffer[..19], 4), None);
        assert!(!insert_tag(&mut [0; 15], tag));
    }
}
