//! What the switch should do, written as plainly as possible and without a line of the pipeline: maps, whole frames,
//! one frame after the other. Only plain data (`Offload`, `Kind`) is shared with the code under test.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use switch_core::{
    fdb::Kind,
    frame::offload::{Gso, Offload},
};

use super::owed;

pub type Mac = [u8; 6];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Untagged,
    Tag(u16, u16),
    Transparent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    All,
    Alone,
    Club(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub domain: u16,
    pub wire: Wire,
    pub reach: Reach,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub members: Vec<Member>,
    pub hairpin: bool,
    pub up: bool,
    pub carrier: bool,
    pub learning: bool,
    /// Takes frames with owed work.
    pub offloads: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    pub mtu: usize,
    /// Which of 01-80-C2-00-00-0X pass.
    pub groups: u16,
}

/// What one topology says.
#[derive(Clone, Debug, Default)]
pub struct Net {
    pub ports: BTreeMap<u16, Port>,
    pub domains: BTreeMap<u16, Domain>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub owed: Offload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    pub port: u16,
    pub kind: Kind,
    pub second: u32,
}

#[derive(Clone, Debug, Default)]
struct Restless {
    moves: Vec<u64>,
    held: Vec<u64>,
    now_held: Option<u64>,
}

/// What follows from some batches: frames by port in order, and counters by port and name.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    pub out: BTreeMap<u16, Vec<Frame>>,
    pub counts: BTreeMap<(u16, &'static str), u64>,
}

impl Effects {
    fn count(&mut self, port: u16, what: &'static str) {
        *self.counts.entry((port, what)).or_default() += 1;
    }
}

/// Answers what the model leaves open: whether a restless address is held already. All answers are tried.
pub struct Oracle {
    pub bits: u32,
    pub asked: u32,
    /// An address that is held once stays held for the turn, which is so unless another took its place in between.
    pub constant: bool,
}

impl Oracle {
    fn ask(&mut self) -> bool {
        let answer = self.bits >> self.asked & 1 == 1;
        self.asked += 1;
        answer
    }
}

#[derive(Clone, Debug)]
pub struct Model {
    /// What each worker works with.
    pub nets: Vec<Rc<Net>>,
    pub hosts: HashMap<(u16, Mac), Host>,
    /// Frames that the far end of a port still takes.
    pub room: HashMap<u16, usize>,
    restless: HashMap<(usize, u16, Mac), Restless>,
}

/// A batch as a worker took it from one queue.
#[derive(Clone, Debug)]
pub struct Taken {
    pub worker: usize,
    pub port: u16,
    pub frames: Vec<Frame>,
}

impl Taken {
    /// The beginnings of the frames, for the message of a failure.
    pub fn describe(&self) -> String {
        let line = |f: &Frame| {
            let shown = &f.bytes[..f.bytes.len().min(26)];
            format!("  port {} len {} {shown:02x?} {:?}\n", self.port, f.bytes.len(), f.owed.gso)
        };
        self.frames.iter().map(line).collect()
    }
}

struct Judged {
    from: Member,
    strip: usize,
    priority: u16,
    hides_tag: bool,
    owed: Offload,
}

const SECOND: u64 = 1_000_000_000;

/// The tag at an offset.
fn tag_at(bytes: &[u8], at: usize) -> Option<(u16, u16)> {
    let four = bytes.get(at..at + 4)?;
    let tpid = u16::from_be_bytes([four[0], four[1]]);
    (tpid == 0x8100 || tpid == 0x88a8).then(|| (tpid, u16::from_be_bytes([four[2], four[3]])))
}

fn pair_allowed(a: Reach, b: Reach) -> bool {
    match (a, b) {
        (Reach::All, _) | (_, Reach::All) => true,
        (Reach::Club(x), Reach::Club(y)) => x == y,
        _ => false,
    }
}

impl Model {
    pub fn new(workers: usize) -> Model {
        Model {
            nets: vec![Rc::default(); workers],
            hosts: HashMap::new(),
            room: HashMap::new(),
            restless: HashMap::new(),
        }
    }

