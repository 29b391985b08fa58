//! The simulated host: workers, ports, a controller, faults, and the comparison with the model.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use mio::Waker;
use switch_core::{
    clock::{Clock, Now},
    fdb::{Fdb, Flush, Kind},
    frame::offload::{Capabilities, Offload},
    id::{DomainId, Epoch, PortId},
    mac::MacAddr,
    port::{
        PortRx,
        mem::{self, MemPeer},
    },
    stats::{Counter, Totals},
    topology::{Attachment, DomainDef, Dress, PortDef, PortShared, Role, StormLimits, Topology},
    verdict::{DropReason, Side},
    worker::{self, Command, Event, PollMode, Worker},
};
use vswitch_tests::rng::Rng;

use super::{
    frames::{self, HOSTS, VIDS},
    model::{Domain, Effects, Frame, Mac, Member, Model, Net, Oracle, Port, Reach, Taken, Wire},
};

const WORKERS: usize = 3;
const MAX_PORTS: u16 = 9;
const DOMAINS: u16 = 4;
const AGEING_S: u32 = 60;
/// Answers of the oracle that are tried for one turn.
const MAX_QUESTIONS: u32 = 10;
/// Lines of history that a failure shows.
const HISTORY: usize = 25;

struct Node {
    worker: Worker,
    commands: Sender<Command>,
    waker: Waker,
    /// Which queue lies in which place, as frames of one turn are judged place by place.
    places: Vec<Option<(u16, usize)>>,
}

struct Queue {
    peer: MemPeer,
    on_the_way: VecDeque<Frame>,
    closed: bool,
}

struct Plugged {
    shared: Arc<PortShared>,
    queues: Vec<Queue>,
    counted: Totals,
    ever_hairpin: bool,
    room: Option<usize>,
}

enum Then {
    Grant(u16, Vec<Box<dyn PortRx>>),
    Forget(u16),
    Flush(u16, Vec<u16>),
    Nothing,
}

/// A topology that some workers have and others not yet.
struct Publication {
    topology: Arc<Topology>,
    net: Rc<Net>,
    waiting: Vec<usize>,
    then: Then,
}

pub struct World {
    seed: u64,
    rng: Rng,
    now: u64,
    fdb: Arc<Fdb>,
    nodes: Vec<Node>,
    reports: Receiver<Event>,
    ports: BTreeMap<u16, Plugged>,
    net: Net,
    epoch: u64,
    publication: Option<Publication>,
    model: Model,
    next_id: u64,
    /// Where a frame came in, by its number.
    origin: HashMap<u64, (u16, usize)>,
    arrived: HashSet<(u64, u16)>,
    last: HashMap<(u16, usize, u16, usize, Vec<u8>), u64>,
    all_shared: Vec<Arc<PortShared>>,
    history: VecDeque<String>,
    seen: BTreeMap<&'static str, u64>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in &self.history {
                eprintln!("  {line}");
            }
            eprintln!(
                "the simulation failed; to see it again: VSWITCH_SIM_SEED={} cargo test -p vswitch-tests --test simulation",
                self.seed
            );
        }
    }
}

fn now_of(nanos: u64) -> Now {
    Now::from_nanos(nanos)
}

fn role(reach: Reach) -> Role {
    match reach {
        Reach::All => Role::PROMISCUOUS,
        Reach::Alone => Role::ISOLATED,
        Reach::Club(n) => Role::community(n),
    }
}

fn attachment(member: &Member) -> Attachment {
    let dress = match member.wire {
        Wire::Untagged => Dress::Untagged,
        Wire::Tag(tpid, vid) => Dress::Tagged { tpid, vid },
        Wire::Transparent => Dress::Transparent,
    };
    Attachment { domain: DomainId(member.domain), dress, role: role(member.reach) }
}

