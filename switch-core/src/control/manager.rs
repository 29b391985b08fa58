//! The executor: makes the switch what the desired state says.
//!
//! A change is checked as a whole, journalled, and then carried out in the order open → publish → grant → revoke →
//! close, so that ports that a change does not name never notice it. A device that cannot be opened makes its port
//! *waiting*; it is tried again by [`tick`](Manager::tick). Runs on the control thread; the caller serialises.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use super::{
    desired::{Desired, Origin, Owned},
    drivers::Drivers,
    journal::Journal,
    plan::{Step, needs_reopen, plan},
    spec::{AttachmentSpec, DEFAULT_DOMAIN, DomainSpec, DressSpec, Kind, PortSpec, RoleSpec, SpecError},
    wire::{DomainView, Done, FdbView, PortState, PortView, Status},
};
use crate::{
    fdb::{self, Fdb, Flush},
    id::{DomainId, MAX_PORTS, PortId},
    link::{Link, Links},
    mac::MacAddr,
    port::{Notifier, Opened, PortControl, PortRx, guard::Guards},
    stats::Counter,
    switch::{Settings, Switch, SwitchError},
    topology::{Attachment, DomainDef, Dress, PortDef, PortShared, Role},
    verdict::DropReason,
    worker::Event,
};

/// Seconds between two looks at which worker serves which queue.
const BALANCE_EVERY_S: u32 = 4;
/// Events kept for `vswitch monitor`.
const MAX_EVENTS: usize = 1024;

/// A change was refused or could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The request is wrong; nothing has changed.
    #[error(transparent)]
    Refused(#[from] SpecError),
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// The state directory cannot be written; nothing has changed.
    #[error(transparent)]
    Journal(std::io::Error),
    /// The switch itself failed.
    #[error(transparent)]
    Switch(#[from] SwitchError),
}

/// One line for `vswitch monitor`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Notice {
    /// Counts from 1 and never repeats in one run.
    pub number: u64,
    /// Seconds since the start.
    pub at_s: u32,
    /// What happened.
    pub text: String,
}

struct Open {
    id: PortId,
    shared: Arc<PortShared>,
    control: Box<dyn PortControl>,
    /// What [`PortControl::missing`] said last.
    missing: Option<String>,
    /// The netdev's `tx_dropped` when the port was opened: later ones are frames that the switch did not take in time.
    tx_dropped: u64,
}

/// The receive queues of a port that has just been opened.
type Grant = (PortId, Vec<Box<dyn PortRx>>);

/// See the module page.
pub struct Manager {
    switch: Switch,
    settings: Settings,
    journal: Option<Journal>,
    drivers: Drivers,
    news: Arc<tokio::sync::Notify>,
    desired: Desired,
    open: HashMap<String, Open>,
    waiting: BTreeMap<String, String>,
    domain_ids: HashMap<String, DomainId>,
    notices: VecDeque<Notice>,
    notice_number: u64,
    started: Instant,
}

impl Manager {
    /// Starts a switch with nothing in it, then carries out what the journal holds.
    ///
    /// # Errors
    /// Threads cannot be started, the state directory cannot be used, or the switch fails. A port that cannot be opened is no error.
    pub fn start(settings: Settings, journal: Option<(Journal, Desired)>) -> Result<Manager, ManagerError> {
        let (journal, desired) = journal.map_or((None, Desired::default()), |(j, d)| (Some(j), d));
        let guards = Guards::undo_leftovers(journal.as_ref().map(Journal::directory)).map_err(ManagerError::Journal)?;
        let switch = Switch::start(&settings).map_err(SwitchError::Io)?;
        let news = Arc::new(tokio::sync::Notify::new());
        let notifier = {
            let news = Arc::clone(&news);
            Notifier::new(move || news.notify_one())
        };
        let mut manager = Manager {
            switch,
            settings,
            journal: None,
            drivers: Drivers { links: Links::new(notifier.clone()), guards, notifier },
            news,
            desired: Desired::default(),
            open: HashMap::new(),
            waiting: BTreeMap::new(),
            domain_ids: HashMap::new(),
            notices: VecDeque::new(),
            notice_number: 0,
            started: Instant::now(),
        };
        manager.change(desired)?;
        manager.journal = journal;
        Ok(manager)
    }

