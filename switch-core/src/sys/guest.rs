//! Memory that a VM shares with the switch, and the split ring in it (virtio 1.3 §2.7).
//!
//! The guest writes to this memory at any time, and its content is never to be trusted. So there are no references into
//! it: it is copied from and to through raw addresses, ring indices are atomics, and descriptors are read once, with
//! volatile loads, into values of our own. What is handed out is checked when it is made ([`GuestMemory::span`],
//! [`RingMemory::new`]) and cannot leave its mapping afterwards; lifetimes and `Arc`s keep the mapping in place.
//!
//! What becomes of a region whose file is shortened is said in [`mapping`](super::mapping).

use std::{
    fs::File,
    io,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU32, Ordering, compiler_fence},
    },
};

use super::{
    buf::Piece,
    mapping::Mapping,
    prefetch::{LINE, prefetch_line, prefetch_line_to_write},
};
use crate::frame::offload::VNET_HDR_BYTES;

/// Regions that one guest can have.
pub const MAX_REGIONS: usize = 64;
/// The largest ring (virtio 1.3 §2.7).
pub const MAX_RING: u16 = 32_768;

/// Where a region of guest memory is, as the VMM says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// The guest's (physical) address; descriptors use it.
    pub guest: u64,
    /// The VMM's address; ring addresses use it.
    pub user: u64,
    /// Bytes.
    pub len: u64,
    /// Where the region begins in its file.
    pub offset: u64,
}

#[derive(Debug)]
struct Region {
    spec: RegionSpec,
    /// Where it begins in this process.
    base: *mut u8,
    map: Mapping,
}

// SAFETY: the base is an address in the mapping, which any thread may access; see `RingMemory`.
unsafe impl Send for Region {}
// SAFETY: as above; a region is never changed.
unsafe impl Sync for Region {}

impl Region {
    fn map(spec: RegionSpec, file: File) -> io::Result<Region> {
        if spec.guest.checked_add(spec.len).is_none() || spec.user.checked_add(spec.len).is_none() {
            let text = format!("a region of {} bytes at {:#x} wraps around", spec.len, spec.guest);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let map = Mapping::new(file, spec.offset, spec.len)?;
        Ok(Region { spec, base: map.address(0), map })
    }

    /// The host address of byte `at` of the region, which must be inside.
    #[inline]
    fn host(&self, at: u64) -> *mut u8 {
        debug_assert!(at <= self.spec.len);
        // SAFETY: the base is that of `spec.len` mapped bytes, and `at` is at most that.
        unsafe { self.base.add(at as usize) }
    }
}

/// All memory that one guest shares. Immutable: a change makes a new one, which shares the regions that stay.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    /// This memory and one more region.
    ///
    /// # Errors
    /// There are too many, the region exceeds its file, or it cannot be mapped.
    pub fn with(&self, spec: RegionSpec, file: File) -> io::Result<GuestMemory> {
        if self.regions.len() == MAX_REGIONS {
            return Err(io::Error::other(format!("more than {MAX_REGIONS} regions of guest memory")));
        }
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region::map(spec, file)?));
        Ok(GuestMemory { regions })
    }

    /// This memory without a region; `None` if there is none like that.
    #[must_use]
    pub fn without(&self, spec: RegionSpec) -> Option<GuestMemory> {
        let same = |r: &Region| (r.spec.guest, r.spec.user, r.spec.len) == (spec.guest, spec.user, spec.len);
        let regions: Vec<_> = self.regions.iter().filter(|r| !same(r)).cloned().collect();
        (regions.len() < self.regions.len()).then_some(GuestMemory { regions })
    }

    /// The longest contiguous part of `guest .. guest + len` from its beginning on; `None` if the first byte is nowhere.
    /// An empty range is an empty part, wherever it is.
    #[inline]
    #[must_use]
    pub fn span(&self, guest: u64, len: usize) -> Option<Span<'_>> {
        for region in &self.regions {
            let at = guest.wrapping_sub(region.spec.guest);
            if at < region.spec.len {
                let len = (len as u64).min(region.spec.len - at) as usize;
                return Some(Span { base: region.host(at), len, memory: PhantomData });
            }
        }
        (len == 0).then_some(Span { base: std::ptr::dangling_mut(), len: 0, memory: PhantomData })
    }

    /// Whether a region was cut off; see [`Mapping::is_dead`].
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.regions.iter().any(|region| region.map.is_dead())
    }

    /// The guest's address of a span of this memory.
    #[must_use]
    pub fn guest_address(&self, span: &Span<'_>) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let at = (span.base.addr() as u64).wrapping_sub(region.base.addr() as u64);
            (at < region.spec.len).then(|| region.spec.guest + at)
        })
    }

    /// The host address of `len` bytes at the VMM's address `user`, if they are in one region.
    fn at_user(&self, user: u64, len: usize) -> Option<*mut u8> {
        self.regions.iter().find_map(|region| {
            let at = user.wrapping_sub(region.spec.user);
            let inside = at < region.spec.len && len as u64 <= region.spec.len - at;
            inside.then(|| region.host(at))
        })
    }
}

