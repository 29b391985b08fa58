//! A port as it is wanted: `NAME=KIND[,key=value]...`.
//!
//! All kinds share one structure, because the file, the API and the command line name settings and not structures; which
//! keys a kind takes is one table ([`Kind::keys`]).

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{
    AttachmentSpec, DEFAULT_DOMAIN, Engine, Kind, Labels, LacpActivity, LacpRate, MAX_MTU, MIN_MTU, Mode, SpecError,
    bond, check_name, labels, number, policy, switch_value, wrong,
};
use crate::{
    clean::IpRule,
    mac::MacAddr,
    port::{
        tap::{MAX_NAME as MAX_DEVICE_NAME, MAX_QUEUES},
        tun::prefix::Prefix,
        vhost_user::MAX_QUEUES as MAX_VHOST_QUEUES,
    },
    rate::Rate,
    topology::StormLimits,
};

pub(super) fn default_attachments() -> Vec<AttachmentSpec> {
    vec![AttachmentSpec::untagged(DEFAULT_DOMAIN)]
}

/// What stands for attachments that nobody spoke of while a port is read: no domain can have this name.
pub(super) fn unsaid_attachments() -> Vec<AttachmentSpec> {
    vec![AttachmentSpec::untagged("")]
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_off(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_on(value: &bool) -> bool {
    *value
}

fn one() -> u16 {
    1
}

/// Keys that ports of every kind have, beside `domain`.
const EVERY_PORT: &[&str] = &[
    "link",
    "hairpin",
    "learning",
    "fdb-limit",
    "storm-broadcast",
    "storm-multicast",
    "storm-unknown",
    "network",
    "portgroup",
];

fn user_id(text: &str) -> Result<u32, SpecError> {
    match (text.parse(), nix::unistd::User::from_name(text)) {
        (Ok(id), _) => Ok(id),
        (_, Ok(Some(user))) => Ok(user.uid.as_raw()),
        _ => wrong(format!("owner={text}: there is no such user; use a name or a number")),
    }
}

fn group_id(text: &str) -> Result<u32, SpecError> {
    match (text.parse(), nix::unistd::Group::from_name(text)) {
        (Ok(id), _) => Ok(id),
        (_, Ok(Some(group))) => Ok(group.gid.as_raw()),
        _ => wrong(format!("group={text}: there is no such group; use a name or a number")),
    }
}

fn socket_address(key: &str, text: &str) -> Result<SocketAddr, SpecError> {
    text.parse().or_else(|_| {
        wrong(format!("{key}={text}: use ADDRESS:PORT, for example {key}=127.0.0.1:7001 or {key}=[::1]:7001"))
    })
}

/// Adds to a list; `none` empties it.
fn put<T>(list: &mut Vec<T>, key: &str, text: &str) -> Result<(), SpecError>
where
    T: FromStr + PartialEq,
    T::Err: std::fmt::Display,
{
    if text == "none" {
        list.clear();
        return Ok(());
    }
    let item = text.parse().map_err(|e: T::Err| SpecError(format!("{key}={text}: {e}")))?;
    if !list.contains(&item) {
        list.push(item);
    }
    Ok(())
}

/// A port as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct PortSpec {
    /// Its unique name.
    pub name: String,
    /// Its driver.
    pub kind: Kind,
    /// The device's name; the port's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// A bond's members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Who begins to speak LACP; the bond unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp: Option<LacpActivity>,
    /// How often the bond's partner is asked to speak LACP; every second unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp_rate: Option<LacpRate>,
    /// The namespace that the device is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// How a packet port takes its device's frames; AF_PACKET unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// Queues (pairs).
    #[serde(default = "one")]
    pub queues: u16,
    /// Checksum and segmentation offload.
    #[serde(default = "yes")]
    pub offload: bool,
    /// MTU of the netdev.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Address of the netdev; of a bond as a system in LACP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// User id that may attach to the TAP as well, or that owns the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// Group id, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// The device outlives the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<bool>,
    /// The host is held off the devices of a packet port or a bond; it is unless this says no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<bool>,
    /// The Unix socket: ours in server mode, the other side's in client mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Address and port, instead of a Unix socket: as `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// What is behind a tun port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Prefix>,
    /// What a tun port reaches without a gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub onlink: Vec<Prefix>,
    /// Where a tun port sends everything else: at most one of each family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    /// Which side of the socket the switch is; how a macvtap treats its siblings; how a bond's members share frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Permission bits of the socket that the switch makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perm: Option<u32>,
    /// The other side's socket or address, where both sides have one (datagrams).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<PathBuf>,
    /// Administrative state: `false` drops everything in both directions.
    #[serde(default = "yes")]
    pub link: bool,
    /// Frames may leave by the port on which they came in.
    #[serde(default)]
    pub hairpin: bool,
    /// Source addresses are learned.
    #[serde(default = "yes")]
    pub learning: bool,
    /// Learned addresses that the port may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fdb_limit: Option<u32>,
    /// Frames per second that may be flooded.
    #[serde(default)]
    pub storm: StormLimits,
    /// The station speaks for itself alone.
    #[serde(default, skip_serializing_if = "is_off")]
    pub clean: bool,
    /// The address of the one station behind the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub station: Option<MacAddr>,
    /// Its protocol addresses, for a clean port; learned unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpRule>,
    /// Frames to unknown unicast addresses are flooded to it.
    #[serde(default = "yes", skip_serializing_if = "is_on")]
    pub flood: bool,
    /// What may leave by the port, towards the station.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_to: Option<Rate>,
    /// What is read from the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_from: Option<Rate>,
    /// The network that it joins by name, for what that gives to a port: attachments and settings that are not said here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The network's portgroup; its default one unless given, and with `none` not even that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portgroup: Option<String>,
    /// Its memberships, beside those that it has by its network.
    #[serde(default = "unsaid_attachments")]
    pub domains: Vec<AttachmentSpec>,
    /// What others keep here.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl PortSpec {
    /// A port of a kind in the default domain.
    #[must_use]
    pub fn new(name: &str, kind: Kind) -> PortSpec {
        PortSpec {
            name: name.to_owned(),
            kind,
            device: None,
            devices: Vec::new(),
            lacp: None,
            lacp_rate: None,
            netns: None,
            engine: None,
            queues: 1,
            offload: true,
            mtu: None,
            mac: None,
            owner: None,
            group: None,
            persist: None,
            guard: None,
            path: None,
            address: None,
            addresses: Vec::new(),
            onlink: Vec::new(),
            gateways: Vec::new(),
            mode: None,
            perm: None,
            peer: None,
            link: true,
            hairpin: false,
            learning: true,
            fdb_limit: None,
            storm: StormLimits::default(),
            clean: false,
            station: None,
            ip: None,
            flood: true,
            rate_to: None,
            rate_from: None,
            network: None,
            portgroup: None,
            domains: default_attachments(),
            labels: Labels::new(),
        }
    }

    /// Changes one setting as `key=value` says.
    ///
    /// # Errors
    /// The key is unknown or the value out of range; nothing has changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SpecError> {
        match key {
            "device" => self.device = Some(value.to_owned()),
            "devices" => self.devices = bond::devices(value),
            "lacp" => self.lacp = Some(LacpActivity::read(key, value)?),
            "lacp-rate" => self.lacp_rate = Some(LacpRate::read(key, value)?),
            "netns" => self.netns = Some(value.to_owned()),
            "engine" => self.engine = Some(value.parse()?),
            "queues" => self.queues = number(key, value)?,
            "offload" => self.offload = switch_value(key, value)?,
            "mtu" => self.mtu = Some(number(key, value)?),
            "mac" => {
                self.mac = Some(value.parse().map_err(|e: crate::mac::ParseMacError| SpecError(e.to_string()))?);
            }
            "owner" => self.owner = Some(user_id(value)?),
            "group" => self.group = Some(group_id(value)?),
            "persist" => self.persist = Some(switch_value(key, value)?),
            "guard" => self.guard = Some(switch_value(key, value)?),
            "path" => self.path = Some(value.into()),
            "address" if self.kind == Kind::Tun => put(&mut self.addresses, key, value)?,
            "onlink" => put(&mut self.onlink, key, value)?,
            "gateway" => put(&mut self.gateways, key, value)?,
            "address" => self.address = Some(socket_address(key, value)?),
            "peer" => self.peer = Some(value.into()),
            "perm" => match u32::from_str_radix(value, 8) {
                Ok(bits @ 0..=0o777) => self.perm = Some(bits),
                _ => return wrong(format!("perm={value}: use octal digits, for example perm=0660")),
            },
            "mode" => {
                self.mode = Some(match Mode::ALL.iter().find(|(name, _)| *name == value) {
                    Some((_, mode)) => *mode,
                    None if self.kind == Kind::Macvtap => {
                        return wrong(format!("mode={value}: use bridge, private, vepa or passthrough"));
                    }
                    None if self.kind == Kind::Bond => {
                        return wrong(format!("mode={value}: use active-backup, balance-xor or 802.3ad"));
                    }
                    None => {
                        return wrong(format!("mode={value}: use server (the switch listens) or client (it connects)"));
                    }
                });
            }
            "link" => self.link = switch_value(key, value)?,
            "hairpin" => self.hairpin = switch_value(key, value)?,
            "learning" => self.learning = switch_value(key, value)?,
            "fdb-limit" => self.fdb_limit = Some(number(key, value)?),
            "storm-broadcast" => self.storm.broadcast = number(key, value)?,
            "storm-multicast" => self.storm.multicast = number(key, value)?,
            "storm-unknown" => self.storm.unknown = number(key, value)?,
            "network" => self.set_network(value)?,
            "portgroup" => self.set_portgroup(value)?,
            _ if self.set_policy(key, value)? => {}
            _ => {
                return wrong(format!(
                    "port \"{}\": unknown key \"{key}\"; known for {}: {} {} {} domain",
                    self.name,
                    self.kind.name(),
                    self.kind.keys().join(" "),
                    EVERY_PORT.join(" "),
                    policy::KEYS.join(" ")
                ));
            }
        }
        Ok(())
    }

    /// Checks what does not depend on other objects.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn check(&self) -> Result<(), SpecError> {
        check_name("port", &self.name)?;
        let name = &self.name;
        labels::check(&format!("port \"{name}\""), &self.labels)?;
        if let Some(key) = self.given().into_iter().find(|key| !self.kind.keys().contains(key)) {
            let kind = self.kind.name();
            return wrong(format!(
                "port \"{name}\": {key}= is not for {kind} ports, which take: {}",
                self.kind.keys().join(" ")
            ));
        }
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return wrong(format!("port \"{name}\": queues={}: use 1 to {MAX_QUEUES}", self.queues));
        }
        let device = self.device();
        if self.kind.is_device() && (device.is_empty() || device.len() > MAX_DEVICE_NAME) {
            return wrong(format!(
                "port \"{name}\": \"{device}\" cannot be a device name (1 to {MAX_DEVICE_NAME} characters); give the device its own name with device="
            ));
        }
        if self.kind == Kind::Bond {
            self.check_bond()?;
        } else if self.kind.is_device() {
            self.check_device()?;
        } else {
            self.check_socket()?;
        }
        if let Some(mtu) = self.mtu
            && !(MIN_MTU..=MAX_MTU).contains(&mtu)
        {
            return wrong(format!("port \"{name}\": mtu={mtu}: use {MIN_MTU} to {MAX_MTU}"));
        }
        self.check_policy()?;
        self.check_membership()?;
        for (index, a) in self.domains.iter().enumerate() {
            for b in &self.domains[..index] {
                if a.domain == b.domain {
                    return wrong(format!("port \"{name}\": attached to domain \"{}\" twice", a.domain));
                }
                if a.dress.clashes(b.dress) {
                    return wrong(format!("port \"{name}\": \"{a}\" and \"{b}\" would take the same frames"));
                }
            }
        }
        Ok(())
    }

    /// Checks that the keys of a socket go together.
    fn check_socket(&self) -> Result<(), SpecError> {
        let name = &self.name;
        if let Some(mode) = self.mode.filter(|mode| !mode.is_socket()) {
            return wrong(format!(
                "port \"{name}\": mode={}: use server (the switch listens) or client (it connects)",
                mode.name()
            ));
        }
        let one_place = match self.kind {
            Kind::Stream | Kind::Dgram => Some(self.path.is_some() != self.address.is_some()),
            Kind::Tap | Kind::Packet | Kind::Bond | Kind::Macvtap | Kind::Tun | Kind::VhostUser => None,
        };
        if one_place == Some(false) {
            let kind = self.kind.name();
            return wrong(format!(
                "port \"{name}\": a {kind} port has either path= (a Unix socket) or address= (ADDRESS:PORT)"
            ));
        }
        if self.kind == Kind::Dgram {
            match (&self.peer, self.address) {
                (None, _) => return wrong(format!("port \"{name}\": peer= is missing: where to send frames to")),
                (Some(_), Some(_)) => drop(self.peer_address()?),
                (Some(_), None) => {}
            }
        }
        if self.kind == Kind::VhostUser {
            if self.path.is_none() {
                return wrong(format!(
                    "port \"{name}\": a vhost-user port needs the path of its socket, for example path=/run/{name}.sock"
                ));
            }
            if self.queues > MAX_VHOST_QUEUES {
                return wrong(format!("port \"{name}\": queues={}: use 1 to {MAX_VHOST_QUEUES}", self.queues));
            }
        }
        let made = self.path.is_some() && self.mode != Some(Mode::Client);
        if !made && (self.owner.is_some() || self.group.is_some() || self.perm.is_some()) {
            return wrong(format!(
                "port \"{name}\": owner=, group= and perm= are for a Unix socket that the switch makes"
            ));
        }
        Ok(())
    }

    /// The other side's address, if it is one.
    ///
    /// # Errors
    /// `peer` is something else.
    pub fn peer_address(&self) -> Result<SocketAddr, SpecError> {
        let peer = self.peer.as_deref().unwrap_or_else(|| std::path::Path::new(""));
        socket_address("peer", &peer.to_string_lossy())
    }

    /// The device keys that were given (those whose value is not what it is when the key is left out).
    fn given(&self) -> Vec<&'static str> {
        [
            ("device", self.device.is_some()),
            ("devices", !self.devices.is_empty()),
            ("lacp", self.lacp.is_some()),
            ("lacp-rate", self.lacp_rate.is_some()),
            ("netns", self.netns.is_some()),
            ("engine", self.engine.is_some()),
            ("queues", self.queues != 1),
            ("offload", !self.offload),
            ("mtu", self.mtu.is_some()),
            ("mac", self.mac.is_some()),
            ("owner", self.owner.is_some()),
            ("group", self.group.is_some()),
            ("persist", self.persist.is_some()),
            ("guard", self.guard.is_some()),
            ("path", self.path.is_some()),
            ("address", self.address.is_some() || !self.addresses.is_empty()),
            ("onlink", !self.onlink.is_empty()),
            ("gateway", !self.gateways.is_empty()),
            ("mode", self.mode.is_some()),
            ("perm", self.perm.is_some()),
            ("peer", self.peer.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, given)| given.then_some(key))
        .collect()
    }

    /// What the device or socket is opened with: two SPECs that agree in this share it without opening it anew.
    #[must_use]
    pub fn opening(&self) -> PortSpec {
        PortSpec {
            device: if self.kind == Kind::Macvtap { self.device.clone() } else { Some(self.device().to_owned()) },
            engine: Some(self.engine.unwrap_or_default()),
            guard: Some(self.guarded()),
            link: true,
            hairpin: false,
            learning: true,
            fdb_limit: None,
            storm: StormLimits::default(),
            network: None,
            portgroup: None,
            domains: Vec::new(),
            labels: Labels::new(),
            ..self.clone().without_policy()
        }
    }

    /// Whether the host is held off the device.
    #[must_use]
    pub fn guarded(&self) -> bool {
        self.guard != Some(false)
    }

    /// The name of the network device that is the port: a macvtap has the port's, and stands on [`device`](Self::device).
    #[must_use]
    pub fn netdev(&self) -> &str {
        if self.kind == Kind::Macvtap { &self.name } else { self.device() }
    }

    /// The device's name.
    #[must_use]
    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap_or(&self.name)
    }
}

impl FromStr for PortSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let Some((name, kind)) = first.split_once('=') else {
            return wrong(format!("\"{text}\": a port is NAME=KIND[,key=value]..., for example vm1=tap,domain=blue"));
        };
        let mut spec = PortSpec::new(name, kind.parse()?);
        let mut domains = Vec::new();
        let mut given = false;
        for part in parts {
            let Some((key, value)) = part.split_once('=') else {
                return wrong(format!("\"{part}\" in \"{text}\": write key=value"));
            };
            match key {
                "domain" if value == "none" => given = true,
                "domain" => {
                    given = true;
                    domains.push(value.parse()?);
                }
                _ => spec.set(key, value)?,
            }
        }
        if given {
            spec.domains = domains;
        }
        spec.check()?;
        Ok(spec)
    }
}
