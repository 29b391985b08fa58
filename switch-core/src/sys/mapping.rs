//! Files of another program, mapped and shared with it: a guest's memory, the log of dirty pages, the inflight area.
//!
//! The owner of such a file can shorten it after it was mapped, and the memory behind it can run out; the next access is a
//! SIGBUS, which would end the whole switch. So every mapping stands in a table, and a handler for that signal puts
//! pages of zeros in the place of the mapping that was hit, marks it dead and lets the access happen again. Whoever uses a
//! mapping asks afterwards ([`hits`], [`Mapping::is_dead`]) and gives it up; nobody else notices. (When the kernel
//! touches the memory for us, in `writev` from a leased frame, it is an error of that call and no signal.)
//!
//! The table has a fixed size and consists of atomics, because a signal handler may neither wait nor allocate. A slot is
//! written by the thread that maps or unmaps; the handler only looks for the slot of an address that its own thread is
//! accessing, which therefore stays mapped.
//!
//! Files in user-space file systems (FUSE) are refused, because their owner could make any access wait for ever.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    sync::{
        Once, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use vm_memory::{FileOffset, mmap::MmapRegion};

/// Mappings of the process at the same time.
pub const MAX_MAPPINGS: usize = 16_384;
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
const PAGE_BYTES: usize = 4096;

/// One mapping as the signal handler sees it. `base` is set last and cleared first.
struct Slot {
    taken: AtomicBool,
    dead: AtomicBool,
    /// First address; 0: none.
    base: AtomicUsize,
    /// Address after the last one.
    end: AtomicUsize,
}

static TABLE: [Slot; MAX_MAPPINGS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        dead: AtomicBool::new(false),
        base: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
    }
}; MAX_MAPPINGS];
static HITS: AtomicUsize = AtomicUsize::new(0);
static INSTALL: Once = Once::new();
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// How often a mapping has been found cut off, in the whole process. While this stands still, no mapping has died.
#[inline]
#[must_use]
pub fn hits() -> usize {
    HITS.load(std::sync::atomic::Ordering::Relaxed)
}

/// A place in the table, given back on drop.
#[derive(Debug)]
struct Watch(usize);

impl Watch {
    fn new(base: usize, bytes: usize) -> io::Result<Watch> {
        INSTALL.call_once(install);
        let end = base + bytes.next_multiple_of(PAGE_BYTES);
        for (index, slot) in TABLE.iter().enumerate() {
            if !slot.taken.load(SeqCst) && slot.taken.compare_exchange(false, true, SeqCst, SeqCst).is_ok() {
                slot.dead.store(false, SeqCst);
                slot.end.store(end, SeqCst);
                slot.base.store(base, SeqCst);
                return Ok(Watch(index));
            }
        }
        Err(io::Error::other(format!("more than {MAX_MAPPINGS} mappings of guests' memory")))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let slot = &TABLE[self.0];
        slot.base.store(0, SeqCst);
        slot.taken.store(false, SeqCst);
    }
}

fn install() {
    // SAFETY: all-zero bytes are a valid sigaction; the calls read one and write one. The handler below only does what a
    // handler may do. Rust's own handler for stack overflows is asked for first and called for foreign addresses.
    unsafe {
        let mut previous: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) == 0 {
            // It is empty: this runs once.
            let _ = PREVIOUS.set(previous);
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        // On the alternative stack, where there is one: the previous handler may be for a stack that is full.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // It fails only for a signal that cannot be handled.
        let _ = libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo; si_addr is valid for a SIGBUS that a fault caused (positive codes).
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    if code > 0 && replace(address) {
        return;
    }
    let previous = PREVIOUS.get().filter(|p| p.sa_sigaction != libc::SIG_DFL && p.sa_sigaction != libc::SIG_IGN);
    // SAFETY: the previous handler is one of this process, of the type that its flags say. Without one the default is
    // restored: the access happens again and ends the process, as it would have without us.
    unsafe {
        match previous {
            Some(previous) if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(previous.sa_sigaction);
                handler(signal, info, context);
            }
            Some(previous) => {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(previous.sa_sigaction);
                handler(signal);
            }
            None => {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
            }
        }
    }
}

