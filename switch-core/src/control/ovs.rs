//! What `vswitch ovs-vsctl` keeps at ports as labels: the bridge, and how frames are tagged. The command makes attachments of it; the switch reads
//! it for one thing, that trunks carry VLANs which networks name.

use std::collections::BTreeSet;

use super::spec::{DressSpec, PortSpec};

/// At a port: the bridge it was added to.
pub const BRIDGE: &str = "ovs.bridge";

/// How frames of a port are tagged: the columns `tag`, `trunks` and `vlan_mode` of the table Port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vlans {
    /// The access or native VLAN.
    pub tag: Option<u16>,
    /// VLANs of a trunk; empty: all.
    pub trunks: BTreeSet<u16>,
    /// `access`, `trunk`, `native-untagged` or `native-tagged`.
    pub mode: Option<String>,
}

impl Vlans {
    /// What the labels of a port say.
    #[must_use]
    pub fn of(port: &PortSpec) -> Vlans {
        let label = |key: &str| port.labels.get(key);
        Vlans {
            tag: label("ovs.port.tag").and_then(|t| t.parse().ok()),
            trunks: label("ovs.port.trunks")
                .map(|t| t.split(',').filter_map(|v| v.parse().ok()).collect())
                .unwrap_or_default(),
            mode: label("ovs.port.vlan_mode").cloned(),
        }
    }

    /// Writes the labels.
    pub fn keep(&self, port: &mut PortSpec) {
        let trunks: Vec<String> = self.trunks.iter().map(u16::to_string).collect();
        for (key, value) in [
            ("ovs.port.tag", self.tag.map(|t| t.to_string())),
            ("ovs.port.trunks", Some(trunks.join(",")).filter(|t| !t.is_empty())),
            ("ovs.port.vlan_mode", self.mode.clone()),
        ] {
            match value {
                Some(value) => drop(port.labels.insert(key.to_owned(), value)),
                None => drop(port.labels.remove(key)),
            }
        }
    }

    /// The VLAN that untagged frames are of (0 is the bridge's own, `None` if there is none), and whether there are tagged ones.
    ///
    /// # Errors
    /// The columns contradict each other.
    pub fn wire(&self) -> Result<(Option<u16>, bool), &'static str> {
        match (self.mode.as_deref(), self.tag) {
            (None | Some("access"), Some(tag)) => Ok((Some(tag), false)),
            (Some("access"), None) => Ok((Some(0), false)),
            // Without trunks it is a trunk of all VLANs, the one without a tag among them.
            (None | Some("trunk"), _) => Ok(((self.trunks.is_empty() || self.trunks.contains(&0)).then_some(0), true)),
            (Some("native-untagged"), tag) => Ok((Some(tag.unwrap_or(0)), true)),
            (Some("native-tagged"), Some(tag)) if tag != 0 => Ok((Some(tag), true)),
            (Some("native-tagged"), _) => Err("vlan_mode=native-tagged: it needs tag=VLAN, the one that has its tag"),
            _ => Err("vlan_mode: use access, trunk, native-untagged or native-tagged"),
        }
    }

    /// How frames of the VLAN of untagged frames look when they leave.
    #[must_use]
    pub fn native_dress(&self, vid: u16) -> DressSpec {
        match self.mode.as_deref() {
            Some("native-tagged") => DressSpec::Native { vid, tpid: 0x8100 },
            _ => DressSpec::Untagged,
        }
    }

    /// The VLANs that the port names.
    pub fn named(&self) -> impl Iterator<Item = u16> + '_ {
        self.tag.into_iter().chain(self.trunks.iter().copied()).filter(|vid| *vid != 0)
    }

    /// Whether frames of a VLAN have their tag on the port's wire.
    #[must_use]
    pub fn carries(&self, vid: u16) -> bool {
        let listed = self.trunks.is_empty() || self.trunks.contains(&vid);
        listed && matches!(self.wire(), Ok((untagged, true)) if untagged != Some(vid))
    }
}
