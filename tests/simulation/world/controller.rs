//! The controller: it does what the manager does, in the same order, with frames on their way at every moment.

use super::*;

impl World {
    fn random_members(&mut self) -> Vec<Member> {
        let rng = &mut self.rng;
        let mut members = Vec::new();
        let mut domains: Vec<u16> = (0..DOMAINS).collect();
        let mut member = |rng: &mut Rng, wire: Wire| {
            let domain = domains.remove(rng.below(domains.len()));
            let reach = match rng.below(10) {
                0..6 => Reach::All,
                6..8 => Reach::Alone,
                n => Reach::Club(n as u16 - 8),
            };
            members.push(Member { domain, wire, reach });
        };
        match rng.below(100) {
            0..10 => member(rng, Wire::Transparent),
            10..13 => {}
            other => {
                if other < 65 {
                    member(rng, Wire::Untagged);
                }
                if other > 45 {
                    let first = rng.below(VIDS.len());
                    for n in 0..rng.between(1, 3) {
                        let tpid = rng.pick(&[0x8100, 0x8100, 0x88a8]);
                        member(rng, Wire::Tag(tpid, VIDS[(first + n) % VIDS.len()]));
                    }
                }
            }
        }
        members
    }

    pub(super) fn add_port(&mut self) {
        let Some(number) = (0..MAX_PORTS).find(|n| !self.ports.contains_key(n)) else { return };
        let members = self.random_members();
        let offloads = self.rng.chance(50);
        let hairpin = self.rng.chance(10);
        let queues = if self.rng.chance(25) { 2 } else { 1 };
        let capabilities = if offloads { Capabilities::ALL } else { Capabilities::NONE };
        let (mut tx, mut rx, mut far) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..queues {
            let (pair, peer) = mem::pair(capabilities).expect("descriptors");
            tx.push(pair.tx);
            rx.push(pair.rx);
            far.push(Queue { peer, on_the_way: VecDeque::new(), closed: false });
        }
        let shared = Arc::new(PortShared::new(tx, WORKERS));
        self.all_shared.push(Arc::clone(&shared));
        self.note(format!("port {number} is added: {members:?} queues={queues} offloads={offloads} hairpin={hairpin}"));
        self.net.ports.insert(number, Port { members, hairpin, up: true, carrier: true, learning: true, offloads });
        self.ports.insert(
            number,
            Plugged { shared, queues: far, counted: Totals::default(), ever_hairpin: hairpin, room: None },
        );
        self.publish(Then::Grant(number, rx));
    }

    /// Queues are revoked before the port is taken out of the topology, and forgotten after everybody has that.
    fn remove_port(&mut self, number: u16) {
        self.note(format!("port {number} is removed"));
        let mut order: Vec<usize> = (0..WORKERS).collect();
        while !order.is_empty() {
            let w = order.remove(self.rng.below(order.len()));
            self.ask(w, |done| Command::Revoke { port: PortId(number), done });
            for place in &mut self.nodes[w].places {
                *place = place.filter(|(p, _)| *p != number);
            }
        }
        self.net.ports.remove(&number);
        self.publish(Then::Forget(number));
    }

    fn change_port(&mut self, number: u16) {
        let members = if self.rng.chance(60) { Some(self.random_members()) } else { None };
        let port = self.net.ports.get_mut(&number).expect("picked");
        let before: Vec<u16> = port.members.iter().map(|m| m.domain).collect();
        if let Some(members) = members {
            port.members = members;
        }
        port.up = self.rng.chance(80);
        port.carrier = self.rng.chance(85);
        port.learning = self.rng.chance(90);
        port.hairpin = self.rng.chance(10);
        let left = before.into_iter().filter(|d| port.members.iter().all(|m| m.domain != *d)).collect();
        let line = format!("port {number} is changed: {port:?}");
        self.ports.get_mut(&number).expect("plugged in").ever_hairpin |= port.hairpin;
        self.note(line);
        self.publish(Then::Flush(number, left));
    }

