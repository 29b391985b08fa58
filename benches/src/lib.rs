//! The laboratory: namespaces, a generator and a sink of numbered frames, reference forwarders and statistics. Used by
//! `vswitch demo`, the end-to-end benchmark and the tests.

pub mod frames;
pub mod netns;
pub mod reference;
pub mod stats;
pub mod tools;
