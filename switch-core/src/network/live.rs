//! One network that is up: what has been made for it, and whether it is still so.

use std::{
    io,
    path::PathBuf,
    process::Child,
    time::{Duration, Instant},
};

use super::{
    address,
    dnsmasq::{self, Files},
    firewall::{self, Blocker},
    nft,
    record::{Book, Place, Record},
    sysctl,
};
use crate::{control::spec::NetworkSpec, netns};

/// Pauses between two starts of a dnsmasq that ends again and again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// One that ran so long starts with the first pause again.
const HEALTHY: Duration = Duration::from_secs(60);

/// A network that is up.
pub(super) struct Live {
    pub(super) spec: NetworkSpec,
    directory: PathBuf,
    place: Place,
    index: Option<u32>,
    /// Devices that traffic leaves by.
    uplinks: Vec<String>,
    rules: Option<String>,
    /// The table as nft prints it when it is as it should be.
    printed: Option<String>,
    files: Option<Files>,
    dnsmasq: Option<Child>,
    started: Instant,
    pause: Duration,
    again: Option<Instant>,
    pub(super) trouble: Option<String>,
    pub(super) blockers: Vec<Blocker>,
}

impl Live {
    /// Brings a network up. Its host port is there.
    ///
    /// # Errors
    /// Something is missing or refuses; everything is as before.
    pub(super) fn start(book: &mut Book, spec: &NetworkSpec, directory: PathBuf) -> io::Result<Live> {
        let place = Place::find(spec.netns.as_deref())?;
        // Before there is a record, which would have the table removed.
        let table = nft::table_name(&spec.name);
        netns::run_in(spec.netns.as_deref(), || nft::check_free(&table)).flatten()?;
        let mut live = Live {
            spec: spec.clone(),
            directory,
            place: place.clone(),
            index: None,
            uplinks: Vec::new(),
            rules: None,
            printed: None,
            files: None,
            dnsmasq: None,
            started: Instant::now(),
            pause: FIRST_PAUSE,
            again: None,
            trouble: None,
            blockers: Vec::new(),
        };
        book.file.networks.push(Record {
            name: spec.name.clone(),
            place,
            table,
            exceptions: Vec::new(),
            dnsmasq: None,
        });
        let made = book
            .save()
            .and_then(|()| netns::run_in(spec.netns.as_deref(), || live.address(book).and_then(|()| live.serve(book))));
        match made.flatten() {
            Ok(()) => Ok(live),
            Err(e) => {
                live.stop(book);
                Err(e)
            }
        }
    }

    /// Takes everything down.
    pub(super) fn stop(mut self, book: &mut Book) {
        book.close(&self.spec.name);
        if let Some(child) = &mut self.dnsmasq {
            dnsmasq::stop(child);
        }
        // The host port is the switch's to close; it may also stay, for another definition of the network.
        let addresses: Vec<_> = self.spec.addresses().collect();
        let Some(index) = self.index.filter(|_| self.place.is_there() && !addresses.is_empty()) else { return };
        let device = self.spec.device().to_owned();
        let taken = netns::run_in(self.spec.netns.as_deref(), || {
            if address::index_of(&device) == Some(index) { address::take_back(index, &addresses) } else { Ok(()) }
        });
        if let Err(e) = taken.flatten() {
            // It goes away now, as a rule.
            tracing::debug!(network = self.spec.name, "{e}");
        }
    }

    /// Whether a changed SPEC can be carried out without taking the network down.
    pub(super) fn can_become(&self, spec: &NetworkSpec) -> bool {
        let outside = |s: &NetworkSpec| {
            let addresses: Vec<_> = s.addresses().collect();
            (s.netns.clone(), s.device().to_owned(), s.mac, s.has_host(), s.forward.mode, addresses, s.route.clone())
        };
        let uplinks = |s: &NetworkSpec| (s.forward.dev.clone(), s.forward.interfaces.clone(), s.forward.fix_forward);
        outside(&self.spec) == outside(spec) && uplinks(&self.spec) == uplinks(spec)
    }

