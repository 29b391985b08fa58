//! What networks need beside the switch: addresses of the gateway, forwarding, rules, DHCP and DNS.
//!
//! One thread does all of it, because programs are run and waited for: [`Networks`] hands it what is wanted and reads what it has
//! found, and neither waits. Everything outside the process is recorded before it is made ([`record`]), so that a later run
//! undoes what a killed one left. A network that cannot be brought up leaves nothing behind and is tried again until it is
//! not wanted any more.

mod address;
mod dnsmasq;
mod exec;
mod firewall;
mod leases;
mod live;
mod nft;
mod record;
mod sysctl;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use self::{
    firewall::{Blocker, Chain},
    leases::Lease,
};
use self::{live::Live, record::Book};
use crate::{
    control::spec::{NetworkSpec, SpecError},
    port::Notifier,
};

/// How often processes are looked after.
const TICK: Duration = Duration::from_secs(1);
/// How often rules, devices and others' chains are looked at, and what could not be brought up is tried again.
const LOOK: Duration = Duration::from_secs(5);

/// What has become of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Everything it needs is there.
    pub up: bool,
    /// What is not, and why.
    pub trouble: Option<String>,
    /// Chains of others that may drop what it forwards.
    pub blockers: Vec<Blocker>,
    /// Its dnsmasq.
    pub dnsmasq: Option<u32>,
}

/// What comes of a request.
pub type Outcome = oneshot::Receiver<Result<(), String>>;
type Reply = oneshot::Sender<Result<(), String>>;

enum Request {
    Up(Box<NetworkSpec>, Reply),
    Down(String, Reply),
    Forget(String),
}

#[derive(Default)]
struct Shared {
    observed: BTreeMap<String, Observed>,
    notices: Vec<String>,
}

/// The thread, from outside.
pub struct Networks {
    requests: Option<Sender<Request>>,
    shared: Arc<Mutex<Shared>>,
    directory: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Networks {
    /// Undoes what an earlier run with this state directory left, and starts the thread.
    ///
    /// # Errors
    /// The record of the earlier run cannot be read, or there can be no thread.
    pub fn start(state: &Path, notifier: Notifier) -> io::Result<Networks> {
        let book = Book::open(state)?;
        // Programs that run elsewhere are told paths in it.
        let directory = state.canonicalize()?.join("networks");
        let (requests, inbox) = unbounded();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let keeper = Keeper {
            book,
            wanted: BTreeMap::new(),
            directory: directory.clone(),
            shared: Arc::clone(&shared),
            notifier,
        };
        let thread = std::thread::Builder::new().name("networks".to_owned()).spawn(move || keeper.run(&inbox))?;
        Ok(Networks { requests: Some(requests), shared, directory, thread: Some(thread) })
    }

    fn ask(&self, request: impl FnOnce(Reply) -> Request) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        if let Some(requests) = &self.requests {
            // A thread that has ended drops the reply, which says so.
            let _ = requests.send(request(reply));
        }
        outcome
    }

    /// Brings a network up, or makes one that is up what the SPEC says. Its host port is open.
    #[must_use]
    pub fn up(&self, spec: NetworkSpec) -> Outcome {
        self.shared.lock().observed.entry(spec.name.clone()).or_default();
        self.ask(|reply| Request::Up(Box::new(spec), reply))
    }

    /// Takes a network down.
    #[must_use]
    pub fn down(&self, name: &str) -> Outcome {
        self.ask(|reply| Request::Down(name.to_owned(), reply))
    }

