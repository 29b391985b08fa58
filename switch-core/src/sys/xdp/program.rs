//! The XDP program that gives a queue's frames to its socket, loaded by bpf(2) as it stands here.
//!
//! It is attached by a BPF link: the kernel takes it off when the descriptor is closed, also after `kill -9`.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

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
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_FUNC_REDIRECT_MAP: i32 = 51;
const XDP_DROP: i32 = 1;
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

/// `return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_DROP);`
const fn redirect(map: RawFd) -> [Instruction; 6] {
    [
        // r2 = ctx->rx_queue_index (ctx is in r1)
        step(0x61, 2, 1, RX_QUEUE_INDEX, 0),
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
}

impl Program {
    /// Loads a program for a device with so many receive queues.
    ///
    /// # Errors
    /// The kernel knows no AF_XDP, or does not permit it.
    pub fn load(queues: u16) -> Result<Program, Refused> {
        let map = MapCreate { map_type: BPF_MAP_TYPE_XSKMAP, key_size: 4, value_size: 4, max_entries: queues.into() };
        // SAFETY: the arguments have no pointers; the command returns a descriptor.
        let map = unsafe { bpf_descriptor(BPF_MAP_CREATE, &map) }.map_err(Refused::Map)?;
        let instructions = redirect(map.as_raw_fd());
        // Nothing that it calls asks for another one.
        let license = c"MIT";
        let load = ProgramLoad {
            program_type: BPF_PROG_TYPE_XDP,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr().expose_provenance() as u64,
            license: license.as_ptr().expose_provenance() as u64,
            log_level: 0,
            log_size: 0,
            log_buffer: 0,
            kernel_version: 0,
            flags: 0,
            name: *b"vswitch\0\0\0\0\0\0\0\0\0",
        };
        // SAFETY: the instructions are as many as it says, the license is a C string, and both outlive the call; there is
        // no log. The command returns a descriptor.
        let program = unsafe { bpf_descriptor(BPF_PROG_LOAD, &load) }.map_err(Refused::Load)?;
        Ok(Program { map, program, link: None })
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

    /// Puts the program on the device of this index in the calling thread's namespace, into its driver.
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
        assert_eq!((program[0].registers, program[0].offset), (0x12, 16), "r2 = *(r1 + 16)");
        assert_eq!((program[1].registers, program[1].immediate), (0x11, 7), "r1 = map 7");
        assert_eq!(program[5], step(0x95, 0, 0, 0, 0));
        assert_eq!(size_of::<ProgramLoad>(), 64);
        assert_eq!(size_of::<MapUpdate>(), 32);
    }
}
