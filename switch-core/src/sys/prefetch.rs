//! Fetching cache lines before they are needed.

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Asks for the cache line of `target`.
#[inline]
pub fn prefetch<T>(target: &T) {
    prefetch_line(std::ptr::from_ref(target).cast());
}

/// Asks for the cache line at an address. Any address will do: what is not mapped is not fetched.
#[inline]
pub fn prefetch_line(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults and reads nothing architecturally; SSE is part of x86_64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Asks for the cache line at an address, to be written: other processors let go of it. Any address will do.
#[inline]
pub fn prefetch_line_to_write(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults and changes nothing that a program can see; 64-bit processors without the
    // instruction take it for none at all (AMD64 Architecture Programmer's Manual, volume 3, PREFETCH).
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
