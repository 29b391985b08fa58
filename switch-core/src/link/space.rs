//! The thread and the connection behind one namespace's devices. See the parent's page.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    sync::{Arc, Weak},
    thread::JoinHandle,
};

use crossbeam_channel::{Sender, bounded};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use parking_lot::Mutex;
use rtnetlink::{Handle, LinkUnspec, MulticastGroup};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Link, LinkChange, MacVtapMode, describe, macvtap};
use crate::{netns, port::Notifier};

/// All namespaces in use.
pub struct Links {
    spaces: Mutex<HashMap<Option<String>, Weak<LinkSpace>>>,
    notifier: Notifier,
}

impl Links {
    /// No namespace yet; `notifier` is called whenever a device of one in use has changed.
    #[must_use]
    pub fn new(notifier: Notifier) -> Links {
        Links { spaces: Mutex::default(), notifier }
    }

    /// The devices of a namespace (`None`: this process's). A name that stands for another namespace than before (deleted and
    /// made again) is entered anew.
    ///
    /// # Errors
    /// The namespace does not exist or may not be entered, or the kernel refuses a netlink socket.
    pub fn space(&self, namespace: Option<&str>) -> io::Result<Arc<LinkSpace>> {
        let identity = namespace.map(identity_of).transpose()?;
        let mut spaces = self.spaces.lock();
        spaces.retain(|_, space| space.strong_count() > 0);
        let key = namespace.map(str::to_owned);
        if let Some(space) = spaces.get(&key).and_then(Weak::upgrade)
            && space.identity == identity
        {
            return Ok(space);
        }
        let space = Arc::new(LinkSpace::start(namespace, identity, self.notifier.clone())?);
        spaces.insert(key, Arc::downgrade(&space));
        Ok(space)
    }
}

/// Device and inode of a namespace's file: two files are the same namespace if these are the same.
type Identity = (u64, u64);

fn identity_of(namespace: &str) -> io::Result<Identity> {
    let metadata = File::open(netns::path_of(namespace)).and_then(|f| f.metadata()).map_err(|e| {
        io::Error::new(e.kind(), format!("cannot open network namespace \"{namespace}\": {e}; see: ip netns list"))
    })?;
    Ok((metadata.dev(), metadata.ino()))
}

enum Request {
    Get(String, Sender<io::Result<Option<Link>>>),
    List(Sender<io::Result<Vec<Link>>>),
    Change(String, LinkChange, Sender<io::Result<Link>>),
    Macvtap(String, u32, MacVtapMode, Sender<io::Result<Link>>),
    Remove(u32, Sender<io::Result<()>>),
}

/// What is known of the devices, by index (names change).
type Known = Arc<Mutex<Table>>;

#[derive(Default)]
struct Table {
    by_index: HashMap<u32, Link>,
    index_of: HashMap<String, u32>,
}

impl Table {
    fn put(&mut self, link: Link) {
        self.forget(link.index);
        self.index_of.insert(link.name.clone(), link.index);
        self.by_index.insert(link.index, link);
    }

    fn forget(&mut self, index: u32) {
        if let Some(old) = self.by_index.remove(&index)
            && self.index_of.get(&old.name) == Some(&index)
        {
            self.index_of.remove(&old.name);
        }
    }
}

/// One namespace's devices.
pub struct LinkSpace {
    identity: Option<Identity>,
    requests: Option<UnboundedSender<Request>>,
    known: Known,
    thread: Option<JoinHandle<()>>,
}