    pub(super) fn change(&mut self) {
        let numbers: Vec<u16> = self.ports.keys().copied().collect();
        match self.rng.below(110) {
            100.. => self.balance(),
            0..30 => self.add_port(),
            30..50 if numbers.len() > 2 => {
                let number = self.rng.pick(&numbers);
                self.remove_port(number);
            }
            50..90 if !numbers.is_empty() => {
                let number = self.rng.pick(&numbers);
                self.change_port(number);
            }
            _ => {
                let id = self.rng.below(usize::from(DOMAINS)) as u16;
                let mtu = self.rng.pick(&[576, 1500, 9000]);
                let groups = self.rng.pick(&[0, 1, 1, 0xffff]);
                self.net.domains.insert(id, Domain { mtu, groups });
                self.note(format!("domain {id} has mtu {mtu} and groups {groups:#x}"));
                self.publish(Then::Nothing);
            }
        }
    }

    fn publish(&mut self, then: Then) {
        assert!(self.publication.is_none(), "one change at a time");
        self.epoch += 1;
        let defs = self
            .net
            .ports
            .iter()
            .map(|(number, port)| PortDef {
                id: PortId(*number),
                attachments: port.members.iter().map(attachment).collect(),
                hairpin: port.hairpin,
                up: port.up,
                carrier: port.carrier,
                learning: port.learning,
                storm: StormLimits { broadcast: 0, multicast: 0, unknown: 0 },
                policy: switch_core::topology::Policy::default(),
                shared: Arc::clone(&self.ports[number].shared),
            })
            .collect();
        let domains: Vec<DomainDef> = self
            .net
            .domains
            .iter()
            .map(|(id, d)| DomainDef { id: DomainId(*id), mtu: d.mtu as u32, group_fwd_mask: d.groups, rate: None })
            .collect();
        let topology = Arc::new(Topology::build(Epoch(self.epoch), defs, &domains).expect("a valid description"));
        let net = Rc::new(self.net.clone());
        self.publication = Some(Publication { topology, net, waiting: (0..WORKERS).collect(), then });
    }

    /// One more worker takes the topology up; after the last one, what had to wait for all of them.
    pub(super) fn publish_next(&mut self) {
        let Some(mut publication) = self.publication.take() else { return };
        let w = publication.waiting.remove(self.rng.below(publication.waiting.len()));
        let topology = Arc::clone(&publication.topology);
        self.ask(w, |done| Command::Publish { topology, done });
        self.model.nets[w] = Rc::clone(&publication.net);
        self.note(format!("worker {w} takes up topology {}", publication.topology.epoch.0));
        if !publication.waiting.is_empty() {
            self.publication = Some(publication);
            return;
        }
        drop(publication.net);
        assert_eq!(Arc::strong_count(&publication.topology), WORKERS + 1, "the old one is out of use");
        match publication.then {
            Then::Nothing => {}
            Then::Grant(number, queues) => {
                for (q, rx) in queues.into_iter().enumerate() {
                    let w = self.rng.below(WORKERS);
                    self.grant(w, number, q, rx);
                }
            }
            Then::Flush(number, domains) => {
                for d in domains {
                    let what = Flush { port: Some(PortId(number)), domain: Some(DomainId(d)), include_static: false };
                    self.fdb.flush(what);
                    self.model.flush(number, Some(d), false);
                }
            }
            Then::Forget(number) => {
                self.fdb.flush(Flush { port: Some(PortId(number)), include_static: true, ..Flush::default() });
                self.model.flush(number, None, true);
                let plugged = self.ports.remove(&number).expect("plugged in");
                assert_eq!(plugged.shared.counters.total(), plugged.counted, "nothing happened to it unseen");
            }
        }
    }

