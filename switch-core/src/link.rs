//! Settings of network devices, over rtnetlink. Control thread only; each call opens a socket in the namespace it is
//! about, so there is nothing to keep in step when devices move.

use std::io;

use futures_util::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};

use crate::{mac::MacAddr, netns};

/// What the kernel says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Its MTU.
    pub mtu: u32,
    /// Its address, if it is an Ethernet device.
    pub mac: Option<MacAddr>,
    /// `tun`, `veth`, `bridge` …; `None` for physical devices.
    pub kind: Option<String>,
    /// Frames that the kernel dropped on their way into the device: for a TAP those that the switch did not take.
    pub tx_dropped: u64,
}

/// Settings to change; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Administratively up or down.
    pub up: Option<bool>,
    /// The MTU.
    pub mtu: Option<u32>,
    /// The address.
    pub mac: Option<MacAddr>,
}

fn describe(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        mac: None,
        kind: None,
        tx_dropped: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr),
            LinkAttribute::Stats64(stats) => link.tx_dropped = stats.tx_dropped,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = Some(kind.to_string());
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn failed(what: &str, device: &str, error: &rtnetlink::Error) -> io::Error {
    io::Error::other(format!("cannot {what} \"{device}\": {error}"))
}

/// Runs rtnetlink requests inside a namespace.
fn with_handle<T: Send>(
    namespace: Option<&str>,
    work: impl AsyncFnOnce(Handle) -> io::Result<T> + Send,
) -> io::Result<T> {
    // Always on a thread of its own: the caller may be inside an async runtime already.
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            work(handle).await
        })
    };
    match namespace {
        Some(_) => netns::run_in(namespace, run)?,
        None => std::thread::scope(|scope| scope.spawn(run).join())
            .map_err(|_| io::Error::other("the netlink thread panicked"))?,
    }
}

async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(found) => Ok(found.as_ref().map(describe)),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => Ok(None),
        Err(e) => Err(e),
    }
}

/// Looks a device up by name.
///
/// # Errors
/// The namespace cannot be entered or the kernel refuses.
pub fn get(namespace: Option<&str>, name: &str) -> io::Result<Option<Link>> {
    with_handle(namespace, async |handle| find(&handle, name).await.map_err(|e| failed("look up device", name, &e)))
}

/// Lists all devices of a namespace.
///
/// # Errors
/// The namespace cannot be entered or the kernel refuses.
pub fn list(namespace: Option<&str>) -> io::Result<Vec<Link>> {
    with_handle(namespace, async |handle| {
        let links: Vec<LinkMessage> =
            handle.link().get().execute().try_collect().await.map_err(|e| failed("list devices of", "all", &e))?;
        Ok(links.iter().map(describe).collect())
    })
}

/// Changes a device.
///
/// # Errors
/// There is no such device, or the kernel refuses a setting.
pub fn change(namespace: Option<&str>, name: &str, change: &LinkChange) -> io::Result<Link> {
    with_handle(namespace, async |handle| {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no device \"{name}\""));
        let link = find(&handle, name).await.map_err(|e| failed("look up device", name, &e))?.ok_or_else(missing)?;
        let mut message = LinkUnspec::new_with_index(link.index);
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
        handle.link().set(message.build()).execute().await.map_err(|e| failed("set up device", name, &e))?;
        find(&handle, name).await.map_err(|e| failed("look up device", name, &e))?.ok_or_else(missing)
    })
}