/// A virtio-net header (virtio 1.3 §5.1.6) as two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `flags` (the lowest byte), `gso_type`, `hdr_len`, `gso_size`, `csum_start`.
    pub flags_and_lengths: u64,
    /// `csum_offset` (the lower half), `num_buffers`.
    pub rest: u32,
}

impl Header {
    /// The words of a header.
    #[inline]
    #[must_use]
    pub fn read(bytes: &[u8; VNET_HDR_BYTES]) -> Header {
        let [a, b, c, d, e, f, g, h, rest @ ..] = *bytes;
        let flags_and_lengths = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Header { flags_and_lengths, rest: u32::from_le_bytes(rest) }
    }

    /// The header of these words.
    #[must_use]
    pub fn bytes(self) -> [u8; VNET_HDR_BYTES] {
        let mut bytes = [0; VNET_HDR_BYTES];
        bytes[..8].copy_from_slice(&self.flags_and_lengths.to_le_bytes());
        bytes[8..].copy_from_slice(&self.rest.to_le_bytes());
        bytes
    }
}

/// A part of guest memory. The bytes may change under every reader.
#[derive(Clone, Copy, Debug)]
pub struct Span<'m> {
    base: *mut u8,
    len: usize,
    memory: PhantomData<&'m GuestMemory>,
}