    /// What is wanted.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// How the switch was started.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Completes when [`attend`](Self::attend) is worth calling before the next tick.
    #[must_use]
    pub fn news(&self) -> Arc<tokio::sync::Notify> {
        Arc::clone(&self.news)
    }

    /// Carries out a new desired state.
    ///
    /// # Errors
    /// The state contradicts itself or cannot be journalled: nothing has changed. Or the switch failed.
    pub fn change(&mut self, desired: Desired) -> Result<Done, ManagerError> {
        desired.check()?;
        let steps = plan(&self.desired, &desired);
        if desired.effective_ports().len() > MAX_PORTS {
            return Err(SpecError(format!("a switch has at most {MAX_PORTS} ports")).into());
        }
        if let Some(journal) = &self.journal
            && desired != self.desired
        {
            journal.save(&desired).map_err(ManagerError::Journal)?;
        }
        let old = std::mem::replace(&mut self.desired, desired);
        self.carry_out(&old, &steps)?;
        let waiting = steps
            .iter()
            .filter(|s| s.what == "port")
            .filter_map(|s| Some((s.name.clone(), self.reason(&s.name)?.to_owned())))
            .collect();
        Ok(Done { steps, waiting })
    }

    /// Why a port waits.
    fn reason(&self, port: &str) -> Option<&str> {
        let missing = self.open.get(port).and_then(|open| open.missing.as_deref());
        self.waiting.get(port).map(String::as_str).or(missing)
    }

    fn carry_out(&mut self, old: &Desired, steps: &[Step]) -> Result<(), ManagerError> {
        let ports = self.desired.effective_ports();
        let old_ports = old.effective_ports();
        // A device that is to be opened anew must be closed first: a TAP has one holder.
        let closing: Vec<String> = old_ports
            .iter()
            .filter(|(name, before)| ports.get(*name).is_none_or(|after| needs_reopen(before, after)))
            .map(|(name, _)| name.clone())
            .collect();
        let mut retired = Vec::new();
        for name in &closing {
            self.waiting.remove(name);
            if let Some(open) = self.open.remove(name) {
                self.switch.revoke(open.id)?;
                retired.push(open);
            }
        }
        self.assign_domain_ids();
        if !retired.is_empty() {
            self.publish()?;
            for open in retired {
                self.switch.fdb().flush(Flush { port: Some(open.id), include_static: true, ..Flush::default() });
            }
        }
        let to_open: Vec<PortSpec> = ports
            .values()
            .filter(|p| !self.open.contains_key(&p.name) && !self.waiting.contains_key(&p.name))
            .cloned()
            .collect();
        for (name, open) in &mut self.open {
            if let (Some(before), Some(after)) = (old_ports.get(name), ports.get(name))
                && before.link != after.link
            {
                open.control.set_link(after.link);
            }
        }
        let queues = self.open_devices(&to_open);
        self.put_to_work(queues)?;
        for step in steps.iter().filter(|s| s.what == "port" && s.action == "change") {
            self.flush_left_domains(&step.name, &old_ports);
        }
        self.drop_domain_ids();
        self.pin_entries(old);
        self.set_quotas();
        for step in steps {
            self.notice(format!("{step}"));
        }
        Ok(())
    }

