//! The seam: every kind of port forwards to every other, what was sent and in order.

use std::time::Instant;

use switch_core::worker::PollMode;
use vswitch_benches::{
    frames,
    pairs::{KINDS, Lab},
};
use vswitch_tests::PATIENCE;

const FRAMES: u64 = 200;

#[test]
fn every_kind_of_port_forwards_to_every_other() {
    for poll in [PollMode::Adaptive, PollMode::Interrupt] {
        let mut lab = Lab::new(poll).expect("root");
        for (from, source) in KINDS.iter().enumerate() {
            for (to, sink) in KINDS.iter().enumerate().filter(|(to, _)| *to != from) {
                let names = format!("{source} to {sink}, {poll:?}");
                let mut sent: Vec<Vec<u8>> =
                    (0..FRAMES).map(|n| frames::build(Lab::mac(to), Lab::mac(from), 60 + n as usize * 7, n)).collect();
                let wanted = sent.clone();
                let mut got: Vec<Vec<u8>> = Vec::new();
                let begin = Instant::now();
                while got.len() < wanted.len() && begin.elapsed() < PATIENCE {
                    if !sent.is_empty() {
                        let few = sent.len().min(16);
                        let taken = lab.ends[from].send(&sent[..few]).expect("the wire holds");
                        sent.drain(..taken);
                    } else {
                        // A stream writes on what it could not write before.
                        lab.ends[from].send(&[]).expect("the wire holds");
                    }
                    // Others are what every port announced itself with, flooded to all; it may come late.
                    let addresses = [Lab::mac(to).0, Lab::mac(from).0].concat();
                    lab.ends[to].receive(|f| got.extend((f[..12] == addresses).then(|| f.to_vec()))).expect("read");
                }
                assert!(got == wanted, "{names}: {} of {} frames", got.len(), wanted.len());
            }
        }
    }
}
