//! The bare loop: two TAPs, read one, write the other. What any switch on TAPs can at best be.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use switch_core::sys::tap;

use crate::netns::Namespace;

/// How often a blocked loop looks whether it should stop.
const STOP_MS: u16 = 50;

/// A forwarder on a thread of its own, until it is dropped.
pub struct BareLoop {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BareLoop {
    /// Makes a TAP with all offloads in each namespace and forwards between them; `busy`: polls without sleeping.
    ///
    /// # Errors
    /// A TAP cannot be made.
    pub fn start(a: (&Namespace, &str), b: (&Namespace, &str), busy: bool) -> anyhow::Result<BareLoop> {
        let open = |(namespace, device): (&Namespace, &str)| -> anyhow::Result<File> {
            let file = namespace.run(|| tap::attach_vnet(device, false))??;
            tap::set_offloads(file.as_raw_fd(), true)?;
            Ok(file)
        };
        let files = [open(a)?, open(b)?];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0u8; 65_536 + 64];
            while !stopped.load(Relaxed) {
                let mut ready = [true, true];
                if !busy {
                    let mut set = [0, 1].map(|i: usize| PollFd::new(files[i].as_fd(), PollFlags::POLLIN));
                    if poll(&mut set, PollTimeout::from(STOP_MS)).unwrap_or(0) == 0 {
                        continue;
                    }
                    ready = [0, 1].map(|i: usize| set[i].any().unwrap_or(false));
                }
                for from in 0..2 {
                    if !ready[from] {
                        continue;
                    }
                    while let Ok(n) = tap::read(files[from].as_raw_fd(), &mut buffer) {
                        // A frame that the other side refuses is lost, as on any wire.
                        let _ = tap::write(files[1 - from].as_raw_fd(), &buffer[..n]);
                    }
                }
            }
        });
        Ok(BareLoop { stop, thread: Some(thread) })
    }
}

impl Drop for BareLoop {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