    /// Opens devices; those that cannot be opened wait.
    fn open_devices(&mut self, specs: &[PortSpec]) -> Vec<Grant> {
        let mut grants = Vec::new();
        let mut used: BTreeSet<u16> = self.open.values().map(|o| o.id.0).collect();
        for spec in specs {
            match self.drivers.open(spec) {
                Ok(Opened { queues, mut control }) => {
                    let id =
                        (0..MAX_PORTS as u16).find(|id| !used.contains(id)).expect("the number of ports was checked");
                    used.insert(id);
                    let (rx, tx): (Vec<_>, Vec<_>) = queues.into_iter().map(|q| (q.rx, q.tx)).unzip();
                    let shared = Arc::new(PortShared::new(tx, self.switch.workers()));
                    if !spec.link {
                        control.set_link(false);
                    }
                    let missing = control.missing();
                    let tx_dropped = self.tx_dropped(spec);
                    let was_waiting = self.waiting.remove(&spec.name).is_some();
                    match &missing {
                        Some(reason) => self.notice(format!("port {} is waiting: {reason}", spec.name)),
                        None if was_waiting => self.notice(format!("port {} is up", spec.name)),
                        None => {}
                    }
                    self.open.insert(spec.name.clone(), Open { id: PortId(id), shared, control, missing, tx_dropped });
                    grants.push((PortId(id), rx));
                }
                Err(reason) => {
                    if self.waiting.insert(spec.name.clone(), reason.clone()).as_ref() != Some(&reason) {
                        tracing::warn!(port = spec.name, "waiting: {reason}");
                        self.notice(format!("port {} is waiting: {reason}", spec.name));
                    }
                }
            }
        }
        grants
    }

    /// Publishes what has been opened and hands its queues to workers.
    fn put_to_work(&mut self, grants: Vec<Grant>) -> Result<(), ManagerError> {
        self.publish()?;
        for (id, rx) in grants {
            self.switch.grant(id, rx)?;
        }
        Ok(())
    }

    fn tx_dropped(&self, spec: &PortSpec) -> u64 {
        let space = self.drivers.links.space(spec.netns.as_deref());
        space.ok().and_then(|s| s.known(spec.device())).map_or(0, |link| link.tx_dropped)
    }

    fn assign_domain_ids(&mut self) {
        for name in self.desired.effective_domains().keys() {
            if !self.domain_ids.contains_key(name) {
                let used: BTreeSet<u16> = self.domain_ids.values().map(|d| d.0).collect();
                let id = (0..u16::MAX).find(|id| !used.contains(id)).unwrap_or(u16::MAX);
                self.domain_ids.insert(name.clone(), DomainId(id));
            }
        }
    }

    /// Frees the ids of domains that are gone; the published topology no longer names them.
    fn drop_domain_ids(&mut self) {
        let wanted = self.desired.effective_domains();
        let gone: Vec<_> = self.domain_ids.keys().filter(|n| !wanted.contains_key(*n)).cloned().collect();
        for name in gone {
            if let Some(id) = self.domain_ids.remove(&name) {
                self.switch.fdb().flush(Flush { domain: Some(id), include_static: true, ..Flush::default() });
            }
        }
    }

    fn flush_left_domains(&self, name: &str, old_ports: &BTreeMap<String, PortSpec>) {
        let (Some(open), Some(before)) = (self.open.get(name), old_ports.get(name)) else { return };
        let after = self.desired.effective_ports();
        for attachment in &before.domains {
            let stays =
                after.get(name).is_some_and(|p| p.link && p.domains.iter().any(|a| a.domain == attachment.domain));
            if let (false, Some(domain)) = (stays, self.domain_ids.get(&attachment.domain)) {
                self.switch.fdb().flush(Flush { port: Some(open.id), domain: Some(*domain), include_static: false });
            }
        }
    }

