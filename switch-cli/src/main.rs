//! The `vswitch` command.
fn main() {}
