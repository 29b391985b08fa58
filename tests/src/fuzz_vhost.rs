//! Messages of a VMM that has lost its mind, for `vhost-user` ports of a running switch on which two other VMs go on.

use std::{
    fs::File,
    io::Read,
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
};

use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    memfd::{MFdFlags, memfd_create},
};
use parking_lot::Mutex;
use vswitch_benches::frontend::{
    FrontEnd, Options,
    migrate::{message, send_message},
};

use crate::{
    PATIENCE,
    rng::Rng,
    vhost::{Lab, count, plain},
};

/// Ports that are sent nonsense, in turn: one whose ring broke is given a rest.
const VICTIMS: usize = 8;
const MAX_MESSAGES: usize = 64;
const MEMORY_BYTES: u64 = 0x1_0000;

/// The switch and the two VMs beside.
struct Target {
    lab: Lab,
    innocents: [FrontEnd; 2],
    round: usize,
}

static TARGET: Mutex<Option<Target>> = Mutex::new(None);

impl Target {
    fn new() -> Target {
        let lab = Lab::new(VICTIMS + 2, "", &["--domain", "other"]);
        let innocents = [VICTIMS, VICTIMS + 1].map(|port| {
            let name = format!("vm{port}");
            lab.daemon.cli(&["port", "detach", &name, "default"]).expect("left");
            lab.daemon.cli(&["port", "attach", &name, "other"]).expect("joined");
            lab.connect(port, Options::default())
        });
        Target { lab, innocents, round: 0 }
    }
}

/// Removes what [`fuzz_vhost`] made; to be called last.
pub fn remove_vhost() {
    TARGET.lock().take();
}

/// Frames that were received on the ports that are sent nonsense, and rings that broke there, so far.
///
/// # Panics
/// The switch does not answer.
#[must_use]
pub fn vhost_coverage() -> (u64, u64) {
    let slot = TARGET.lock();
    let Some(target) = &*slot else { return (0, 0) };
    let views = (0..VICTIMS).map(|port| target.lab.view(&format!("vm{port}")));
    views
        .fold((0, 0), |(frames, errors), view| (frames + count(&view, "rx_frames"), errors + count(&view, "rx_errors")))
}

/// Messages on one connection: `code, flags, descriptors, length, bytes`. Flags: bits 0 to 3 differ from those of an
/// ordinary message (of version 1, not a reply), bit 4: the length in the header is a lie, bit 7: only half of it is sent,
/// and nothing more. Descriptors: their number in bits 0 and 1, then two bits each: an eventfd, memory with a ring in it,
/// one page, a device. What is in the ring depends on all of the input.
///
/// # Panics
/// The port does not end the connection, or frames do not pass between the other two.
pub fn fuzz_vhost(data: &[u8]) {
    let mut slot = TARGET.lock();
    let target = slot.get_or_insert_with(Target::new);
    target.round += 1;
    let mut stream = UnixStream::connect(target.lab.path(target.round % VICTIMS)).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut rest = data;
    for _ in 0..MAX_MESSAGES {
        let Some(([code, flags, descriptors, len], after)) = rest.split_first_chunk::<4>() else { break };
        let (body, after) = after.split_at(usize::from(*len).min(after.len()));
        rest = after;
        let mut bytes = message(u32::from(*code), 1 ^ u32::from(flags & 0xf), body);
        if flags & 0x10 != 0 {
            bytes[8..12].copy_from_slice(&(3 * body.len() as u32 + 1).to_ne_bytes());
        }
        if flags & 0x80 != 0 {
            bytes.truncate(bytes.len() / 2);
        }
        let files: Vec<OwnedFd> =
            (0..descriptors & 3).map(|n| descriptor(data, descriptors >> (2 + 2 * n) & 3)).collect();
        let numbers: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        if send_message(&stream, &bytes, &numbers).is_err() || flags & 0x80 != 0 {
            break;
        }
    }
    // The other side may have been faster.
    let _ = stream.shutdown(Shutdown::Write);
    let mut answers = [0; 1024];
    loop {
        match stream.read(&mut answers) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(e) => panic!("the port does not end the connection: {e}"),
        }
    }
    let [a, b] = &mut target.innocents;
    let frame = plain(8, 9, 60, target.round as u64);
    a.send_all(0, std::slice::from_ref(&frame), PATIENCE).expect("sent");
    let got = b.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
    assert_eq!(got, [frame], "frames of others do not pass any more");
}

fn descriptor(data: &[u8], kind: u8) -> OwnedFd {
    match kind {
        0 => EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("descriptors").into(),
        1 => ring(data),
        2 => {
            let page = File::from(memfd_create("page", MFdFlags::MFD_CLOEXEC).expect("descriptors"));
            page.set_len(4096).expect("memory");
            page.into()
        }
        _ => File::open("/dev/null").expect("there").into(),
    }
}

/// Memory with a ring of eight at its beginning (descriptors 0, available 0x1000, used 0x2000), four frames in it, and in
/// every second case some bytes that differ.
fn ring(data: &[u8]) -> OwnedFd {
    let seed = data.iter().fold(data.len() as u64, |seed, byte| seed.wrapping_mul(257).wrapping_add(u64::from(*byte)));
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; 0x1040];
    for slot in 0..8u64 {
        let at = 16 * slot as usize;
        bytes[at..at + 8].copy_from_slice(&(0x4000 + 0x800 * slot).to_le_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&80u32.to_le_bytes());
        let entry = 0x1004 + 2 * slot as usize;
        bytes[entry..entry + 2].copy_from_slice(&(slot as u16).to_le_bytes());
    }
    bytes[0x1002] = 4;
    if rng.chance(50) {
        for _ in 0..rng.between(1, 12) {
            let at = rng.pick(&[rng.clone().below(0x80), 0x1000 + rng.clone().below(0x20)]);
            bytes[at] = rng.next() as u8;
        }
    }
    let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).expect("descriptors"));
    file.set_len(MEMORY_BYTES).expect("memory");
    file.write_all_at(&bytes, 0).expect("written");
    let mut frame = plain(20, 21, 68, seed).bytes;
    frame.splice(0..0, [0; 12]);
    for slot in 0..8 {
        file.write_all_at(&frame, 0x4000 + 0x800 * slot).expect("written");
    }
    file.into()
}
