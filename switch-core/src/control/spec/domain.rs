//! A domain as it is wanted: `NAME[,key=value]...`.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Labels, MAX_MTU, MIN_MTU, SpecError, check_name, labels, number, policy, switch_value, wrong};
use crate::{
    fdb::{DEFAULT_AGEING_S, MAX_AGEING_S},
    rate::Rate,
    topology::DEFAULT_GROUP_FWD_MASK,
};

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
    /// Tags are payload for that TAP, as they are for a kernel bridge without VLAN filtering.
    #[serde(default)]
    pub transparent: bool,
    /// Addresses that the domain may learn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fdb_limit: Option<u32>,
    /// What may come in by all its ports together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// What others keep here.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
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
            transparent: false,
            fdb_limit: None,
            rate: None,
            labels: Labels::new(),
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
            "transparent" => self.transparent = switch_value(key, value)?,
            "fdb-limit" => self.fdb_limit = Some(number(key, value)?),
            "rate" => self.rate = policy::rate(key, value)?,
            _ => {
                return wrong(format!(
                    "domain \"{}\": unknown key \"{key}\"; known: mtu ageing group-fwd-mask host transparent fdb-limit rate",
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
        labels::check(&format!("domain \"{name}\""), &self.labels)?;
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
