//! Tells the binary which commit it was built from: results of `vswitch bench` say so. Nothing where there is no git.

use std::process::Command;

fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn main() {
    for source in ["build.rs", "src", "../switch-core/src", "../benches/src"] {
        println!("cargo::rerun-if-changed={source}");
    }
    // What a commit or a checkout changes.
    for path in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", path]).filter(|path| std::path::Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    if let Some(commit) = git(&["describe", "--always", "--exclude=*", "--abbrev=12", "--dirty"]) {
        println!("cargo::rustc-env=VSWITCH_COMMIT={commit}");
    }
}
