//! The fuzz corpora, for ever, and a short walk around each of them.
//!
//! A crash of a fuzzer becomes a file in `tests/corpus/`. `VSWITCH_SIM_SEED` gives the walk another seed.

use std::path::Path;

use vswitch_benches::netns::wait_for;
use vswitch_tests::{
    PATIENCE,
    fuzz::{fuzz_api, fuzz_clean, fuzz_config, fuzz_frame, mutate, remove_api},
    fuzz_vhost::{fuzz_vhost, remove_vhost, vhost_coverage},
    rng::Rng,
};

fn replay(name: &str, rounds: usize, target: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut paths: Vec<_> =
        std::fs::read_dir(&directory).expect("a corpus").map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", directory.display());
    let corpus: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).expect("readable")).collect();
    for (path, data) in paths.iter().zip(&corpus) {
        run(&target, data, &path.display().to_string());
    }
    let seed = std::env::var("VSWITCH_SIM_SEED").map_or(1, |text| text.parse().expect("a number"));
    let mut rng = Rng::new(seed);
    for round in 0..rounds {
        let (one, other) = (rng.below(corpus.len()), rng.below(corpus.len()));
        let data = mutate(&mut rng, &corpus[one], &corpus[other]);
        run(&target, &data, &format!("round {round} of VSWITCH_SIM_SEED={seed}"));
    }
}

/// A failure says which input it was, and keeps it.
fn run(target: &(impl Fn(&[u8]) + std::panic::RefUnwindSafe), data: &[u8], what: &str) {
    if let Err(panic) = std::panic::catch_unwind(|| target(data)) {
        let kept = std::env::temp_dir().join(format!("vswitch-crash-{}", std::process::id()));
        std::fs::write(&kept, data).expect("written");
        eprintln!("{what} failed; the input is in {}: put it into tests/corpus/", kept.display());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn frames() {
    replay("frame", 1500, fuzz_frame);
}

#[test]
fn clean_ports() {
    replay("clean", 20_000, fuzz_clean);
}

#[test]
fn configurations() {
    replay("config", 4000, |data| fuzz_config(&String::from_utf8_lossy(data)));
}

#[test]
fn requests() {
    struct Cleaner;
    impl Drop for Cleaner {
        fn drop(&mut self) {
            remove_api();
        }
    }
    let _cleaner = Cleaner;
    replay("api", 400, fuzz_api);
}

#[test]
fn messages_of_a_vmm() {
    struct Cleaner;
    impl Drop for Cleaner {
        fn drop(&mut self) {
            remove_vhost();
        }
    }
    let _cleaner = Cleaner;
    replay("vhost", 400, fuzz_vhost);
    let mut coverage = (0, 0);
    wait_for("frames pass and rings break", PATIENCE, || {
        coverage = vhost_coverage();
        coverage.0 > 20 && coverage.1 > 5
    })
    .unwrap_or_else(|e| panic!("{e}: {coverage:?}"));
}