    pub fn run(&mut self, batches: &[Taken], now: u64, oracle: &mut Oracle) -> Effects {
        let mut effects = Effects::default();
        for batch in batches {
            self.batch(batch, now, oracle, &mut effects);
        }
        effects
    }

    fn batch(&mut self, batch: &Taken, now: u64, oracle: &mut Oracle, effects: &mut Effects) {
        let net = Rc::clone(&self.nets[batch.worker]);
        let port = &net.ports[&batch.port];
        let mut kept = Vec::new();
        for frame in &batch.frames {
            effects.count(batch.port, "rx_frames");
            match classify(&net, port, frame) {
                Ok(judged) => kept.push((frame, judged)),
                Err(reason) => effects.count(batch.port, reason),
            }
        }
        if port.learning {
            kept.retain(|(frame, judged)| {
                let src: Mac = frame.bytes[6..12].try_into().expect("six");
                let keep = self.learn(batch, judged.from.domain, src, now, oracle);
                if !keep {
                    effects.count(batch.port, "flap_hold");
                }
                keep
            });
        }
        for (frame, judged) in &kept {
            self.forward(&net, batch.port, frame, judged, effects);
        }
    }

    fn learn(&mut self, batch: &Taken, domain: u16, src: Mac, now: u64, oracle: &mut Oracle) -> bool {
        let second = (now / SECOND) as u32;
        let new = Host { port: batch.port, kind: Kind::Learned, second };
        let host = self.hosts.entry((domain, src)).or_insert(new);
        if host.port == batch.port {
            host.second = second;
            return true;
        }
        if host.kind != Kind::Learned {
            return true;
        }
        // Five moves in ten seconds are free. After that the address may be held for ten seconds: "may", because the
        // switch forgets addresses when others take their place in its table of moves.
        let restless = self.restless.entry((batch.worker, domain, src)).or_default();
        let recent = |times: &[u64]| times.iter().filter(|t| now - **t <= 10 * SECOND).count();
        let known = oracle.constant && restless.now_held == Some(now);
        if known || ((recent(&restless.moves) >= 5 || recent(&restless.held) > 0) && oracle.ask()) {
            restless.now_held = Some(now);
            // So many moves can begin a hold anew.
            if recent(&restless.moves) >= 5 {
                restless.held.push(now);
            }
            return false;
        }
        restless.moves.push(now);
        *host = new;
        true
    }

    fn forward(&mut self, net: &Net, ingress: u16, frame: &Frame, judged: &Judged, effects: &mut Effects) {
        let dst: Mac = frame.bytes[..6].try_into().expect("six");
        let domain = judged.from.domain;
        let hairpin = net.ports[&ingress].hairpin;
        let member = |port: &Port| port.members.iter().find(|m| m.domain == domain).copied();
        let known = if dst[0] & 1 == 1 { None } else { self.hosts.get(&(domain, dst)).map(|host| host.port) };
        let mut targets = Vec::new();
        if let Some(to) = known {
            if to == ingress && !hairpin {
                return effects.count(ingress, "same_port");
            }
            let Some(there) = net.ports.get(&to).and_then(member) else {
                return effects.count(ingress, "not_member");
            };
            if !pair_allowed(judged.from.reach, there.reach) {
                return effects.count(ingress, "role_forbidden");
            }
            targets.push((to, there));
        } else {
            for (to, port) in &net.ports {
                if let Some(there) = member(port)
                    && (*to != ingress || hairpin)
                    && port.up
                    && port.carrier
                    && pair_allowed(judged.from.reach, there.reach)
                {
                    targets.push((*to, there));
                }
            }
            if targets.is_empty() {
                return effects.count(ingress, "no_destination");
            }
        }
        effects.count(ingress, "rx_decided");
        for (to, there) in targets {
            effects.count(ingress, "copies_decided");
            let port = &net.ports[&to];
            if !port.up || !port.carrier {
                effects.count(to, "egress_port_down");
            } else if judged.hides_tag && there.wire == Wire::Untagged {
                effects.count(to, "ambiguous_tag");
            } else {
                self.transmit(to, port, frame, judged, there.wire, effects);
            }
        }
    }

