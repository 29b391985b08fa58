//! To XML.

use std::fmt::Display;

use super::{DNSMASQ, Written};
use crate::control::spec::{
    Cidr, NetworkSpec,
    network::{
        Bandwidth, DnsSpec, ForwardMode, IpSpec, MacTableManager, MacvtapMode, NativeMode, PortGroup, VirtualPort,
        VlanSpec,
    },
};

/// Where the metadata goes at last, which is nobody's to indent: no text has such a tag in it.
const METADATA: &str = "<metadata/>";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}

/// An element that is being written: attributes that have a value, then children.
struct Element {
    name: &'static str,
    attributes: String,
    children: Vec<String>,
}

impl Element {
    fn new(name: &'static str) -> Element {
        Element { name, attributes: String::new(), children: Vec::new() }
    }

    fn with(mut self, name: &str, value: impl Display) -> Element {
        self.attributes.push_str(&format!(" {name}='{}'", escaped(&value.to_string())));
        self
    }

    fn maybe(self, name: &str, value: Option<impl Display>) -> Element {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    fn flag(self, name: &str, value: bool) -> Element {
        if value { self.with(name, "yes") } else { self }
    }

    fn choice(self, name: &str, value: Option<bool>, words: [&str; 2]) -> Element {
        self.maybe(name, value.map(|yes| words[usize::from(yes)]))
    }

    fn child(mut self, child: Element) -> Element {
        self.children.push(child.text());
        self
    }

    fn children(self, children: impl IntoIterator<Item = Element>) -> Element {
        children.into_iter().fold(self, Element::child)
    }

    /// Text that is XML already.
    fn raw(mut self, text: &str) -> Element {
        self.children.push(text.to_owned());
        self
    }

    fn is_empty(&self) -> bool {
        self.attributes.is_empty() && self.children.is_empty()
    }

    fn text(self) -> String {
        let Element { name, attributes, children } = self;
        if children.is_empty() {
            return format!("<{name}{attributes}/>");
        }
        let inner: String = children.join("\n").lines().map(|line| format!("  {line}\n")).collect();
        format!("<{name}{attributes}>\n{inner}</{name}>")
    }
}

fn text_element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escaped(text))
}

/// Writes a document that [`read`](super::read) reads as the same network.
#[must_use]
pub fn write(spec: &NetworkSpec) -> Written {
    let mut root = Element::new("network");
    if !spec.dnsmasq_options.is_empty() {
        root = root.with("xmlns:dnsmasq", DNSMASQ);
    }
    root = root.flag("ipv6", spec.ipv6).choice("trustGuestRxFilters", spec.trust_guest_rx_filters, ["no", "yes"]);
    root = root.raw(&text_element("name", &spec.name));
    for (name, text) in [("uuid", &spec.uuid), ("title", &spec.title), ("description", &spec.description)] {
        if let Some(text) = text {
            root = root.raw(&text_element(name, text));
        }
    }
    if spec.metadata.is_some() {
        root = root.raw(METADATA);
    }
    root = root.children(forward(spec)).children(bridge(spec));
    root = root.children(spec.mtu.map(|mtu| Element::new("mtu").with("size", mtu)));
    root = root.children(spec.mac.map(|mac| Element::new("mac").with("address", mac)));
    root = root.children(spec.domain.as_ref().map(|domain| {
        let element = Element::new("domain").with("name", &domain.name);
        element.flag("localOnly", domain.local_only).flag("register", domain.register)
    }));
    root = root.children(dns(&spec.dns));
    root = root.children(spec.vlan.as_ref().map(vlan)).children(spec.bandwidth.as_ref().map(bandwidth));
    if spec.port_isolated {
        root = root.child(Element::new("port").flag("isolated", true));
    }
    root = root.children(spec.ip.iter().map(ip));
    root = root.children(spec.route.iter().map(|route| {
        let element = address(Element::new("route"), &route.to).with("gateway", route.gateway);
        element.maybe("metric", route.metric)
    }));
    root = root.children(spec.virtual_port.as_ref().map(virtual_port));
    root = root.children(spec.portgroup.iter().map(port_group));
    if !spec.dnsmasq_options.is_empty() {
        let options = spec.dnsmasq_options.iter().map(|line| Element::new("dnsmasq:option").with("value", line));
        root = root.child(Element::new("dnsmasq:options").children(options));
    }
    let mut xml = root.text() + "\n";
    if let Some(metadata) = &spec.metadata {
        xml = xml.replacen(METADATA, &format!("<metadata>\n{metadata}\n  </metadata>"), 1);
    }
    Written { xml, warnings: warnings(spec) }
}

