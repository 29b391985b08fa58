//! SPECs: how ports, domains and attachments are written on a command line, in a file and in the API.
//!
//! Text: `NAME=KIND[,key=value]...` for a port, `NAME[,key=value]...` for a domain, `DOMAIN[:dress][:role]` for an
//! attachment. TOML and JSON use the same keys as fields.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    fdb::{DEFAULT_AGEING_S, MAX_AGEING_S},
    mac::MacAddr,
    topology::{DEFAULT_GROUP_FWD_MASK, StormLimits},
};

/// The domain that ports join unless told otherwise.
pub const DEFAULT_DOMAIN: &str = "default";
/// The largest MTU of a domain (GSO frames are judged by their segments).
pub const MAX_MTU: u32 = 9216;
/// The smallest MTU that IPv4 allows.
pub const MIN_MTU: u32 = 68;
const MAX_NAME: usize = 63;

/// A SPEC that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(pub String);

fn wrong<T>(message: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError(message.into()))
}

/// Checks a name of a port or domain.
///
/// # Errors
/// It is empty, too long or has characters that would need quoting.
pub fn check_name(what: &str, name: &str) -> Result<(), SpecError> {
    let good = !name.is_empty()
        && name.len() <= MAX_NAME
        && name != "none"
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-@".contains(c));
    if good {
        Ok(())
    } else {
        wrong(format!(
            "\"{name}\" cannot be a {what} name: use 1 to {MAX_NAME} letters, digits and . _ - @ (and not \"none\")"
        ))
    }
}

/// The driver of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A TAP device whose character device the switch holds.
    Tap,
    /// A netdev that exists already, over an AF_PACKET socket.
    Packet,
}

impl Kind {
    /// All kinds, for messages.
    pub const ALL: &'static [(&'static str, Kind)] = &[("tap", Kind::Tap), ("packet", Kind::Packet)];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("?", |(name, _)| name)
    }
}

impl FromStr for Kind {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Self::ALL.iter().find(|(name, _)| *name == text) {
            Some((_, kind)) => Ok(*kind),
            None => {
                let known: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
                wrong(format!("there is no port kind \"{text}\"; known kinds: {}", known.join(", ")))
            }
        }
    }
}

/// How frames of a domain look on the port's wire; see [`crate::topology::Dress`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DressSpec {
    /// No tag.
    #[default]
    Untagged,
    /// This tag.
    Tag {
        /// VLAN id, 1 to 4094.
        vid: u16,
        /// 0x8100 or 0x88a8.
        tpid: u16,
    },
    /// Tags are payload.
    Transparent,
}

/// Reach inside the domain; see [`crate::topology::Role`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RoleSpec {
    /// Everybody.
    #[default]
    Promiscuous,
    /// Promiscuous members only.
    Isolated,
    /// And members of the same community.
    Community(String),
}

/// `DOMAIN[:untagged|:tag=VID[:tpid=0x88a8]|:transparent][:promiscuous|:isolated|:community=NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentSpec {
    /// The domain's name.
    pub domain: String,
    /// Tags on the wire.
    pub dress: DressSpec,
    /// Reach.
    pub role: RoleSpec,
}

impl AttachmentSpec {
    /// An untagged, promiscuous attachment.
    #[must_use]
    pub fn untagged(domain: &str) -> AttachmentSpec {
        AttachmentSpec { domain: domain.to_owned(), dress: DressSpec::Untagged, role: RoleSpec::Promiscuous }
    }
}

fn number<T: TryFrom<u64>>(key: &str, text: &str) -> Result<T, SpecError> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match parsed.and_then(|n| T::try_from(n).ok()) {
        Some(n) => Ok(n),
        None => wrong(format!("{key}={text}: not a number in range")),
    }
}

