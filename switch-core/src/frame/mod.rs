//! Ethernet frames: views, tag edits, owed work.

pub mod checksum;
pub mod complete;
pub mod flow;
pub mod layout;
pub mod offload;
pub mod partial;
pub mod rarp;
pub mod validate;
pub mod vlan;
