//! The instruction gate can pass and can fail: counts of this build, kept and compared with themselves.

use std::{
    path::Path,
    process::{Command, Output},
};

use vswitch_benches::{netns::unique, tools::installed};

fn gate(file: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_core-cost"));
    command.arg("--gate").arg(file).args(["--only", "hit,tagged"]).args(words).output().expect("core-cost runs")
}

fn check(file: &Path, words: &[&str], status: i32, said: &[&str]) {
    let output = gate(file, words);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{words:?}: {text}");
    assert!(said.iter().all(|part| text.contains(part)), "{said:?} in {text}");
}

#[test]
fn the_same_code_passes_and_an_injected_slowdown_fails() {
    assert!(installed("valgrind"), "apt-get install valgrind");
    let file = std::env::temp_dir().join(unique("vswitch-gate-"));
    check(&file, &[], 1, &["cannot read"]);
    check(&file, &["--accept"], 0, &["[instructions]", "tagged = "]);
    check(&file, &[], 0, &["| tagged |", "+0.0 %", "Passed.\n"]);
    check(&file, &["--burden", "50"], 1, &["RISE", "Failed: more than 5 %"]);
    let other = std::fs::read_to_string(&file).expect("written").replace("rustc = \"rustc", "rustc = \"another rustc");
    std::fs::write(&file, other).expect("written");
    check(&file, &["--burden", "50"], 0, &["Not judged", "another rustc"]);
    std::fs::remove_file(&file).expect("it is there");
}
