//! Interrupting the guest: a write to an eventfd that the VMM gave.
//!
//! The descriptor is set non-blocking when it comes, but it is shared: a VMM can fill it to the brim and make it block
//! again, and the write would never return. There is no write to an eventfd that cannot be made to wait, and to ask
//! first would be a system call per interrupt, and a race. So a thread looks, some tens of times per second while there
//! are interrupts, whether a worker is in the same write as before, and cuts that short by a signal. A worker pays two
//! stores and two loads per interrupt, which is a system call anyway. The VM is then disconnected.

use std::{
    fs::File,
    io::{self, Write},
    sync::{
        Arc, Once, Weak,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, Release, SeqCst},
        },
    },
    thread::Thread,
    time::Duration,
};

use parking_lot::Mutex;

use crate::sys::interrupt::{interrupt, thread_id};

/// How often the watchdog looks. A write that it finds twice is cut short.
const PERIOD: Duration = Duration::from_millis(10);
/// Looks without any interrupt until it sleeps.
const IDLE_LOOKS: u32 = 100;

/// One thread that interrupts guests.
struct Caller {
    thread: i32,
    /// Odd: in a write.
    writes: AtomicU64,
}

static CALLERS: Mutex<Vec<Weak<Caller>>> = Mutex::new(Vec::new());
/// The watchdog sleeps until it is woken.
static ASLEEP: AtomicBool = AtomicBool::new(false);
static WATCHDOG: Mutex<Option<Thread>> = Mutex::new(None);
static START: Once = Once::new();

thread_local! {
    static CALLER: Arc<Caller> = {
        let caller = Arc::new(Caller { thread: thread_id(), writes: AtomicU64::new(0) });
        CALLERS.lock().push(Arc::downgrade(&caller));
        caller
    };
}

/// Starts the watchdog, once per process.
///
/// # Errors
/// There can be no further thread.
pub fn watch() -> io::Result<()> {
    let mut result = Ok(());
    START.call_once(|| {
        result = std::thread::Builder::new().name("vhost-watchdog".to_owned()).spawn(look).map(|handle| {
            *WATCHDOG.lock() = Some(handle.thread().clone());
        });
    });
    result
}

fn look() {
    let mut seen: Vec<(Weak<Caller>, u64, bool)> = Vec::new();
    let mut idle = 0;
    loop {
        std::thread::sleep(PERIOD);
        {
            let mut callers = CALLERS.lock();
            seen.extend(callers.drain(..).map(|caller| (caller, 0, false)));
        }
        idle += 1;
        seen.retain_mut(|(caller, before, again)| {
            let Some(caller) = caller.upgrade() else { return false };
            let now = caller.writes.load(SeqCst);
            let lasts = now % 2 == 1 && now == *before;
            if lasts && *again {
                interrupt(caller.thread);
            }
            if lasts || now != *before {
                idle = 0;
            }
            (*before, *again) = (now, lasts);
            true
        });
        if idle >= IDLE_LOOKS {
            ASLEEP.store(true, SeqCst);
            // Whoever has counted before it could see that is seen here.
            let moved = |(caller, before, _): &(Weak<Caller>, u64, bool)| {
                caller.upgrade().is_some_and(|caller| caller.writes.load(SeqCst) != *before)
            };
            if seen.iter().any(moved) || !CALLERS.lock().is_empty() {
                ASLEEP.store(false, SeqCst);
            }
            while ASLEEP.load(SeqCst) {
                std::thread::park();
            }
            idle = 0;
        }
    }
}

#[cold]
fn wake() {
    ASLEEP.store(false, SeqCst);
    if let Some(thread) = &*WATCHDOG.lock() {
        thread.unpark();
    }
}

/// Interrupts the guest; false if that had to be cut short.
pub fn call(mut descriptor: &File) -> bool {
    CALLER.with(|caller| {
        // Nobody else writes to it. Before the look at the watchdog, which looks at it after it has fallen asleep.
        let before = caller.writes.load(Relaxed);
        caller.writes.store(before.wrapping_add(1), SeqCst);
        if ASLEEP.load(SeqCst) {
            wake();
        }
        let written = descriptor.write(&1u64.to_ne_bytes());
        caller.writes.store(before.wrapping_add(2), Release);
        // An eventfd that cannot take more has an interrupt pending already.
        !matches!(written, Err(e) if e.kind() == io::ErrorKind::Interrupted)
    })
}
