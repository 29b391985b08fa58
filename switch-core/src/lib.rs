//! The forwarding core of vswitch. Dependencies point down this list:
//!
//! ```text
//! hostdev     virtual functions of NICs, beside the switch
//! control     desired state, plan, executor, API server and wire types
//! network     gateways of networks: addresses, rules, DHCP and DNS
//! switch      the running engine: workers, publication, quiescence
//! worker      turn(): receive, judge, send, release
//! port        the PortRx / PortTx seam and its drivers
//! pipeline    parse -> classify -> learn -> decide; no I/O, no lock, no clock
//! clean       what the station behind a guarded port may say
//! fdb  topology  batch  egress  frame  verdict  stats
//! id  mac  clock  rate  durable  stages  burden  sys
//! ```

pub mod balance;
pub mod batch;
pub mod burden;
pub mod cidr;
pub mod clean;
pub mod clock;
pub mod control;
pub mod durable;
pub mod egress;
pub mod fdb;
pub mod frame;
pub mod hostdev;
pub mod id;
pub mod link;
pub mod mac;
pub mod netns;
pub mod network;
mod per_slot;
pub mod pipeline;
pub mod port;
pub mod rate;
pub mod stages;
pub mod stats;
pub mod switch;
pub mod sys;
pub mod topology;
mod transmit;
pub mod verdict;
pub mod worker;
