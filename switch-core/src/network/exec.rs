//! Programs that are run to their end, in bounded time.

use std::{
    io::{self, Read, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// No program here takes longer unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Runs a program in the calling thread's namespace; returns what it prints. One that does not end is killed.
///
/// # Errors
/// It is missing (the error names its package), does not end, or fails (the error is the first line of what it says).
pub fn run(program: &str, package: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::new(e.kind(), format!("{program} is missing; install {package}")),
        _ => io::Error::new(e.kind(), format!("cannot run {program}: {e}")),
    })?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        // If it goes away without reading, its exit status says why.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        let out = scope.spawn(move || read(stdout));
        let err = scope.spawn(move || read(stderr));
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    child.kill()?;
                    child.wait()?;
                    return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{program} does not end")));
                }
                None => std::thread::sleep(LOOK),
            }
        };
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        if status.success() {
            return Ok(out);
        }
        let first = err.lines().find(|line| !line.trim().is_empty()).map_or("it says nothing", str::trim);
        Err(io::Error::other(format!("{program} refuses: {first}")))
    })
}

fn read(from: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    // What was read before it failed is what there is.
    let _ = from.map(|mut from| from.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::run;

    #[test]
    fn errors_name_the_mend_or_say_what_the_program_says() {
        assert_eq!(run("cat", "coreutils", &[], "hello").expect("runs"), "hello");
        let missing = run("vswitch-no-such", "a-package", &[], "").expect_err("missing").to_string();
        assert_eq!(missing, "vswitch-no-such is missing; install a-package");
        let refused = run("cat", "coreutils", &["/nonexistent"], "").expect_err("fails").to_string();
        assert!(refused.starts_with("cat refuses: cat: /nonexistent"), "{refused}");
    }
}