impl Span<'_> {
    /// Bytes.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The span without its first `n` bytes (at most all of them).
    #[inline]
    #[must_use]
    pub fn skip(self, n: usize) -> Self {
        let n = n.min(self.len);
        // SAFETY: n <= len, so the result stays inside the same mapping.
        Span { base: unsafe { self.base.add(n) }, len: self.len - n, ..self }
    }

    /// Copies from the beginning of the span; returns how many bytes. They are read once: what is judged is what was
    /// copied.
    #[inline]
    pub fn read(&self, to: &mut [u8]) -> usize {
        let n = self.len.min(to.len());
        // SAFETY: the span is inside a mapping that its lifetime keeps, and `to` is exclusively borrowed memory of the
        // switch, which no guest region overlaps.
        unsafe { copy(self.base, to.as_mut_ptr(), n) };
        // The compiler may not go back to the guest's bytes for what it needs of the copy.
        compiler_fence(Ordering::SeqCst);
        n
    }

    /// Copies to the beginning of the span; returns how many bytes.
    #[inline]
    pub fn write(&self, from: &[u8]) -> usize {
        let n = self.len.min(from.len());
        // SAFETY: as for `read`.
        unsafe { copy(from.as_ptr(), self.base, n) };
        n
    }

    /// Writes a header to the beginning of the span, unless it is there already: a line that is only read stays in the
    /// caches of both sides. Returns how many bytes that are, none if the span is shorter.
    #[inline]
    pub fn update(&self, header: Header) -> usize {
        if self.len < VNET_HDR_BYTES {
            return 0;
        }
        let (first, last) = (self.base.cast::<u64>(), self.base.wrapping_add(8).cast::<u32>());
        // SAFETY: as for `read`; 8 and 4 bytes are inside the span, and no alignment is asked for.
        unsafe {
            let (low, high) = (header.flags_and_lengths.to_le(), header.rest.to_le());
            if (first.read_unaligned() ^ low) | u64::from(last.read_unaligned() ^ high) != 0 {
                first.write_unaligned(low);
                last.write_unaligned(high);
            }
        }
        VNET_HDR_BYTES
    }

    /// Has the first two cache lines fetched: nearly all that is touched of a short frame.
    #[inline]
    pub fn fetch(&self) {
        prefetch_line(self.base);
        prefetch_line(self.base.wrapping_add(LINE));
    }

    /// As [`fetch`](Self::fetch), where only the second line is certain to be written; see [`update`](Self::update).
    #[inline]
    pub fn fetch_to_write(&self) {
        prefetch_line(self.base);
        prefetch_line_to_write(self.base.wrapping_add(LINE));
    }

    /// Copies a piece to the beginning of the span; returns how many bytes.
    #[inline]
    pub fn write_piece(&self, from: Piece) -> usize {
        let n = self.len.min(from.len());
        // SAFETY: the span is inside a mapping that its lifetime keeps; a piece is readable until its batch is cleared.
        // `copy`, because a guest may name the same memory as source and destination.
        unsafe { copy(from.as_ptr(), self.base, n) };
        n
    }

    /// The span as part of a frame. The caller keeps the memory mapped until the batch that the piece is put into has
    /// been cleared (it holds the lock of the ring that owns the mapping until then).
    #[inline]
    #[must_use]
    pub(crate) fn lease(&self) -> Piece {
        // SAFETY: mapped and readable as long as the memory lives, which is the caller's promise above.
        unsafe { Piece::from_raw(self.base, self.len as u32) }
    }

    /// Descriptor `index` of a table in this span; `None` if it is not inside or the table is not aligned.
    #[inline]
    #[must_use]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        let at = usize::from(index) * DESCRIPTOR_BYTES;
        let aligned = self.base.addr().is_multiple_of(align_of::<u64>());
        if !aligned || at + DESCRIPTOR_BYTES > self.len {
            return None;
        }
        // SAFETY: the entry is inside the span and aligned for u64.
        Some(unsafe { Descriptor::read(self.base.add(at)) })
    }
}

/// Copies `n` bytes, as `std::ptr::copy` does. What is short takes a few moves in place of a call, which in turn lets a
/// processor fetch the next frame while it waits for this one.
///
/// # Safety
/// `n` bytes at `from` are readable and at `to` writable.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
    const PART: usize = 16;
    /// Copies `2 A` parts: from the beginning, and up to the end. All are read before any is written.
    #[inline]
    unsafe fn parts<const A: usize>(from: *const u8, to: *mut u8, n: usize) {
        let (mut first, mut last) = ([[0u8; PART]; A], [[0u8; PART]; A]);
        for i in 0..A {
            // SAFETY: A parts are inside the n bytes (the callers), counted from either end.
            unsafe {
                first[i] = from.add(PART * i).cast::<[u8; PART]>().read();
                last[i] = from.add(n - PART * (i + 1)).cast::<[u8; PART]>().read();
            }
        }
        for i in 0..A {
            // SAFETY: as above.
            unsafe {
                to.add(PART * i).cast::<[u8; PART]>().write(first[i]);
                to.add(n - PART * (i + 1)).cast::<[u8; PART]>().write(last[i]);
            }
        }
    }
    // SAFETY: the caller's promise; each branch has n bytes at least.
    unsafe {
        match n {
            16..=32 => parts::<1>(from, to, n),
            33..=64 => parts::<2>(from, to, n),
            65..=128 => parts::<4>(from, to, n),
            _ => std::ptr::copy(from, to, n),
        }
    }
}

