//! What is left of a ring when the switch is killed at every point of a turn, and what the next switch makes of it.

use std::fs::File;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{
    features::Features,
    inflight::{Area, part_bytes},
    ring::{Running, Start},
    tests::{AVAILABLE, Guest, SIZE, USED},
};
use crate::sys::mapping::Mapping;

const RINGS: u16 = 3;

fn area_file() -> File {
    let file = File::from(memfd_create("area", MFdFlags::MFD_CLOEXEC).expect("memfd"));
    file.set_len(u64::from(RINGS) * part_bytes(SIZE) as u64).expect("length");
    file
}

fn area(file: &File, size: u16) -> Option<Area> {
    let bytes = file.metadata().expect("a file").len();
    Area::new(Mapping::new(file.try_clone().expect("fd"), 0, bytes).expect("mapped"), RINGS, size)
}

/// A switch that begins; what it was told of the position is wrong.
fn start(guest: &Guest, file: &File) -> Running {
    let inflight = area(file, SIZE).and_then(|area| area.ring(1, SIZE));
    assert!(inflight.is_some());
    let (memory, features) = (guest.ring(), Features(0));
    Running::start(Start { memory, next: 1234, features, call: None, log: None, inflight })
}

fn take(running: &mut Running) -> Option<u16> {
    let head = running.cursor.pop(&running.memory).expect("in order")?;
    running.inflight.as_mut().expect("there").took(head);
    running.cursor.push_used(&running.memory, head, 0);
    Some(head)
}

fn make_available(guest: &Guest, heads: &[u16]) {
    for head in heads {
        let index = guest.half(AVAILABLE + 2);
        guest.put(AVAILABLE + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
        guest.put(AVAILABLE + 2, &index.wrapping_add(1).to_le_bytes());
    }
}

fn used(guest: &Guest) -> Vec<u16> {
    (0..guest.half(USED + 2)).map(|n| guest.half(USED + 4 + 8 * u64::from(n % SIZE))).collect()
}

#[test]
fn chains_that_were_taken_and_not_returned_are_taken_again_in_order() {
    let (guest, file) = (Guest::new(), area_file());
    make_available(&guest, &[5, 2, 7, 0]);
    let mut first = start(&guest, &file);
    assert_eq!((take(&mut first), take(&mut first)), (Some(5), Some(2)));
    first.publish().expect("published");
    assert_eq!((take(&mut first), take(&mut first)), (Some(7), Some(0)));
    // Killed with two in flight; the driver goes on meanwhile.
    drop(first);
    make_available(&guest, &[2, 5]);
    let mut second = start(&guest, &file);
    assert!(second.waits());
    let before = second.cursor.position();
    assert_eq!((take(&mut second), take(&mut second)), (Some(7), Some(0)));
    second.cursor.rewind(before);
    drop(second);
    let mut third = start(&guest, &file);
    let heads: Vec<_> = std::iter::from_fn(|| take(&mut third)).collect();
    assert_eq!(heads, [7, 0, 2, 5]);
    assert!(!third.waits());
    third.publish().expect("published");
    assert_eq!(used(&guest), [5, 2, 7, 0, 2, 5]);
    assert_eq!(take(&mut start(&guest, &file)), None);
}

#[test]
fn what_was_published_before_the_end_is_not_taken_again() {
    let (guest, file) = (Guest::new(), area_file());
    make_available(&guest, &[1, 3, 4, 6]);
    let mut first = start(&guest, &file);
    let taken: Vec<_> = std::iter::from_fn(|| take(&mut first)).collect();
    assert_eq!(taken, [1, 3, 4, 6]);
    // Killed between the publication and the striking off.
    first.memory.publish_used(4);
    drop(first);
    let mut second = start(&guest, &file);
    assert_eq!(take(&mut second), None);
    make_available(&guest, &[3]);
    assert_eq!(take(&mut second), Some(3));
}

#[test]
fn another_back_end_may_have_returned_chains_out_of_order() {
    let (guest, file) = (Guest::new(), area_file());
    make_available(&guest, &[0, 1, 2, 3, 4]);
    let inflight = || area(&file, SIZE).and_then(|area| area.ring(1, SIZE)).expect("there");
    let mut other = inflight();
    assert_eq!(other.recover(0), [0u16; 0]);
    for head in [3, 0, 2, 1] {
        other.took(head);
    }
    // Two of the four came back; 3 and 0 are in flight, in this order.
    let ring = guest.ring();
    ring.set_used(0, 2, 0);
    ring.set_used(1, 1, 0);
    ring.publish_used(2);
    other.returned(2, 2);
    let mut running = start(&guest, &file);
    let heads: Vec<_> = std::iter::from_fn(|| take(&mut running)).collect();
    assert_eq!(heads, [3, 0, 4]);
}

#[test]
fn an_area_of_nonsense_is_bounded() {
    let guest = Guest::new();
    for byte in [0u8, 1, 7, 0x80, 0xff] {
        let file = area_file();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![byte; 3 * part_bytes(SIZE)], 0).expect("written");
        // The version and the size that make it believed.
        let at = part_bytes(SIZE) as u64;
        std::os::unix::fs::FileExt::write_all_at(&file, &[1, 0, SIZE as u8, 0, byte, byte, byte, byte], at + 8)
            .expect("written");
        let mut running = start(&guest, &file);
        let mut n = 0;
        while let Ok(Some(head)) = running.cursor.pop(&running.memory) {
            running.inflight.as_mut().expect("there").took(head);
            running.cursor.push_used(&running.memory, head, 0);
            n += 1;
            assert!(n <= usize::from(SIZE));
        }
        running.publish().expect("published");
        assert_eq!(n, if byte == 1 { usize::from(SIZE) } else { 0 });
    }
    let file = area_file();
    assert!(area(&file, SIZE + 8).is_none() && area(&file, 0).is_none(), "no room, or no rings");
    let whole = area(&file, SIZE).expect("there is room");
    assert!(whole.ring(3, SIZE).is_none() && whole.ring(0, 2 * SIZE).is_none());
}
