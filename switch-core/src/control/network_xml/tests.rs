use std::collections::BTreeSet;

use roxmltree::{Document, Node};

use super::*;
use crate::control::spec::network::{ForwardMode, MacvtapMode};

/// What `virsh net-dumpxml` of libvirt 9.0 says of networks of all modes.
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/network-xml");

fn recorded(name: &str) -> String {
    std::fs::read_to_string(format!("{RECORDED}/{name}.xml")).expect("recorded")
}

fn understood(text: &str) -> NetworkSpec {
    let Read { spec, warnings } = read(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert!(warnings.is_empty(), "{warnings:?}\n{text}");
    spec
}

/// Everything that a document says: elements, attributes and texts, by their paths.
fn said(text: &str) -> BTreeSet<String> {
    let document = Document::parse(text).expect("XML");
    let path = |node: Node<'_, '_>| {
        let mut names: Vec<_> =
            node.ancestors().filter(Node::is_element).map(|n| n.tag_name().name().to_owned()).collect();
        names.reverse();
        names.join("/")
    };
    let mut all = BTreeSet::new();
    for node in document.descendants() {
        if node.is_element() {
            all.insert(path(node));
            all.extend(node.attributes().map(|a| format!("{}@{}={}", path(node), a.name(), a.value())));
        } else if let Some(text) = node.text().map(str::trim).filter(|t| !t.is_empty()) {
            all.insert(format!("{}: {text}", path(node)));
        }
    }
    all
}

#[test]
fn everything_recorded_comes_back() {
    let mut files = 0;
    for entry in std::fs::read_dir(RECORDED).expect("recorded") {
        let path = entry.expect("recorded").path();
        let text = std::fs::read_to_string(&path).expect("recorded");
        let spec = understood(&text);
        let written = write(&spec);
        assert!(written.warnings.is_empty(), "{:?}", written.warnings);
        assert_eq!(understood(&written.xml), spec, "{}\n{}", path.display(), written.xml);
        // A netmask is written as a prefix, a device that is said twice once, and what is so anyway not at all: nothing else may differ.
        let (before, after) = (said(&text), said(&written.xml));
        let lost: Vec<_> = before
            .difference(&after)
            .filter(|s| {
                !["@netmask=", "network/forward@dev=", "network/dns@enable=yes"].iter().any(|same| s.contains(same))
            })
            .collect();
        let new: Vec<_> = after.difference(&before).filter(|s| !s.contains("@prefix=")).collect();
        assert!(lost.is_empty() && new.is_empty(), "{}: lost {lost:?}, new {new:?}", path.display());
        files += 1;
    }
    assert!(files >= 20, "{files} files");
}

#[test]
fn modes_are_told_apart_by_what_they_have() {
    let of = |name: &str| understood(&recorded(name)).forward;
    assert_eq!(of("isolated").mode, ForwardMode::Isolated);
    assert_eq!(of("default").mode, ForwardMode::Nat);
    assert_eq!((of("route").mode, of("route").dev.as_deref()), (ForwardMode::Routed, Some("eth0")));
    assert_eq!(of("open").mode, ForwardMode::Open);
    assert_eq!((of("bridge").mode, of("bridge").domain.as_deref()), (ForwardMode::Bridge, Some("br0")));
    assert_eq!(
        (of("macvtap-bridge").mode, of("macvtap-bridge").macvtap),
        (ForwardMode::Macvtap, Some(MacvtapMode::Bridge))
    );
    assert_eq!(of("macvtap-pool").interfaces, ["eth10", "eth11"]);
    assert_eq!(of("macvtap-pf").pf.as_deref(), Some("eth3"));
    // What the NIC has while the network is active is no setting.
    let active = recorded("hostdev-pf")
        .replace("<pf dev", "<address type='pci' domain='0x0000' bus='0x04' slot='0x10' function='0x1'/><pf dev");
    assert_eq!(understood(&active).forward, of("hostdev-pf"));
    let active = recorded("macvtap-pf")
        .replace("<forward mode", "<forward dev='v0' mode")
        .replace("<pf dev", "<interface dev='v0' connections='1'/><interface dev='v1'/><pf dev");
    assert_eq!(understood(&active).forward, of("macvtap-pf"));
    assert_eq!(of("hostdev").addresses, ["0000:04:00.1", "0000:04:00.2"]);
    assert_eq!(of("ovs").mode, ForwardMode::Openvswitch);
}

#[test]
fn details_have_their_places() {
    let nat = understood(&recorded("nat"));
    let dhcp = nat.ip[0].dhcp.as_ref().expect("it has");
    assert_eq!((dhcp.range[0].lease_s, dhcp.host[0].lease_s), (Some(7200), Some(0)));
    assert_eq!(nat.ip[2].address.to_string(), "fd00:111::1/64");
    assert_eq!(nat.route[0].metric, Some(2));
    assert!(!nat.dns.forward_plain_names);
    let bandwidth = understood(&recorded("bandwidth"));
    assert!(bandwidth.port_isolated && bandwidth.metadata.expect("kept").starts_with("<my:thing xmlns:my="));
    assert_eq!(understood(&recorded("isolated")).ip[0].address.prefix, 24);
    let class = understood("<network><name>n</name><ip address='172.16.0.1'/></network>");
    assert_eq!(class.ip[0].address.prefix, 16);
}

#[test]
fn what_is_not_known_is_named() {
    let text = "<network colour='red'><name>n</name><bridge name='b' speed='9'/><ip address='10.0.0.1' prefix='8'><dhcp><range start='10.0.0.2' end='10.0.0.9'><tail/></range></dhcp></ip><new><inner/></new></network>";
    let warnings = read(text).expect("the rest is right").warnings.join("\n");
    for part in ["network@colour", "network/bridge@speed", "network/ip/dhcp/range/tail", "network/new is"] {
        assert!(warnings.contains(part), "{part}: {warnings}");
    }
}

#[test]
fn what_is_wrong_is_an_error_that_names_it() {
    let in_network = |inner: &str| format!("<network><name>n</name>{inner}</network>");
    for (text, part) in [
        ("<network>".to_owned(), "not XML"),
        ("<domain/>".to_owned(), "not a <network>"),
        ("<!DOCTYPE n [<!ENTITY a 'b'>]><network><name>&a;</name></network>".to_owned(), "not XML"),
        (in_network("<forward mode='magic'/>"), "network/forward@mode"),
        (in_network("<mac address='x'/>"), "network/mac@address"),
        (in_network("<ip address='10.0.0.1' netmask='255.0.255.0'/>"), "network/ip@netmask"),
        (in_network("<ip address='10.0.0.1' prefix='40'/>"), "prefix"),
        (in_network("<ip family='ipv6' address='10.0.0.1'/>"), "family"),
        (in_network("<port isolated='perhaps'/>"), "network/port@isolated"),
        (in_network("<route address='10.0.0.0' prefix='8'/>"), "network/route@gateway: is missing"),
        (in_network("<forward mode='hostdev'><address type='ccw'/></forward>"), "network/forward/address@type"),
        (in_network("<bridge delay='-1'/>"), "network/bridge@delay"),
        ("<network><name>a/b</name></network>".to_owned(), "cannot be a network name"),
    ] {
        let error = read(&text).expect_err(&text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn what_libvirt_has_no_words_for_is_said() {
    let mut spec = NetworkSpec::new("n");
    spec.netns = Some("blue".into());
    spec.dns.ttl_s = Some(5);
    let warnings = write(&spec).warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("netns") && warnings[1].contains("dns.ttl_s"), "{warnings:?}");
}

/// What `virsh net-dumpxml` says of networks of all modes can be carried out, or it is said what cannot.
#[test]
fn everything_recorded_is_supported_or_refused_with_a_mend() {
    for entry in std::fs::read_dir(RECORDED).expect("recorded") {
        let path = entry.expect("recorded").path();
        let spec = understood(&std::fs::read_to_string(&path).expect("recorded"));
        let error = spec.supported().err().map(|e| e.to_string());
        let refused = (spec.name == "bandwidth").then_some("firewall-cmd --zone=lab --change-interface=virbr15");
        assert_eq!(error.is_some(), refused.is_some(), "{}: {error:?}", path.display());
        assert!(error.is_none_or(|error| error.contains(refused.unwrap_or_default())), "{}", path.display());
    }
}

#[test]
fn settings_of_a_portgroup_go_both_ways() {
    let text = "<network><name>n</name><forward mode='bridge'/><bridge name='br0'/><portgroup name='g' default='yes'>\
        <vlan trunk='yes'><tag id='5' nativeMode='untagged'/><tag id='6'/></vlan>\
        <bandwidth><inbound average='10' peak='20' burst='5'/><outbound average='7'/></bandwidth>\
        <port isolated='yes'/></portgroup></network>";
    let spec = understood(text);
    spec.supported().expect("all of it");
    let terms = spec.terms(None).expect("the default one");
    assert!(terms.isolated && terms.vlan.is_some_and(|vlan| vlan.is_trunk()) && terms.rate_to.is_some());
    assert_eq!(understood(&write(&spec).xml), spec);
    let mut pinned = spec;
    pinned.portgroup[0].mac_table_manager = Some(crate::control::spec::network::MacTableManager::Libvirt);
    let warnings = write(&pinned).warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("mac_table_manager of a portgroup"), "{warnings:?}");
    let unknown = text.replace("<port isolated='yes'/>", "<port isolated='yes' colour='red'/><queue/>");
    let warnings = read(&unknown).expect("the rest is right").warnings.join("\n");
    assert!(
        warnings.contains("network/portgroup/port@colour") && warnings.contains("network/portgroup/queue is"),
        "{warnings}"
    );
    let floor = text.replace("peak='20'", "floor='3'");
    let error = understood(&floor).supported().expect_err("no floor").to_string();
    assert!(error.contains("portgroup \"g\": bandwidth floor"), "{error}");
}
