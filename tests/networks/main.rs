//! Virtual networks with everything real: a namespace is the host that the switch runs in, another one the world outside,
//! others are guests, so that the machine's own rules and settings are not touched.

mod host;
mod lab;
mod members;
mod modes;
mod pools;
mod services;
mod uplinks;
