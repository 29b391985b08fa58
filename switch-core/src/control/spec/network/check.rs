//! What a network may say.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    AddressRange, Bandwidth, Cidr, DhcpSpec, ForwardMode, IpSpec, MacvtapMode, NetworkSpec, RaMode, UplinkSpec,
    VlanSpec,
};
use crate::{
    control::spec::{MAX_MTU, MIN_MTU, SpecError, check_name, wrong},
    hostdev::PciAddress,
    port::tap::MAX_NAME as MAX_DEVICE_NAME,
};

/// Ports of one forward that go to other ports: each is a rule of its own.
const MAX_SHIFTED_PORTS: u16 = 1024;

impl NetworkSpec {
    /// Checks what does not depend on other objects.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn check(&self) -> Result<(), SpecError> {
        check_name("network", &self.name)?;
        self.check_inside().map_err(|e| SpecError(format!("network \"{}\": {e}", self.name)))
    }

    fn check_inside(&self) -> Result<(), SpecError> {
        if let Some(uuid) = &self.uuid {
            let plain: String = uuid.chars().filter(|c| *c != '-').collect();
            if plain.len() != 32 || !plain.chars().all(|c| c.is_ascii_hexdigit()) {
                return wrong(format!(
                    "uuid \"{uuid}\": write 32 hex digits, for example 3e3fce45-4f53-4fa7-bb32-11f34168b82b"
                ));
            }
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
            return wrong(format!("mtu {mtu}: use {MIN_MTU} to {MAX_MTU}"));
        }
        if self.mac.is_some_and(|mac| mac.is_multicast()) {
            return wrong("mac: a host port's address is not a group address");
        }
        if self.has_host() {
            check_device("the host port", self.device(), "; give it a name of its own: [network.bridge] name = \"…\"")?;
            if self.bridge.host == Some(false) {
                return wrong("bridge.host = false: addresses and forwarding by the host need a host port");
            }
        }
        let devices = self.forward.dev.iter().chain(&self.forward.interfaces).chain(&self.forward.pf);
        devices.into_iter().try_for_each(|device| check_device("forward", device, ""))?;
        self.check_forward()?;
        let mut dhcp_ipv4 = 0;
        for (index, ip) in self.ip.iter().enumerate() {
            check_ip(ip).map_err(|e| SpecError(format!("ip {}: {e}", ip.address)))?;
            if let Some(other) = self.ip[..index].iter().find(|other| other.address.overlaps(&ip.address)) {
                return wrong(format!("ip {} and {} overlap", other.address, ip.address));
            }
            dhcp_ipv4 += u32::from(ip.address.is_ipv4() && ip.dhcp.as_ref().is_some_and(|dhcp| dhcp.enable));
        }
        if dhcp_ipv4 > 1 {
            return wrong("only one IPv4 address can have dhcp");
        }
        for route in &self.route {
            if !self.addresses().any(|a| a.contains(route.gateway)) {
                return wrong(format!("route to {}: gateway {} is not in the network", route.to, route.gateway));
            }
            if route.to.network() != route.to || route.to.is_ipv4() != route.gateway.is_ipv4() {
                return wrong(format!("route to {}: not a network of the gateway's family", route.to));
            }
        }
        self.check_names()?;
        self.vlan.iter().try_for_each(check_vlan)?;
        self.bandwidth.iter().try_for_each(check_bandwidth)?;
        self.check_groups()
    }

    fn check_forward(&self) -> Result<(), SpecError> {
        let forward = &self.forward;
        let mode = forward.mode;
        if forward.nat.is_some() && mode != ForwardMode::Nat {
            return wrong("forward.nat is for mode \"nat\"");
        }
        if !forward.port_forwards.is_empty() && !self.by_host() {
            return wrong("forward.port_forwards are for modes \"nat\", \"routed\" and \"open\"");
        }
        let ways = [forward.dev.is_some(), forward.uplink.is_some(), forward.domain.is_some()];
        if mode == ForwardMode::Bridge && ways.into_iter().filter(|given| *given).count() != 1 {
            return wrong(
                "forward mode \"bridge\" needs one of dev (a device to be the uplink), uplink (a device or a bond, and a VLAN on it) and domain (one that exists)",
            );
        }
        if mode != ForwardMode::Bridge && forward.uplink.is_some() {
            return wrong("forward.uplink is for mode \"bridge\"");
        }
        forward.uplink.iter().try_for_each(UplinkSpec::check)?;
        if mode != ForwardMode::Bridge && forward.domain.is_some() {
            return wrong("forward.domain is for mode \"bridge\"");
        }
        if mode == ForwardMode::Openvswitch && self.bridge.name.is_none() {
            return wrong("forward mode \"openvswitch\" needs bridge.name: the bridge that exists");
        }
        if mode == ForwardMode::Openvswitch
            && let Some(device) = self.pool().next()
        {
            let bridge = self.device();
            return wrong(format!(
                "forward mode \"openvswitch\" has the devices of its bridge; plug \"{device}\" in there: vswitch ovs-vsctl add-port {bridge} {device}"
            ));
        }
        self.check_pool()?;
        if !self.has_host() && (!self.ip.is_empty() || !self.route.is_empty()) {
            return wrong(format!("ip and route are not for forward mode {mode:?}: others have the gateway"));
        }
        if let Some(range) = forward.nat.as_ref().and_then(|nat| nat.address) {
            check_range(&range)?;
        }
        if let Some(port) = forward.nat.as_ref().and_then(|nat| nat.port)
            && (port.start == 0 || port.start > port.end)
        {
            return wrong(format!("nat ports {} to {}: not a range", port.start, port.end));
        }
        for rule in &forward.port_forwards {
            let (last, to) = (rule.end.unwrap_or(rule.port), rule.to_port.unwrap_or(rule.port));
            if rule.port == 0 || to == 0 || last < rule.port || to.checked_add(last - rule.port).is_none() {
                return wrong(format!("port_forwards: port {} to {last}: not a range of ports", rule.port));
            }
            if to != rule.port && last - rule.port >= MAX_SHIFTED_PORTS {
                return wrong(format!("port_forwards: at most {MAX_SHIFTED_PORTS} ports can go to others"));
            }
            if !self.addresses().any(|a| a.contains(rule.to)) {
                return wrong(format!("port_forwards: {} is not in the network", rule.to));
            }
            if rule.address.is_some_and(|a| a.is_ipv4() != rule.to.is_ipv4()) {
                return wrong(format!("port_forwards: address and {} are of two families", rule.to));
            }
        }
        Ok(())
    }

    /// What guests' devices are taken from.
    fn check_pool(&self) -> Result<(), SpecError> {
        let forward = &self.forward;
        let (by_name, by_address) = (self.pool().next().is_some(), !forward.addresses.is_empty());
        match forward.mode {
            ForwardMode::Macvtap => {
                if by_address {
                    return wrong("forward.addresses are for mode \"hostdev\"; a macvtap is on a device with a name");
                }
                if by_name == forward.pf.is_some() {
                    return wrong(
                        "forward mode \"macvtap\" needs either interfaces (devices to make macvtaps on) or pf (a NIC whose virtual functions are these)",
                    );
                }
                if forward.pf.is_some() && forward.macvtap != Some(MacvtapMode::Passthrough) {
                    return wrong("forward.pf: a virtual function has one guest: macvtap = \"passthrough\"");
                }
                if forward.pf.is_some() && self.netns.is_some() {
                    return wrong(
                        "forward.pf: virtual functions are looked up in the switch's own namespace; leave netns out",
                    );
                }
                let mut seen = BTreeSet::new();
                if let Some(twice) = self.pool().find(|device| !seen.insert(*device)) {
                    return wrong(format!("forward.interfaces: \"{twice}\" is there twice"));
                }
            }
            ForwardMode::Hostdev => {
                if by_name {
                    return wrong(
                        "forward mode \"hostdev\" has virtual functions: use pf or addresses instead of devices",
                    );
                }
                if by_address == forward.pf.is_some() {
                    return wrong(
                        "forward mode \"hostdev\" needs either pf (a NIC with virtual functions) or addresses (of virtual functions)",
                    );
                }
                for address in &forward.addresses {
                    address.parse::<PciAddress>().map_err(SpecError)?;
                }
            }
            _ if forward.pf.is_some() || by_address => {
                return wrong("forward.pf and forward.addresses are for modes \"macvtap\" and \"hostdev\"");
            }
            _ => {}
        }
        if forward.macvtap.is_some() && forward.mode != ForwardMode::Macvtap {
            return wrong("forward.macvtap is for mode \"macvtap\"");
        }
        if forward.mode != ForwardMode::Hostdev && (forward.managed || forward.driver.is_some()) {
            return wrong("forward.managed and forward.driver are for mode \"hostdev\"");
        }
        Ok(())
    }

    /// Names end up as lines of dnsmasq's configuration: nothing but names may be in them.
    fn check_names(&self) -> Result<(), SpecError> {
        let dns = &self.dns;
        let mut names: Vec<&str> = self.domain.iter().map(|d| d.name.as_str()).collect();
        names.extend(dns.host.iter().flat_map(|h| h.hostnames.iter().map(String::as_str)));
        names.extend(dns.txt.iter().map(|t| t.name.as_str()));
        names.extend(dns.forwarder.iter().filter_map(|f| f.domain.as_deref()));
        names.extend(
            dns.srv
                .iter()
                .flat_map(|s| [Some(s.service.as_str()), Some(&s.protocol), s.domain.as_deref(), s.target.as_deref()])
                .flatten(),
        );
        if let Some(bad) = names.into_iter().find(|name| !is_dns_name(name)) {
            return wrong(format!("\"{bad}\" is not a DNS name"));
        }
        if dns.host.iter().any(|h| h.hostnames.is_empty()) {
            return wrong("dns.host: hostnames is empty");
        }
        if dns.forwarder.iter().any(|f| f.address.is_none() && f.domain.is_none()) {
            return wrong("dns.forwarder: give it an address, a domain or both");
        }
        let lines = dns.txt.iter().map(|t| &t.value).chain(&self.dnsmasq_options);
        if let Some(bad) = lines.into_iter().find(|text| text.contains(['\n', '\r', '\0'])) {
            return wrong(format!("{bad:?}: one line only"));
        }
        if let Some(bad) = dns.txt.iter().find(|t| t.value.contains('"')) {
            return wrong(format!("dns.txt {}: the text cannot have quotes", bad.name));
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<(), SpecError> {
        let mut seen = BTreeSet::new();
        for group in &self.portgroup {
            // "none" cannot be one: a port says so that it wants none.
            check_name("portgroup", &group.name)?;
            if !seen.insert(&group.name) {
                return wrong(format!("portgroup \"{}\" is defined twice", group.name));
            }
            let inside = |e: SpecError| SpecError(format!("portgroup \"{}\": {e}", group.name));
            group.vlan.iter().try_for_each(check_vlan).map_err(inside)?;
            group.bandwidth.iter().try_for_each(check_bandwidth).map_err(inside)?;
        }
        if self.portgroup.iter().filter(|g| g.default).count() > 1 {
            return wrong("only one portgroup is the default");
        }
        Ok(())
    }
}

fn check_device(what: &str, device: &str, mend: &str) -> Result<(), SpecError> {
    // The kernel's sysctls use these two names.
    let taken = [".", "..", "all", "default"].contains(&device);
    let odd = |c: char| c.is_whitespace() || c.is_control() || "/:\"\\*,".contains(c);
    if device.is_empty() || device.len() > MAX_DEVICE_NAME || device.contains(odd) || taken {
        return wrong(format!(
            "{what}: \"{device}\" cannot be a device name (1 to {MAX_DEVICE_NAME} characters){mend}"
        ));
    }
    Ok(())
}

fn check_vlan(vlan: &VlanSpec) -> Result<(), SpecError> {
    if vlan.tags.is_empty() {
        return wrong("vlan: tags are missing");
    }
    let mut seen = BTreeSet::new();
    for tag in &vlan.tags {
        if !(1..=4094).contains(&tag.id) {
            return wrong(format!("vlan tag {}: a VLAN id is 1 to 4094", tag.id));
        }
        if !seen.insert(tag.id) {
            return wrong(format!("vlan tag {}: it is there twice", tag.id));
        }
    }
    if vlan.tags.iter().filter(|tag| tag.native_mode.is_some()).count() > 1 {
        return wrong("vlan: only one tag can have a native_mode");
    }
    Ok(())
}

/// A floor alone is understood; [`NetworkSpec::supported`] refuses it.
fn check_bandwidth(bandwidth: &Bandwidth) -> Result<(), SpecError> {
    for (name, rate) in [("inbound", bandwidth.inbound), ("outbound", bandwidth.outbound)] {
        let Some(rate) = rate else { continue };
        let numbers = [rate.average, rate.peak, rate.burst, rate.floor];
        if numbers.into_iter().flatten().any(|n| n == 0 || n > u64::from(u32::MAX)) {
            return wrong(format!("bandwidth {name}: numbers are KiB per second and KiB, 1 to {}", u32::MAX));
        }
        if rate.average.is_none() && (rate.floor.is_none() || rate.peak.is_some() || rate.burst.is_some()) {
            return wrong(format!("bandwidth {name}: average is missing"));
        }
        if rate.peak.zip(rate.average).is_some_and(|(peak, average)| peak < average) {
            return wrong(format!("bandwidth {name}: the peak is less than the average"));
        }
    }
    Ok(())
}

fn is_dns_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 253 && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn check_range(range: &AddressRange) -> Result<(), SpecError> {
    if range.start.is_ipv4() != range.end.is_ipv4() || range.start > range.end {
        return wrong(format!("{} to {}: not a range of addresses", range.start, range.end));
    }
    Ok(())
}

fn check_ip(ip: &IpSpec) -> Result<(), SpecError> {
    let address = ip.address.address;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return wrong("not the address of a host");
    }
    let long = if ip.address.is_ipv4() { 30 } else { 127 };
    if ip.address.network().address == address && ip.address.prefix <= long {
        return wrong("that is the network; the gateway needs an address in it, for example the next one");
    }
    if ip.ra.is_some() && ip.address.is_ipv4() {
        return wrong("ra is for IPv6");
    }
    if matches!(ip.ra(), RaMode::RaOnly | RaMode::Slaac | RaMode::Stateless) && ip.address.prefix != 64 {
        return wrong("guests can only make their own addresses with a prefix of 64 bits");
    }
    let unit = if ip.address.is_ipv4() { 8 } else { 4 };
    if ip.local_ptr && (ip.address.prefix == 0 || !ip.address.prefix.is_multiple_of(unit)) {
        return wrong(format!("local_ptr needs a prefix that is a multiple of {unit} bits"));
    }
    if let Some(root) = ip.tftp_root.as_ref().filter(|root| root.contains(['\n', '\r', '\0']) || !root.starts_with('/'))
    {
        return wrong(format!("tftp_root {root:?}: use an absolute path"));
    }
    ip.dhcp.iter().try_for_each(|dhcp| check_dhcp(&ip.address, dhcp))
}