    /// Removes the files of a network that is defined no more.
    pub fn forget(&self, name: &str) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(Request::Forget(name.to_owned()));
        }
    }

    /// What has become of a network that is wanted.
    #[must_use]
    pub fn observed(&self, name: &str) -> Option<Observed> {
        self.shared.lock().observed.get(name).cloned()
    }

    /// What there is to tell, once.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().notices)
    }

    /// The addresses that guests of a network have.
    #[must_use]
    pub fn leases(&self, name: &str) -> Vec<Lease> {
        leases::read(&self.directory.join(name).join("leases"))
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether the programs that a network needs are here.
///
/// # Errors
/// Names the package that is missing.
pub fn equipped(spec: &NetworkSpec) -> Result<(), SpecError> {
    if dnsmasq::needed(spec) && !dnsmasq::installed() {
        return Err(SpecError(format!("network \"{}\": {}", spec.name, dnsmasq::MISSING)));
    }
    if nft::rules(spec).is_some()
        && let Err(e) = exec::run("nft", "nftables", &["--version"], "")
    {
        return Err(SpecError(format!("network \"{}\": {e}", spec.name)));
    }
    Ok(())
}

/// The name of a network's table, if it has one.
#[must_use]
pub fn rules_table(spec: &NetworkSpec) -> Option<String> {
    nft::rules(spec).map(|_| nft::table_name(&spec.name))
}

struct Wanted {
    spec: NetworkSpec,
    live: Option<Live>,
    trouble: Option<String>,
}

struct Keeper {
    book: Book,
    wanted: BTreeMap<String, Wanted>,
    directory: PathBuf,
    shared: Arc<Mutex<Shared>>,
    notifier: Notifier,
}

impl Keeper {
    fn run(mut self, inbox: &Receiver<Request>) {
        let mut tick = Instant::now() + TICK;
        let mut look = Instant::now() + LOOK;
        loop {
            match inbox.recv_deadline(tick) {
                Ok(Request::Up(spec, reply)) => {
                    let result = self.up(*spec);
                    self.publish();
                    // Whoever asked may not wait.
                    let _ = reply.send(result);
                }
                Ok(Request::Down(name, reply)) => {
                    self.down(&name);
                    self.publish();
                    let _ = reply.send(Ok(()));
                }
                Ok(Request::Forget(name)) => {
                    let _ = fs::remove_dir_all(self.directory.join(name));
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.tick(Instant::now() >= look);
                    if Instant::now() >= look {
                        look = Instant::now() + LOOK;
                    }
                    tick = Instant::now() + TICK;
                    self.publish();
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let names: Vec<String> = self.wanted.keys().cloned().collect();
        names.iter().for_each(|name| self.down(name));
    }

    fn up(&mut self, spec: NetworkSpec) -> Result<(), String> {
        let name = spec.name.clone();
        let mut live = self.wanted.remove(&name).and_then(|wanted| wanted.live);
        if live.as_ref().is_some_and(|live| !live.can_become(&spec))
            && let Some(old) = live.take()
        {
            old.stop(&mut self.book);
        }
        let result = match &mut live {
            Some(live) => live.change(&mut self.book, &spec),
            None => Live::start(&mut self.book, &spec, self.directory.join(&name)).map(|new| live = Some(new)),
        };
        let trouble = result.err().map(|e| e.to_string());
        self.wanted.insert(name, Wanted { spec, live, trouble: trouble.clone() });
        trouble.map_or(Ok(()), Err)
    }

    fn down(&mut self, name: &str) {
        if let Some(live) = self.wanted.remove(name).and_then(|wanted| wanted.live) {
            live.stop(&mut self.book);
        }
    }

    /// Looks after everything; `thorough`: also what takes a program to see.
    fn tick(&mut self, thorough: bool) {
        let mut news = Vec::new();
        for (name, wanted) in &mut self.wanted {
            let Some(live) = &mut wanted.live else {
                if thorough {
                    match Live::start(&mut self.book, &wanted.spec, self.directory.join(name)) {
                        Ok(live) => {
                            news.push(format!("network {name} is up"));
                            (wanted.live, wanted.trouble) = (Some(live), None);
                        }
                        Err(e) => {
                            let text = e.to_string();
                            if wanted.trouble.as_ref() != Some(&text) {
                                news.push(format!("network {name} is waiting: {text}"));
                            }
                            wanted.trouble = Some(text);
                        }
                    }
                }
                continue;
            };
            news.extend(live.attend_dnsmasq(&mut self.book));
            if thorough {
                match live.attend(&mut self.book) {
                    Ok(said) => {
                        news.extend(said);
                        wanted.trouble = None;
                    }
                    Err(e) => {
                        let text = e.to_string();
                        if wanted.trouble.as_ref() != Some(&text) {
                            news.push(format!("network {name}: {text}"));
                        }
                        wanted.trouble = Some(text);
                    }
                }
            }
        }
        if !news.is_empty() {
            news.iter().for_each(|text| tracing::warn!("{text}"));
            self.shared.lock().notices.extend(news);
            self.notifier.notify();
        }
    }

    fn publish(&self) {
        let observed = self.wanted.iter().map(|(name, wanted)| {
            let live = wanted.live.as_ref();
            let trouble = wanted.trouble.clone().or_else(|| live?.trouble.clone());
            let observed = Observed {
                up: live.is_some(),
                trouble,
                blockers: live.map(|live| live.blockers.clone()).unwrap_or_default(),
                dnsmasq: live.and_then(Live::dnsmasq_pid),
            };
            (name.clone(), observed)
        });
        self.shared.lock().observed = observed.collect();
    }
}
