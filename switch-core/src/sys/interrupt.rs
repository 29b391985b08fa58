//! Another thread's system call, cut short: a signal whose handler does nothing makes a call that waits return `EINTR`.

use std::sync::Once;

/// Ignored by default and used by nothing else here.
const SIGNAL: libc::c_int = libc::SIGURG;
static INSTALL: Once = Once::new();

extern "C" fn nothing(_signal: libc::c_int) {}

/// The number of the calling thread, for [`interrupt`].
#[must_use]
pub fn thread_id() -> i32 {
    // SAFETY: a plain system call that cannot fail.
    unsafe { libc::gettid() }
}

/// Interrupts the system call that a thread of this process waits in. One that is in none notices nothing; nor does a
/// thread that has got the number of one that has ended.
pub fn interrupt(thread: i32) {
    INSTALL.call_once(|| {
        // SAFETY: all-zero bytes are a valid sigaction; without SA_RESTART the call is not begun again. The handler does
        // nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut());
        }
    });
    // SAFETY: a plain system call; a thread that is not there is an error.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL);
    }
}