impl FromStr for AttachmentSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(':');
        let mut spec = AttachmentSpec::untagged(parts.next().unwrap_or_default());
        check_name("domain", &spec.domain)?;
        for part in parts {
            match part.split_once('=') {
                None if part == "untagged" => spec.dress = DressSpec::Untagged,
                None if part == "transparent" => spec.dress = DressSpec::Transparent,
                None if part == "promiscuous" => spec.role = RoleSpec::Promiscuous,
                None if part == "isolated" => spec.role = RoleSpec::Isolated,
                Some(("community", name)) => {
                    check_name("community", name)?;
                    spec.role = RoleSpec::Community(name.to_owned());
                }
                Some(("tag", vid)) => {
                    let vid: u16 = number("tag", vid)?;
                    if !(1..=4094).contains(&vid) {
                        return wrong(format!("tag={vid}: a VLAN id is 1 to 4094"));
                    }
                    spec.dress = DressSpec::Tag { vid, tpid: 0x8100 };
                }
                Some(("tpid", value)) => {
                    let wanted: u16 = number("tpid", value)?;
                    match &mut spec.dress {
                        DressSpec::Tag { tpid, .. } if matches!(wanted, 0x8100 | 0x88a8) => *tpid = wanted,
                        DressSpec::Tag { .. } => return wrong(format!("tpid={value}: use 0x8100 or 0x88a8")),
                        _ => return wrong("tpid= goes after tag=VID"),
                    }
                }
                _ => {
                    return wrong(format!(
                        "\"{part}\" in \"{text}\" is neither a dress (untagged, tag=VID, transparent) nor a role (promiscuous, isolated, community=NAME)"
                    ));
                }
            }
        }
        Ok(spec)
    }
}

impl fmt::Display for AttachmentSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.domain)?;
        match self.dress {
            DressSpec::Untagged => {}
            DressSpec::Transparent => f.write_str(":transparent")?,
            DressSpec::Tag { vid, tpid: 0x8100 } => write!(f, ":tag={vid}")?,
            DressSpec::Tag { vid, tpid } => write!(f, ":tag={vid}:tpid={tpid:#06x}")?,
        }
        match &self.role {
            RoleSpec::Promiscuous => Ok(()),
            RoleSpec::Isolated => f.write_str(":isolated"),
            RoleSpec::Community(name) => write!(f, ":community={name}"),
        }
    }
}

impl Serialize for AttachmentSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AttachmentSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn default_attachments() -> Vec<AttachmentSpec> {
    vec![AttachmentSpec::untagged(DEFAULT_DOMAIN)]
}

fn yes() -> bool {
    true
}

fn one() -> u16 {
    1
}

/// A port as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Its unique name.
    pub name: String,
    /// Its driver.
    pub kind: Kind,
    /// The device's name; the port's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The namespace that the device is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// Queues (pairs).
    #[serde(default = "one")]
    pub queues: u16,
    /// Checksum and segmentation offload.
    #[serde(default = "yes")]
    pub offload: bool,
    /// MTU of the netdev.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Address of the netdev.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// User id that may attach as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// Group id that may attach as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// The device outlives the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<bool>,
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
    /// Its memberships.
    #[serde(default = "default_attachments")]
    pub domains: Vec<AttachmentSpec>,
}

fn switch_value(key: &str, text: &str) -> Result<bool, SpecError> {
    match text {
        "on" | "up" | "true" | "yes" => Ok(true),
        "off" | "down" | "false" | "no" => Ok(false),
        _ => wrong(format!("{key}={text}: use on or off")),
    }
}

impl PortSpec {
    /// A port of a kind in the default domain.
    #[must_use]
    pub fn new(name: &str, kind: Kind) -> PortSpec {
        PortSpec {
            name: name.to_owned(),
            kind,
            device: None,
            netns: None,
            queues: 1,
            offload: true,
            mtu: None,
            mac: None,
            owner: None,
            group: None,
            persist: None,
            link: true,
            hairpin: false,
            learning: true,
            fdb_limit: None,
            storm: StormLimits::default(),
            domains: default_attachments(),
        }
    }

