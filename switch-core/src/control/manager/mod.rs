//! The executor: makes the switch what the desired state says.
//!
//! A change is checked as a whole, journalled, and then carried out in the order open → publish → grant → revoke →
//! close, so that ports that a change does not name never notice it. A device that cannot be opened makes its port
//! *waiting*; it is tried again by [`tick`](Manager::tick). Runs on the control thread; the caller serialises.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

mod announce;
mod attend;
mod edits;
mod functions;
mod networks;
mod policy;
mod views;

use self::functions::functions;
use super::{
    desired::Desired,
    drivers::Drivers,
    journal::Journal,
    learned::Learned,
    plan::{Step, needs_reopen, plan},
    spec::{AttachmentSpec, DressSpec, NetworkSpec, PortSpec, RoleSpec, SpecError},
    wire::Done,
};
use crate::{
    fdb::{self, Flush},
    id::{DomainId, MAX_PORTS, PortId},
    link::Links,
    network::{Networks, Outcome},
    port::{Notifier, Opened, PortControl, PortRx, guard::Guards},
    rate::Limiter,
    switch::{Settings, Switch, SwitchError},
    topology::{Attachment, DomainDef, Dress, Policy, PortDef, PortShared, Role},
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
    /// The state is no longer the one that the request was made for; nothing has changed.
    #[error("the switch has been changed meanwhile; look again, and try again")]
    Conflict,
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
    /// What was published of it last.
    policy: Policy,
    control: Box<dyn PortControl>,
    /// What [`PortControl::missing`] said last.
    missing: Option<String>,
    /// The netdev's count of frames not taken when the port was opened: later ones are lost to the switch.
    not_taken: u64,
}

/// The receive queues of a port that has just been opened.
type Grant = (PortId, Vec<Box<dyn PortRx>>);

/// See the module page.
pub struct Manager {
    /// First to go: what it has made outside ends before the ports do. `None`: nothing outlives the process, so there are no networks.
    networks: Option<Networks>,
    /// The networks that it was told of.
    told: BTreeMap<String, NetworkSpec>,
    /// What comes of the last that each was told.
    outcomes: BTreeMap<String, Outcome>,
    switch: Switch,
    settings: Settings,
    journal: Option<Journal>,
    /// The addresses that clean ports have obtained.
    learned: Learned,
    /// The state directory.
    state: Option<PathBuf>,
    drivers: Drivers,
    news: Arc<tokio::sync::Notify>,
    desired: Desired,
    open: HashMap<String, Open>,
    waiting: BTreeMap<String, String>,
    /// Counts the changes of `desired`.
    revision: u64,
    domain_ids: HashMap<String, DomainId>,
    domain_rates: HashMap<String, Arc<Limiter>>,
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
        let networks =
            journal.as_ref().map(|journal| Networks::start(journal.directory(), notifier.clone())).transpose();
        let mut manager = Manager {
            networks: networks.map_err(ManagerError::Journal)?,
            told: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            switch,
            settings,
            learned: Learned::open(journal.as_ref().map(Journal::directory)),
            journal: None,
            state: journal.as_ref().map(|journal| journal.directory().to_owned()),
            drivers: Drivers { links: Links::new(notifier.clone()), guards, notifier },
            news,
            desired: Desired::default(),
            open: HashMap::new(),
            waiting: BTreeMap::new(),
            revision: 0,
            domain_ids: HashMap::new(),
            domain_rates: HashMap::new(),
            notices: VecDeque::new(),
            notice_number: 0,
            started: Instant::now(),
        };
        let places = desired.places.clone();
        manager.change(desired)?;
        if let Some(journal) = journal.as_ref().filter(|_| manager.desired.places != places) {
            journal.save(&manager.desired).map_err(ManagerError::Journal)?;
        }
        manager.journal = journal;
        Ok(manager)
    }

    /// What is wanted.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Gives members of networks their devices; what [`change`](Self::change) does first.
    ///
    /// # Errors
    /// A network has none left; nothing has changed.
    pub fn settle(&self, desired: &mut Desired) -> Result<(), SpecError> {
        desired.settle(|network, pf| functions(&self.settings.sysfs, self.state.as_deref(), network, pf))
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
    pub fn change(&mut self, mut desired: Desired) -> Result<Done, ManagerError> {
        desired.check()?;
        self.settle(&mut desired)?;
        self.check_equipment(&desired)?;
        let steps = plan(&self.desired, &desired);
        if desired.effective_ports().len() > MAX_PORTS {
            return Err(SpecError(format!("a switch has at most {MAX_PORTS} ports")).into());
        }
        if let Some(journal) = &self.journal
            && desired != self.desired
        {
            journal.save(&desired).map_err(ManagerError::Journal)?;
        }
        self.revision += u64::from(desired != self.desired);
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
        self.quiet_stopped_networks(old);
        self.tell_networks();
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
                    let not_taken = self.not_taken(spec);
                    let was_waiting = self.waiting.remove(&spec.name).is_some();
                    match &missing {
                        Some(reason) => self.notice(format!("port {} is waiting: {reason}", spec.name)),
                        None if was_waiting => self.notice(format!("port {} is up", spec.name)),
                        None => {}
                    }
                    let policy = Policy::default();
                    let open = Open { id: PortId(id), shared, policy, control, missing, not_taken };
                    self.open.insert(spec.name.clone(), open);
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

    /// Publishes what has been opened, gives clean ports back the addresses that they had, and hands queues to workers.
    fn put_to_work(&mut self, grants: Vec<Grant>) -> Result<(), ManagerError> {
        self.publish()?;
        for (id, rx) in grants {
            self.restore_bindings(id);
            self.switch.grant(id, rx)?;
        }
        Ok(())
    }

    fn not_taken(&self, spec: &PortSpec) -> u64 {
        let space = self.drivers.links.space(spec.netns.as_deref());
        space.ok().and_then(|s| s.known(spec.netdev())).map_or(0, |link| views::not_taken(spec.kind, &link))
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
        let wanted = self.desired.effective_fdb();
        for entry in old.effective_fdb().iter().filter(|e| !wanted.contains(e)) {
            if let Some(domain) = self.domain_ids.get(&entry.domain) {
                // It may have gone with its port already.
                let _ = fdb.remove(*domain, entry.mac);
            }
        }
        for entry in wanted {
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
        let known = self.desired.effective_domains();
        for spec in self.desired.effective_ports().values() {
            let Some(open) = self.open.get_mut(&spec.name) else { continue };
            if let Some(mtu) = spec.domains.iter().filter_map(|a| Some(known.get(&a.domain)?.mtu)).min() {
                open.control.set_mtu(mtu);
            }
            let attachments = spec
                .domains
                .iter()
                .filter(|a| self.desired.passes(&a.domain))
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
                policy: open.take_policy(spec),
                shared: Arc::clone(&open.shared),
            });
        }
        self.domain_rates = policy::take_rates(&self.domain_rates, known.values());
        let domains: Vec<DomainDef> = known
            .values()
            .filter_map(|d| {
                let id = *self.domain_ids.get(&d.name)?;
                let rate = self.domain_rates.get(&d.name).cloned();
                Some(DomainDef { id, mtu: d.mtu, group_fwd_mask: d.group_fwd_mask, rate })
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
        DressSpec::Native { vid, tpid } => Dress::Native { tpid, vid },
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
