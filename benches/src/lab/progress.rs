//! How far a run is, with the time that is left: one line that is drawn anew on a terminal, otherwise a line per turn.

use std::{
    io::{IsTerminal, Write, stderr},
    time::{Duration, Instant},
};

/// Characters of the bar.
const WIDTH: usize = 24;

/// See the module page.
pub struct Progress {
    total: usize,
    done: usize,
    begin: Instant,
    terminal: bool,
}

impl Progress {
    /// Nothing of `total` turns is done.
    #[must_use]
    pub fn new(total: usize) -> Progress {
        Progress { total, done: 0, begin: Instant::now(), terminal: stderr().is_terminal() }
    }

    /// This is what begins now.
    pub fn begin(&mut self, what: &str) {
        let line = line(self.done, self.total, self.begin.elapsed(), what, self.terminal);
        let mut out = stderr().lock();
        let _ = if self.terminal { write!(out, "\r\x1b[2K{line}") } else { writeln!(out, "{line}") };
        let _ = out.flush();
    }

    /// It is done.
    pub fn end(&mut self) {
        self.done += 1;
    }

    /// Something that must be said in a line of its own.
    pub fn say(&self, what: &str) {
        let clear = if self.terminal { "\r\x1b[2K" } else { "" };
        let _ = writeln!(stderr(), "{clear}{what}");
    }

    /// Leaves the terminal as it was.
    pub fn finish(&self) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[2K");
        }
    }
}

fn line(done: usize, total: usize, elapsed: Duration, what: &str, bar: bool) -> String {
    let left = if done == 0 {
        String::new()
    } else {
        let left = elapsed.mul_f64((total - done.min(total)) as f64 / done as f64).as_secs();
        format!(", about {}:{:02} left", left / 60, left % 60)
    };
    if !bar {
        return format!("[{}/{total}{left}] {what}", done + 1);
    }
    let full = WIDTH * done / total.max(1);
    format!("[{}{}] {}/{total}{left}  {what}", "#".repeat(full), ".".repeat(WIDTH - full), done + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_and_how_long() {
        let time = Duration::from_secs(30);
        assert_eq!(line(0, 4, time, "netns vswitch", false), "[1/4] netns vswitch");
        assert_eq!(line(1, 4, time, "x", false), "[2/4, about 1:30 left] x");
        assert_eq!(line(2, 4, time, "x", true), "[############............] 3/4, about 0:30 left  x");
    }
}