/// Flags and index before the entries of a used ring.
pub const USED_HEADER_BYTES: usize = 4;
/// One entry of a used ring.
pub const USED_ENTRY_BYTES: usize = 8;
/// The index behind the entries at which the device wants to be kicked.
pub const AVAILABLE_EVENT_BYTES: usize = 2;
const DESCRIPTOR_BYTES: usize = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A descriptor, as it was at the one time when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The guest's address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// # Safety
    /// 16 bytes at `from` are mapped, and `from` is aligned for u64.
    #[inline]
    unsafe fn read(from: *const u8) -> Descriptor {
        let words = from.cast::<u64>();
        // SAFETY: the caller's promise. Volatile: read exactly once each, whatever the compiler would prefer.
        let (addr, rest) = unsafe { (words.read_volatile(), words.add(1).read_volatile()) };
        let rest = u64::from_le(rest);
        Descriptor { addr: u64::from_le(addr), len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// The next descriptor of the chain.
    #[inline]
    #[must_use]
    pub const fn next(&self) -> Option<u16> {
        if self.flags & NEXT != 0 { Some(self.next) } else { None }
    }

    /// Whether the device writes to it (else it reads).
    #[inline]
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        self.flags & WRITE != 0
    }

    /// Whether it is a table of descriptors.
    #[inline]
    #[must_use]
    pub const fn is_indirect(&self) -> bool {
        self.flags & INDIRECT != 0
    }
}

/// The VMM's addresses of a ring's three areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring (the driver writes).
    pub available: u64,
    /// Used ring (the device writes).
    pub used: u64,
}

/// The three areas of one ring in guest memory. Indices are masked, so no access can leave them.
pub struct RingMemory {
    memory: Arc<GuestMemory>,
    size: u16,
    descriptors: *const u8,
    available: *const u8,
    used: *mut u8,
}

// SAFETY: the pointers are into mappings that `memory` keeps, which any thread may access; all accesses are copies,
// volatile reads or atomics.
unsafe impl Send for RingMemory {}

impl RingMemory {
    /// Finds the ring. `None`: an area is not inside one region, is not aligned as virtio 1.3 §2.7 demands, or the size
    /// is not a power of two up to [`MAX_RING`].
    #[must_use]
    pub fn new(memory: &Arc<GuestMemory>, size: u16, addresses: RingAddresses) -> Option<RingMemory> {
        if !size.is_power_of_two() || size > MAX_RING {
            return None;
        }
        let n = usize::from(size);
        let find = |user: u64, len: usize, align: usize| {
            memory.at_user(user, len).filter(|host| host.addr().is_multiple_of(align))
        };
        Some(RingMemory {
            descriptors: find(addresses.descriptors, DESCRIPTOR_BYTES * n, 16)?,
            available: find(addresses.available, 6 + 2 * n, 2)?,
            used: find(addresses.used, 6 + 8 * n, 4)?,
            memory: Arc::clone(memory),
            size,
        })
    }

