//! The XDP program that gives a queue's frames to its socket, loaded by bpf(2) as it stands here.
//!
//! Where the kernel can tell (Linux 6.8), it puts a VLAN tag that is kept beside a frame back into it: nobody hears of the tag
//! behind the program, and the frame would be taken for an untagged one.
//!
//! It is attached by a BPF link: the kernel takes it off when the descriptor is closed, also after `kill -9`.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use super::btf;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// The attach type of XDP programs.
const BPF_XDP: u32 = 37;
/// In the driver, not behind it where frames have become socket buffers (and may have been merged).
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// The program is for one device, whose driver answers its questions (`BPF_F_XDP_DEV_BOUND_ONLY`).
const FOR_ONE_DEVICE: u32 = 1 << 6;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_PSEUDO_KFUNC_CALL: u8 = 2;
const BPF_FUNC_XDP_ADJUST_HEAD: i32 = 44;
const BPF_FUNC_REDIRECT_MAP: i32 = 51;
const XDP_DROP: i32 = 1;
/// `offsetof(struct xdp_md, data)`, `data_end`.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
/// Where the program keeps TPID and TCI, from the frame pointer.
const TPID: i16 = -8;
const TCI: i16 = -4;
/// `offsetof(struct xdp_md, rx_queue_index)`.
const RX_QUEUE_INDEX: i16 = 16;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// The destination register in the low half, the source register in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn step(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

/// `return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_DROP);` with ctx in r6.
const fn redirect(map: RawFd) -> [Instruction; 6] {
    [
        // r2 = ctx->rx_queue_index
        step(0x61, 2, 6, RX_QUEUE_INDEX, 0),
        // r1 = the map of this descriptor, a constant of 64 bits in two instructions
        step(0x18, 1, BPF_PSEUDO_MAP_FD, 0, map),
        step(0x00, 0, 0, 0, 0),
        // r3 = what becomes of frames of queues that have no socket
        step(0xb7, 3, 0, 0, XDP_DROP),
        // r0 = bpf_redirect_map(r1, r2, r3)
        step(0x85, 0, 0, 0, BPF_FUNC_REDIRECT_MAP),
        // return r0
        step(0x95, 0, 0, 0, 0),
    ]
}

/// r6 = ctx, which comes in r1.
const BEGIN: Instruction = step(0xbf, 6, 1, 0, 0);

/// Puts the tag beside the frame into it, by the kernel function of this number; goes on behind its end.
const fn restore_tag(rx_vlan_tag: i32) -> [Instruction; 29] {
    [
        // *(u64 *)(r10 - 8) = 0
        step(0x7a, 10, 0, TPID, 0),
        // r1 = ctx, r2 = &tpid, r3 = &tci
        step(0xbf, 1, 6, 0, 0),
        step(0xbf, 2, 10, 0, 0),
        step(0x07, 2, 0, 0, TPID as i32),
        step(0xbf, 3, 10, 0, 0),
        step(0x07, 3, 0, 0, TCI as i32),
        // r0 = bpf_xdp_metadata_rx_vlan_tag(r1, r2, r3)
        step(0x85, 0, BPF_PSEUDO_KFUNC_CALL, 0, rx_vlan_tag),
        // no tag: go on behind the end
        step(0x55, 0, 0, 23, 0),
        // r0 = bpf_xdp_adjust_head(ctx, -4): four more bytes in front
        step(0xbf, 1, 6, 0, 0),
        step(0xb7, 2, 0, 0, -4),
        step(0x85, 0, 0, 0, BPF_FUNC_XDP_ADJUST_HEAD),
        // no room: drop
        step(0x55, 0, 0, 17, 0),
        // r2 = data, r3 = data_end
        step(0x61, 2, 6, DATA, 0),
        step(0x61, 3, 6, DATA_END, 0),
        // fewer than 18 bytes: drop
        step(0xbf, 4, 2, 0, 0),
        step(0x07, 4, 0, 0, 18),
        step(0x2d, 4, 3, 12, 0),
        // the two addresses move to the front, four bytes at a time
        step(0x61, 5, 2, 4, 0),
        step(0x63, 2, 5, 0, 0),
        step(0x61, 5, 2, 8, 0),
        step(0x63, 2, 5, 4, 0),
        step(0x61, 5, 2, 12, 0),
        step(0x63, 2, 5, 8, 0),
        // the TPID is in network order, the TCI is not
        step(0x69, 5, 10, TPID, 0),
        step(0x6b, 2, 5, 12, 0),
        step(0x69, 5, 10, TCI, 0),
        step(0xdc, 5, 0, 0, 16),
        step(0x6b, 2, 5, 14, 0),
        // goto behind the end, over the two instructions of the drop
        step(0x05, 0, 0, 2, 0),
    ]
}

/// `return XDP_DROP;`
const DROP: [Instruction; 2] = [step(0xb7, 0, 0, 0, XDP_DROP), step(0x95, 0, 0, 0, 0)];

/// The arguments of `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The arguments of `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The arguments of `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    /// With [`FOR_ONE_DEVICE`]: which.
    device: u32,
    /// None: that is said when it is attached.
    attach_type: u32,
}

/// The arguments of `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    program_fd: u32,
    target_index: u32,
    attach_type: u32,
    flags: u32,
}