impl World {
    pub fn new(seed: u64) -> World {
        let fdb = Arc::new(Fdb::with_seed(1024, seed));
        let worker::Channels { report, reports, .. } = worker::channels();
        let nodes = (0..WORKERS)
            .map(|index| {
                let worker::Channels { commands, inbox, .. } = worker::channels();
                let (worker, waker) =
                    Worker::new(index, Arc::clone(&fdb), Clock::start(), PollMode::Interrupt, inbox, report.clone())
                        .expect("descriptors");
                Node { worker, commands, waker, places: Vec::new() }
            })
            .collect();
        let mut world = World {
            seed,
            rng: Rng::new(seed),
            now: 1_000_000_000,
            fdb,
            nodes,
            reports,
            ports: BTreeMap::new(),
            net: Net::default(),
            epoch: 0,
            publication: None,
            model: Model::new(WORKERS),
            next_id: 0,
            origin: HashMap::new(),
            arrived: HashSet::new(),
            last: HashMap::new(),
            all_shared: Vec::new(),
            history: VecDeque::new(),
            seen: BTreeMap::new(),
        };
        for id in 0..DOMAINS {
            world.net.domains.insert(id, Domain { mtu: if id == 2 { 576 } else { 1500 }, groups: 1 });
        }
        for _ in 0..4 {
            world.add_port();
            world.finish_publication();
        }
        world
    }

    pub fn seen(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.seen.iter().map(|(what, n)| (*what, *n))
    }