    /// Entries.
    #[inline]
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// The memory that the ring's descriptors refer to.
    #[inline]
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    #[inline]
    fn available_half(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at.is_multiple_of(2) && at + 2 <= 6 + 2 * usize::from(self.size));
        // SAFETY: inside the available area (all callers), which is mapped while `self` lives and 2-aligned; only atomic
        // accesses are made to it by this process.
        unsafe { AtomicU16::from_ptr(self.available.add(at).cast_mut().cast()) }
    }

    #[inline]
    fn used_half(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at.is_multiple_of(2) && at + 2 <= 6 + 8 * usize::from(self.size));
        // SAFETY: as above, for the used area.
        unsafe { AtomicU16::from_ptr(self.used.add(at).cast()) }
    }

    #[inline]
    fn used_word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at.is_multiple_of(4) && at + 4 <= 4 + 8 * usize::from(self.size));
        // SAFETY: as above; the used area is 4-aligned.
        unsafe { AtomicU32::from_ptr(self.used.add(at).cast()) }
    }

    /// Descriptor `index`; `None` if the table is shorter.
    #[inline]
    #[must_use]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        // SAFETY: `new` checked that `size` descriptors are mapped and 16-aligned.
        (index < self.size)
            .then(|| unsafe { Descriptor::read(self.descriptors.add(usize::from(index) * DESCRIPTOR_BYTES)) })
    }

    /// How many chains the driver has made available; what it wrote before is visible.
    #[inline]
    #[must_use]
    pub fn available_index(&self) -> u16 {
        u16::from_le(self.available_half(2).load(Ordering::Acquire))
    }

    /// The head of the chain at an index of the available ring.
    #[inline]
    #[must_use]
    pub fn available_entry(&self, index: u16) -> u16 {
        let slot = usize::from(index & (self.size - 1));
        u16::from_le(self.available_half(4 + 2 * slot).load(Ordering::Relaxed))
    }

    /// Whether the driver asks for no interrupts (without `EVENT_IDX`).
    #[inline]
    #[must_use]
    pub fn interrupts_off(&self) -> bool {
        u16::from_le(self.available_half(0).load(Ordering::Relaxed)) & 1 != 0
    }

    /// The index at which the driver wants the next interrupt (with `EVENT_IDX`).
    #[inline]
    #[must_use]
    pub fn used_event(&self) -> u16 {
        u16::from_le(self.available_half(4 + 2 * usize::from(self.size)).load(Ordering::Relaxed))
    }

    /// The index that was published last.
    #[inline]
    #[must_use]
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.used_half(2).load(Ordering::Relaxed))
    }

    /// Writes an entry of the used ring; the driver sees it after [`publish_used`](Self::publish_used).
    #[inline]
    pub fn set_used(&self, index: u16, head: u16, written: u32) {
        let at = 4 + 8 * usize::from(index & (self.size - 1));
        self.used_word(at).store(u32::from(head).to_le(), Ordering::Relaxed);
        self.used_word(at + 4).store(written.to_le(), Ordering::Relaxed);
    }

    /// Has the lines fetched that the next `count` entries of the used ring will be written to.
    #[inline]
    pub fn fetch_used(&self, index: u16, count: usize) {
        for entry in (0..count).step_by(LINE / USED_ENTRY_BYTES) {
            let slot = usize::from(index.wrapping_add(entry as u16) & (self.size - 1));
            prefetch_line_to_write(self.used.wrapping_add(USED_HEADER_BYTES + USED_ENTRY_BYTES * slot));
        }
    }

    /// Has descriptor `index` fetched, which will be read soon.
    #[inline]
    pub fn fetch_descriptor(&self, index: u16) {
        prefetch_line(self.descriptors.wrapping_add(usize::from(index) * DESCRIPTOR_BYTES));
    }

    /// Hands all entries before `index`, and the data of their chains, to the driver.
    #[inline]
    pub fn publish_used(&self, index: u16) {
        self.used_half(2).store(index.to_le(), Ordering::Release);
    }

    /// Asks the driver for no kicks, or for kicks again (without `EVENT_IDX`).
    #[inline]
    pub fn set_kicks_off(&self, off: bool) {
        self.used_half(0).store(u16::from(off).to_le(), Ordering::Relaxed);
    }

    /// Asks the driver for a kick when it makes the chain at `index` available (with `EVENT_IDX`).
    #[inline]
    pub fn set_available_event(&self, index: u16) {
        self.used_half(4 + 8 * usize::from(self.size)).store(index.to_le(), Ordering::Relaxed);
    }
}
