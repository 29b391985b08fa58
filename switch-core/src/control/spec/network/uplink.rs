//! What a bridged network goes out by, where it may have that in common with others: a device or a bond, and a VLAN on it.

use serde::{Deserialize, Serialize};

use crate::{
    control::spec::{
        AttachmentSpec, DressSpec, Kind, LacpActivity, LacpRate, Mode, PortSpec, SpecError, check_bond_devices, wrong,
    },
    mac::MacAddr,
};

/// Several devices as one, as the SPEC of a bond has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BondSpec {
    /// The members.
    pub devices: Vec<String>,
    /// How they share frames: `active-backup` unless given, `balance-xor`, `802.3ad`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// See [`PortSpec::lacp`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp: Option<LacpActivity>,
    /// See [`PortSpec::lacp_rate`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp_rate: Option<LacpRate>,
    /// Its address as a system in LACP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
}

/// What a bridged network goes out by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UplinkSpec {
    /// A device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Or several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<BondSpec>,
    /// The VLAN whose tag its frames have there; none, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

impl UplinkSpec {
    /// Checks what does not depend on other objects.
    pub(super) fn check(&self) -> Result<(), SpecError> {
        match (&self.device, &self.bond) {
            (Some(device), None) => check_bond_devices(std::slice::from_ref(device))?,
            (None, Some(_)) => self.port("bond", None).check_members()?,
            _ => {
                return wrong(
                    "forward.uplink is either a device or a bond, for example { device = \"eth0\", vlan = 42 } or { bond = { devices = [\"eth0\", \"eth1\"] } }",
                );
            }
        }
        match self.vlan.filter(|vlan| !(1..=4094).contains(vlan)) {
            Some(vlan) => wrong(format!("forward.uplink: vlan = {vlan}: a VLAN id is 1 to 4094")),
            None => Ok(()),
        }
    }

    /// Its devices.
    #[must_use]
    pub fn devices(&self) -> &[String] {
        match (&self.device, &self.bond) {
            (Some(device), _) => std::slice::from_ref(device),
            (None, Some(bond)) => &bond.devices,
            (None, None) => &[],
        }
    }

    /// The name of the port that it is: of its namespace and devices, so that it stays the same whichever networks share it.
    #[must_use]
    pub fn port_name(&self, netns: Option<&str>) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-@".contains(c) { c } else { '-' };
        let place = netns.map(|netns| format!("{netns}.")).unwrap_or_default();
        format!("{place}{}.uplink", self.devices().join("-")).chars().map(plain).collect()
    }

    /// The port that it is, in no domain yet.
    #[must_use]
    pub fn port(&self, name: &str, netns: Option<&str>) -> PortSpec {
        let mut port = match &self.bond {
            Some(bond) => {
                let mut port = PortSpec::new(name, Kind::Bond);
                port.devices.clone_from(&bond.devices);
                (port.mode, port.lacp, port.lacp_rate, port.mac) = (bond.mode, bond.lacp, bond.lacp_rate, bond.mac);
                port
            }
            None => {
                let mut port = PortSpec::new(name, Kind::Packet);
                port.device.clone_from(&self.device);
                port
            }
        };
        port.netns = netns.map(str::to_owned);
        port.domains = Vec::new();
        port
    }

    /// How a network is on the wire there.
    #[must_use]
    pub fn attachment(&self, network: &str) -> AttachmentSpec {
        let mut attachment = AttachmentSpec::untagged(network);
        if let Some(vid) = self.vlan {
            attachment.dress = DressSpec::Tag { vid, tpid: 0x8100 };
        }
        attachment
    }
}
