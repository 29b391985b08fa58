//! What a port is protected by and held to: the keys beside those of its device, which every kind has.

use super::{Kind, PortSpec, SpecError, switch_value, wrong};
use crate::{
    clean::{Clean, IpRule},
    mac::MacAddr,
    rate::Rate,
};

/// The keys.
pub(super) const KEYS: &[&str] = &["clean", "station", "ip", "flood", "rate-to", "rate-from"];

pub(super) fn rate(key: &str, value: &str) -> Result<Option<Rate>, SpecError> {
    match value {
        "off" => Ok(None),
        _ => value.parse().map(Some).or_else(|e| wrong(format!("{key}={value}: {e}"))),
    }
}

impl PortSpec {
    /// Changes one of these settings; false: it is none of them.
    pub(super) fn set_policy(&mut self, key: &str, value: &str) -> Result<bool, SpecError> {
        match key {
            "clean" => self.clean = switch_value(key, value)?,
            "station" if value == "none" => self.station = None,
            "station" => {
                self.station = Some(value.parse().map_err(|e: crate::mac::ParseMacError| SpecError(e.to_string()))?);
            }
            "ip" => {
                self.ip = Some(value.parse().map_err(|e: crate::clean::ParseRuleError| SpecError(e.to_string()))?);
            }
            "flood" => self.flood = switch_value(key, value)?,
            "rate-to" => self.rate_to = rate(key, value)?,
            "rate-from" => self.rate_from = rate(key, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn check_policy(&self) -> Result<(), SpecError> {
        let name = &self.name;
        if let Some(station) = self.station
            && (station.is_multicast() || station == MacAddr::ZERO)
        {
            return wrong(format!("port \"{name}\": station={station} is not a unicast address"));
        }
        if self.clean && self.station().is_none() {
            return wrong(format!(
                "port \"{name}\": clean=on needs the address that may speak, for example station=52:54:00:12:34:56"
            ));
        }
        Ok(())
    }

    /// The one station behind the port, if it has been named: a TAP's own netdev is one; a bond's address is nobody's.
    #[must_use]
    pub fn station(&self) -> Option<MacAddr> {
        self.station.or(self.mac.filter(|_| self.kind != Kind::Bond))
    }

    /// The station, if its FDB entry is static because nothing is learned.
    #[must_use]
    pub fn pinned(&self) -> Option<MacAddr> {
        self.station().filter(|_| !self.learning)
    }

    /// What a clean port's station may say.
    #[must_use]
    pub fn clean_rules(&self) -> Option<Clean> {
        let station = self.station().filter(|_| self.clean)?;
        Some(Clean::new(station, self.ip.clone().unwrap_or_default()))
    }

    /// Takes the policy's settings back to what they are when nothing is said, but for what describes a device.
    pub(super) fn without_policy(self) -> PortSpec {
        PortSpec { clean: false, station: None, ip: None, flood: true, rate_to: None, rate_from: None, ..self }
    }

    /// The addresses of the station, as they were given.
    #[must_use]
    pub fn ip_rule(&self) -> Option<&IpRule> {
        self.ip.as_ref()
    }
}
