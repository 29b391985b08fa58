//! What a bond tells of itself.

use serde::{Deserialize, Serialize};

use super::lacpdu::Info;
use crate::mac::MacAddr;

/// What a member of a bond does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It carries frames.
    Active,
    /// It has a link, and takes over when the active member has none.
    Backup,
    /// It has a link, but its partner has not agreed (802.3ad).
    Out,
    /// It has no link.
    Down,
}

impl MemberState {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            MemberState::Active => "active",
            MemberState::Backup => "backup",
            MemberState::Out => "out",
            MemberState::Down => "down",
        }
    }
}

/// One end of a link in LACP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LacpEnd {
    /// The system.
    pub system: MacAddr,
    /// Its priority.
    pub system_priority: u16,
    /// What may be aggregated has the same.
    pub key: u16,
    /// The port.
    pub port: u16,
    /// Its priority.
    pub port_priority: u16,
    /// `active`, `short-timeout`, `aggregation`, `synchronized`, `collecting`, `distributing`, `defaulted`, `expired`.
    pub state: Vec<String>,
}

impl From<Info> for LacpEnd {
    fn from(info: Info) -> LacpEnd {
        LacpEnd {
            system: info.system,
            system_priority: info.system_priority,
            key: info.key,
            port: info.port,
            port_priority: info.port_priority,
            state: info.state.names().into_iter().map(str::to_owned).collect(),
        }
    }
}

/// A member of a bond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its device.
    pub device: String,
    /// What it does.
    pub state: MemberState,
    /// Why it carries no frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// This end in LACP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<LacpEnd>,
    /// The other end, once it was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<LacpEnd>,
}

/// A bond.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BondStatus {
    /// The system at its other end (802.3ad).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<MacAddr>,
    /// Its members, in the order of their SPEC.
    pub members: Vec<MemberStatus>,
}

impl BondStatus {
    /// Why no frame can pass; `None`: one can.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        if self.members.iter().any(|member| member.state == MemberState::Active) {
            return None;
        }
        let reasons = self.members.iter().map(|m| m.reason.clone().unwrap_or_else(|| format!("{} is down", m.device)));
        Some(format!("no member of the bond can be used: {}", reasons.collect::<Vec<_>>().join("; ")))
    }
}
