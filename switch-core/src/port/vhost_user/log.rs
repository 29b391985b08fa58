//! The log of dirty pages (vhost-user specification, "Migration"): while a VM is migrated, every page that the device writes
//! to is marked in memory shared with the VMM, which sends it again.
//!
//! Bits are set after the write that they tell of, always and with a full barrier: the VMM clears a bit and then copies the
//! page, so a bit that is seen set before our write could be one that the copy has overtaken already.

use std::{
    fs::File,
    io,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use crate::sys::{
    guest::{GuestMemory, Span},
    mapping::Mapping,
};

/// What one bit stands for (`VHOST_LOG_PAGE`).
const PAGE_BYTES: u64 = 4096;

/// The log of one VM.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Mapping,
}

impl DirtyLog {
    /// Maps `bytes` of log from `offset` of a file on.
    ///
    /// # Errors
    /// See [`Mapping::new`].
    pub fn new(file: File, offset: u64, bytes: u64) -> io::Result<DirtyLog> {
        Ok(DirtyLog { bits: Mapping::new(file, offset, bytes)? })
    }

    /// Whether it was cut off; see [`Mapping::is_dead`].
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.bits.is_dead()
    }

    /// Marks the pages of `len` bytes at a guest's address. What the log is too short for is nowhere to be marked.
    pub fn mark(&self, guest: u64, len: usize) {
        let Some(last) = (len as u64).checked_sub(1).map(|more| guest.saturating_add(more) / PAGE_BYTES) else {
            return;
        };
        for page in guest / PAGE_BYTES..=last {
            let Some(byte) = usize::try_from(page / 8).ok().and_then(|at| self.bits.byte(at)) else { return };
            byte.fetch_or(1 << (page % 8), SeqCst);
        }
    }
}

/// How the writes of one ring are logged.
#[derive(Clone, Debug)]
pub struct RingLog {
    log: Arc<DirtyLog>,
    /// Where the used ring is logged, if it is.
    used: Option<u64>,
}

impl RingLog {
    /// Logs what is written to buffers, and to the used ring if there is an address for that.
    #[must_use]
    pub fn new(log: Arc<DirtyLog>, used: Option<u64>) -> RingLog {
        RingLog { log, used }
    }

    /// See [`DirtyLog::is_dead`].
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.log.is_dead()
    }

    /// The first `len` bytes of these buffers were written.
    #[cold]
    pub fn wrote(&self, memory: &GuestMemory, spans: &[Span<'_>], len: usize) {
        let mut left = len;
        for span in spans {
            let n = left.min(span.len());
            if let Some(guest) = memory.guest_address(span) {
                self.log.mark(guest, n);
            }
            left -= n;
        }
    }

    /// `len` bytes at `at` of the used ring were written.
    #[cold]
    pub fn wrote_used(&self, at: usize, len: usize) {
        if let Some(used) = self.used {
            self.log.mark(used.saturating_add(at as u64), len);
        }
    }
}
