//! What a SPEC must say of a bond, and the words that only bonds have.

use serde::{Deserialize, Serialize};

use super::{Kind, Mode, PortSpec, SpecError, wrong};
use crate::{
    mac::MacAddr,
    port::{bond::MAX_MEMBERS, tap::MAX_NAME},
};

/// Who begins to speak LACP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LacpActivity {
    /// The bond.
    #[default]
    Active,
    /// Its partner.
    Passive,
}

impl LacpActivity {
    pub(super) fn read(key: &str, text: &str) -> Result<LacpActivity, SpecError> {
        match text {
            "active" => Ok(LacpActivity::Active),
            "passive" => Ok(LacpActivity::Passive),
            _ => wrong(format!("{key}={text}: use active (the bond begins to speak) or passive (its partner does)")),
        }
    }
}

/// How often the partner is asked to speak LACP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LacpRate {
    /// Every second; it is gone after three.
    #[default]
    Fast,
    /// Every 30 seconds; it is gone after 90.
    Slow,
}

impl LacpRate {
    pub(super) fn read(key: &str, text: &str) -> Result<LacpRate, SpecError> {
        match text {
            "fast" => Ok(LacpRate::Fast),
            "slow" => Ok(LacpRate::Slow),
            _ => wrong(format!("{key}={text}: use fast (every second) or slow (every 30 seconds)")),
        }
    }
}

/// The members of a bond in one word: `eth0+eth1`.
pub(super) fn devices(text: &str) -> Vec<String> {
    text.split('+').map(str::to_owned).collect()
}

/// Whether these can be a bond's members.
pub(super) fn check_devices(devices: &[String]) -> Result<(), SpecError> {
    if devices.is_empty() || devices.len() > MAX_MEMBERS {
        return wrong(format!("a bond has 1 to {MAX_MEMBERS} devices, for example devices=eth0+eth1"));
    }
    for (index, device) in devices.iter().enumerate() {
        let odd = |c: char| c.is_whitespace() || c.is_control() || "/:\"\\*,".contains(c);
        if device.is_empty() || device.len() > MAX_NAME || device.contains(odd) {
            return wrong(format!("\"{device}\" cannot be a device name (1 to {MAX_NAME} characters)"));
        }
        if devices[..index].contains(device) {
            return wrong(format!("device \"{device}\" is in the bond twice"));
        }
    }
    Ok(())
}

impl PortSpec {
    /// Checks that the keys of a bond go together.
    pub(super) fn check_bond(&self) -> Result<(), SpecError> {
        self.check_members().map_err(|e| SpecError(format!("port \"{}\": {e}", self.name)))
    }

    /// The same, without the port's name in the error.
    pub(in crate::control::spec) fn check_members(&self) -> Result<(), SpecError> {
        check_devices(&self.devices)?;
        if let Some(mode) = self.mode.filter(|mode| !mode.is_bond()) {
            return wrong(format!("mode={}: use active-backup, balance-xor or 802.3ad", mode.name()));
        }
        if self.mode != Some(Mode::Lacp) && (self.lacp.is_some() || self.lacp_rate.is_some() || self.mac.is_some()) {
            return wrong("lacp=, lacp-rate= and mac= (the bond's address as a system) are for mode=802.3ad");
        }
        if let Some(mac) = self.mac.filter(|mac| mac.is_multicast() || *mac == MacAddr::ZERO) {
            return wrong(format!("mac={mac} is no unicast address"));
        }
        Ok(())
    }

    /// The devices that the port takes for itself: nobody else may have one that is a bond's member.
    #[must_use]
    pub fn taken_devices(&self) -> Vec<&str> {
        match self.kind {
            Kind::Bond => self.devices.iter().map(String::as_str).collect(),
            Kind::Packet => vec![self.device()],
            Kind::Macvtap => self.device.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    }
}