    fn pin_entries(&mut self, old: &Desired) {
        let fdb = Arc::clone(self.switch.fdb());
        let tick = self.switch.clock().now().tick;
        for entry in old.fdb.iter().filter(|e| !self.desired.fdb.contains(e)) {
            if let Some(domain) = self.domain_ids.get(&entry.domain) {
                // It may have gone with its port already.
                let _ = fdb.remove(*domain, entry.mac);
            }
        }
        for entry in self.desired.fdb.clone() {
            let (Some(domain), Some(open)) = (self.domain_ids.get(&entry.domain), self.open.get(&entry.port)) else {
                continue;
            };
            let kind = if entry.sticky { fdb::Kind::Sticky } else { fdb::Kind::Static };
            if let Err(e) = fdb.pin(*domain, entry.mac, open.id, kind, tick) {
                self.notice(format!("fdb entry {} was not made: {e}", entry.mac));
            }
        }
    }

    fn set_quotas(&self) {
        let fdb = self.switch.fdb();
        for (name, spec) in self.desired.effective_ports() {
            if let Some(open) = self.open.get(&name) {
                fdb.set_port_quota(open.id, spec.fdb_limit.unwrap_or((fdb.capacity() / 2) as u32));
            }
        }
        for (name, spec) in self.desired.effective_domains() {
            if let Some(id) = self.domain_ids.get(&name) {
                fdb.set_domain_quota(*id, spec.fdb_limit.unwrap_or(u32::MAX));
            }
        }
    }

    fn publish(&mut self) -> Result<(), ManagerError> {
        let mut communities: HashMap<(DomainId, String), u16> = HashMap::new();
        let mut ports = Vec::new();
        for spec in self.desired.effective_ports().values() {
            let Some(open) = self.open.get(&spec.name) else { continue };
            let attachments = spec
                .domains
                .iter()
                .filter_map(|a| Some(attachment(*self.domain_ids.get(&a.domain)?, a, &mut communities)))
                .collect();
            ports.push(PortDef {
                id: open.id,
                attachments,
                hairpin: spec.hairpin,
                up: spec.link,
                carrier: open.missing.is_none(),
                learning: spec.learning,
                storm: spec.storm,
                shared: Arc::clone(&open.shared),
            });
        }
        let domains: Vec<DomainDef> = self
            .desired
            .effective_domains()
            .values()
            .filter_map(|d| {
                let id = *self.domain_ids.get(&d.name)?;
                Some(DomainDef { id, mtu: d.mtu, group_fwd_mask: d.group_fwd_mask })
            })
            .collect();
        Ok(self.switch.publish(ports, &domains)?)
    }

    fn notice(&mut self, text: String) {
        self.notice_number += 1;
        if self.notices.len() == MAX_EVENTS {
            self.notices.pop_front();
        }
        let at_s = self.started.elapsed().as_secs() as u32;
        self.notices.push_back(Notice { number: self.notice_number, at_s, text });
    }

    /// Notices after the given number.
    #[must_use]
    pub fn notices(&self, after: u64) -> Vec<Notice> {
        self.notices.iter().filter(|n| n.number > after).cloned().collect()
    }

    /// To be called about once per second: ages the FDB and does what [`attend`](Self::attend) does.
    ///
    /// # Errors
    /// The switch itself failed.
    pub fn tick(&mut self) -> Result<(), ManagerError> {
        self.attend()?;
        let tick = self.switch.clock().now().tick;
        if tick.0.is_multiple_of(BALANCE_EVERY_S)
            && let Some((port, queue, from, to)) = self.switch.balance()?
        {
            let name = self.port_name(port);
            self.notice(format!("queue {queue} of port {name} has moved from worker {from} to worker {to}"));
        }
        let ageing: HashMap<DomainId, u32> = self
            .desired
            .effective_domains()
            .values()
            .filter_map(|d| Some((*self.domain_ids.get(&d.name)?, d.ageing)))
            .collect();
        self.switch.fdb().age(tick, |domain| ageing.get(&domain).copied().unwrap_or(1));
        Ok(())
    }

