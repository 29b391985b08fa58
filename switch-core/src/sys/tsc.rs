//! The processor's time stamp counter, for measuring tools.

/// Reads it; `None` where there is none. It ticks at a constant rate, which is near but not the clock of the core.
#[must_use]
#[inline]
pub fn read() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86_64 processor has the instruction, which touches nothing but its result.
    return Some(unsafe { std::arch::x86_64::_rdtsc() });
    #[cfg(not(target_arch = "x86_64"))]
    None
}
