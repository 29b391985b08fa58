//! What a network may say and this switch cannot do, or not in this mode: refused when it is defined, each with what to do instead.

use super::{Bandwidth, ForwardMode, MacTableManager, MacvtapMode, NetworkSpec, PortGroup, VirtualPort, VlanSpec};
use crate::control::spec::{SpecError, wrong};

/// The kind of virtual port that `vswitch ovs-vsctl` stands for.
const OPENVSWITCH: &str = "openvswitch";

impl NetworkSpec {
    /// Whether this switch can do all that is said here.
    ///
    /// # Errors
    /// Names what it cannot do, and what to do instead.
    pub fn supported(&self) -> Result<(), SpecError> {
        self.supported_inside().map_err(|e| SpecError(format!("network \"{}\": {e}", self.name)))
    }

    fn supported_inside(&self) -> Result<(), SpecError> {
        let device = self.device();
        if let Some(zone) = &self.bridge.zone {
            return wrong(format!(
                "bridge.zone: firewalld is not spoken to; leave it out, and use: firewall-cmd --zone={zone} --change-interface={device}"
            ));
        }
        if self.domain.as_ref().is_some_and(|domain| domain.register) {
            return wrong(format!(
                "domain.register: systemd-resolved is not spoken to; leave it out, and when the network is up use: resolvectl dns {device} GATEWAY && resolvectl domain {device} '~DOMAIN'"
            ));
        }
        if self.mtu.is_some() && !self.has_domain() {
            match (self.forward.mode, self.base()) {
                (ForwardMode::Macvtap, _) => {}
                (_, Some(base)) => {
                    return wrong(format!(
                        "mtu: domain \"{base}\" is not this network's own; set it there: vswitch domain set {base} mtu={}",
                        self.mtu.unwrap_or_default()
                    ));
                }
                _ => return wrong("mtu: no frame of a PCI device passes here; leave it out, and set it at the NIC"),
            }
        }
        self.supported_bandwidth()?;
        self.supported_settings(self.vlan.as_ref(), self.virtual_port.as_ref(), self.port_isolated)?;
        self.supported_pinning("bridge.mac_table_manager", self.bridge.mac_table_manager)?;
        self.supported_filters(self.trust_guest_rx_filters, self.bridge.mac_table_manager)?;
        self.portgroup.iter().try_for_each(|group| {
            self.supported_group(group).map_err(|e| SpecError(format!("portgroup \"{}\": {e}", group.name)))
        })
    }

    fn supported_group(&self, group: &PortGroup) -> Result<(), SpecError> {
        if let Some(bandwidth) = &group.bandwidth {
            no_floor(bandwidth)?;
            if self.forward.mode == ForwardMode::Hostdev {
                return wrong(
                    "bandwidth: no frame of a PCI device passes here; limit it at the NIC: ip link set PF vf N max_tx_rate MBITS",
                );
            }
        }
        self.supported_settings(group.vlan.as_ref(), group.virtual_port.as_ref(), group.port_isolated)?;
        self.supported_pinning("mac_table_manager", group.mac_table_manager)?;
        let manager = group.mac_table_manager.or(self.bridge.mac_table_manager);
        self.supported_filters(group.trust_guest_rx_filters.or(self.trust_guest_rx_filters), manager)
    }

    fn supported_bandwidth(&self) -> Result<(), SpecError> {
        let Some(bandwidth) = &self.bandwidth else { return Ok(()) };
        no_floor(bandwidth)?;
        if !self.has_domain() {
            let domain = self.base().map_or_else(String::new, |base| {
                format!(", or bound the whole domain: vswitch domain set {base} rate=…")
            });
            return wrong(format!(
                "bandwidth: what passes as a whole is not this network's; give it to a portgroup, where it is each port's{domain}"
            ));
        }
        if !self.has_host() && self.forward.dev.is_none() && bandwidth.to_guests() != bandwidth.from_guests() {
            let both = bandwidth.inbound.is_some() && bandwidth.outbound.is_some();
            if both {
                return wrong(
                    "bandwidth: without a host port it bounds what guests send each other, which has one rate: make inbound and outbound the same, or give one of them",
                );
            }
        }
        Ok(())
    }

    fn supported_settings(
        &self,
        vlan: Option<&VlanSpec>,
        port: Option<&VirtualPort>,
        isolated: bool,
    ) -> Result<(), SpecError> {
        let mode = self.forward.mode;
        if let Some(vlan) = vlan {
            match mode {
                ForwardMode::Bridge | ForwardMode::Openvswitch => {}
                ForwardMode::Hostdev if !vlan.is_trunk() => {}
                ForwardMode::Hostdev => {
                    return wrong("vlan: the NIC puts a virtual function into one VLAN; give one tag");
                }
                ForwardMode::Macvtap => {
                    return wrong(
                        "vlan: a macvtap has no VLANs; make a VLAN device the pool: ip link add link eth0 name eth0.42 type vlan id 42",
                    );
                }
                _ => {
                    return wrong(
                        "vlan is for forward modes \"bridge\", \"openvswitch\" and \"hostdev\"; here the network is its own domain: define one for each VLAN",
                    );
                }
            }
        }
        if let Some(port) = port {
            let kind = port.kind.as_deref().unwrap_or(OPENVSWITCH);
            if kind != OPENVSWITCH {
                return wrong(format!(
                    "virtual_port of type \"{kind}\" is for a switch beyond the NIC that speaks it, which is not done here; leave it out, or use type \"openvswitch\""
                ));
            }
            if mode != ForwardMode::Openvswitch {
                return wrong("virtual_port of type \"openvswitch\" is for forward mode \"openvswitch\"; leave it out");
            }
        }
        match mode {
            ForwardMode::Macvtap if isolated => wrong(
                "port_isolated: macvtaps are kept apart by forward.macvtap = \"private\" (<forward mode='private'>)",
            ),
            ForwardMode::Hostdev if isolated => {
                wrong("port_isolated: no frame of a PCI device passes here; leave it out")
            }
            _ => Ok(()),
        }
    }

    fn supported_pinning(&self, what: &str, manager: Option<MacTableManager>) -> Result<(), SpecError> {
        if manager == Some(MacTableManager::Libvirt) && self.base().is_none() {
            return wrong(format!("{what}: guests of this forward mode are in no MAC table; leave it out"));
        }
        Ok(())
    }

    fn supported_filters(&self, trust: Option<bool>, manager: Option<MacTableManager>) -> Result<(), SpecError> {
        if trust != Some(true) {
            return Ok(());
        }
        match self.forward.mode {
            ForwardMode::Macvtap if self.forward.macvtap != Some(MacvtapMode::Passthrough) => wrong(
                "trust_guest_rx_filters: a macvtap hears its own address only, whatever the guest takes; use forward.macvtap = \"passthrough\", or leave it out",
            ),
            ForwardMode::Hostdev => wrong(
                "trust_guest_rx_filters: the NIC decides what a virtual function hears; use: ip link set PF vf N trust on, and leave it out",
            ),
            _ if manager == Some(MacTableManager::Libvirt) => wrong(
                "trust_guest_rx_filters: nothing but the guest's one address is known (mac_table_manager = \"libvirt\"); leave one of them out",
            ),
            _ => Ok(()),
        }
    }
}

fn no_floor(bandwidth: &Bandwidth) -> Result<(), SpecError> {
    if [bandwidth.inbound, bandwidth.outbound].into_iter().flatten().any(|rate| rate.floor.is_some()) {
        return wrong(
            "bandwidth floor: nothing is guaranteed here; leave it out, and bound the others by their average",
        );
    }
    Ok(())
}