    /// Takes reports of workers, looks after ports whose other side came or went, and tries again to open those that wait.
    ///
    /// # Errors
    /// The switch itself failed.
    pub fn attend(&mut self) -> Result<(), ManagerError> {
        while let Ok(event) = self.switch.reports().try_recv() {
            match event {
                Event::Gone { port } => self.lost_device(port)?,
                Event::Flap(flap) => {
                    let (kept, seen) = (self.port_name(flap.kept_on), self.port_name(flap.seen_on));
                    tracing::warn!(mac = %flap.mac, "address flaps between {kept} and {seen}; held on {kept}");
                    self.notice(format!("{} flaps between {kept} and {seen}; held on {kept}", flap.mac));
                }
            }
        }
        self.follow_carriers()?;
        if !self.waiting.is_empty() {
            let ports = self.desired.effective_ports();
            let again: Vec<PortSpec> = self.waiting.keys().filter_map(|name| ports.get(name).cloned()).collect();
            let queues = self.open_devices(&again);
            if !queues.is_empty() {
                self.put_to_work(queues)?;
                let desired = self.desired.clone();
                self.pin_entries(&desired);
                self.set_quotas();
            }
        }
        Ok(())
    }

    /// Publishes which ports have a carrier, if that has changed; the addresses behind one that lost it are forgotten.
    fn follow_carriers(&mut self) -> Result<(), ManagerError> {
        let mut changed = Vec::new();
        for (name, open) in &mut self.open {
            let missing = open.control.missing();
            if missing != open.missing {
                changed.push((name.clone(), open.id, missing.clone()));
                open.missing = missing;
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        self.publish()?;
        for (name, id, missing) in changed {
            match missing {
                Some(reason) => {
                    self.switch.fdb().flush(Flush { port: Some(id), ..Flush::default() });
                    tracing::info!(port = name, "waiting: {reason}");
                    self.notice(format!("port {name} is waiting: {reason}"));
                }
                None => self.notice(format!("port {name} is up")),
            }
        }
        Ok(())
    }

    fn lost_device(&mut self, port: PortId) -> Result<(), ManagerError> {
        let Some(name) = self.open.iter().find(|(_, o)| o.id == port).map(|(n, _)| n.clone()) else { return Ok(()) };
        self.open.remove(&name);
        self.switch.revoke(port)?;
        self.publish()?;
        self.switch.fdb().flush(Flush { port: Some(port), include_static: true, ..Flush::default() });
        let reason = "its device has gone away".to_owned();
        tracing::warn!(port = name, "waiting: {reason}");
        self.notice(format!("port {name} is waiting: {reason}"));
        self.waiting.insert(name, reason);
        Ok(())
    }

    fn port_name(&self, id: PortId) -> String {
        self.open.iter().find(|(_, o)| o.id == id).map_or_else(|| id.to_string(), |(n, _)| n.clone())
    }

    /// The switch as a whole.
    #[must_use]
    pub fn status(&self) -> Status {
        let ports = self.desired.effective_ports();
        let waiting = ports.keys().filter(|name| self.reason(name).is_some()).count();
        let down = ports.values().filter(|p| !p.link && self.reason(&p.name).is_none()).count();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            workers: self.switch.workers(),
            epoch: self.switch.epoch().0,
            ports_up: ports.len() - down - waiting,
            ports_down: down,
            ports_waiting: waiting,
            domains: self.desired.effective_domains().len(),
            fdb_entries: self.switch.fdb().len(),
            fdb_capacity: self.switch.fdb().capacity(),
        }
    }

    /// All ports, by name.
    #[must_use]
    pub fn ports(&self) -> Vec<PortView> {
        if let Err(e) = self.switch.collect_lost() {
            tracing::error!("{e}");
        }
        let ports = self.desired.effective_ports();
        let namespaces: BTreeSet<Option<String>> = ports.values().map(|p| p.netns.clone()).collect();
        let mut devices = HashMap::new();
        for netns in namespaces {
            // A namespace that is gone has no devices to ask; its ports are waiting.
            let links = self.drivers.links.space(netns.as_deref()).and_then(|space| space.list()).unwrap_or_default();
            for link in links {
                devices.insert((netns.clone(), link.name.clone()), link);
            }
        }
        ports
            .into_values()
            .map(|spec| {
                let key = (spec.netns.clone(), spec.device().to_owned());
                let link = devices.get(&key).filter(|_| spec.kind.is_device());
                self.port_view(spec, link)
            })
            .collect()
    }

    fn port_view(&self, spec: PortSpec, link: Option<&Link>) -> PortView {
        let open = self.open.get(&spec.name);
        let totals = open.map(|o| o.shared.counters.total()).unwrap_or_default();
        // A packet port's device drops what the switch sends, not what it receives.
        let lost = open
            .zip(link.filter(|_| spec.kind == Kind::Tap))
            .map_or(0, |(o, link)| link.tx_dropped.saturating_sub(o.tx_dropped));
        let mut counters: BTreeMap<String, u64> =
            Counter::ALL.iter().map(|c| (c.name().to_owned(), totals.get(*c))).collect();
        *counters.entry(Counter::RxLost.name().to_owned()).or_default() += lost;
        let reason = self.reason(&spec.name).map(str::to_owned);
        PortView {
            origin: self.desired.ports.get(&spec.name).map(|o| o.origin),
            state: match (&reason, spec.link) {
                (Some(_), _) => PortState::Waiting,
                (None, true) => PortState::Up,
                (None, false) => PortState::Down,
            },
            reason,
            device_mac: link.and_then(|l| l.mac),
            fdb_entries: open.map_or(0, |o| self.switch.fdb().port_len(o.id)),
            counters,
            drops: DropReason::ALL
                .iter()
                .map(|r| (r.name().to_owned(), totals.dropped(*r)))
                .filter(|(_, n)| *n > 0)
                .collect(),
            spec,
        }
    }

    /// All domains, by name.
    #[must_use]
    pub fn domains(&self) -> Vec<DomainView> {
        let ports = self.desired.effective_ports();
        self.desired
            .effective_domains()
            .into_values()
            .map(|spec| DomainView {
                origin: self.desired.domains.get(&spec.name).map(|o| o.origin),
                members: ports
                    .values()
                    .flat_map(|p| p.domains.iter().filter(|a| a.domain == spec.name).map(|a| member_text(&p.name, a)))
                    .collect(),
                spec,
            })
            .collect()
    }

    /// All FDB entries.
    #[must_use]
    pub fn fdb(&self) -> Vec<FdbView> {
        let domains: HashMap<DomainId, &String> = self.domain_ids.iter().map(|(n, id)| (*id, n)).collect();
        let ports: HashMap<PortId, &String> = self.open.iter().map(|(n, o)| (o.id, n)).collect();
        let table: &Fdb = self.switch.fdb();
        table
            .entries(self.switch.clock().now().tick)
            .into_iter()
            .filter_map(|e| {
                Some(FdbView {
                    domain: (*domains.get(&e.domain)?).clone(),
                    mac: e.mac,
                    port: (*ports.get(&e.port)?).clone(),
                    kind: e.kind,
                    age_s: e.age_s,
                })
            })
            .collect()
    }

    /// Forgets learned addresses.
    ///
    /// # Errors
    /// There is no such port or domain.
    pub fn flush(&self, port: Option<&str>, domain: Option<&str>) -> Result<usize, ManagerError> {
        let mut what = Flush::default();
        if let Some(name) = port {
            let open = self.open.get(name);
            what.port =
                Some(open.ok_or_else(|| ManagerError::NotFound(format!("there is no open port \"{name}\"")))?.id);
        }
        if let Some(name) = domain {
            let id = self.domain_ids.get(name);
            what.domain = Some(*id.ok_or_else(|| ManagerError::NotFound(format!("there is no domain \"{name}\"")))?);
        }
        Ok(self.switch.fdb().flush(what))
    }

    /// Forgets one address of any kind; false if it was not known.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn forget(&self, domain: &str, mac: MacAddr) -> Result<bool, ManagerError> {
        let id = self.domain_ids.get(domain);
        let id = *id.ok_or_else(|| ManagerError::NotFound(format!("there is no domain \"{domain}\"")))?;
        self.switch.fdb().remove(id, mac).map_err(|e| SpecError(e.to_string()).into())
    }

