//! The laboratory: namespaces, a generator and a sink of numbered frames, contestants, a virtio-net driver without a VM,
//! and statistics. Used by `vswitch demo`, the benchmarks and the tests.

pub mod cases;
pub mod compare;
pub mod contestants;
pub mod counters;
pub mod cpu;
pub mod dpdk;
pub mod ends;
pub mod frames;
pub mod frontend;
pub mod gate;
pub mod lab;
pub mod measure;
pub mod nat;
pub mod netns;
pub mod noise;
pub mod output;
pub mod packets;
pub mod pairs;
pub mod replay;
pub mod report;
pub mod results;
pub mod run;
pub mod scale;
pub mod search;
pub mod selftest;
pub mod stats;
pub mod tools;
pub mod traffic;
pub mod turns;
pub mod vhost;
