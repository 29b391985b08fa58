//! A switch, and the sockets that its guests know.

use std::path::PathBuf;

use anyhow::Context;
use vswitch_benches::netns::{unique, wait_for};
use vswitch_tests::{
    Daemon,
    guest::{GUEST_PATIENCE, Guest, Machine, Turn, turn},
};

/// A switch whose sockets lie in a directory of their own.
pub struct Lab {
    /// The switch.
    pub daemon: Daemon,
    /// Where the sockets are.
    pub directory: Sockets,
    _turn: Turn,
}

/// A directory that goes away.
pub struct Sockets(PathBuf);

impl Sockets {
    /// The socket of one port.
    pub fn path(&self, port: &str) -> PathBuf {
        self.0.join(port)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Lab {
    /// Starts a switch with these domains and ports; `@` in a SPEC is the directory of the sockets. `None` where no guest
    /// can be booted, which was said.
    pub fn new(domains: &[&str], ports: &[&str]) -> Option<Lab> {
        let turn = turn()?;
        let directory = Sockets(std::env::temp_dir().join(unique("vswitch-guests-")));
        std::fs::create_dir(&directory.0).expect("made");
        let mut arguments = Vec::new();
        for domain in domains {
            arguments.extend(["--domain".to_owned(), (*domain).to_owned()]);
        }
        for port in ports {
            arguments.extend(["--port".to_owned(), port.replace('@', &directory.0.to_string_lossy())]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let daemon = Daemon::start(&arguments).expect("the switch starts");
        Some(Lab { daemon, directory, _turn: turn })
    }

    /// The socket of one port.
    pub fn path(&self, port: &str) -> PathBuf {
        self.directory.path(port)
    }

    /// Waits until ports are up.
    pub fn wait_up(&self, ports: &[&str]) {
        for port in ports {
            self.daemon.wait_state(port, "up").expect("the driver starts");
        }
    }
}

/// Milliseconds between two pings of [`Pings`].
const INTERVAL_MS: u64 = 200;

/// A guest that pings another one all the time.
pub struct Pings<'a>(&'a Guest);

/// What became of pings.
pub struct Outcome {
    sent: u64,
    answered: u64,
    longest_gap_ms: u64,
}

impl<'a> Pings<'a> {
    pub fn start(guest: &'a Guest, address: &str) -> anyhow::Result<Pings<'a>> {
        guest.spawn("pings", &format!("ping -i 0.{INTERVAL_MS} {address}"))?;
        Ok(Pings(guest))
    }

    fn answered(&self) -> anyhow::Result<u64> {
        Ok(self.0.sh("grep -c seq= /tmp/pings || true")?.trim().parse()?)
    }

    /// Waits until further ones are answered.
    pub fn more(&self) -> anyhow::Result<()> {
        let before = self.answered()?;
        wait_for("further pings are answered", GUEST_PATIENCE, || self.answered().is_ok_and(|n| n >= before + 3))
    }

    pub fn stop(self) -> anyhow::Result<Outcome> {
        self.0.sh("killall -INT ping")?;
        let (_, output) = self.0.finish("pings")?;
        let answers: Vec<(u64, f64)> = output.lines().filter_map(answer).collect();
        let sent = output.lines().find_map(|line| line.split_once(" packets transmitted")?.0.parse().ok());
        // What waited in a ring while nobody read it is answered late: count from answer to answer.
        let arrivals: Vec<f64> = answers.iter().map(|(n, took)| (n * INTERVAL_MS) as f64 + took).collect();
        let longest = arrivals.windows(2).map(|two| two[1] - two[0]).fold(0.0, f64::max);
        Ok(Outcome { sent: sent.context("a summary")?, answered: answers.len() as u64, longest_gap_ms: longest as u64 })
    }
}

/// The number of an answered ping, and how long it took in milliseconds.
fn answer(line: &str) -> Option<(u64, f64)> {
    let number = line.split_once("seq=")?.1.split_whitespace().next()?.parse().ok()?;
    Some((number, line.split_once("time=")?.1.split_whitespace().next()?.parse().ok()?))
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let missing = self.sent - self.answered;
        write!(f, "{missing} of {} pings unanswered, at most {} ms between two answers", self.sent, self.longest_gap_ms)
    }
}

/// A shell line that fetches a guest's long file in some ten seconds and prints its checksum; `/tmp/chunk` holds the last piece.
pub fn slow_fetch(address: &str) -> String {
    format!(
        "rm -f /tmp/chunk; wget -q -O - http://{address}/long | \
         while dd bs=64k count=1 of=/tmp/chunk 2>/dev/null && [ -s /tmp/chunk ]; do cat /tmp/chunk; usleep 200000; done | \
         md5sum"
    )
}

/// The checksum of the file that [`slow_fetch`] fetches.
pub fn long_checksum(guest: &Guest) -> String {
    let line = guest.sh("md5sum </srv/long").expect("a sum");
    line.split_whitespace().next().expect("a sum").to_owned()
}