    /// Adds one port; refused if there is one of that name.
    ///
    /// # Errors
    /// See [`change`](Self::change).
    pub fn add_port(&mut self, spec: PortSpec, origin: Origin) -> Result<Done, ManagerError> {
        let name = spec.name.clone();
        if self.desired.effective_ports().contains_key(&name) {
            return Err(SpecError(format!("there is a port \"{name}\" already; see: vswitch port show {name}")).into());
        }
        let mut desired = self.desired.clone();
        desired.ports.insert(name, Owned { spec, origin });
        self.change(desired)
    }

    /// Adds one domain; refused if there is one of that name.
    ///
    /// # Errors
    /// See [`change`](Self::change).
    pub fn add_domain(&mut self, spec: DomainSpec, origin: Origin) -> Result<Done, ManagerError> {
        let name = spec.name.clone();
        if self.desired.domains.contains_key(&name) {
            return Err(
                SpecError(format!("there is a domain \"{name}\" already; see: vswitch domain show {name}")).into()
            );
        }
        let mut desired = self.desired.clone();
        desired.domains.insert(name, Owned { spec, origin });
        self.change(desired)
    }

    /// Removes a domain. `ports`: with the ports that are in no other domain; else it must have no members.
    ///
    /// # Errors
    /// It does not exist or has members; see also [`change`](Self::change).
    pub fn del_domain(&mut self, name: &str, ports: bool) -> Result<Done, ManagerError> {
        let mut desired = self.desired.clone();
        if desired.domains.remove(name).is_none() {
            return Err(ManagerError::NotFound(format!("there is no domain \"{name}\"; see: vswitch domain show")));
        }
        let is_member = |p: &PortSpec| p.domains.iter().any(|a| a.domain == name);
        if ports {
            desired.ports.retain(|_, p| !is_member(&p.spec) || p.spec.domains.len() > 1);
            for port in desired.ports.values_mut() {
                port.spec.domains.retain(|a| a.domain != name);
            }
        }
        // Ports may stay in `default`: it exists also when nobody asked for it.
        let members: Vec<_> = desired
            .ports
            .values()
            .filter(|p| name != DEFAULT_DOMAIN && is_member(&p.spec))
            .map(|p| p.spec.name.clone())
            .collect();
        if !members.is_empty() {
            return Err(SpecError(format!(
                "domain \"{name}\" has members ({}); detach them first, for example: vswitch port detach {} {name}",
                members.join(", "),
                members[0]
            ))
            .into());
        }
        let left = desired.effective_ports();
        desired.fdb.retain(|e| e.domain != name && left.contains_key(&e.port));
        self.change(desired)
    }
}

fn member_text(port: &str, attachment: &AttachmentSpec) -> String {
    let text = attachment.to_string();
    format!("{port}{}", &text[attachment.domain.len()..])
}

fn attachment(
    domain: DomainId,
    spec: &AttachmentSpec,
    communities: &mut HashMap<(DomainId, String), u16>,
) -> Attachment {
    let dress = match spec.dress {
        DressSpec::Untagged => Dress::Untagged,
        DressSpec::Transparent => Dress::Transparent,
        DressSpec::Tag { vid, tpid } => Dress::Tagged { tpid, vid },
    };
    let role = match &spec.role {
        RoleSpec::Promiscuous => Role::PROMISCUOUS,
        RoleSpec::Isolated => Role::ISOLATED,
        RoleSpec::Community(name) => {
            let next = communities.len() as u16;
            Role::community(*communities.entry((domain, name.clone())).or_insert(next))
        }
    };
    Attachment { domain, dress, role }
}
