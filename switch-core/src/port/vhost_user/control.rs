//! The port's control thread: connections with VMs, one after the other, and their messages.
//!
//! The `vhost` crate speaks the protocol, `messages.rs` what it lacks; `device.rs` is the device behind both.
//!
//! `handle_request` blocks: a VMM that sends half a message stalls its own port only. Closing the port shuts the
//! connection down, which ends the wait.

use std::{
    cell::Cell,
    io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Instant,
};

use vhost::vhost_user::{BackendReqHandler, Error, Result, VhostUserBackendReqHandlerMut};

use super::{
    PENALTY, RETRY, Shared, VhostConfig,
    device::Device,
    features,
    messages::{self, Wish},
    ring::Fault,
};

/// So many VMs in a row may leave within [`RETRY`] without having started their driver. Those that follow are let in
/// twice a second and not written of: some VMMs whose device fails connect again thousands of times per second.
const FAILURES: u32 = 3;

/// What the thread needs to know of the port.
pub(super) struct Host {
    shared: Arc<Shared>,
    path: PathBuf,
    client: bool,
    offered: u64,
    /// VMs in a row that left at once.
    failed: Cell<u32>,
}

impl Host {
    pub(super) fn new(shared: Arc<Shared>, config: &VhostConfig) -> Host {
        let offered = features::offered(config.offload);
        Host { shared, path: config.path.clone(), client: config.client, offered, failed: Cell::new(0) }
    }

    /// Why no frame passes while there is no connection.
    pub(super) fn nobody(&self) -> String {
        let path = self.path.display();
        if self.client { format!("no VM listens on {path} yet") } else { format!("no VM is connected to {path} yet") }
    }

    /// Takes one VM after the other until the port is closed.
    pub(super) fn serve(&self, listener: &UnixListener) {
        while self.shared.wait(Some(listener.as_fd()), None) {
            match listener.accept() {
                Ok((stream, _)) => self.session(stream),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => {
                    // Out of descriptors, most likely: the VM waits, and so do we.
                    tracing::warn!(socket = %self.path.display(), "cannot accept a VM's connection: {e}");
                    self.shared.wait(None, Some(RETRY));
                }
            }
        }
    }

    /// Connects until the port is closed.
    pub(super) fn connect(&self) {
        loop {
            if self.shared.is_held_off() {
                self.shared.set_missing(Some("its link is set down: the switch stays away from the VM".to_owned()));
            } else {
                match UnixStream::connect(&self.path) {
                    Ok(stream) => self.session(stream),
                    Err(e) => self.shared.set_missing(Some(format!("{}: {e}", self.nobody()))),
                }
            }
            if !self.shared.wait(None, Some(RETRY)) {
                return;
            }
        }
    }

    /// One connection from its beginning to its end.
    fn session(&self, stream: UnixStream) {
        let path = self.path.display();
        let clones = stream.set_nonblocking(false).and_then(|()| Ok((stream.try_clone()?, stream.try_clone()?)));
        let Ok((other, peek)) = clones else { return };
        if !self.shared.begin(other) {
            self.shared.end();
            return;
        }
        let quiet = self.failed.get() > FAILURES;
        if !quiet {
            tracing::info!(socket = %path, "a VM has connected");
        }
        let (began, mut passed) = (Instant::now(), false);
        let device = Arc::new(Mutex::new(Device::new(Arc::clone(&self.shared), self.offered)));
        let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&device));
        let error = loop {
            let ours = messages::is_ours(&peek, || !lock(&device).features.has(features::PROTOCOL_FEATURES));
            let result = if ours { fulfil(&peek, &device) } else { handler.handle_request() };
            let mut device = lock(&device);
            if let Err(e) = result {
                break device.complaint.take().unwrap_or_else(|| e.to_string());
            }
            if device.passes() {
                passed = true;
                self.shared.set_missing(None);
            } else if !quiet {
                self.shared.set_missing(Some(format!("the VM on {path} has not started its network driver yet")));
            }
        };
        // All ends of the connection: the VM is to know at once, not after the rest that follows.
        drop((handler, peek));
        self.shared.end();
        match lock(&device).reset() {
            Some(fault) => {
                tracing::warn!(socket = %path, "the VM broke a ring and was disconnected: {fault}");
                self.shared.set_missing(Some(format!("{}; the last one broke a ring: {fault}", self.nobody())));
                // One that comes back to do it again is not worth a busy thread and a full log.
                self.shared.wait(None, Some(if fault == Fault::Call { PENALTY } else { RETRY }));
            }
            None if passed || began.elapsed() > RETRY => {
                self.failed.set(0);
                tracing::info!(socket = %path, "the VM has disconnected: {error}");
                self.shared.set_missing(Some(self.nobody()));
            }
            None => self.failure(&error),
        }
    }

    /// A VM left at once, without having started its driver.
    fn failure(&self, error: &str) {
        let (path, failed) = (self.path.display(), self.failed.get().saturating_add(1));
        self.failed.set(failed);
        if failed <= FAILURES {
            tracing::info!(socket = %path, "the VM has disconnected: {error}");
            self.shared.set_missing(Some(self.nobody()));
            return;
        }
        if failed == FAILURES + 1 {
            tracing::warn!(socket = %path, "VMs connect and leave at once, so they are let in twice a second: {error}");
        }
        let why = "VMs that connect leave at once, without starting their network driver; see what the VM says";
        self.shared.set_missing(Some(format!("{}: {why}", self.nobody())));
        self.shared.wait(None, Some(RETRY));
    }
}

/// Takes a message that is not the crate's and does what it says.
fn fulfil(stream: &UnixStream, device: &Mutex<Device>) -> Result<()> {
    let message = messages::take(stream).map_err(Error::SocketBroken)?;
    let mut device = lock(device);
    let result = match message.wish {
        Wish::Enable { ring, on } => device.set_vring_enable(ring, on),
        Wish::Announce(mac) => device.announce(mac),
        Wish::Mtu(mtu) => {
            // A VMM that is refused can still go on without.
            let refused = device.set_mtu(mtu).is_err();
            return message.acknowledge(stream, refused).map_err(Error::SocketBroken);
        }
        Wish::SetStatus(status) => device.set_status(status),
        Wish::GetStatus => {
            let status = device.status()?;
            return message.answer(stream, u64::from(status)).map_err(Error::SocketBroken);
        }
        Wish::LogDescriptor => Ok(()),
    };
    message.acknowledge(stream, result.is_err()).map_err(Error::SocketBroken)?;
    result
}

fn lock(device: &Mutex<Device>) -> std::sync::MutexGuard<'_, Device> {
    device.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
