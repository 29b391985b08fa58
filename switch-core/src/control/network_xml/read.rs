//! From XML.

use roxmltree::{Document, Node, ParsingOptions};

use super::{
    DNSMASQ, Read,
    values::{attribute, choice, cidr, content, is_yes, needed, path, pci_number, words, wrong, yes_no},
};
use crate::{
    control::spec::{
        NetworkSpec, SpecError,
        network::{
            AddressRange, Bandwidth, BridgeSpec, DhcpHost, DhcpRange, DhcpSpec, DnsForwarder, DnsHost, DnsSpec, DnsSrv,
            DnsTxt, ForwardMode, ForwardSpec, IpSpec, MacTableManager, MacvtapMode, NameSpec, NatSpec, NativeMode,
            PortGroup, PortRange, Rate, RouteSpec, VirtualPort, VlanSpec, VlanTag,
        },
    },
    mac::MacAddr,
};

type Result<T> = std::result::Result<T, SpecError>;

/// The largest document that is read. libvirt's own are some kilobytes.
const MAX_BYTES: usize = 1 << 20;
/// libvirt's unit of a lease.
const LEASE_UNIT: &str = "minutes";

/// Reads a `<network>` document.
///
/// # Errors
/// It is no XML, no `<network>`, or an element or attribute says what cannot be; the error names it.
pub fn read(text: &str) -> Result<Read> {
    if text.len() > MAX_BYTES {
        return Err(SpecError(format!("a network's XML has at most {MAX_BYTES} bytes")));
    }
    // Without document types nothing can grow by entities.
    let options = ParsingOptions { allow_dtd: false, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|e| SpecError(format!("not XML: {e}")))?;
    let root = document.root_element();
    if root.tag_name().name() != "network" {
        return Err(SpecError(format!("<{}> is not a <network>", root.tag_name().name())));
    }
    let mut reader = Reader { text, warnings: Vec::new() };
    let spec = reader.network(root)?;
    spec.check()?;
    Ok(Read { spec, warnings: reader.warnings })
}

struct Reader<'a> {
    text: &'a str,
    warnings: Vec<String>,
}

