//! Entry points for fuzzers: bytes in, a panic if something that must hold does not. Nothing here depends on libFuzzer;
//! `tests/fuzz/` calls these, and `tests/fuzz_replay.rs` runs the corpora in `tests/corpus/` for ever.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use switch_core::{
    clean::{bindings::Bindings, judge},
    clock::{Clock, Now},
    control::{
        config::Config,
        desired::Desired,
        manager::Manager,
        server::{self, Socket},
        spec::{DomainSpec, PortSpec},
    },
    fdb::Fdb,
    frame::offload::{Capabilities, Offload, VNET_HDR_BYTES},
    id::{DomainId, Epoch, PortId},
    port::mem::{self, MemPeer},
    stats::{Counter, Totals},
    switch::Settings,
    topology::{Attachment, DomainDef, Dress, Policy, PortDef, PortShared, Role, StormLimits, Topology},
    verdict::Side,
    worker::{self, PollMode, Worker},
};
use vswitch_benches::netns::unique;

use crate::{PATIENCE, rng::Rng, spoof};

const PORTS: usize = 5;
const MAX_FRAMES: usize = 64;
/// The port that alone is in a domain of its own.
const HERMIT: usize = 4;

/// Frames with their virtio-net headers, for five ports in three dresses: `port, header (12), length (2, little-endian),
/// bytes`; bytes that are missing are zero. Checks that the accounts balance, that nothing is reflected and that nothing
/// crosses into another domain.
///
/// # Panics
/// One of these does not hold.
pub fn fuzz_frame(data: &[u8]) {
    let (mut worker, peers, shared) = bottle();
    let mut rest = data;
    let mut now = 1_000_000_000;
    for _ in 0..MAX_FRAMES {
        let Some((head, after)) = rest.split_at_checked(1 + VNET_HDR_BYTES + 2) else { break };
        let port = usize::from(head[0]) % PORTS;
        let header: &[u8; VNET_HDR_BYTES] = head[1..13].try_into().expect("twelve bytes");
        let len = usize::from(u16::from_le_bytes([head[13], head[14]]));
        let (bytes, after) = after.split_at(len.min(after.len()));
        rest = after;
        // A driver that reads a header of an unknown type drops the frame itself.
        let Ok(offload) = Offload::decode(header) else { continue };
        let mut frame = bytes.to_vec();
        frame.resize(len, 0);
        peers[port].send_owed(&frame, offload);
        now += 10_000_000;
        worker.look();
        worker.turn(Now::from_nanos(now));
        let out: Vec<usize> = peers.iter().map(|peer| peer.take().len()).collect();
        assert_eq!(out[port], 0, "port {port} got its own frame back");
        let vid_of_hermit = port == 2
            && matches!(frame.get(12..16), Some([0x81, 0, high, low]) if u16::from(*high & 15) << 8 | u16::from(*low) == 20);
        assert!(
            port == HERMIT || out[HERMIT] == 0 || vid_of_hermit,
            "a frame of port {port} crossed into another domain"
        );
        assert!(port != HERMIT || out.iter().enumerate().all(|(p, n)| p == 2 || *n == 0), "the hermit was heard");
    }
    let totals: Vec<Totals> = shared.iter().map(|s| s.counters.total()).collect();
    let sum = |of: &dyn Fn(&Totals) -> u64| totals.iter().map(of).sum::<u64>();
    for total in &totals {
        let judged = total.get(Counter::RxDecided) + total.dropped_on(Side::Ingress);
        assert_eq!(total.get(Counter::RxFrames), judged, "what was received was judged");
    }
    let gone = sum(&|t| t.get(Counter::TxFrames) + t.dropped_on(Side::Egress));
    assert_eq!(sum(&|t| t.get(Counter::CopiesDecided)), gone, "what was decided is gone");
    worker.look();
    worker.turn(Now::from_nanos(now));
    assert!(worker.may_sleep(), "nothing is left");
}