fn check_dhcp(net: &Cidr, dhcp: &DhcpSpec) -> Result<(), SpecError> {
    let inside = |address: IpAddr| {
        if net.contains(address) { Ok(()) } else { wrong(format!("{address} is not in {}", net.network())) }
    };
    for range in &dhcp.range {
        check_range(&range.addresses())?;
        inside(range.start)?;
        inside(range.end)?;
        if range.lease_s.is_some_and(|s| s != 0 && s < 120) {
            return wrong("lease_s: use 120 seconds or more, or 0 for ever");
        }
    }
    for host in &dhcp.host {
        let who = [host.mac.map(|m| m.to_string()), host.id.clone(), host.name.clone()].into_iter().flatten().next();
        let Some(who) = who else { return wrong("dhcp host: give it a mac, an id or a name") };
        if host.ip.is_none() && (host.name.is_none() || (host.mac.is_none() && host.id.is_none())) {
            return wrong(format!("dhcp host {who}: ip is missing"));
        }
        host.ip.map_or(Ok(()), inside)?;
        if host.id.is_some() && net.is_ipv4() {
            return wrong(format!("dhcp host {who}: id is for DHCPv6"));
        }
        if host.id.as_ref().is_some_and(|id| !id.chars().all(|c| c.is_ascii_hexdigit() || c == ':')) {
            return wrong(format!("dhcp host {who}: id is written as hex octets with colons"));
        }
        if host.name.as_ref().is_some_and(|name| !is_dns_name(name)) {
            return wrong(format!("dhcp host {who}: the name is not a DNS name"));
        }
    }
    for text in [&dhcp.bootp_file, &dhcp.bootp_server].into_iter().flatten() {
        if text.contains(['\n', '\r', '\0', ',']) {
            return wrong(format!("bootp: {text:?} cannot be told to dnsmasq"));
        }
    }
    Ok(())
}