    /// Carries out a changed SPEC.
    pub(super) fn change(&mut self, book: &mut Book, spec: &NetworkSpec) -> io::Result<()> {
        self.spec = spec.clone();
        netns::run_in(spec.netns.as_deref(), || self.serve(book)).flatten()
    }

    /// Rules, then addresses and settings of the host port.
    fn address(&mut self, book: &mut Book) -> io::Result<()> {
        if !self.spec.has_host() {
            return Ok(());
        }
        let (name, device) = (self.spec.name.clone(), self.spec.device().to_owned());
        let index = address::index_of(&device).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("the host port \"{device}\" is not there"))
        })?;
        let addresses: Vec<_> = self.spec.addresses().collect();
        if let Some((net, other)) = address::taken(&device, &addresses)? {
            return Err(io::Error::other(format!(
                "{net} is in use on device \"{other}\"; give the network other addresses"
            )));
        }
        self.index = Some(index);
        // Before there is anything to forward: not even for a moment does it go unfiltered.
        self.rule()?;
        sysctl::deaf(book, &self.place, &name, &device)?;
        address::give(index, &addresses, &self.spec.route)?;
        self.forward(book)
    }

    /// Has the kernel forward.
    fn forward(&mut self, book: &mut Book) -> io::Result<()> {
        if !self.spec.by_host() {
            return Ok(());
        }
        let (name, device) = (self.spec.name.clone(), self.spec.device().to_owned());
        let named: Vec<String> = self.spec.forward.dev.iter().chain(&self.spec.forward.interfaces).cloned().collect();
        let uplinks = if named.is_empty() { address::uplinks()? } else { named };
        let (ipv4, ipv6) = self.families();
        if ipv4 {
            sysctl::forward_ipv4(book, &self.place, &name, &[&uplinks[..], std::slice::from_ref(&device)].concat())?;
        }
        if ipv6 {
            sysctl::forward_ipv6(book, &self.place, &name, &device)?;
        }
        self.uplinks = uplinks;
        Ok(())
    }

    fn families(&self) -> (bool, bool) {
        (self.spec.addresses().any(|a| a.is_ipv4()), self.spec.addresses().any(|a| !a.is_ipv4()))
    }

    /// Rules, and dnsmasq.
    fn serve(&mut self, book: &mut Book) -> io::Result<()> {
        self.rule()?;
        if self.spec.by_host() {
            self.look_for_blockers(book)?;
        }
        let wanted = dnsmasq::needed(&self.spec).then(|| Files::new(&self.spec, &self.directory));
        if wanted == self.files && (self.dnsmasq.is_some() || wanted.is_none()) {
            return Ok(());
        }
        let same = wanted.as_ref().zip(self.files.as_ref()).is_some_and(|(new, old)| new.config == old.config);
        self.files = wanted;
        let Some(files) = &self.files else {
            self.end_dnsmasq();
            return Ok(());
        };
        files.write(&self.directory)?;
        match book.network(&self.spec.name).and_then(|record| record.dnsmasq) {
            Some(process) if same && self.dnsmasq.is_some() => {
                process.reload();
                Ok(())
            }
            _ => {
                self.end_dnsmasq();
                self.start_dnsmasq(book)
            }
        }
    }

    /// Makes the rules what the SPEC says.
    fn rule(&mut self) -> io::Result<()> {
        let rules = nft::rules(&self.spec);
        if rules == self.rules { Ok(()) } else { self.put_rules(rules) }
    }

    fn put_rules(&mut self, rules: Option<String>) -> io::Result<()> {
        let table = nft::table_name(&self.spec.name);
        match &rules {
            Some(text) => {
                nft::apply(&table, text)?;
                self.printed = nft::current(&table)?;
            }
            None => {
                nft::remove(&table)?;
                self.printed = None;
            }
        }
        self.rules = rules;
        Ok(())
    }

    fn look_for_blockers(&mut self, book: &mut Book) -> io::Result<()> {
        let (ipv4, ipv6) = self.families();
        let table = nft::table_name(&self.spec.name);
        let find = || match firewall::blockers(&table, ipv4, ipv6) {
            // Without nft there are none that we could see.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other,
        };
        self.blockers = find()?;
        if !self.spec.forward.fix_forward {
            return Ok(());
        }
        let missing: Vec<_> = self.blockers.iter().filter(|b| !b.fixed).map(|b| b.chain.clone()).collect();
        for chain in &missing {
            if let Some(record) = book.network(&self.spec.name)
                && !record.exceptions.contains(chain)
            {
                record.exceptions.push(chain.clone());
                book.save()?;
            }
            firewall::except(chain, &table, self.spec.device())?;
        }
        if !missing.is_empty() {
            self.blockers = find()?;
        }
        Ok(())
    }

    fn start_dnsmasq(&mut self, book: &mut Book) -> io::Result<()> {
        let name = self.spec.name.clone();
        let child = dnsmasq::start(&self.directory, |process| {
            if let Some(record) = book.network(&name) {
                record.dnsmasq = Some(process);
            }
            book.save()
        })?;
        self.dnsmasq = Some(child);
        self.started = Instant::now();
        self.again = None;
        Ok(())
    }

    fn end_dnsmasq(&mut self) {
        if let Some(mut child) = self.dnsmasq.take() {
            dnsmasq::stop(&mut child);
        }
    }

    /// The id of its dnsmasq.
    pub(super) fn dnsmasq_pid(&self) -> Option<u32> {
        self.dnsmasq.as_ref().map(Child::id)
    }

    /// Looks after dnsmasq: one that has ended is started again, after a pause that grows. Returns what is to be told.
    pub(super) fn attend_dnsmasq(&mut self, book: &mut Book) -> Option<String> {
        let name = self.spec.name.clone();
        let mut said = None;
        if let Some(child) = &mut self.dnsmasq
            && let Ok(Some(status)) = child.try_wait()
        {
            let why = dnsmasq::complaint(&self.directory, &status.to_string());
            self.dnsmasq = None;
            if self.started.elapsed() > HEALTHY {
                self.pause = FIRST_PAUSE;
            }
            // Told once, however often it ends after that.
            if self.trouble.is_none() {
                said = Some(format!("dnsmasq of network {name} has ended and is started again: {why}"));
            }
            self.trouble = Some(format!("dnsmasq has ended: {why}"));
            self.again = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        if self.again.is_some_and(|at| Instant::now() >= at) {
            let netns = self.spec.netns.clone();
            match netns::run_in(netns.as_deref(), || self.start_dnsmasq(book)).flatten() {
                Ok(()) => {}
                Err(e) => {
                    self.trouble = Some(e.to_string());
                    self.again = Some(Instant::now() + self.pause);
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
            }
        } else if self.dnsmasq.is_some() && self.trouble.is_some() && self.started.elapsed() > FIRST_PAUSE {
            self.trouble = None;
            said = Some(format!("dnsmasq of network {name} is running"));
        }
        said
    }

    /// Looks whether the host port, the table and the exceptions are still there, and puts back what is not.
    ///
    /// # Errors
    /// It cannot be put back; it is tried again.
    pub(super) fn attend(&mut self, book: &mut Book) -> io::Result<Option<String>> {
        if !self.place.is_there() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("network namespace \"{}\" is gone", self.spec.netns.as_deref().unwrap_or_default()),
            ));
        }
        let netns = self.spec.netns.clone();
        netns::run_in(netns.as_deref(), || {
            let mut said = None;
            if self.spec.has_host() && address::index_of(self.spec.device()) != self.index {
                self.address(book).inspect_err(|_| self.index = None)?;
                said = Some(format!(
                    "network {}: the host port is another device than before; set up anew",
                    self.spec.name
                ));
            }
            if self.rules.is_some() && nft::current(&nft::table_name(&self.spec.name))? != self.printed {
                let rules = self.rules.take();
                self.put_rules(rules)?;
                said = Some(format!("network {}: its nftables rules were gone or changed; put back", self.spec.name));
            }
            if self.spec.by_host() {
                if self.spec.forward.dev.is_none() && address::uplinks()? != self.uplinks {
                    self.forward(book)?;
                }
                self.look_for_blockers(book)?;
            }
            Ok(said)
        })
        .flatten()
    }
}
