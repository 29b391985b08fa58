//! The atomics of the table: core's, or loom's when the table is model-checked (`--cfg vswitch_loom`).

#[cfg(not(vswitch_loom))]
pub(super) use core::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, fence},
};
#[cfg(vswitch_loom)]
pub(super) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, fence},
};
