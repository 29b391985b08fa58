//! A reader of our output that has had enough (`vswitch fdb show | head -1`) is no error: the command ends without a word, and
//! what it holds is removed on the way out.
//!
//! `println!` panics when its pipe is closed, which unwinds as it should; only the words are out of place. The signal
//! that ends other programs (SIGPIPE) would leave behind what `demo` and `bench` have made.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

/// What a shell reports of a program that SIGPIPE has ended.
const CLOSED_PIPE: u8 = 128 + 13;

fn is_closed_pipe(payload: &(dyn Any + Send)) -> bool {
    // The wording of std's `print_to`, with the error of EPIPE.
    payload
        .downcast_ref::<String>()
        .is_some_and(|text| text.starts_with("failed printing to stdout") && text.contains("Broken pipe"))
}

/// Does the work; a closed pipe ends it.
pub fn until_closed(work: impl FnOnce() -> ExitCode) -> ExitCode {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !is_closed_pipe(info.payload()) {
            usual(info);
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(code) => code,
        Err(payload) if is_closed_pipe(&*payload) => ExitCode::from(CLOSED_PIPE),
        Err(payload) => panic::resume_unwind(payload),
    }
}