/// What libvirt has no words for.
fn warnings(spec: &NetworkSpec) -> Vec<String> {
    let dhcp = |ip: &IpSpec| ip.dhcp.as_ref().is_some_and(|dhcp| !dhcp.enable);
    [
        ("netns", spec.netns.is_some()),
        ("autostart (virsh net-autostart says it)", spec.autostart.is_some()),
        ("bridge.host", spec.bridge.host.is_some()),
        ("forward.port_forwards", !spec.forward.port_forwards.is_empty()),
        ("forward.fix_forward", spec.forward.fix_forward),
        ("forward.dev of mode \"bridge\"", spec.forward.mode == ForwardMode::Bridge && spec.forward.dev.is_some()),
        ("forward.uplink", spec.forward.uplink.is_some()),
        ("mac_table_manager of a portgroup", spec.portgroup.iter().any(|group| group.mac_table_manager.is_some())),
        ("dns.ttl_s", spec.dns.ttl_s.is_some()),
        ("ip.ra", spec.ip.iter().any(|ip| ip.ra.is_some())),
        ("ip.dhcp.enable = false", spec.ip.iter().any(dhcp)),
    ]
    .into_iter()
    .filter(|(_, said)| *said)
    .map(|(what, _)| format!("network \"{}\": {what} has no place in libvirt's XML", spec.name))
    .collect()
}

fn forward(spec: &NetworkSpec) -> Option<Element> {
    let forward = &spec.forward;
    let mode = match (forward.mode, forward.macvtap) {
        (ForwardMode::Isolated, _) => return None,
        (ForwardMode::Nat, _) => "nat",
        (ForwardMode::Routed, _) => "route",
        (ForwardMode::Open, _) => "open",
        (ForwardMode::Bridge | ForwardMode::Openvswitch, _) => "bridge",
        (ForwardMode::Hostdev, _) => "hostdev",
        (ForwardMode::Macvtap, Some(MacvtapMode::Private)) => "private",
        (ForwardMode::Macvtap, Some(MacvtapMode::Vepa)) => "vepa",
        (ForwardMode::Macvtap, Some(MacvtapMode::Passthrough)) => "passthrough",
        (ForwardMode::Macvtap, _) => "bridge",
    };
    // A bridge that libvirt knows cannot have a device as well; its name says where it is.
    let dev = forward.dev.as_ref().filter(|_| forward.mode != ForwardMode::Bridge);
    let mut element = Element::new("forward").maybe("dev", dev).with("mode", mode).flag("managed", forward.managed);
    if let Some(driver) = &forward.driver {
        let name = if driver == "vfio" { "name" } else { "model" };
        element = element.child(Element::new("driver").with(name, driver));
    }
    element = element.children(forward.nat.as_ref().map(|nat| {
        let range = |name, range: Option<(String, String)>| {
            range.map(|(start, end)| Element::new(name).with("start", start).with("end", end))
        };
        let addresses = range("address", nat.address.map(|r| (r.start.to_string(), r.end.to_string())));
        let ports = range("port", nat.port.map(|r| (r.start.to_string(), r.end.to_string())));
        Element::new("nat").flag("ipv6", nat.ipv6).children(addresses).children(ports)
    }));
    element = element.children(forward.pf.as_ref().map(|pf| Element::new("pf").with("dev", pf)));
    let devices = dev.into_iter().chain(&forward.interfaces);
    element = element.children(devices.map(|device| Element::new("interface").with("dev", device)));
    Some(element.children(forward.addresses.iter().filter_map(|address| {
        let (domain, rest) = address.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (slot, function) = rest.split_once('.')?;
        let parts = [("domain", domain), ("bus", bus), ("slot", slot), ("function", function)];
        let element = Element::new("address").with("type", "pci");
        Some(parts.into_iter().fold(element, |element, (name, digits)| element.with(name, format!("0x{digits}"))))
    })))
}

fn bridge(spec: &NetworkSpec) -> Option<Element> {
    let bridge = &spec.bridge;
    let name =
        spec.forward.domain.as_ref().or(spec.forward.dev.as_ref()).filter(|_| spec.forward.mode == ForwardMode::Bridge);
    let managers = bridge.mac_table_manager.map(|manager| match manager {
        MacTableManager::Kernel => "kernel",
        MacTableManager::Libvirt => "libvirt",
    });
    let delay = bridge.delay_ms.map(|ms| f64::from(ms) / 1000.0);
    let element =
        Element::new("bridge").maybe("name", name.or(bridge.name.as_ref())).maybe("zone", bridge.zone.as_ref());
    let element =
        element.choice("stp", bridge.stp, ["off", "on"]).maybe("delay", delay).maybe("macTableManager", managers);
    (!element.is_empty()).then_some(element)
}