impl LinkSpace {
    fn start(namespace: Option<&str>, identity: Option<Identity>, notifier: Notifier) -> io::Result<LinkSpace> {
        let (requests, inbox) = unbounded_channel();
        let (started, answer) = bounded(1);
        let known = Known::default();
        let (namespace, shared) = (namespace.map(str::to_owned), Arc::clone(&known));
        let thread = std::thread::Builder::new().name("links".to_owned()).spawn(move || {
            let result = netns::enter(namespace.as_deref())
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_io().build());
            match result {
                Ok(runtime) => runtime.block_on(serve(inbox, shared, notifier, started)),
                Err(e) => drop(started.send(Err(e))),
            }
        })?;
        answer.recv().map_err(|_| ended())??;
        Ok(LinkSpace { identity, requests: Some(requests), known, thread: Some(thread) })
    }

    fn ask<T>(&self, request: impl FnOnce(Sender<io::Result<T>>) -> Request) -> io::Result<T> {
        let (reply, answer) = bounded(1);
        let requests = self.requests.as_ref().ok_or_else(ended)?;
        requests.send(request(reply)).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?
    }

    /// Looks a device up by name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn get(&self, name: &str) -> io::Result<Option<Link>> {
        self.ask(|reply| Request::Get(name.to_owned(), reply))
    }

    /// Lists all devices.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn list(&self) -> io::Result<Vec<Link>> {
        self.ask(Request::List)
    }

    /// Changes a device; returns what it is then.
    ///
    /// # Errors
    /// There is no such device, or the kernel refuses a setting.
    pub fn change(&self, name: &str, change: &LinkChange) -> io::Result<Link> {
        self.ask(|reply| Request::Change(name.to_owned(), change.clone(), reply))
    }

    /// Makes a macvtap on the device of this index; it is down, and nobody has opened it.
    ///
    /// # Errors
    /// The kernel's refusal, with its number: the name is taken, or the device below cannot carry it.
    pub fn add_macvtap(&self, name: &str, lower: u32, mode: MacVtapMode) -> io::Result<Link> {
        self.ask(|reply| Request::Macvtap(name.to_owned(), lower, mode, reply))
    }

    /// Removes a device by its index, which no other one has had since.
    ///
    /// # Errors
    /// There is none any more, or the kernel refuses.
    pub fn remove(&self, index: u32) -> io::Result<()> {
        self.ask(|reply| Request::Remove(index, reply))
    }

    /// The device as the kernel last reported it, without asking.
    #[must_use]
    pub fn known(&self, name: &str) -> Option<Link> {
        let table = self.known.lock();
        table.by_index.get(table.index_of.get(name)?).cloned()
    }
}

impl Drop for LinkSpace {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that follows network devices has ended")
}

fn failed(what: &str, device: &str, error: &rtnetlink::Error) -> io::Error {
    io::Error::other(format!("cannot {what} \"{device}\": {error}"))
}

fn vanished(device: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no device \"{device}\""))
}

/// The kernel's number for its refusal, where there is one.
fn refused(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(e) => io::Error::from_raw_os_error(-e.raw_code()),
        other => io::Error::other(other.to_string()),
    }
}

/// The thread's life: requests in order, and the kernel's reports between them.
async fn serve(
    mut inbox: UnboundedReceiver<Request>,
    known: Known,
    notifier: Notifier,
    started: Sender<io::Result<()>>,
) {
    let (connection, handle, mut reports) = match rtnetlink::new_multicast_connection(&[MulticastGroup::Link]) {
        Ok(connected) => connected,
        Err(e) => return drop(started.send(Err(e))),
    };
    tokio::spawn(connection);
    let filled = fill(&handle, &known).await;
    let failed = filled.is_err();
    let _ = started.send(filled);
    if failed {
        return;
    }
    loop {
        tokio::select! {
            request = inbox.recv() => match request {
                Some(request) => {
                    let answered = answer(&handle, request).await;
                    // Reports that came before the answer are older than it: they must not overwrite it afterwards.
                    while let Some(Some((message, _))) = reports.next().now_or_never() {
                        follow(&handle, &known, message).await;
                        notifier.notify();
                    }
                    answered.give(&known);
                }
                None => return,
            },
            report = reports.next() => match report {
                Some((message, _)) => {
                    follow(&handle, &known, message).await;
                    notifier.notify();
                }
                None => return,
            },
        }
    }
}

