//! Request and response, one after the other: what a host waits for an answer when nothing else is on the wire.
//!
//! One station sends a numbered frame and waits for the same number from the other, which sends every frame back as soon
//! as it sees it. Both ends cost the same whatever forwards; what is recorded includes them.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use switch_core::frame::offload::VNET_HDR_BYTES;

use super::{Fabric, fabric::mac};
use crate::{
    frames,
    measure::{SHORT_BYTES, go_on},
    results::Latency,
};

/// How long an answer may take before its request counts as lost.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the answering end sleeps at most before it looks whether all is over.
const GLANCE: Duration = Duration::from_millis(20);

/// What was found.
pub struct RoundTrips {
    /// Times from sending to the answer in ns.
    pub times: Histogram<u64>,
    /// Requests without an answer.
    pub lost: u64,
}

/// Asks for so long, from the first station to the second.
///
/// # Errors
/// An end is broken, or no answer came.
pub fn round_trips(fabric: &Fabric, time: Duration) -> anyhow::Result<RoundTrips> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (mut asked, mut answers) = (fabric.rx(1)?, fabric.tx(1, false)?);
        let over = &over;
        let echo = scope.spawn(move || -> anyhow::Result<()> {
            let mut due: Vec<Vec<u8>> = Vec::new();
            while !over.load(Relaxed) {
                asked.receive(GLANCE, &mut |frame| {
                    if frames::number_of(frame).is_some_and(|n| n.is_ok()) && frame[6..12] == mac(0).0 {
                        due.push(answer(frame));
                    }
                })?;
                while !due.is_empty() && !over.load(Relaxed) {
                    let taken = answers.send(&due)?;
                    due.drain(..taken);
                }
            }
            Ok(())
        });
        let found = ask(fabric, time);
        over.store(true, Relaxed);
        echo.join().map_err(|_| anyhow::anyhow!("the answering end panicked"))?.context("the answering end")?;
        let found = found?;
        ensure!(!found.times.is_empty(), "no request was answered");
        Ok(found)
    })
}

/// The frame with its addresses exchanged, behind an empty virtio-net header.
fn answer(frame: &[u8]) -> Vec<u8> {
    let mut back = vec![0; VNET_HDR_BYTES];
    back.extend_from_slice(&frame[6..12]);
    back.extend_from_slice(&frame[..6]);
    back.extend_from_slice(&frame[12..]);
    back
}

fn ask(fabric: &Fabric, time: Duration) -> anyhow::Result<RoundTrips> {
    let (mut requests, mut replies) = (fabric.tx(0, false)?, fabric.rx(0)?);
    let mut found = RoundTrips { times: Latency::recorder(), lost: 0 };
    let begin = Instant::now();
    let mut number = 0;
    while begin.elapsed() < time {
        go_on()?;
        number += 1;
        let request = frames::build(mac(1), mac(0), SHORT_BYTES, number);
        let request = [&[0; VNET_HDR_BYTES][..], &request].concat();
        let sent = Instant::now();
        while requests.send(std::slice::from_ref(&request))? == 0 {
            ensure!(sent.elapsed() < PATIENCE, "the asking end takes no frame");
        }
        let mut answered = None;
        while answered.is_none() && sent.elapsed() < PATIENCE {
            replies.receive(PATIENCE.saturating_sub(sent.elapsed()), &mut |frame| {
                if frame[6..12] == mac(1).0 && frames::number_of(frame) == Some(Ok(number)) {
                    answered.get_or_insert_with(|| sent.elapsed());
                }
            })?;
        }
        match answered {
            Some(took) => found.times.record(took.as_nanos() as u64)?,
            None => found.lost += 1,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_back_to_the_asker() {
        let request = frames::build(mac(1), mac(0), SHORT_BYTES, 7);
        let back = answer(&request);
        assert_eq!(back.len(), VNET_HDR_BYTES + SHORT_BYTES);
        assert_eq!((&back[12..18], &back[18..24]), (&mac(0).0[..], &mac(1).0[..]));
        assert_eq!(frames::number_of(&back[VNET_HDR_BYTES..]), Some(Ok(7)));
    }
}
