//! The connection behind a stream port, as its receive half, its transmit half and its control thread share it.
//!
//! The control thread puts a connection in ([`Line::install`]) when there is none; only the receive half takes it out
//! again ([`Line::hang_up`]), after it has read what was left in it. The transmit half, which any worker may use, shuts a
//! connection that fails down, so that the receive half finds its end.
//!
//! The descriptor that workers watch is an epoll set of its own, which stays while connections change. In it the
//! connection is watched level-triggered: for reading always, for writing only while the rest of a half-written frame
//! waits. Every arrival wakes the outer, edge-triggered set, and so does the room for the rest: then the worker that owns
//! the receive half goes on writing, whichever worker left the frame half-written.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
        socket::{MsgFlags, Shutdown, send, shutdown},
    },
};
use parking_lot::Mutex;

use crate::{
    batch::MAX_FRAME_BYTES,
    egress::OutFrame,
    frame::vlan::TAG_BYTES,
    port::{Notifier, Sent},
    sys::send::{self, LENGTH_BYTES},
};

/// The rest of one frame, which may have got a tag on its way.
const TAIL_BYTES: usize = LENGTH_BYTES + MAX_FRAME_BYTES + TAG_BYTES;
/// How often an interrupted call is made again.
const ATTEMPTS: usize = 4;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// None has come yet.
    Never,
    /// The other side has closed it.
    Left,
    /// What came in were no frames.
    OutOfStep,
    /// It cannot be made, or has failed.
    Failed(String),
}

/// What the control side knows.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Why there is no connection; `None`: there is one.
    pub(super) absent: Option<Absent>,
    /// Connections so far.
    pub(super) number: u64,
}

struct Outgoing {
    socket: Option<Arc<OwnedFd>>,
    /// It has failed and was shut down; the receive half will take it out.
    broken: bool,
    tail: Box<[u8]>,
    /// What of the tail is still to be written.
    from: usize,
    to: usize,
}

pub(super) struct Line {
    watched: Epoll,
    connected: AtomicBool,
    tail_waits: AtomicBool,
    errors: AtomicU64,
    out: Mutex<Outgoing>,
    state: Mutex<State>,
    wake: EventFd,
    stopping: AtomicBool,
    notifier: Notifier,
}

fn interest(write: bool) -> EpollEvent {
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
    EpollEvent::new(if write { flags | EpollFlags::EPOLLOUT } else { flags }, 0)
}

impl Line {
    pub(super) fn new(notifier: Notifier) -> nix::Result<Line> {
        Ok(Line {
            watched: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            connected: AtomicBool::new(false),
            tail_waits: AtomicBool::new(false),
            errors: AtomicU64::new(0),
            out: Mutex::new(Outgoing {
                socket: None,
                broken: false,
                tail: vec![0; TAIL_BYTES].into_boxed_slice(),
                from: 0,
                to: 0,
            }),
            state: Mutex::new(State { absent: Some(Absent::Never), number: 0 }),
            wake: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            stopping: AtomicBool::new(false),
            notifier,
        })
    }

    /// The descriptor that workers watch.
    pub(super) fn readiness(&self) -> RawFd {
        self.watched.0.as_raw_fd()
    }

    // The receive half's.

    /// The connection that was put in, if there is one.
    pub(super) fn take_up(&self) -> Option<Arc<OwnedFd>> {
        if self.connected.load(Acquire) { self.out.lock().socket.clone() } else { None }
    }

    /// Goes on writing a half-written frame, if there is one.
    pub(super) fn flush(&self) {
        if self.tail_waits.load(Acquire) {
            let mut out = self.out.lock();
            if let Some(socket) = out.socket.clone() {
                self.write_tail(&mut out, &socket);
            }
        }
    }

    /// Takes the connection out.
    pub(super) fn hang_up(&self, why: Absent) {
        let mut out = self.out.lock();
        if let Some(socket) = out.socket.take() {
            // It fails only if the descriptor left the set by itself.
            let _ = self.watched.delete(&socket);
        }
        (out.broken, out.from, out.to) = (false, 0, 0);
        self.tail_waits.store(false, Release);
        // While the lock is held, so that it cannot be said of the next connection.
        self.state.lock().absent = Some(why);
        self.connected.store(false, Release);
        drop(out);
        self.wake();
        self.notifier.notify();
    }

    /// Counts something that the other side should not have done; true if it is the first.
    pub(super) fn count_error(&self) -> bool {
        self.errors.fetch_add(1, Relaxed) == 0
    }

    /// How many of these there were; never goes back.
    pub(super) fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    // The transmit half's.

