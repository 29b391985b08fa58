//! How a port is a member of a network: by its name, and with a portgroup.
//!
//! Such a port has no attachments of its own unless it says so: not even that to the domain `default`, which every other port has that says nothing. In text
//! this is known while it is read ([`PortSpec::set`]); in files and JSON the list of attachments may be missing, which is told from an empty one here.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    PortSpec, SpecError, check_name,
    port::{default_attachments, unsaid_attachments},
    wrong,
};

/// What takes a port out of its network, and what says that it wants no portgroup.
const NONE: &str = "none";

impl PortSpec {
    pub(super) fn set_network(&mut self, value: &str) -> Result<(), SpecError> {
        if value == NONE {
            (self.network, self.portgroup) = (None, None);
            return Ok(());
        }
        check_name("network", value)?;
        if self.network.is_none() && self.domains == default_attachments() {
            self.domains.clear();
        }
        self.network = Some(value.to_owned());
        Ok(())
    }

    pub(super) fn set_portgroup(&mut self, value: &str) -> Result<(), SpecError> {
        if value != NONE {
            check_name("portgroup", value)?;
        }
        self.portgroup = Some(value.to_owned()).filter(|group| !group.is_empty());
        Ok(())
    }

    pub(super) fn check_membership(&self) -> Result<(), SpecError> {
        let name = &self.name;
        if let Some(network) = &self.network {
            check_name("network", network).map_err(|e| SpecError(format!("port \"{name}\": {e}")))?;
        }
        match (&self.network, &self.portgroup) {
            (None, Some(group)) => wrong(format!(
                "port \"{name}\": portgroup={group} is of a network; name it as well: network=NAME (domain= joins a domain and no portgroup)"
            )),
            _ => Ok(()),
        }
    }
}

impl Serialize for PortSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for PortSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut spec = Self::deserialize(deserializer)?;
        if spec.domains == unsaid_attachments() {
            spec.domains = if spec.network.is_some() { Vec::new() } else { default_attachments() };
        }
        Ok(spec)
    }
}