impl Reader<'_> {
    /// Goes through an element: attributes must be among `known`, and child elements are handed to `child`, which says whether it knows them.
    fn element<'n>(
        &mut self,
        node: Node<'n, 'n>,
        known: &[&str],
        mut child: impl FnMut(&mut Self, &str, Node<'n, 'n>) -> Result<bool>,
    ) -> Result<()> {
        for attribute in node.attributes() {
            if !known.contains(&attribute.name()) {
                self.warnings.push(format!("{}@{} is not known and was left out", path(node), attribute.name()));
            }
        }
        for inner in node.children().filter(Node::is_element) {
            let name = inner.tag_name().name();
            let plain = inner.tag_name().namespace().is_none();
            if !(plain && child(self, name, inner)?) {
                self.warnings.push(format!("{} is not known and was left out", path(inner)));
            }
        }
        Ok(())
    }

    /// An element without children.
    fn leaf(&mut self, node: Node<'_, '_>, known: &[&str]) -> Result<bool> {
        // Nodes of one document have the lifetime of it, whatever the caller calls it.
        for attribute in node.attributes() {
            if !known.contains(&attribute.name()) {
                self.warnings.push(format!("{}@{} is not known and was left out", path(node), attribute.name()));
            }
        }
        for inner in node.children().filter(Node::is_element) {
            self.warnings.push(format!("{} is not known and was left out", path(inner)));
        }
        Ok(true)
    }

    fn network<'n>(&mut self, root: Node<'n, 'n>) -> Result<NetworkSpec> {
        let mut spec = NetworkSpec {
            ipv6: is_yes(root, "ipv6")?,
            trust_guest_rx_filters: yes_no(root, "trustGuestRxFilters")?,
            ..NetworkSpec::default()
        };
        let mut forward = None;
        let options: Vec<_> = root.children().filter(|n| n.has_tag_name((DNSMASQ, "options"))).collect();
        for option in options.iter().flat_map(|n| n.children()).filter(Node::is_element) {
            self.leaf(option, &["value"])?;
            spec.dnsmasq_options.push(needed(option, "value")?);
        }
        // How many guests use the network is no setting.
        self.element(root, &["ipv6", "trustGuestRxFilters", "connections"], |reader, name, node| {
            match name {
                "name" => spec.name = content(node),
                "uuid" => spec.uuid = Some(content(node)),
                "title" => spec.title = Some(content(node)),
                "description" => spec.description = Some(content(node)),
                "metadata" => spec.metadata = reader.metadata(node),
                "mac" => {
                    spec.mac = Some(needed::<MacAddr>(node, "address")?);
                    return reader.leaf(node, &["address"]);
                }
                "mtu" => {
                    spec.mtu = Some(needed(node, "size")?);
                    return reader.leaf(node, &["size"]);
                }
                "port" => {
                    spec.port_isolated = is_yes(node, "isolated")?;
                    return reader.leaf(node, &["isolated"]);
                }
                "domain" => {
                    spec.domain = Some(NameSpec {
                        name: needed(node, "name")?,
                        local_only: is_yes(node, "localOnly")?,
                        register: is_yes(node, "register")?,
                    });
                    return reader.leaf(node, &["name", "localOnly", "register"]);
                }
                "bridge" => return reader.bridge(node, &mut spec.bridge),
                "forward" => forward = Some(node),
                "dns" => spec.dns = reader.dns(node)?,
                "ip" => spec.ip.push(reader.ip(node)?),
                "route" => {
                    spec.route.push(RouteSpec {
                        to: cidr(node)?,
                        gateway: needed(node, "gateway")?,
                        metric: attribute(node, "metric")?,
                    });
                    return reader.leaf(node, &["family", "address", "netmask", "prefix", "gateway", "metric"]);
                }
                "bandwidth" => spec.bandwidth = Some(reader.bandwidth(node)?),
                "vlan" => spec.vlan = Some(reader.vlan(node)?),
                "virtualport" => spec.virtual_port = Some(reader.virtual_port(node)?),
                "portgroup" => spec.portgroup.push(reader.port_group(node)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        self.warnings.retain(|w| options.is_empty() || !w.starts_with("network/options is"));
        if let Some(node) = forward {
            self.forward(node, &mut spec)?;
        }
        Ok(spec)
    }

    /// What is between the tags, as it is.
    fn metadata(&self, node: Node<'_, '_>) -> Option<String> {
        let (first, last) = (node.first_child()?, node.last_child()?);
        let inner = self.text[first.range().start..last.range().end].trim();
        (!inner.is_empty()).then(|| inner.to_owned())
    }

    fn bridge(&mut self, node: Node<'_, '_>, bridge: &mut BridgeSpec) -> Result<bool> {
        bridge.name = words(node, "name").filter(|name| !name.is_empty());
        bridge.stp = choice(node, "stp", &[("on", true), ("off", false)])?;
        bridge.delay_ms = match attribute::<f64>(node, "delay")? {
            Some(seconds) if !(0.0..=86_400.0).contains(&seconds) => {
                return wrong(node, "delay", "not a delay in seconds");
            }
            seconds => seconds.map(|seconds| (seconds * 1000.0).round() as u32),
        };
        let managers = [("kernel", MacTableManager::Kernel), ("libvirt", MacTableManager::Libvirt)];
        bridge.mac_table_manager = choice(node, "macTableManager", &managers)?;
        bridge.zone = words(node, "zone");
        self.leaf(node, &["name", "stp", "delay", "macTableManager", "zone"])
    }

    /// libvirt's modes are ours when it is known what else the network has: a bridge that exists, or devices.
    fn forward<'n>(&mut self, node: Node<'n, 'n>, spec: &mut NetworkSpec) -> Result<()> {
        let mut forward = ForwardSpec::default();
        let dev = words(node, "dev");
        self.element(node, &["mode", "dev", "managed"], |reader, name, inner| match name {
            "interface" => {
                forward.interfaces.push(needed(inner, "dev")?);
                // How many guests use the device is no setting.
                reader.leaf(inner, &["dev", "connections"])
            }
            "pf" => {
                forward.pf = Some(needed(inner, "dev")?);
                reader.leaf(inner, &["dev"])
            }
            "driver" => {
                forward.driver = words(inner, "name").or_else(|| words(inner, "model"));
                reader.leaf(inner, &["name", "model"])
            }
            "address" => {
                if inner.attribute("type") != Some("pci") {
                    return wrong(inner, "type", "only pci addresses are known");
                }
                let [domain, bus, slot, function] =
                    ["domain", "bus", "slot", "function"].map(|part| pci_number(inner, part));
                forward.addresses.push(format!("{:04x}:{:02x}:{:02x}.{}", domain?, bus?, slot?, function?));
                reader.leaf(inner, &["type", "domain", "bus", "slot", "function", "connections"])
            }
            "nat" => {
                forward.nat = Some(reader.nat(inner)?);
                Ok(true)
            }
            _ => Ok(false),
        })?;
        forward.managed = is_yes(node, "managed")?;
        let bridge = spec.bridge.name.clone();
        let openvswitch = spec.virtual_port.as_ref().and_then(|v| v.kind.as_deref()) == Some("openvswitch");
        let taps = [
            ("bridge", MacvtapMode::Bridge),
            ("private", MacvtapMode::Private),
            ("vepa", MacvtapMode::Vepa),
            ("passthrough", MacvtapMode::Passthrough),
        ];
        let mode = node.attribute("mode").unwrap_or("nat");
        forward.mode = match mode {
            "none" => ForwardMode::Isolated,
            "nat" => ForwardMode::Nat,
            "route" => ForwardMode::Routed,
            "open" => ForwardMode::Open,
            "hostdev" => ForwardMode::Hostdev,
            "bridge" if openvswitch && bridge.is_some() => ForwardMode::Openvswitch,
            "bridge" if bridge.is_some() => ForwardMode::Bridge,
            _ => match taps.iter().find(|(name, _)| *name == mode) {
                Some((_, how)) => {
                    forward.macvtap = Some(*how);
                    ForwardMode::Macvtap
                }
                None => {
                    return wrong(
                        node,
                        "mode",
                        format!(
                            "\"{mode}\" is not known; known: none, nat, route, open, bridge, private, vepa, passthrough, hostdev"
                        ),
                    );
                }
            },
        };
        match forward.mode {
            ForwardMode::Bridge => {
                forward.domain = bridge;
                spec.bridge.name = None;
            }
            // An active network lists the functions that its NIC has now as well.
            ForwardMode::Macvtap | ForwardMode::Hostdev if forward.pf.is_some() => {
                forward.interfaces.clear();
                forward.addresses.clear();
            }
            // libvirt says the same device twice.
            ForwardMode::Macvtap | ForwardMode::Hostdev => {
                if let Some(dev) = dev.filter(|dev| !forward.interfaces.contains(dev)) {
                    forward.interfaces.insert(0, dev);
                }
            }
            _ => {
                forward.dev = dev.or_else(|| forward.interfaces.first().cloned());
                let first = forward.dev.clone();
                forward.interfaces.retain(|interface| Some(interface) != first.as_ref());
            }
        }
        spec.forward = forward;
        Ok(())
    }

    fn nat<'n>(&mut self, node: Node<'n, 'n>) -> Result<NatSpec> {
        let mut nat = NatSpec { ipv6: is_yes(node, "ipv6")?, ..NatSpec::default() };
        self.element(node, &["ipv6"], |reader, name, inner| {
            match name {
                "address" => {
                    nat.address = Some(AddressRange { start: needed(inner, "start")?, end: needed(inner, "end")? });
                }
                "port" => nat.port = Some(PortRange { start: needed(inner, "start")?, end: needed(inner, "end")? }),
                _ => return Ok(false),
            }
            reader.leaf(inner, &["start", "end"])
        })?;
        Ok(nat)
    }

    fn ip<'n>(&mut self, node: Node<'n, 'n>) -> Result<IpSpec> {
        let mut ip = IpSpec {
            address: cidr(node)?,
            local_ptr: is_yes(node, "localPtr")?,
            tftp_root: None,
            ra: None,
            dhcp: None,
        };
        self.element(
            node,
            &["family", "address", "netmask", "prefix", "localPtr"],
            |reader, name, inner| match name {
                "tftp" => {
                    ip.tftp_root = words(inner, "root");
                    reader.leaf(inner, &["root"])
                }
                "dhcp" => {
                    ip.dhcp = Some(reader.dhcp(inner)?);
                    Ok(true)
                }
                _ => Ok(false),
            },
        )?;
        Ok(ip)
    }

    fn dhcp<'n>(&mut self, node: Node<'n, 'n>) -> Result<DhcpSpec> {
        let mut dhcp = DhcpSpec::default();
        self.element(node, &[], |reader, name, inner| match name {
            "range" => {
                let lease_s = reader.lease(inner, &["start", "end"])?;
                dhcp.range.push(DhcpRange { start: needed(inner, "start")?, end: needed(inner, "end")?, lease_s });
                Ok(true)
            }
            "host" => {
                let lease_s = reader.lease(inner, &["mac", "id", "name", "ip"])?;
                dhcp.host.push(DhcpHost {
                    mac: attribute(inner, "mac")?,
                    id: words(inner, "id"),
                    name: words(inner, "name"),
                    ip: attribute(inner, "ip")?,
                    lease_s,
                });
                Ok(true)
            }
            "bootp" => {
                (dhcp.bootp_file, dhcp.bootp_server) = (words(inner, "file"), words(inner, "server"));
                reader.leaf(inner, &["file", "server"])
            }
            _ => Ok(false),
        })?;
        Ok(dhcp)
    }

    /// The `<lease>` in an element that has these attributes, in seconds.
    fn lease<'n>(&mut self, node: Node<'n, 'n>, known: &[&str]) -> Result<Option<u32>> {
        let mut lease_s = None;
        self.element(node, known, |reader, name, inner| {
            if name != "lease" {
                return Ok(false);
            }
            let units = [("seconds", 1), (LEASE_UNIT, 60), ("hours", 3600)];
            let unit = choice(inner, "unit", &units)?.unwrap_or(60);
            let expiry: u32 = needed(inner, "expiry")?;
            lease_s = match expiry.checked_mul(unit) {
                Some(seconds) => Some(seconds),
                None => return wrong(inner, "expiry", "longer than 32 bits of seconds"),
            };
            reader.leaf(inner, &["expiry", "unit"])
        })?;
        Ok(lease_s)
    }

    fn dns<'n>(&mut self, node: Node<'n, 'n>) -> Result<DnsSpec> {
        let mut dns = DnsSpec {
            enable: yes_no(node, "enable")? != Some(false),
            forward_plain_names: yes_no(node, "forwardPlainNames")? != Some(false),
            ..DnsSpec::default()
        };
        self.element(node, &["enable", "forwardPlainNames"], |reader, name, inner| match name {
            "forwarder" => {
                dns.forwarder.push(DnsForwarder {
                    address: attribute(inner, "addr")?,
                    port: attribute(inner, "port")?,
                    domain: words(inner, "domain"),
                });
                reader.leaf(inner, &["addr", "domain", "port"])
            }
            "txt" => {
                dns.txt.push(DnsTxt { name: needed(inner, "name")?, value: words(inner, "value").unwrap_or_default() });
                reader.leaf(inner, &["name", "value"])
            }
            "srv" => {
                dns.srv.push(DnsSrv {
                    service: needed(inner, "service")?,
                    protocol: needed(inner, "protocol")?,
                    domain: words(inner, "domain"),
                    target: words(inner, "target"),
                    port: attribute(inner, "port")?,
                    priority: attribute(inner, "priority")?,
                    weight: attribute(inner, "weight")?,
                });
                reader.leaf(inner, &["service", "protocol", "domain", "target", "port", "priority", "weight"])
            }
            "host" => {
                let mut hostnames = Vec::new();
                reader.element(inner, &["ip"], |reader, name, inner| {
                    if name == "hostname" {
                        hostnames.push(content(inner));
                        return reader.leaf(inner, &[]);
                    }
                    Ok(false)
                })?;
                dns.host.push(DnsHost { ip: needed(inner, "ip")?, hostnames });
                Ok(true)
            }
            _ => Ok(false),
        })?;
        Ok(dns)
    }

    fn bandwidth<'n>(&mut self, node: Node<'n, 'n>) -> Result<Bandwidth> {
        let mut bandwidth = Bandwidth::default();
        self.element(node, &[], |reader, name, inner| {
            let rate = Rate {
                average: attribute(inner, "average")?,
                peak: attribute(inner, "peak")?,
                burst: attribute(inner, "burst")?,
                floor: attribute(inner, "floor")?,
            };
            match name {
                "inbound" => bandwidth.inbound = Some(rate),
                "outbound" => bandwidth.outbound = Some(rate),
                _ => return Ok(false),
            }
            reader.leaf(inner, &["average", "peak", "burst", "floor"])
        })?;
        Ok(bandwidth)
    }

    fn vlan<'n>(&mut self, node: Node<'n, 'n>) -> Result<VlanSpec> {
        let mut vlan = VlanSpec { trunk: is_yes(node, "trunk")?, tags: Vec::new() };
        self.element(node, &["trunk"], |reader, name, inner| {
            if name != "tag" {
                return Ok(false);
            }
            let modes = [("tagged", NativeMode::Tagged), ("untagged", NativeMode::Untagged)];
            vlan.tags.push(VlanTag { id: needed(inner, "id")?, native_mode: choice(inner, "nativeMode", &modes)? });
            reader.leaf(inner, &["id", "nativeMode"])
        })?;
        Ok(vlan)
    }

    fn virtual_port<'n>(&mut self, node: Node<'n, 'n>) -> Result<VirtualPort> {
        let mut port = VirtualPort { kind: words(node, "type"), ..VirtualPort::default() };
        self.element(node, &["type"], |_, name, inner| {
            if name == "parameters" {
                port.parameters.extend(inner.attributes().map(|a| (a.name().to_owned(), a.value().to_owned())));
            }
            Ok(name == "parameters")
        })?;
        Ok(port)
    }

    fn port_group<'n>(&mut self, node: Node<'n, 'n>) -> Result<PortGroup> {
        let mut group = PortGroup {
            name: needed(node, "name")?,
            default: is_yes(node, "default")?,
            trust_guest_rx_filters: yes_no(node, "trustGuestRxFilters")?,
            ..PortGroup::default()
        };
        self.element(node, &["name", "default", "trustGuestRxFilters"], |reader, name, inner| {
            match name {
                "bandwidth" => group.bandwidth = Some(reader.bandwidth(inner)?),
                "vlan" => group.vlan = Some(reader.vlan(inner)?),
                "virtualport" => group.virtual_port = Some(reader.virtual_port(inner)?),
                "port" => {
                    group.port_isolated = is_yes(inner, "isolated")?;
                    return reader.leaf(inner, &["isolated"]);
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(group)
    }
}