    fn grant(&mut self, w: usize, number: u16, q: usize, rx: Box<dyn PortRx>) {
        let (done, answer) = bounded(1);
        self.send_command(w, Command::Grant { port: PortId(number), queue: q as u16, rx, load: Arc::default(), done });
        answer.try_recv().expect("obeyed").expect("watched");
        let places = &mut self.nodes[w].places;
        match places.iter().position(Option::is_none) {
            Some(free) => places[free] = Some((number, q)),
            None => places.push(Some((number, q))),
        }
    }

    /// A queue with all that waits in it goes to another worker.
    fn balance(&mut self) {
        let (from, to) = (self.rng.below(WORKERS), self.rng.below(WORKERS));
        let owned: Vec<(u16, usize)> = self.nodes[from].places.iter().flatten().copied().collect();
        if owned.is_empty() {
            return;
        }
        let (number, q) = self.rng.pick(&owned);
        let (back, answer) = bounded(1);
        self.send_command(from, Command::Yield { port: PortId(number), queue: q as u16, back });
        let rx = answer.try_recv().expect("obeyed").expect("it had the queue");
        for place in &mut self.nodes[from].places {
            *place = place.filter(|at| *at != (number, q));
        }
        self.note(format!("port {number} queue {q} goes from worker {from} to {to}"));
        *self.seen.entry("balanced").or_default() += 1;
        self.grant(to, number, q, rx);
    }

    pub(super) fn finish_publication(&mut self) {
        while self.publication.is_some() {
            self.publish_next();
        }
    }

    fn send_command(&mut self, w: usize, command: Command) {
        self.nodes[w].commands.send(command).expect("the worker lives");
        self.nodes[w].waker.wake().expect("eventfd");
        self.nodes[w].worker.look();
    }

    fn ask(&mut self, w: usize, command: impl FnOnce(Sender<()>) -> Command) {
        let (done, answer) = bounded(1);
        self.send_command(w, command(done));
        answer.try_recv().expect("a woken worker obeys when it looks");
    }

    pub(super) fn change_table(&mut self) {
        let tick = now_of(self.now).tick;
        let domain = self.rng.below(usize::from(DOMAINS)) as u16;
        let mac = frames::host(self.rng.below(HOSTS));
        let numbers: Vec<u16> = self.ports.keys().copied().collect();
        match self.rng.below(10) {
            0..2 if !numbers.is_empty() => {
                let port = self.rng.pick(&numbers);
                let kind = self.rng.pick(&[Kind::Static, Kind::Sticky]);
                self.fdb.pin(DomainId(domain), MacAddr(mac), PortId(port), kind, tick).expect("room");
                let host = super::super::model::Host { port, kind, second: tick.0 };
                self.model.hosts.insert((domain, mac), host);
                self.note(format!("{mac:02x?} is {kind:?} on port {port} in domain {domain}"));
            }
            2..7 => {
                let there = self.fdb.remove(DomainId(domain), MacAddr(mac)).expect("nobody else");
                assert_eq!(there, self.model.hosts.remove(&(domain, mac)).is_some());
            }
            _ => {
                self.fdb.age(tick, |_| AGEING_S);
                self.model.hosts.retain(|_, h| h.kind == Kind::Static || tick.0 - h.second <= AGEING_S);
            }
        }
    }

    /// A queue that takes only so much, or a device that goes away.
    pub(super) fn fault(&mut self) {
        let numbers: Vec<u16> =
            self.ports.iter().filter(|(_, p)| p.queues.len() == 1).map(|(number, _)| *number).collect();
        if numbers.is_empty() {
            return;
        }
        let number = self.rng.pick(&numbers);
        let plugged = self.ports.get_mut(&number).expect("picked");
        if self.rng.chance(12) {
            plugged.queues[0].closed = true;
            plugged.queues[0].peer.close();
            self.note(format!("the device of port {number} goes away"));
        } else {
            plugged.room = if self.rng.chance(50) { Some(self.rng.below(4)) } else { None };
            plugged.queues[0].peer.set_room(plugged.room.unwrap_or(usize::MAX));
            let line = format!("port {number} has room for {:?}", plugged.room);
            self.note(line);
        }
    }
}
