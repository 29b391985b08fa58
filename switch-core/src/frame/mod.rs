//! Ethernet frames: views, tag edits, owed work.

pub mod offload;
