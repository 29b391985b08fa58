//! The only unsafe code of the project: system calls that have no safe wrapper, memory shared with other
//! programs, and the buffers that both are read into. Everything exported from here is safe to call.
#![allow(unsafe_code)]

pub mod buf;
pub mod ethtool;
pub mod guest;
pub mod interrupt;
pub mod mapping;
pub mod packet;
pub mod prefetch;
pub mod raw;
pub mod send;
pub mod slow;
pub mod tap;
pub mod tsc;
pub mod xdp;
