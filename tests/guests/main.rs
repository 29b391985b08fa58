//! Real guests of QEMU on a running switch: see [`vswitch_tests::guest`] for what boots.

mod isolation;
mod lab;
mod life;
mod migration;
mod pairs;
mod taps;
mod wires;
