//! What each forward mode lets through, and what not.

use vswitch_benches::netns::{Namespace, exec, wait_for};
use vswitch_tests::{PATIENCE, transfer};

use super::lab::{HOST, Lab, NAT, OUTSIDE, OUTSIDE6, calls, ping, reaches};

#[test]
fn an_isolated_network_is_closed() {
    let lab = Lab::new();
    let before = lab.host_state();
    lab.start("name = \"lab\"");
    let one = lab.guest("one", &["10.7.0.2/24"], None);
    let two = lab.guest("two", &["10.7.0.3/24"], None);
    reaches(&one, "10.7.0.3");
    assert_eq!(lab.host_state(), before, "without a gateway the host is not touched");
    // A gateway on request: the host, and nobody behind it, though the host forwards everything else.
    lab.host.exec(&["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]).expect("set");
    lab.outside.exec(&["ip", "route", "add", "10.7.0.0/24", "via", HOST]).expect("a route");
    lab.define("name = \"lab\"\ndns = { enable = false }\nip = [{ address = \"10.7.0.1/24\" }]").expect("defined");
    reaches(&one, "10.7.0.1");
    reaches(&lab.host, "10.7.0.3");
    // The gateway answers a little before the rules are made.
    let rules = || lab.host.exec(&["nft", "list", "ruleset"]).expect("listed");
    wait_for("there are rules", PATIENCE, || rules().contains("table inet vswitch-lab")).expect("made");
    one.exec(&["ip", "route", "add", "default", "via", "10.7.0.1"]).expect("a route");
    assert!(!ping(&one, OUTSIDE) && !ping(&lab.outside, "10.7.0.3"));
    reaches(&lab.host, OUTSIDE);
    let [guests, _, host] = lab.seen_outside();
    assert!(guests == 0 && host > 0, "{guests} from guests, {host} from the host");
    // A stopped network carries nothing.
    lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");
    assert!(!ping(&two, "10.7.0.2"));
}

#[test]
fn nat_hides_guests_of_both_families_and_forwards_ports() {
    let lab = Lab::new();
    lab.start(NAT);
    let guest = lab.guest("one", &["10.7.0.5/24", "fd07::5/64"], Some("10.7.0.1"));
    guest.exec(&["ip", "-6", "route", "replace", "default", "via", "fd07::1"]).expect("a route");
    let other = lab.guest("two", &["10.7.0.6/24"], Some("10.7.0.1"));
    reaches(&guest, OUTSIDE);
    reaches(&guest, OUTSIDE6);
    transfer(&guest, &lab.outside, OUTSIDE, 1 << 20);
    transfer(&guest, &lab.outside, OUTSIDE6, 1 << 20);
    // A port of the host's, from outside, from the host itself, and from another guest.
    let forwarded = format!("{HOST}:8080");
    assert_eq!(calls(&lab.outside, &forwarded, &guest, "10.7.0.5:80").expect("outside"), OUTSIDE);
    calls(&lab.host, &forwarded, &guest, "10.7.0.5:80").expect("the host");
    assert_eq!(calls(&other, &forwarded, &guest, "10.7.0.5:80").expect("a guest"), "10.7.0.1");
    // Nobody outside reaches a guest uncalled, and none of its addresses is seen there.
    lab.outside.exec(&["ip", "route", "add", "10.7.0.0/24", "via", HOST]).expect("a route");
    assert!(!ping(&lab.outside, "10.7.0.5"));
    let [four, six, host] = lab.seen_outside();
    assert!(four == 0 && six == 0 && host > 0, "{four} {six} {host}");
    // Nor can a guest send with an address that is not the network's.
    guest.exec(&["ip", "address", "add", "10.9.0.5/32", "dev", "lo"]).expect("an address");
    assert!(guest.exec(&["ping", "-c", "1", "-W", "1", "-I", "10.9.0.5", OUTSIDE]).is_err());
    assert_eq!(lab.seen_outside()[0], 0);
}

#[test]
fn routed_networks_keep_addresses_and_open_ones_have_no_rules() {
    let lab = Lab::new();
    lab.outside.exec(&["ip", "route", "add", "10.0.0.0/8", "via", HOST]).expect("a route");
    let text = |mode: &str| {
        format!(
            "name = \"lab\"\nforward = {{ mode = \"{mode}\", dev = \"wan\" }}\ndns = {{ enable = false }}\nip = [{{ address = \"10.7.0.1/24\" }}]"
        )
    };
    lab.start(&text("routed"));
    let guest = lab.guest("one", &["10.7.0.5/24", "10.9.0.5/32"], Some("10.7.0.1"));
    lab.host.exec(&["ip", "route", "add", "10.9.0.5", "dev", "lab"]).expect("a route");
    reaches(&guest, OUTSIDE);
    reaches(&lab.outside, "10.7.0.5");
    assert!(lab.seen_outside()[0] > 0);
    let foreign = |guest: &Namespace| guest.exec(&["ping", "-c", "1", "-W", "1", "-I", "10.9.0.5", OUTSIDE]).is_ok();
    assert!(!foreign(&guest), "an address that is not the network's gets out");
    lab.define(&text("open")).expect("defined");
    reaches(&guest, OUTSIDE);
    // The host port's addresses are taken and given again some time after the command, and this route goes with them.
    wait_for("an open network has no rules", PATIENCE, || {
        lab.host.exec(&["ip", "route", "replace", "10.9.0.5", "dev", "lab"]).is_ok() && foreign(&guest)
    })
    .expect("it has");
    assert_eq!(lab.host.exec(&["nft", "list", "ruleset"]).expect("listed"), "");
}

#[test]
fn a_bridged_network_has_a_device_as_its_uplink() {
    let lab = Lab::new();
    let names = [lab.host.name(), lab.outside.name()];
    exec(&["ip", "-n", names[0], "link", "add", "nic", "up", "type", "veth", "peer", "name", "nic", "netns", names[1]])
        .expect("a wire");
    lab.outside.configure("nic", &["10.7.0.9/24"]).expect("configured");
    lab.start("name = \"lab\"\nforward = { mode = \"bridge\", dev = \"nic\" }");
    lab.daemon.wait_state("lab.uplink", "up").expect("up");
    let guest = lab.guest("one", &["10.7.0.5/24"], None);
    reaches(&guest, "10.7.0.9");
    lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");
    assert!(!ping(&guest, "10.7.0.9"));
}

#[test]
fn a_gateway_can_live_in_a_namespace() {
    let lab = Lab::new();
    let gate = Namespace::new("vng").expect("namespace");
    let before = lab.host_state();
    lab.start(&format!("name = \"lab\"\nnetns = \"{}\"\n{}", gate.name(), NAT.replace("name = \"lab\"", "")));
    assert_eq!(lab.host_state(), before, "the host is not touched");
    let guest = lab.guest("one", &[], None);
    assert!(lab.lease(&guest).expect("a lease").starts_with("10.7.0.1"));
    reaches(&guest, "10.7.0.1");
    lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");
    assert_eq!(gate.exec(&["nft", "list", "ruleset"]).expect("listed"), "");
    assert_eq!(lab.dnsmasqs(), [0u32; 0]);
}