    fn transmit(&mut self, to: u16, port: &Port, frame: &Frame, judged: &Judged, wire: Wire, effects: &mut Effects) {
        let frame = Frame { bytes: frame.bytes.clone(), owed: judged.owed };
        let frames = if owed::owes(&frame.owed) && !port.offloads { owed::complete(&frame) } else { vec![frame] };
        if frames.is_empty() {
            return effects.count(to, "egress_offload");
        }
        let mut all = true;
        for frame in frames {
            let room = self.room.entry(to).or_insert(usize::MAX);
            if *room == 0 {
                all = false;
                continue;
            }
            *room -= 1;
            effects.out.entry(to).or_default().push(dressed(&frame, judged, wire));
        }
        effects.count(to, if all { "tx_frames" } else { "queue_full" });
    }

    pub fn flush(&mut self, port: u16, domain: Option<u16>, pinned: bool) {
        self.hosts.retain(|(d, _), host| {
            host.port != port || domain.is_some_and(|only| only != *d) || (host.kind == Kind::Static && !pinned)
        });
    }
}

fn classify(net: &Net, port: &Port, frame: &Frame) -> Result<Judged, &'static str> {
    let bytes = &frame.bytes;
    if !port.up {
        return Err("ingress_port_down");
    }
    if bytes.len() < 14 {
        return Err("runt");
    }
    if bytes[6] & 1 == 1 {
        return Err("multicast_source");
    }
    if bytes[6..12] == [0; 6] {
        return Err("zero_source");
    }
    let tag = tag_at(bytes, 12);
    let vid = tag.map_or(0, |(_, tci)| tci & 0xfff);
    let find = |wanted: &dyn Fn(Wire) -> bool| port.members.iter().find(|m| wanted(m.wire)).copied();
    let from = if let Some(all) = find(&|wire| wire == Wire::Transparent) {
        all
    } else if let (Some((tpid, _)), true) = (tag, vid != 0) {
        find(&|wire| wire == Wire::Tag(tpid, vid)).ok_or("tag_not_allowed")?
    } else {
        find(&|wire| wire == Wire::Untagged).ok_or("no_domain")?
    };
    let stripped = tag.filter(|_| from.wire != Wire::Transparent);
    let strip = if stripped.is_some() { 4 } else { 0 };
    if bytes.len() < 14 + strip {
        return Err("runt");
    }
    let domain = net.domains[&from.domain];
    if bytes[..5] == [0x01, 0x80, 0xc2, 0, 0] && bytes[5] < 16 && domain.groups >> bytes[5] & 1 == 0 {
        return Err("reserved_address");
    }
    let owed = owed::judge(bytes, frame.owed).ok_or("bad_offload")?;
    // What a receiver sees that gets the frame untagged, and looks through priority tags.
    let payload_tag = tag_at(bytes, 12 + strip);
    let hides_tag = payload_tag.is_some_and(|(_, tci)| tci & 0xfff != 0 || tag_at(bytes, 16 + strip).is_some());
    let allowed = domain.mtu + 14 + strip + if payload_tag.is_some() { 4 } else { 0 };
    let longest =
        if owed.gso == Gso::None { bytes.len() } else { usize::from(owed.hdr_len) + usize::from(owed.gso_size) };
    if longest > allowed {
        return Err("giant");
    }
    Ok(Judged { from, strip, priority: stripped.map_or(0, |(_, tci)| tci & 0xf000), hides_tag, owed })
}

/// The frame as it looks on a wire.
fn dressed(frame: &Frame, judged: &Judged, wire: Wire) -> Frame {
    let mut bytes = frame.bytes[..12].to_vec();
    let mut delta = -(judged.strip as i16);
    if let Wire::Tag(tpid, vid) = wire {
        bytes.extend(tpid.to_be_bytes());
        bytes.extend((judged.priority | vid).to_be_bytes());
        delta += 4;
    }
    bytes.extend(&frame.bytes[12 + judged.strip..]);
    let mut owed = frame.owed;
    if owed.needs_csum {
        owed.csum_start = owed.csum_start.wrapping_add_signed(delta);
    }
    if owed.gso != Gso::None {
        owed.hdr_len = owed.hdr_len.wrapping_add_signed(delta);
    }
    Frame { bytes, owed }
}
