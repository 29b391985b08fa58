//! The frame with which a station is announced that can be reached by another way than before: a reverse ARP request of the
//! station for its own address (RFC 903), as QEMU sends it. Nobody answers; switches on the way learn.

use crate::mac::MacAddr;

/// The shortest frame.
pub const ANNOUNCEMENT_BYTES: usize = 60;

/// The frame that announces a station.
#[must_use]
pub fn announcement(station: MacAddr) -> [u8; ANNOUNCEMENT_BYTES] {
    let mut frame = [0; ANNOUNCEMENT_BYTES];
    frame[..6].fill(0xff);
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    for at in [6, 22, 32] {
        frame[at..at + 6].copy_from_slice(&station.0);
    }
    frame
}
