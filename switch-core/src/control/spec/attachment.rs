//! How a port is a member of a domain: `DOMAIN[:dress][:role]`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{SpecError, check_name, number, wrong};

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
    /// This tag, and no tag on the way in: the native VLAN of a trunk.
    Native {
        /// VLAN id, 1 to 4094.
        vid: u16,
        /// 0x8100 or 0x88a8.
        tpid: u16,
    },
    /// Tags are payload.
    Transparent,
}

impl DressSpec {
    /// Whether two attachments of one port would take the same frames.
    #[must_use]
    pub fn clashes(self, other: DressSpec) -> bool {
        let tag = |dress| match dress {
            DressSpec::Tag { vid, tpid } | DressSpec::Native { vid, tpid } => Some((vid, tpid)),
            DressSpec::Untagged | DressSpec::Transparent => None,
        };
        let untagged = |dress| matches!(dress, DressSpec::Untagged | DressSpec::Native { .. });
        let transparent = DressSpec::Transparent;
        self == transparent
            || other == transparent
            || (untagged(self) && untagged(other))
            || (tag(self).is_some() && tag(self) == tag(other))
    }
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

/// `DOMAIN[:untagged|:tag=VID[:tpid=0x88a8][:native]|:transparent][:promiscuous|:isolated|:community=NAME]`.
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
                None if part == "native" => match spec.dress {
                    DressSpec::Tag { vid, tpid } => spec.dress = DressSpec::Native { vid, tpid },
                    _ => return wrong("native goes after tag=VID"),
                },
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
                        DressSpec::Tag { tpid, .. } | DressSpec::Native { tpid, .. }
                            if matches!(wanted, 0x8100 | 0x88a8) =>
                        {
                            *tpid = wanted
                        }
                        DressSpec::Tag { .. } | DressSpec::Native { .. } => {
                            return wrong(format!("tpid={value}: use 0x8100 or 0x88a8"));
                        }
                        _ => return wrong("tpid= goes after tag=VID"),
                    }
                }
                _ => {
                    return wrong(format!(
                        "\"{part}\" in \"{text}\" is neither a dress (untagged, tag=VID, tag=VID:native, transparent) nor a role (promiscuous, isolated, community=NAME)"
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
            DressSpec::Tag { vid, tpid } | DressSpec::Native { vid, tpid } => {
                write!(f, ":tag={vid}")?;
                if tpid != 0x8100 {
                    write!(f, ":tpid={tpid:#06x}")?;
                }
            }
        }
        if matches!(self.dress, DressSpec::Native { .. }) {
            f.write_str(":native")?;
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
