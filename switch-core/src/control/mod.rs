//! The control plane: what is wanted, what is there, and the way from one to the other.
//!
//! ```text
//! CLI, config file --> spec (types) --> desired --> plan (pure diff) --> manager (opens, publishes, closes)
//!                                          |                                  |
//!                                       journal (state directory)         server (HTTP + JSON on a Unix socket)
//! ```
//!
//! One thread runs all of it. Only types in [`spec`], [`desired`] and [`wire`] derive serde.

pub mod config;
pub mod desired;
mod drivers;
mod effective;
pub mod journal;
mod learned;
pub mod manager;
mod members;
pub mod network_xml;
mod networks;
pub mod ovs;
pub mod plan;
pub mod pools;
pub mod server;
pub mod spec;
pub mod uplinks;
pub mod wire;