/// Calls bpf(2) with the arguments of a command.
///
/// # Safety
/// `A` is a prefix of what `union bpf_attr` has for the command, and pointers in it (as numbers) lead to what the command
/// reads, as long as it says.
unsafe fn bpf<A>(command: libc::c_int, arguments: &A) -> io::Result<RawFd> {
    // SAFETY: the kernel reads `size_of::<A>()` bytes of the borrowed arguments, takes all others for zero, and writes
    // none of them for the commands of this module; for the rest the caller promises.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(arguments), size_of::<A>()) };
    super::checked(result as libc::c_int)
}

/// # Safety
/// As [`bpf`], and the command returns a new descriptor.
unsafe fn bpf_descriptor<A>(command: libc::c_int, arguments: &A) -> io::Result<OwnedFd> {
    // SAFETY: as the caller promises; the descriptor is new, so nobody else has it.
    unsafe { bpf(command, arguments).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Loads a program; with a device it is for that one alone.
fn load(instructions: &[Instruction], license: &CStr, device: Option<u32>) -> io::Result<OwnedFd> {
    let load = ProgramLoad {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: if device.is_some() { FOR_ONE_DEVICE } else { 0 },
        name: *b"vswitch\0\0\0\0\0\0\0\0\0",
        device: device.unwrap_or(0),
        attach_type: 0,
    };
    // SAFETY: the instructions are as many as it says, the license is a C string, and both outlive the call; there is no
    // log. The command returns a descriptor.
    unsafe { bpf_descriptor(BPF_PROG_LOAD, &load) }
}

/// At which step a program was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The map of sockets cannot be made.
    #[error("making a map of sockets: {0}")]
    Map(io::Error),
    /// The program cannot be loaded.
    #[error("loading the XDP program: {0}")]
    Load(io::Error),
    /// The device does not take it.
    #[error("attaching the XDP program: {0}")]
    Attach(io::Error),
}

/// A program and its map of sockets; with a device from [`attach`](Self::attach) on, until it is dropped.
#[derive(Debug)]
pub struct Program {
    map: OwnedFd,
    program: OwnedFd,
    link: Option<OwnedFd>,
    restores_tags: bool,
}

impl Program {
    /// Loads a program for the device of this index in the calling thread's namespace, with so many receive queues.
    ///
    /// # Errors
    /// The kernel knows no AF_XDP, or does not permit it.
    pub fn load(index: u32, queues: u16) -> Result<Program, Refused> {
        let map = MapCreate { map_type: BPF_MAP_TYPE_XSKMAP, key_size: 4, value_size: 4, max_entries: queues.into() };
        // SAFETY: the arguments have no pointers; the command returns a descriptor.
        let map = unsafe { bpf_descriptor(BPF_MAP_CREATE, &map) }.map_err(Refused::Map)?;
        if let Some(number) = btf::rx_vlan_tag() {
            let body = restore_tag(number.cast_signed());
            let whole = [&[BEGIN][..], &body, &DROP, &redirect(map.as_raw_fd())].concat();
            // The functions of the kernel are for programs that are under its license as well, which ours permits.
            if let Ok(program) = load(&whole, c"Dual MIT/GPL", Some(index)) {
                return Ok(Program { map, program, link: None, restores_tags: true });
            }
        }
        let whole = [&[BEGIN][..], &redirect(map.as_raw_fd())].concat();
        let program = load(&whole, c"MIT", None).map_err(Refused::Load)?;
        Ok(Program { map, program, link: None, restores_tags: false })
    }

    /// Whether it puts tags that are kept beside frames back into them, if the driver tells of them.
    #[must_use]
    pub fn restores_tags(&self) -> bool {
        self.restores_tags
    }

    /// Gives a queue's frames to a socket, which is bound to it.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn set_socket(&self, queue: u16, socket: RawFd) -> io::Result<()> {
        let (key, value) = (u32::from(queue), socket.cast_unsigned());
        let update = MapUpdate {
            map_fd: self.map.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: (&raw const key).expose_provenance() as u64,
            value: (&raw const value).expose_provenance() as u64,
            flags: 0,
        };
        // SAFETY: key and value have the four bytes that the map was made with, and outlive the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &update) }.map(drop)
    }

    /// Puts the program on the device of this index, the one it was loaded for, into its driver.
    ///
    /// # Errors
    /// `EBUSY` or `EEXIST`: another program is there. Otherwise the driver does not take it.
    pub fn attach(&mut self, index: u32) -> Result<(), Refused> {
        let create = LinkCreate {
            program_fd: self.program.as_raw_fd().cast_unsigned(),
            target_index: index,
            attach_type: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        };
        // SAFETY: the arguments have no pointers; the command returns a descriptor.
        self.link = Some(unsafe { bpf_descriptor(BPF_LINK_CREATE, &create) }.map_err(Refused::Attach)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_as_the_kernel_reads_it() {
        assert_eq!(size_of::<Instruction>(), 8);
        let program = redirect(7);
        assert_eq!((program[0].registers, program[0].offset), (0x62, 16), "r2 = *(r6 + 16)");
        assert_eq!((program[1].registers, program[1].immediate), (0x11, 7), "r1 = map 7");
        assert_eq!(program[5], step(0x95, 0, 0, 0, 0));
        assert_eq!(size_of::<ProgramLoad>(), 72);
        assert_eq!(size_of::<MapUpdate>(), 32);
    }

    #[test]
    fn jumps_lead_to_the_drop_or_behind_it() {
        let body = restore_tag(1);
        let target = |at: usize| at + 1 + usize::try_from(body[at].offset).expect("forwards");
        assert_eq!([7, 28].map(target), [body.len() + DROP.len(); 2], "behind the drop");
        assert_eq!([11, 16].map(target), [body.len(); 2], "the drop");
    }
}