fn dns(dns: &DnsSpec) -> Option<Element> {
    let mut element = Element::new("dns");
    if !dns.enable {
        element = element.with("enable", "no");
    }
    if !dns.forward_plain_names {
        element = element.with("forwardPlainNames", "no");
    }
    element = element.children(dns.forwarder.iter().map(|f| {
        let element = Element::new("forwarder").maybe("domain", f.domain.as_ref());
        element.maybe("addr", f.address).maybe("port", f.port)
    }));
    element =
        element.children(dns.txt.iter().map(|t| Element::new("txt").with("name", &t.name).with("value", &t.value)));
    element = element.children(dns.srv.iter().map(|s| {
        let element = Element::new("srv").with("service", &s.service).with("protocol", &s.protocol);
        let element = element.maybe("domain", s.domain.as_ref()).maybe("target", s.target.as_ref());
        element.maybe("port", s.port).maybe("priority", s.priority).maybe("weight", s.weight)
    }));
    element = element.children(dns.host.iter().map(|host| {
        let element = Element::new("host").with("ip", host.ip);
        host.hostnames.iter().fold(element, |element, name| element.raw(&text_element("hostname", name)))
    }));
    (!element.is_empty()).then_some(element)
}

fn address(element: Element, cidr: &Cidr) -> Element {
    let element = if cidr.is_ipv4() { element } else { element.with("family", "ipv6") };
    element.with("address", cidr.address).with("prefix", cidr.prefix)
}

fn lease(element: Element, lease_s: Option<u32>) -> Element {
    element.children(lease_s.map(|seconds| {
        let element = Element::new("lease");
        match seconds {
            0 => element.with("expiry", 0),
            s if s.is_multiple_of(3600) => element.with("expiry", s / 3600).with("unit", "hours"),
            s if s.is_multiple_of(60) => element.with("expiry", s / 60).with("unit", "minutes"),
            s => element.with("expiry", s).with("unit", "seconds"),
        }
    }))
}

fn ip(ip: &IpSpec) -> Element {
    let mut element = address(Element::new("ip"), &ip.address).flag("localPtr", ip.local_ptr);
    element = element.children(ip.tftp_root.as_ref().map(|root| Element::new("tftp").with("root", root)));
    // `enable = false` has no words: what would not be answered is not said.
    if let Some(dhcp) = ip.dhcp.as_ref().filter(|dhcp| dhcp.enable) {
        let ranges = dhcp
            .range
            .iter()
            .map(|range| lease(Element::new("range").with("start", range.start).with("end", range.end), range.lease_s));
        let hosts = dhcp.host.iter().map(|host| {
            let element = Element::new("host").maybe("mac", host.mac).maybe("id", host.id.as_ref());
            lease(element.maybe("name", host.name.as_ref()).maybe("ip", host.ip), host.lease_s)
        });
        let bootp =
            Element::new("bootp").maybe("file", dhcp.bootp_file.as_ref()).maybe("server", dhcp.bootp_server.as_ref());
        let all = Element::new("dhcp").children(ranges).children(hosts);
        element = element.child(all.children((!bootp.is_empty()).then_some(bootp)));
    }
    element
}

fn bandwidth(bandwidth: &Bandwidth) -> Element {
    let rates = [("inbound", bandwidth.inbound), ("outbound", bandwidth.outbound)];
    let rates = rates.into_iter().filter_map(|(name, rate)| Some((name, rate?)));
    Element::new("bandwidth").children(rates.map(|(name, rate)| {
        let element = Element::new(name).maybe("average", rate.average).maybe("peak", rate.peak);
        element.maybe("burst", rate.burst).maybe("floor", rate.floor)
    }))
}

fn vlan(vlan: &VlanSpec) -> Element {
    let tags = vlan.tags.iter().map(|tag| {
        let native = tag.native_mode.map(|mode| match mode {
            NativeMode::Tagged => "tagged",
            NativeMode::Untagged => "untagged",
        });
        Element::new("tag").with("id", tag.id).maybe("nativeMode", native)
    });
    Element::new("vlan").flag("trunk", vlan.trunk).children(tags)
}

fn virtual_port(port: &VirtualPort) -> Element {
    let element = Element::new("virtualport").maybe("type", port.kind.as_ref());
    let parameters = Element::new("parameters");
    let parameters = port.parameters.iter().fold(parameters, |element, (name, value)| element.with(name, value));
    element.children((!parameters.is_empty()).then_some(parameters))
}

fn port_group(group: &PortGroup) -> Element {
    let element = Element::new("portgroup").with("name", &group.name).flag("default", group.default);
    let element = element.choice("trustGuestRxFilters", group.trust_guest_rx_filters, ["no", "yes"]);
    let isolated = group.port_isolated.then(|| Element::new("port").flag("isolated", true));
    let element =
        element.children(group.vlan.as_ref().map(vlan)).children(group.virtual_port.as_ref().map(virtual_port));
    element.children(group.bandwidth.as_ref().map(bandwidth)).children(isolated)
}
