//! The atomics of the table: core's, or loom's when the table is model-checked (feature `loom`).

#[cfg(not(feature = "loom"))]
pub(super) use core::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, fence},
};
#[cfg(feature = "loom")]
pub(super) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, fence},
};