fn bottle() -> (Worker, Vec<MemPeer>, Vec<Arc<PortShared>>) {
    let channels = worker::channels();
    let fdb = Arc::new(Fdb::with_seed(256, 1));
    let (mut worker, _) =
        Worker::new(0, fdb, Clock::start(), PollMode::Interrupt, channels.inbox, channels.report).expect("descriptors");
    let member = |domain, dress| Attachment { domain: DomainId(domain), dress, role: Role::PROMISCUOUS };
    let tag = |vid| Dress::Tagged { tpid: 0x8100, vid };
    let ports: [(Vec<Attachment>, Capabilities); PORTS] = [
        (vec![member(0, Dress::Untagged)], Capabilities::ALL),
        (vec![member(0, Dress::Untagged)], Capabilities::NONE),
        (vec![member(0, tag(10)), member(1, tag(20))], Capabilities::NONE),
        (vec![member(0, Dress::Transparent)], Capabilities::CSUM),
        (vec![member(1, Dress::Untagged)], Capabilities::ALL),
    ];
    let (mut peers, mut shared, mut defs, mut queues) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (id, (attachments, capabilities)) in (0..).map(PortId).zip(ports) {
        let (queue, peer) = mem::pair(capabilities).expect("descriptors");
        let state = Arc::new(PortShared::new(vec![queue.tx], 1));
        defs.push(PortDef {
            id,
            attachments,
            hairpin: false,
            up: true,
            carrier: true,
            learning: true,
            storm: StormLimits::default(),
            policy: Policy::default(),
            shared: Arc::clone(&state),
        });
        peers.push(peer);
        shared.push(state);
        queues.push((id, queue.rx));
    }
    let domains = [0, 1].map(|id| DomainDef { id: DomainId(id), mtu: 1500, group_fwd_mask: 1, rate: None });
    worker.take_up(Arc::new(Topology::build(Epoch(1), defs, &domains).expect("valid")));
    for (id, rx) in queues {
        worker.own(id, 0, rx, Arc::default()).expect("watched");
    }
    (worker, peers, shared)
}