/// Puts zeros in the place of the mapping that an address is in; false if it is in none, or that fails.
fn replace(address: usize) -> bool {
    for slot in &TABLE {
        let base = slot.base.load(SeqCst);
        if base == 0 || address < base || address >= slot.end.load(SeqCst) || slot.base.load(SeqCst) != base {
            continue;
        }
        let bytes = slot.end.load(SeqCst) - base;
        // SAFETY: the calling thread was accessing `address`, so the mapping that it is in is kept (its user has an `Arc`
        // of it) and the slot is not being changed. The range is exactly that mapping, all accesses to which are
        // copies and atomics, for which zeros are as good as any other bytes. errno is put back, because the handler
        // may run between a system call and the look at its error.
        let mapped = unsafe {
            let errno = libc::__errno_location();
            let before = *errno;
            let mapped = libc::mmap(
                std::ptr::with_exposed_provenance_mut(base),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            *errno = before;
            mapped
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        slot.dead.store(true, SeqCst);
        HITS.fetch_add(1, SeqCst);
        return true;
    }
    false
}

/// A part of a file, mapped (with everything before it) for reading and writing.
#[derive(Debug)]
pub struct Mapping {
    // First: it leaves the table before the memory is unmapped.
    watch: Watch,
    map: MmapRegion<()>,
    offset: usize,
    bytes: usize,
}

impl Mapping {
    /// Maps `bytes` from `offset` on.
    ///
    /// # Errors
    /// The part exceeds the file, the file is not one in memory, or the kernel refuses.
    pub fn new(file: File, offset: u64, bytes: u64) -> io::Result<Mapping> {
        let refused = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let Some(end) = offset.checked_add(bytes).filter(|_| bytes > 0) else {
            return Err(refused(format!("{bytes} bytes from {offset:#x} on are no part of a file")));
        };
        let stat = nix::sys::stat::fstat(file.as_fd())?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(refused("shared memory must be a file in memory".to_owned()));
        }
        let size = stat.st_size.cast_unsigned();
        if end > size {
            return Err(refused(format!("a region ends at byte {end} of a file of {size}")));
        }
        if nix::sys::statfs::fstatfs(file.as_fd())?.filesystem_type().0 as i64 == FUSE_SUPER_MAGIC {
            return Err(refused("shared memory in a FUSE file system could block the switch".to_owned()));
        }
        // From the file's beginning, because an offset need not be a multiple of the (huge) page size; in whole blocks,
        // because huge pages are only unmapped as wholes.
        let block = u64::try_from(stat.st_blksize).unwrap_or(1).max(1);
        let whole = end.checked_next_multiple_of(block).filter(|whole| *whole <= size).unwrap_or(end);
        let whole = usize::try_from(whole).map_err(io::Error::other)?;
        let map = MmapRegion::from_file(FileOffset::new(file, 0), whole).map_err(io::Error::other)?;
        let watch = Watch::new(map.as_ptr().expose_provenance(), whole)?;
        Ok(Mapping { watch, map, offset: offset as usize, bytes: bytes as usize })
    }

    /// Bytes of the part.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none; there always are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The address of byte `at` of the part, or of its end.
    ///
    /// # Panics
    /// If `at` is past the end.
    #[must_use]
    pub fn address(&self, at: usize) -> *mut u8 {
        assert!(at <= self.bytes, "byte {at} of a mapping of {}", self.bytes);
        // SAFETY: `new` mapped offset + bytes from the map's beginning on, and `at` is at most `bytes`.
        unsafe { self.map.as_ptr().add(self.offset + at) }
    }

    /// Whether the memory was cut off and zeros are in its place.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        TABLE[self.watch.0].dead.load(SeqCst)
    }

    fn atomic<T>(&self, at: usize) -> Option<*mut T> {
        let inside = at.checked_add(size_of::<T>()).is_some_and(|end| end <= self.bytes);
        inside.then(|| self.address(at).cast::<T>()).filter(|p| p.is_aligned())
    }

    /// Byte `at`; `None` if it is not inside.
    #[inline]
    #[must_use]
    pub fn byte(&self, at: usize) -> Option<&AtomicU8> {
        // SAFETY: inside the mapping, which lives as long as the borrow; only atomic accesses are made to it.
        self.atomic(at).map(|p| unsafe { AtomicU8::from_ptr(p) })
    }

    /// Two bytes at `at`; `None` if they are not inside or not aligned.
    #[inline]
    #[must_use]
    pub fn half(&self, at: usize) -> Option<&AtomicU16> {
        // SAFETY: as above, and aligned.
        self.atomic(at).map(|p| unsafe { AtomicU16::from_ptr(p) })
    }

    /// Eight bytes at `at`; `None` if they are not inside or not aligned.
    #[inline]
    #[must_use]
    pub fn double(&self, at: usize) -> Option<&AtomicU64> {
        // SAFETY: as above.
        self.atomic(at).map(|p| unsafe { AtomicU64::from_ptr(p) })
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, sync::atomic::Ordering::Relaxed};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn file(bytes: u64) -> File {
        let file = File::from(memfd_create("mapping", MFdFlags::MFD_CLOEXEC).expect("memfd"));
        file.set_len(bytes).expect("length");
        file
    }

    #[test]
    fn a_file_that_is_cut_off_kills_its_own_mapping_only() {
        let (cut, whole) = (file(0x5000), file(0x5000));
        let dead = Mapping::new(cut.try_clone().expect("fd"), 0x1000, 0x4000).expect("mapped");
        let alive = Mapping::new(whole, 0x1000, 0x4000).expect("mapped");
        for mapping in [&dead, &alive] {
            mapping.double(0x3000).expect("inside").store(7, Relaxed);
        }
        cut.set_len(0x2000).expect("cut");
        let before = hits();
        assert_eq!(dead.double(0).expect("inside").load(Relaxed), 0);
        assert!(!dead.is_dead(), "what is left of it can be read");
        assert_eq!(dead.double(0x3000).expect("inside").load(Relaxed), 0);
        assert!(dead.is_dead() && hits() > before);
        dead.byte(0x3fff).expect("inside").store(1, Relaxed);
        assert_eq!(alive.double(0x3000).expect("inside").load(Relaxed), 7);
        assert!(!alive.is_dead());
        // Its place in the table is taken by another, which is not dead.
        drop(dead);
        let next = Mapping::new(file(0x1000), 0, 0x1000).expect("mapped");
        assert!(!next.is_dead());
    }

    #[test]
    fn threads_that_are_cut_off_together_all_go_on() {
        for _ in 0..20 {
            let cut = file(64 << 12);
            let mapping = Mapping::new(cut.try_clone().expect("fd"), 0, 64 << 12).expect("mapped");
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let mapping = &mapping;
                    scope.spawn(move || {
                        while !mapping.is_dead() {
                            for page in 0..64 {
                                mapping.byte((page << 12) + thread).expect("inside").fetch_add(1, Relaxed);
                            }
                        }
                    });
                }
                cut.set_len(0).expect("cut");
            });
        }
    }

    #[test]
    fn only_what_is_inside_can_be_had() {
        let mapping = Mapping::new(file(0x3000), 0x1004, 0x100).expect("mapped");
        assert!(mapping.byte(0xff).is_some() && mapping.byte(0x100).is_none() && mapping.byte(usize::MAX).is_none());
        assert!(mapping.half(0xfe).is_some() && mapping.half(0xff).is_none());
        assert!(mapping.double(4).is_some() && mapping.double(0).is_none() && mapping.double(0xfc).is_none());
        assert_eq!(mapping.address(0x100).addr() % PAGE_BYTES, 0x104);
    }

    /// Run by the next test in a process of its own.
    #[test]
    #[ignore = "ends its process"]
    fn fault_elsewhere() {
        let _ours = Mapping::new(file(0x1000), 0, 0x1000).expect("mapped");
        let cut = file(0x1000);
        let foreign: MmapRegion<()> =
            MmapRegion::from_file(FileOffset::new(cut.try_clone().expect("fd"), 0), 0x1000).expect("mapped");
        cut.set_len(0).expect("cut");
        // SAFETY: mapped; that it is not backed any more is the point.
        let value = unsafe { foreign.as_ptr().read_volatile() };
        unreachable!("read {value}");
    }

    #[test]
    fn a_fault_that_is_not_ours_ends_the_process_as_before() {
        let test = std::env::current_exe().expect("this test");
        let output = std::process::Command::new(test)
            .args(["--exact", "sys::mapping::tests::fault_elsewhere", "--ignored"])
            .output()
            .expect("runs");
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
    }
}