    /// Changes one setting as `key=value` says.
    ///
    /// # Errors
    /// The key is unknown or the value out of range; nothing has changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SpecError> {
        match key {
            "device" => self.device = Some(value.to_owned()),
            "netns" => self.netns = Some(value.to_owned()),
            "queues" => self.queues = number(key, value)?,
            "offload" => self.offload = switch_value(key, value)?,
            "mtu" => self.mtu = Some(number(key, value)?),
            "mac" => {
                self.mac = Some(value.parse().map_err(|e: crate::mac::ParseMacError| SpecError(e.to_string()))?);
            }
            "owner" => self.owner = Some(number(key, value)?),
            "group" => self.group = Some(number(key, value)?),
            "persist" => self.persist = Some(switch_value(key, value)?),
            "link" => self.link = switch_value(key, value)?,
            "hairpin" => self.hairpin = switch_value(key, value)?,
            "learning" => self.learning = switch_value(key, value)?,
            "fdb-limit" => self.fdb_limit = Some(number(key, value)?),
            "storm-broadcast" => self.storm.broadcast = number(key, value)?,
            "storm-multicast" => self.storm.multicast = number(key, value)?,
            "storm-unknown" => self.storm.unknown = number(key, value)?,
            _ => {
                return wrong(format!(
                    "port \"{}\": unknown key \"{key}\"; known: device netns queues offload mtu mac owner group persist link hairpin learning fdb-limit storm-broadcast storm-multicast storm-unknown domain",
                    self.name
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
        if self.queues == 0 || self.queues > crate::port::tap::MAX_QUEUES {
            return wrong(format!(
                "port \"{name}\": queues={}: use 1 to {}",
                self.queues,
                crate::port::tap::MAX_QUEUES
            ));
        }
        if self.kind == Kind::Packet {
            if self.queues != 1 {
                return wrong(format!(
                    "port \"{name}\": queues={}: a packet port has one queue; leave queues= out",
                    self.queues
                ));
            }
            let foreign = [
                ("mtu", self.mtu.is_some()),
                ("mac", self.mac.is_some()),
                ("owner", self.owner.is_some()),
                ("group", self.group.is_some()),
                ("persist", self.persist.is_some()),
            ];
            if let Some((key, _)) = foreign.iter().find(|(_, given)| *given) {
                return wrong(format!(
                    "port \"{name}\": {key}= is not for packet ports, whose device is not the switch's; set it with ip link"
                ));
            }
        }
        let device = self.device();
        if device.is_empty() || device.len() > crate::port::tap::MAX_NAME {
            return wrong(format!(
                "port \"{name}\": \"{device}\" cannot be a device name (1 to {} characters); give the device its own name with device=",
                crate::port::tap::MAX_NAME
            ));
        }
        if let Some(mtu) = self.mtu
            && !(MIN_MTU..=MAX_MTU).contains(&mtu)
        {
            return wrong(format!("port \"{name}\": mtu={mtu}: use {MIN_MTU} to {MAX_MTU}"));
        }
        for (index, a) in self.domains.iter().enumerate() {
            for b in &self.domains[..index] {
                if a.domain == b.domain {
                    return wrong(format!("port \"{name}\": attached to domain \"{}\" twice", a.domain));
                }
                let clash = match (a.dress, b.dress) {
                    (DressSpec::Transparent, _) | (_, DressSpec::Transparent) => true,
                    (left, right) => left == right,
                };
                if clash {
                    return wrong(format!("port \"{name}\": \"{a}\" and \"{b}\" would take the same frames"));
                }
            }
        }
        Ok(())
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

fn default_mtu() -> u32 {
    1500
}

fn default_ageing() -> u32 {
    DEFAULT_AGEING_S
}

fn default_mask() -> u16 {
    DEFAULT_GROUP_FWD_MASK
}

/// A domain as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainSpec {
    /// Its unique name.
    pub name: String,
    /// The largest layer-3 packet.
    #[serde(default = "default_mtu")]
    pub mtu: u32,
    /// Seconds until a silent address is forgotten; 0 = never.
    #[serde(default = "default_ageing")]
    pub ageing: u32,
    /// Which of 01-80-C2-00-00-0X are forwarded, by last nibble.
    #[serde(default = "default_mask")]
    pub group_fwd_mask: u16,
    /// A TAP of the domain's name carries the host's own address in it.
    #[serde(default)]
    pub host: bool,
    /// Addresses that the domain may learn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fdb_limit: Option<u32>,
}

impl DomainSpec {
    /// A domain with default settings.
    #[must_use]
    pub fn new(name: &str) -> DomainSpec {
        DomainSpec {
            name: name.to_owned(),
            mtu: default_mtu(),
            ageing: default_ageing(),
            group_fwd_mask: default_mask(),
            host: false,
            fdb_limit: None,
        }
    }

    /// Changes one setting as `key=value` says.
    ///
    /// # Errors
    /// The key is unknown or the value out of range.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SpecError> {
        match key {
            "mtu" => self.mtu = number(key, value)?,
            "ageing" => self.ageing = number(key, value)?,
            "group-fwd-mask" => self.group_fwd_mask = number(key, value)?,
            "host" => self.host = switch_value(key, value)?,
            "fdb-limit" => self.fdb_limit = Some(number(key, value)?),
            _ => {
                return wrong(format!(
                    "domain \"{}\": unknown key \"{key}\"; known: mtu ageing group-fwd-mask host fdb-limit",
                    self.name
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
        check_name("domain", &self.name)?;
        let name = &self.name;
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return wrong(format!("domain \"{name}\": mtu={}: use {MIN_MTU} to {MAX_MTU}", self.mtu));
        }
        if self.ageing > MAX_AGEING_S {
            return wrong(format!(
                "domain \"{name}\": ageing={}: use at most {MAX_AGEING_S} seconds, or 0 for never",
                self.ageing
            ));
        }
        if self.host && name.len() > crate::port::tap::MAX_NAME {
            return wrong(format!(
                "domain \"{name}\": a host port is a device of the same name; use at most 15 characters"
            ));
        }
        Ok(())
    }
}

impl FromStr for DomainSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let mut spec = DomainSpec::new(parts.next().unwrap_or_default());
        for part in parts {
            let Some((key, value)) = part.split_once('=') else {
                return wrong(format!("\"{part}\" in \"{text}\": write key=value"));
            };
            spec.set(key, value)?;
        }
        spec.check()?;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_of_the_manual_are_understood() {
        let port: PortSpec =
            "up=tap,device=eth0,domain=red:tag=10,domain=blue:tag=20:tpid=0x88a8:isolated".parse().expect("valid");
        assert_eq!(port.device(), "eth0");
        let shown: Vec<_> = port.domains.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["red:tag=10", "blue:tag=20:tpid=0x88a8:isolated"]);
        let port: PortSpec = "t0=tap,queues=2,offload=off".parse().expect("valid");
        assert_eq!((port.queues, port.offload, port.domains), (2, false, default_attachments()));
        let port: PortSpec = "t0=tap,domain=none".parse().expect("valid");
        assert!(port.domains.is_empty());
        let domain: DomainSpec = "br0,host=on,mtu=9000,ageing=0".parse().expect("valid");
        assert_eq!((domain.host, domain.mtu, domain.ageing), (true, 9000, 0));
    }

    #[test]
    fn wrong_specs_name_the_mistake() {
        for (text, part) in [
            ("t0", "NAME=KIND"),
            ("t0=bond", "known kinds"),
            ("t0=tap,domain=a:tag=5000", "1 to 4094"),
            ("t0=tap,domain=a:tpid=0x8100", "after tag"),
            ("t0=tap,domain=a,domain=a:tag=4", "twice"),
            ("t0=tap,domain=a,domain=b", "same frames"),
            ("t0=tap,domain=a:transparent,domain=b:tag=4", "same frames"),
            ("t0=tap,queues=0", "queues=0"),
            ("t0=packet,queues=2", "one queue"),
            ("t0=packet,mtu=1400", "mtu= is not for packet"),
            ("t0=tap,colour=red", "unknown key \"colour\""),
            ("a-very-long-port-name=tap", "device="),
            ("a/b=tap", "cannot be a port name"),
            ("t0=tap,mac=5", "MAC address"),
        ] {
            let error = text.parse::<PortSpec>().expect_err(text);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        assert!("d,mtu=10000".parse::<DomainSpec>().is_err());
        assert!("d,ageing=70000".parse::<DomainSpec>().is_err());
    }
}
