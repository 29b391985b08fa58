//! What a SPEC must say of a network device.

use super::{DressSpec, Kind, PortSpec, SpecError, wrong};
use crate::port::tap::MAX_NAME;

/// Addresses and prefixes in one list of a tun port: each is compared with every packet's.
const MAX_PREFIXES: usize = 64;

impl PortSpec {
    /// Checks that the keys of a network device go together.
    pub(super) fn check_device(&self) -> Result<(), SpecError> {
        match self.kind {
            Kind::Macvtap => self.check_macvtap(),
            Kind::Tun => self.check_tun(),
            _ => Ok(()),
        }
    }

    fn check_macvtap(&self) -> Result<(), SpecError> {
        let name = &self.name;
        if name.len() > MAX_NAME {
            return wrong(format!(
                "port \"{name}\": a macvtap has the port's name, which therefore has 1 to {MAX_NAME} characters"
            ));
        }
        if self.device.as_ref() == Some(name) {
            return wrong(format!(
                "port \"{name}\": the macvtap has the port's name, so the port must be called otherwise than its device, for example vtap0=macvtap,device={name}"
            ));
        }
        match self.mode {
            Some(mode) if mode.is_socket() || mode.is_bond() => {
                wrong(format!("port \"{name}\": mode={}: use bridge, private, vepa or passthrough", mode.name()))
            }
            _ => Ok(()),
        }
    }

    fn check_tun(&self) -> Result<(), SpecError> {
        let name = &self.name;
        if self.addresses.is_empty() || self.address.is_some() {
            return wrong(format!(
                "port \"{name}\": a tun port needs the addresses that are behind it, for example address=10.0.0.5,address=fd00::5 (in a file: addresses = [\"10.0.0.5\"])"
            ));
        }
        if self.addresses.len() > MAX_PREFIXES || self.onlink.len() > MAX_PREFIXES {
            return wrong(format!(
                "port \"{name}\": at most {MAX_PREFIXES} of address= and of onlink=; use prefixes, for example address=10.0.1.0/24"
            ));
        }
        if let Some(mac) = self.mac.filter(|mac| mac.is_multicast() || *mac == crate::mac::MacAddr::ZERO) {
            return wrong(format!("port \"{name}\": mac={mac} is no unicast address"));
        }
        for (index, gateway) in self.gateways.iter().enumerate() {
            if self.addresses.iter().any(|prefix| prefix.contains(*gateway)) {
                return wrong(format!(
                    "port \"{name}\": gateway={gateway} is among the port's own addresses; it must be another station of the domain"
                ));
            }
            if self.gateways[..index].iter().any(|other| other.is_ipv4() == gateway.is_ipv4()) {
                return wrong(format!("port \"{name}\": one gateway= for IPv4 and one for IPv6, not more"));
            }
        }
        if let Some(wrong_one) = self.domains.iter().find(|a| a.dress != DressSpec::Untagged) {
            return wrong(format!("port \"{name}\": \"{wrong_one}\": packets have no tags, so a tun port is untagged"));
        }
        Ok(())
    }
}