    fn note(&mut self, line: String) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(line);
    }

    pub fn step(&mut self) {
        match self.rng.below(100) {
            0..45 => self.send(),
            45..80 => {
                let w = self.rng.below(WORKERS);
                let look = self.rng.chance(85);
                self.turn(w, look);
            }
            80..88 if self.publication.is_some() => self.publish_next(),
            80..84 => self.change(),
            88..91 => self.change_table(),
            91..94 => self.fault(),
            94..97 => self.now += self.rng.next() % 3_000_000_000,
            97..99 => {
                let w = self.rng.below(WORKERS);
                self.sleep(w);
            }
            _ => self.now += self.rng.next() % 40_000_000,
        }
    }

    /// Everything on its way arrives, and every account is closed.
    pub fn finish(&mut self) {
        self.finish_publication();
        for w in 0..WORKERS {
            self.sleep(w);
        }
        assert!(self.ports.values().all(|p| p.queues.iter().all(|q| q.closed || q.peer.waiting() == 0)));
    }

    fn send(&mut self) {
        if self.ports.is_empty() {
            return;
        }
        let numbers: Vec<u16> = self.ports.keys().copied().collect();
        let number = self.rng.pick(&numbers);
        let Some(port) = self.net.ports.get(&number).cloned() else { return };
        let plugged = self.ports.get_mut(&number).expect("picked");
        let index = self.rng.below(plugged.queues.len());
        let queue = &mut plugged.queues[index];
        if queue.closed {
            return;
        }
        let count = if self.rng.chance(3) { 80 } else { self.rng.between(1, 6) };
        for _ in 0..count {
            let frame = frames::random(&mut self.rng, number, &port, self.next_id);
            self.origin.insert(self.next_id, (number, index));
            self.next_id += 1;
            queue.peer.send_owed(&frame.bytes, frame.owed);
            queue.on_the_way.push_back(frame);
        }
        self.note(format!("{count} frames into port {number} queue {index}"));
    }

    /// One turn of one worker, and everything that can be said about it.
    fn turn(&mut self, w: usize, look: bool) -> bool {
        let places = self.nodes[w].places.clone();
        let waiting = |world: &World| -> Vec<usize> {
            let one = |place: &Option<(u16, usize)>| place.map_or(0, |(p, q)| world.ports[&p].queues[q].peer.waiting());
            places.iter().map(one).collect()
        };
        if look {
            self.nodes[w].worker.look();
        }
        let before = waiting(self);
        let worked = self.nodes[w].worker.turn(now_of(self.now));
        let after = waiting(self);
        let mut batches = Vec::new();
        for (place, (before, after)) in places.iter().zip(before.iter().zip(&after)) {
            let Some((p, q)) = *place else { continue };
            let queue = &mut self.ports.get_mut(&p).expect("plugged in").queues[q];
            let frames: Vec<Frame> = queue.on_the_way.drain(..before - after).collect();
            if !frames.is_empty() {
                batches.push(Taken { worker: w, port: p, frames });
            }
        }
        assert_eq!(worked, !batches.is_empty());
        // A turn may end before it has been round, but not before it has done anything.
        assert!(!look || worked || before.iter().all(|n| *n == 0), "worker {w} looked and left frames waiting");
        let lines: Vec<String> = batches.iter().map(|b| format!("{} of port {}", b.frames.len(), b.port)).collect();
        self.note(format!("worker {w} at {} ns took {}", self.now, lines.join(", ")));
        if self.publication.is_some() && worked {
            *self.seen.entry("publications under way").or_default() += 1;
        }
        while let Ok(event) = self.reports.try_recv() {
            if let Event::Gone { port } = event {
                assert!(self.ports[&port.0].queues[0].closed, "port {port} is not gone");
                *self.seen.entry("gone").or_default() += 1;
                for place in &mut self.nodes[w].places {
                    *place = place.filter(|(p, _)| *p != port.0);
                }
            }
        }
        self.compare(&batches);
        worked
    }

    fn compare(&mut self, batches: &[Taken]) {
        for (number, plugged) in &self.ports {
            self.model.room.insert(*number, plugged.room.unwrap_or(usize::MAX));
        }
        let mut outputs: BTreeMap<u16, Vec<Vec<Frame>>> = BTreeMap::new();
        for (number, plugged) in &self.ports {
            let take = |queue: &Queue| {
                queue.peer.take().into_iter().map(|f| Frame { bytes: f.bytes, owed: f.offload }).collect()
            };
            outputs.insert(*number, plugged.queues.iter().map(take).collect());
        }
        self.check_travellers(&outputs);
        let counts = self.take_counts();
        let mut first = None;
        // A turn goes round from where the last one ended.
        let mut round = batches.to_vec();
        for attempt in 0..2 * batches.len().max(1) {
            let constant = attempt < batches.len().max(1);
            let (mut bits, mut asked) = (0, 0);
            while bits < 1 << asked {
                let mut model = self.model.clone();
                let mut oracle = Oracle { bits, asked: 0, constant };
                let effects = model.run(&round, self.now, &mut oracle);
                let Some(difference) = differs(&effects, &outputs, &counts).or_else(|| self.table_differs(&model))
                else {
                    self.model = model;
                    for ((_, what), n) in effects.counts {
                        *self.seen.entry(what).or_default() += n;
                    }
                    return;
                };
                first.get_or_insert(difference);
                asked = oracle.asked.min(MAX_QUESTIONS).max(asked);
                bits += 1;
            }
            if !round.is_empty() {
                round.rotate_left(1);
            }
        }
        panic!(
            "{}\nafter\n{}\nwith {:#?}\nand the table {:?}",
            first.expect("one"),
            batches.iter().map(Taken::describe).collect::<String>(),
            batches.iter().map(|b| (b.worker, &self.model.nets[b.worker].ports)).collect::<Vec<_>>(),
            self.model.hosts,
        );
    }

    /// What holds for every frame on its own, whatever the model says.
    fn check_travellers(&mut self, outputs: &BTreeMap<u16, Vec<Vec<Frame>>>) {
        for (number, queues) in outputs {
            for (q, frames) in queues.iter().enumerate() {
                for frame in frames.iter().filter(|f| f.owed == Offload::NONE && f.bytes.len() >= 60) {
                    let id = u64::from_be_bytes(frame.bytes[frame.bytes.len() - 8..].try_into().expect("eight"));
                    let Some((from, from_queue)) = self.origin.get(&id).copied() else { continue };
                    if !frame.bytes.windows(2).take(40).any(|two| two == [0x88, 0xb5]) {
                        continue;
                    }
                    assert!(self.arrived.insert((id, *number)), "frame {id} left port {number} twice");
                    assert!(from != *number || self.ports[number].ever_hairpin, "frame {id} was sent back on {number}");
                    if queues.len() == 1 {
                        let flow = (from, from_queue, *number, q, frame.bytes[..12].to_vec());
                        let last = self.last.insert(flow, id);
                        assert!(last.is_none_or(|last| last < id), "frame {id} overtook another on port {number}");
                    }
                }
            }
        }
    }

    fn take_counts(&mut self) -> BTreeMap<(u16, &'static str), u64> {
        let mut counts = BTreeMap::new();
        for (number, plugged) in &mut self.ports {
            let total = plugged.shared.counters.total();
            let counters = [Counter::RxFrames, Counter::RxDecided, Counter::CopiesDecided, Counter::TxFrames];
            let moved = counters
                .iter()
                .map(|c| (c.name(), total.get(*c) - plugged.counted.get(*c)))
                .chain(DropReason::ALL.iter().map(|r| (r.name(), total.dropped(*r) - plugged.counted.dropped(*r))));
            counts.extend(moved.filter(|(_, n)| *n > 0).map(|(what, n)| ((*number, what), n)));
            plugged.counted = total;
            let judged = total.get(Counter::RxDecided) + total.dropped_on(Side::Ingress);
            assert_eq!(total.get(Counter::RxFrames), judged, "the account of port {number}");
        }
        let totals: Vec<Totals> = self.all_shared.iter().map(|s| s.counters.total()).collect();
        let decided: u64 = totals.iter().map(|t| t.get(Counter::CopiesDecided)).sum();
        let gone: u64 = totals.iter().map(|t| t.get(Counter::TxFrames) + t.dropped_on(Side::Egress)).sum();
        assert_eq!(decided, gone, "the account of the switch");
        counts
    }

    fn table_differs(&self, model: &Model) -> Option<String> {
        let tick = now_of(self.now).tick;
        let is: BTreeMap<(u16, Mac), (u16, Kind, u32)> =
            self.fdb.entries(tick).into_iter().map(|e| ((e.domain.0, e.mac.0), (e.port.0, e.kind, e.age_s))).collect();
        let age = |kind, second| if kind == Kind::Static { 0 } else { tick.0 - second };
        let should: BTreeMap<_, _> =
            model.hosts.iter().map(|(key, h)| (*key, (h.port, h.kind, age(h.kind, h.second)))).collect();
        (is != should).then(|| format!("the table is {is:?}\nand should be {should:?}"))
    }

    /// A worker sleeps only when nothing is left to do, and wakes up for what comes then.
    fn sleep(&mut self, w: usize) {
        loop {
            self.turn(w, true);
            if self.nodes[w].worker.may_sleep() {
                break;
            }
        }
        *self.seen.entry("slept").or_default() += 1;
        for (p, q) in self.nodes[w].places.iter().flatten() {
            assert_eq!(self.ports[p].queues[*q].peer.waiting(), 0, "worker {w} slept on port {p} queue {q}");
        }
    }
}

/// What differs between the model's effects and what was seen.
fn differs(
    effects: &Effects,
    outputs: &BTreeMap<u16, Vec<Vec<Frame>>>,
    counts: &BTreeMap<(u16, &'static str), u64>,
) -> Option<String> {
    if effects.counts != *counts {
        return Some(format!("counted {counts:?}\nand should be {:?}", effects.counts));
    }
    for (number, queues) in outputs {
        let mut expected = effects.out.get(number).cloned().unwrap_or_default();
        // Each queue has a part of what is expected, in order; together they have all of it.
        for queue in queues {
            let mut at = 0;
            for frame in queue {
                let Some(found) = expected[at..].iter().position(|e| e == frame) else {
                    return Some(format!("port {number} sent {frame:02x?}, and was expected to send {expected:02x?}"));
                };
                at += found;
                expected.remove(at);
            }
        }
        if !expected.is_empty() {
            return Some(format!("port {number} did not send {expected:02x?}"));
        }
    }
    None
}

mod controller;
