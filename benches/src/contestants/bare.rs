//! The bare loop: two TAPs, read one, write the other. What any switch on TAPs can at best be.
//!
//! It runs in a process of its own (`e2e loop`), so that counters can be attached to it as to any other contestant, and
//! does nothing but the system calls: no address is looked at, nothing is counted. It opens its TAPs with the calls of
//! vswitch, hence with the same headers and offloads; and as a switch must not let one direction starve the other, it
//! turns to the other TAP after so many frames, without asking `poll` again for what it knows.

use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use switch_core::{batch::BATCH_FRAMES, netns::run_in, sys::tap};

use crate::netns::{Namespace, Process};

/// A forwarder in a process of its own, killed on drop.
pub struct BareLoop {
    process: Process,
}

impl BareLoop {
    /// Starts this executable again, as `loop`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(hosts: [&Namespace; 2], device: &str, busy: bool) -> anyhow::Result<BareLoop> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("loop").args(hosts.map(|host| format!("{}:{device}", host.name())));
        if busy {
            command.arg("--busy");
        }
        // The open pipe is its life line: it ends when this process does, however that ends.
        let child = command.stdin(Stdio::piped()).process_group(0).spawn().context("cannot start the bare loop")?;
        Ok(BareLoop { process: Process(child) })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }
}

/// `e2e loop NETNS:DEVICE NETNS:DEVICE [--busy]`: makes both TAPs and forwards between them until standard input ends.
///
/// # Errors
/// A TAP cannot be made.
pub fn forward(ends: [&str; 2], busy: bool) -> anyhow::Result<()> {
    let open = |end: &str| -> anyhow::Result<File> {
        let (netns, device) = end.split_once(':').context("an end is NETNS:DEVICE")?;
        let file = run_in(Some(netns), || tap::attach_vnet(device, false))??;
        tap::set_offloads(file.as_raw_fd(), true)?;
        Ok(file)
    };
    let files = [open(ends[0])?, open(ends[1])?];
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let fds = [files[0].as_raw_fd(), files[1].as_raw_fd()];
    let mut buffer = vec![0u8; 65_536 + 64];
    let mut ready = [true, true];
    loop {
        if ready == [false, false] {
            let mut set = [0, 1].map(|i: usize| PollFd::new(files[i].as_fd(), PollFlags::POLLIN));
            if poll(&mut set, PollTimeout::NONE).is_err() {
                continue;
            }
            ready = [0, 1].map(|i: usize| set[i].any().unwrap_or(false));
        }
        for from in 0..2 {
            if !ready[from] {
                continue;
            }
            for _ in 0..BATCH_FRAMES {
                let Ok(n) = tap::read(fds[from], &mut buffer) else {
                    ready[from] = busy;
                    break;
                };
                // A frame that the other side refuses is lost, as on any wire.
                let _ = tap::write(fds[1 - from], &buffer[..n]);
            }
        }
    }
}
