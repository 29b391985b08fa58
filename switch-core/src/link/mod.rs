//! Network devices: their settings and their state, over rtnetlink.
//!
//! A [`LinkSpace`] is one namespace's devices: a thread inside the namespace with one netlink connection, which carries
//! out requests and follows what the kernel reports, so that the state of a device can be asked for at any time without
//! a system call. [`Links`] keeps one per namespace while anybody uses it. Control side only.

mod space;

pub use space::{LinkSpace, Links};

use netlink_packet_core::Nla;
use netlink_packet_route::link::{InfoData, InfoMacVtap, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::LinkMacVtap;

pub use netlink_packet_route::link::MacVtapMode;

use crate::mac::MacAddr;

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
    /// A TAP that was made for several queues.
    pub multi_queue: bool,
    /// Frames that the kernel dropped on their way into the device: for a TAP those that the switch did not take.
    pub tx_dropped: u64,
    /// Frames that the device received and dropped: for a macvtap those that the switch did not take.
    pub rx_dropped: u64,
    /// The note that somebody has put on it (`IFLA_IFALIAS`).
    pub alias: Option<String>,
    /// The device that it is stacked on.
    pub lower: Option<u32>,
    /// How a macvtap treats its siblings.
    pub macvtap: Option<MacVtapMode>,
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
    /// Whether it takes every group address.
    pub all_multicast: Option<bool>,
    /// The note on it.
    pub alias: Option<String>,
}

/// The message that makes a macvtap on the device of this index.
fn macvtap(name: &str, lower: u32, mode: MacVtapMode) -> LinkMessage {
    LinkMacVtap::new(name, lower, mode).build()
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
        multi_queue: false,
        tx_dropped: 0,
        rx_dropped: 0,
        alias: None,
        lower: None,
        macvtap: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr),
            LinkAttribute::Stats64(stats) => (link.tx_dropped, link.rx_dropped) = (stats.tx_dropped, stats.rx_dropped),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Link(lower) => link.lower = Some(*lower),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Tun(settings)) => link.multi_queue = settings.iter().any(has_queues),
                        LinkInfo::Data(InfoData::MacVtap(settings)) => {
                            link.macvtap = settings.iter().find_map(|setting| match setting {
                                InfoMacVtap::Mode(mode) => Some(*mode),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// Whether a setting of a TUN or TAP says that it was made for several queues.
fn has_queues(setting: &InfoTun) -> bool {
    /// `IFLA_TUN_MULTI_QUEUE` of linux/if_link.h.
    const MULTI_QUEUE: u16 = 7;
    let mut value = vec![0; setting.value_len()];
    setting.emit_value(&mut value);
    setting.kind() == MULTI_QUEUE && value.first().is_some_and(|byte| *byte != 0)
}