/// One frame of a clean port. What passes is held against the plainest reading of the same bytes.
///
/// # Panics
/// It passes and should not.
pub fn fuzz_clean(data: &[u8]) {
    let clean = spoof::rules("10.0.0.1+fd00::1");
    if judge(&clean, &Bindings::default(), data, 1).is_err() {
        return;
    }
    assert_eq!(data[6..12], spoof::OWN.0, "the station's own");
    let mut at = 12;
    while matches!(data[at..at + 2], [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    let packet = &data[at + 2..];
    match [data[at], data[at + 1]] {
        [8, 0] => {
            let own = packet[12..16] == spoof::IP.octets();
            let start = usize::from(packet[0] & 15) * 4;
            assert!(own || (packet[9] == 17 && packet[start + 2..start + 4] == [0, 67]), "another's IPv4 address");
            assert!(packet[9] != 17 || packet[6] & 31 != 0 || packet[7] != 0 || packet[start..start + 2] != [0, 67]);
        }
        [0x86, 0xdd] => {
            let source: [u8; 16] = packet[8..24].try_into().expect("16 bytes");
            let known = [spoof::V6, spoof::NO_V6, spoof::LINK_LOCAL].map(|a| a.octets());
            assert!(known.contains(&source), "another's IPv6 address");
            assert!(packet[6] != 58 || !matches!(packet[40], 134 | 137), "a router");
            assert!(packet[6] != 58 || !matches!(packet[40], 133..=137) || packet[7] == 255, "from afar");
        }
        [8, 6] => {
            assert_eq!(packet[8..14], spoof::OWN.0);
            assert!(packet[14..18] == spoof::IP.octets() || packet[14..18] == [0; 4], "another's ARP");
        }
        other => assert_eq!(other, [0x80, 0x35]),
    }
}

/// A configuration file, and each of its lines as a port and a domain SPEC. What is accepted is the same after it was
/// written down and read again.
///
/// # Panics
/// It is not.
pub fn fuzz_config(text: &str) {
    if let Ok(config) = Config::parse(text)
        && let Ok(desired) = config.merge(&Desired::default(), false)
        && desired.check().is_ok()
    {
        let again = config.merge(&desired, true).expect("a file can be applied twice");
        let (once, twice) = (serde_json::to_value(&desired), serde_json::to_value(&again));
        assert_eq!(once.expect("JSON"), twice.expect("JSON"), "applying a file twice changes nothing");
    }
    for line in text.lines().take(100) {
        if let Ok(spec) = line.parse::<PortSpec>() {
            let written = serde_json::to_string(&spec).expect("JSON");
            assert_eq!(serde_json::from_str::<PortSpec>(&written).ok(), Some(spec), "{written}");
        }
        if let Ok(spec) = line.parse::<DomainSpec>() {
            let written = serde_json::to_string(&spec).expect("JSON");
            assert_eq!(serde_json::from_str::<DomainSpec>(&written).ok(), Some(spec), "{written}");
        }
    }
}

/// Raw bytes on the API's socket. Whatever they were, the switch answers the next request.
///
/// The switch runs in this process, in a network namespace of its own, so that a request that is accepted by chance
/// touches no device of the host. Needs root.
///
/// # Panics
/// The switch cannot be started or does not answer.
pub fn fuzz_api(data: &[u8]) {
    let path = api();
    let ask = |bytes: &[u8], whole: bool| {
        let mut stream = UnixStream::connect(path).expect("the API listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        // The switch may refuse and close before all is written.
        let _ = stream.write_all(bytes);
        // A request that is not whole ends here. One that is must not: a client that will not send may be taken as gone.
        if !whole {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        let mut answer = vec![0; 64];
        let mut read = stream.read(&mut answer);
        while read.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::Interrupted) {
            read = stream.read(&mut answer);
        }
        answer.truncate(*read.as_ref().unwrap_or(&0));
        (answer, read)
    };
    let _ = ask(data, false);
    let (answer, read) = ask(b"GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", true);
    let text = String::from_utf8_lossy;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{read:?} {:?} after {:?}", text(&answer), text(data));
}

/// Removes what [`fuzz_api`] made in the file system; to be called last.
pub fn remove_api() {
    if let Some(directory) = api().parent() {
        let _ = std::fs::remove_dir_all(directory);
    }
}

fn api() -> &'static PathBuf {
    static API: OnceLock<PathBuf> = OnceLock::new();
    API.get_or_init(|| {
        let path = std::env::temp_dir().join(unique("vswitch-fuzz-")).join("api.sock");
        let at = path.clone();
        let (up, is_up) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("descriptors");
            runtime.block_on(async {
                let socket = Socket::bind(&at).expect("bound");
                let manager = Manager::start(Settings::default(), None).expect("started");
                up.send(()).expect("somebody waits");
                let manager = Arc::new(parking_lot::Mutex::new(manager));
                server::serve(socket, manager, std::future::pending()).await.expect("served");
            });
        });
        is_up.recv().expect("the switch starts");
        path
    })
}

/// A variation of `data`: what a fuzzer without coverage would do.
#[must_use]
pub fn mutate(rng: &mut Rng, data: &[u8], other: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for _ in 0..rng.between(1, 5) {
        let at = rng.below(data.len() + 1);
        match rng.below(6) {
            0 if at < data.len() => data[at] ^= 1 << rng.below(8),
            1 if at < data.len() => data[at] = rng.pick(&[0, 1, 0x7f, 0x80, 0xff, b'"', b',', b'=', b'\n']),
            2 => data.truncate(at),
            3 if at < data.len() => {
                let end = at + rng.below((data.len() - at).min(16)) + 1;
                data.drain(at..end);
            }
            4 => {
                let from = rng.below(other.len() + 1);
                let part = &other[from..other.len().min(from + rng.below(64))];
                data.splice(at..at, part.iter().copied());
            }
            _ => {
                let byte = rng.next() as u8;
                data.insert(at, byte);
            }
        }
    }
    data
}