    /// Sends frames, or drops and counts them.
    pub(super) fn tx(&self, mut left: &[OutFrame<'_>]) -> Sent {
        let mut sent = Sent::default();
        let mut out = self.out.lock();
        let Some(socket) = out.socket.clone().filter(|_| !out.broken) else {
            sent.port_down = left.len() as u32;
            return sent;
        };
        let mut interrupted = 0;
        while !left.is_empty() {
            if !self.write_tail(&mut out, &socket) {
                break;
            }
            match send::stream(socket.as_raw_fd(), left) {
                Ok((offered, taken)) => {
                    let done = self.account(&mut out, &socket, &left[..offered], taken, &mut sent);
                    left = &left[done..];
                    if done < offered {
                        break;
                    }
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) if interrupted < ATTEMPTS => interrupted += 1,
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EINTR) => break,
                    Some(libc::EMSGSIZE) => {
                        sent.too_big += 1;
                        left = &left[1..];
                    }
                    _ => {
                        self.give_up(&mut out, &socket);
                        break;
                    }
                },
            }
        }
        let rest = left.len() as u32;
        if out.broken {
            sent.port_down += rest;
        } else {
            sent.queue_full += rest;
        }
        sent
    }

    /// Counts the frames that begin in the first `taken` bytes of what was offered, and keeps the rest of the last one.
    fn account(
        &self,
        out: &mut Outgoing,
        socket: &Arc<OwnedFd>,
        offered: &[OutFrame<'_>],
        taken: usize,
        sent: &mut Sent,
    ) -> usize {
        let mut left = taken;
        for (index, frame) in offered.iter().enumerate() {
            if left == 0 {
                return index;
            }
            sent.frames += 1;
            sent.bytes += u64::from(frame.len);
            let whole = LENGTH_BYTES + frame.len as usize;
            if left < whole {
                out.tail[..LENGTH_BYTES].copy_from_slice(&frame.len.to_be_bytes());
                if frame.copy_to(&mut out.tail[LENGTH_BYTES..]).is_none() {
                    // Longer than any frame the switch carries; the stream cannot be kept in step.
                    self.give_up(out, socket);
                    return index + 1;
                }
                (out.from, out.to) = (left, whole);
                self.tail_waits.store(true, Release);
                // A failure only means that the rest waits for the next frame.
                let _ = self.watched.modify(socket, &mut interest(true));
                return index + 1;
            }
            left -= whole;
        }
        offered.len()
    }

    /// Writes what is left of a half-written frame; true if frames can follow.
    fn write_tail(&self, out: &mut Outgoing, socket: &Arc<OwnedFd>) -> bool {
        if out.from == out.to {
            return !out.broken;
        }
        for _ in 0..ATTEMPTS {
            match send(socket.as_raw_fd(), &out.tail[out.from..out.to], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
            {
                Ok(n) => out.from += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return false,
                Err(_) => {
                    self.give_up(out, socket);
                    return false;
                }
            }
            if out.from == out.to {
                self.tail_waits.store(false, Release);
                let _ = self.watched.modify(socket, &mut interest(false));
                return true;
            }
        }
        false
    }

    /// The connection has failed: the receive half will find its end.
    fn give_up(&self, out: &mut Outgoing, socket: &Arc<OwnedFd>) {
        (out.broken, out.from, out.to) = (true, 0, 0);
        self.tail_waits.store(false, Release);
        let _ = self.watched.modify(socket, &mut interest(false));
        // It fails only if the other side has ended the connection already.
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
    }

    // The control side's.

    /// Puts a connection in; there is none.
    pub(super) fn install(&self, socket: OwnedFd) -> nix::Result<()> {
        let socket = Arc::new(socket);
        let mut out = self.out.lock();
        {
            let mut state = self.state.lock();
            state.absent = None;
            state.number += 1;
        }
        out.socket = Some(Arc::clone(&socket));
        // Before the descriptor can wake the receive half, which then waits for the lock.
        self.connected.store(true, Release);
        if let Err(e) = self.watched.add(&socket, interest(false)) {
            out.socket = None;
            self.connected.store(false, Release);
            self.state.lock().absent = Some(Absent::Failed(e.to_string()));
            return Err(e);
        }
        drop(out);
        self.notifier.notify();
        Ok(())
    }

    /// Whether a connection can be put in.
    pub(super) fn is_free(&self) -> bool {
        !self.connected.load(Acquire)
    }

    /// Whether the other side has ended the connection, and the receive half has yet to find that.
    pub(super) fn is_ending(&self) -> bool {
        let Some(socket) = self.out.lock().socket.clone() else { return true };
        let mut set = [PollFd::new(socket.as_fd(), PollFlags::from_bits_retain(libc::POLLRDHUP))];
        poll(&mut set, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    pub(super) fn state(&self) -> State {
        self.state.lock().clone()
    }

    pub(super) fn excuse(&self, why: Absent) {
        let mut state = self.state.lock();
        if state.absent.is_some() && state.absent.as_ref() != Some(&why) {
            state.absent = Some(why);
            drop(state);
            self.notifier.notify();
        }
    }

    pub(super) fn notify(&self) {
        self.notifier.notify();
    }

    fn wake(&self) {
        // The counter saturates at 2^64 - 2; the thread reads it long before.
        let _ = self.wake.write(1);
    }

    /// Ends the control thread.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Release);
        self.wake();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Acquire)
    }

    /// Waits until a descriptor is ready (true), or the line wants the thread's attention or so much time has passed.
    pub(super) fn wait(&self, other: Option<(BorrowedFd<'_>, PollFlags)>, timeout: Option<Duration>) -> bool {
        let timeout = timeout.map_or(PollTimeout::NONE, |t| PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX));
        let wake = PollFd::new(self.wake.as_fd(), PollFlags::POLLIN);
        let ready = if let Some((fd, flags)) = other {
            let mut set = [wake, PollFd::new(fd, flags)];
            poll(&mut set, timeout).is_ok() && set[1].any().unwrap_or(false)
        } else {
            let _ = poll(&mut [wake], timeout);
            false
        };
        let _ = self.wake.read();
        ready
    }

    /// Waits so long, unless the thread is to end.
    pub(super) fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_stopping() {
                return;
            }
            self.wait(None, Some(left));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;
    use crate::{
        batch::Batch,
        frame::offload::{Offload, VNET_HDR_BYTES},
        port::{PortRx, RxStatus, stream::StreamRx},
    };

    const FRAME_BYTES: usize = 60_000;

    fn frame(memory: &[u8]) -> OutFrame<'_> {
        let len = (memory.len() - VNET_HDR_BYTES) as u32;
        OutFrame { first: memory, rest: &[], tail: &[], offload: Offload::NONE, len }
    }

    /// A line with a connection that holds little, its receive half, and the other side.
    fn line() -> (Arc<Line>, StreamRx, UnixStream) {
        let line = Arc::new(Line::new(Notifier::new(|| {})).expect("descriptors"));
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        setsockopt(&ours, sockopt::SndBuf, &40_000).expect("set");
        theirs.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        line.install(ours.into()).expect("watched");
        let rx = StreamRx::new(Arc::clone(&line));
        (line, rx, theirs)
    }

    fn is_ready(line: &Line) -> bool {
        poll(&mut [PollFd::new(line.watched.0.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).expect("polled") > 0
    }

    #[test]
    fn a_half_written_frame_wakes_the_receive_half_which_finishes_it() {
        let (line, mut rx, mut theirs) = line();
        let mut batch = Batch::new();
        let memory = vec![3; VNET_HDR_BYTES + FRAME_BYTES];
        let mut taken = 0;
        let refused = loop {
            let sent = line.tx(&[frame(&memory), frame(&memory)]);
            assert_eq!(sent.frames + sent.queue_full, 2);
            taken += sent.frames as usize;
            if sent.queue_full == 2 {
                break sent;
            }
            assert!(taken < 100, "a small buffer fills");
        };
        assert_eq!(refused, Sent { queue_full: 2, ..Sent::default() });
        assert!(line.tail_waits.load(Relaxed), "a frame is half written");
        assert_eq!(rx.rx(&mut batch), RxStatus::Drained);
        assert!(!is_ready(&line), "nothing can be done yet");
        let mut all = vec![0; taken * (LENGTH_BYTES + FRAME_BYTES)];
        let mut read = 0;
        while read < all.len() {
            // Whatever the other side takes makes room, and room makes the set ready.
            read += theirs.read(&mut all[read..]).expect("bytes");
            if line.tail_waits.load(Relaxed) && is_ready(&line) {
                assert_eq!(rx.rx(&mut batch), RxStatus::Drained);
            }
        }
        assert!(!line.tail_waits.load(Relaxed) && !is_ready(&line), "writing is watched no longer");
        for part in all.chunks(LENGTH_BYTES + FRAME_BYTES) {
            assert_eq!(part[..LENGTH_BYTES], (FRAME_BYTES as u32).to_be_bytes());
            assert!(part[LENGTH_BYTES..].iter().all(|b| *b == 3));
        }
        assert_eq!(line.tx(&[frame(&memory)]).frames, 1, "frames pass again");
    }

    #[test]
    fn a_connection_that_fails_in_the_middle_of_a_frame_leaves_nothing_to_the_next() {
        let (line, mut rx, theirs) = line();
        let mut batch = Batch::new();
        let memory = vec![3; VNET_HDR_BYTES + FRAME_BYTES];
        while line.tx(&[frame(&memory)]).frames == 1 {}
        assert!(line.tail_waits.load(Relaxed));
        drop(theirs);
        assert_eq!(line.tx(&[frame(&memory)]).port_down, 1);
        assert!(is_ready(&line) && !line.is_free(), "the receive half is woken");
        assert_eq!(rx.rx(&mut batch), RxStatus::Drained);
        assert!(line.is_free() && !is_ready(&line));
        assert_eq!(line.state().absent, Some(Absent::Left));
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        line.install(ours.into()).expect("watched");
        assert_eq!(line.tx(&[frame(&memory[..VNET_HDR_BYTES + 60])]).frames, 1);
        let mut bytes = [0; LENGTH_BYTES + 60];
        theirs.read_exact(&mut bytes).expect("a frame");
        assert_eq!(bytes[..LENGTH_BYTES], [0, 0, 0, 60]);
    }
}