/// Asks for all devices; what was known before is forgotten.
async fn fill(handle: &Handle, known: &Known) -> io::Result<()> {
    let links = list(handle).await?;
    let mut table = known.lock();
    *table = Table::default();
    links.into_iter().for_each(|link| table.put(link));
    Ok(())
}

async fn follow(handle: &Handle, known: &Known, message: NetlinkMessage<RouteNetlinkMessage>) {
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => known.lock().put(describe(&link)),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => known.lock().forget(link.header.index),
        // Reports were lost: ask for everything.
        NetlinkPayload::Overrun(_) => {
            if let Err(e) = fill(handle, known).await {
                tracing::warn!("cannot follow network devices: {e}");
            }
        }
        _ => {}
    }
}

/// A request's answer, to be given when the reports before it are taken in. Whoever asked may be gone by then.
enum Answered {
    Get(io::Result<Option<Link>>, Sender<io::Result<Option<Link>>>),
    List(io::Result<Vec<Link>>, Sender<io::Result<Vec<Link>>>),
    Change(io::Result<Link>, Sender<io::Result<Link>>),
    Removed(u32, io::Result<()>, Sender<io::Result<()>>),
}

impl Answered {
    fn give(self, known: &Known) {
        match self {
            Answered::Get(found, reply) => drop(reply.send(found)),
            Answered::List(all, reply) => drop(reply.send(all)),
            Answered::Change(result, reply) => {
                if let Ok(link) = &result {
                    known.lock().put(link.clone());
                }
                drop(reply.send(result));
            }
            Answered::Removed(index, result, reply) => {
                if result.is_ok() {
                    known.lock().forget(index);
                }
                drop(reply.send(result));
            }
        }
    }
}

async fn answer(handle: &Handle, request: Request) -> Answered {
    match request {
        Request::Get(name, reply) => Answered::Get(find(handle, &name).await, reply),
        Request::List(reply) => Answered::List(list(handle).await, reply),
        Request::Change(name, wanted, reply) => Answered::Change(change(handle, &name, &wanted).await, reply),
        Request::Macvtap(name, lower, mode, reply) => {
            let made = match handle.link().add(macvtap(&name, lower, mode)).execute().await {
                Ok(()) => find(handle, &name).await.and_then(|link| link.ok_or_else(|| vanished(&name))),
                Err(e) => Err(refused(e)),
            };
            Answered::Change(made, reply)
        }
        Request::Remove(index, reply) => {
            let removed = handle.link().del(index).execute().await.map_err(refused);
            Answered::Removed(index, removed, reply)
        }
    }
}

async fn find(handle: &Handle, name: &str) -> io::Result<Option<Link>> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(found) => Ok(found.as_ref().map(describe)),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => Ok(None),
        Err(e) => Err(failed("look up device", name, &e)),
    }
}

async fn list(handle: &Handle) -> io::Result<Vec<Link>> {
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(|e| failed("list devices of", "all", &e))?;
    Ok(links.iter().map(describe).collect())
}

async fn change(handle: &Handle, name: &str, change: &LinkChange) -> io::Result<Link> {
    let mut message = LinkUnspec::new_with_name(name);
    if let Some(mtu) = change.mtu {
        message = message.mtu(mtu);
    }
    if let Some(mac) = change.mac {
        message = message.address(mac.0.to_vec());
    }
    message = match change.up {
        Some(true) => message.up(),
        Some(false) => message.down(),
        None => message,
    };
    if let Some(on) = change.all_multicast {
        message = message.allmulticast(on);
    }
    if let Some(alias) = &change.alias {
        message = message.alias(alias);
    }
    handle.link().set(message.build()).execute().await.map_err(|e| failed("set up device", name, &e))?;
    find(handle, name).await?.ok_or_else(|| vanished(name))
}
