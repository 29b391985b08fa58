//! Notes which compiler makes this, for the instruction gate: see `gate.rs`.

use std::process::Command;

fn main() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("--version").output();
    let version = said.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    println!("cargo:rustc-env=VSWITCH_RUSTC={version}");
    println!("cargo:rerun-if-changed=build.rs");
}
