//! DHCP, DNS and router advertisements, and what becomes of the dnsmasq that gives them.

use std::os::unix::fs::PermissionsExt;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vswitch_benches::{netns::wait_for, tools::installed};
use vswitch_tests::{PATIENCE, skip};

use super::lab::{Lab, NAT, OUTSIDE, OUTSIDE6, reaches};

#[test]
fn guests_get_addresses_and_names() {
    let lab = Lab::new();
    lab.start(NAT);
    let guest = lab.guest("one", &[], None);
    let www = lab.guest("two", &[], None);
    www.exec(&["ip", "link", "set", "eth0", "address", "52:54:00:00:00:05"]).expect("set");
    let address = lab.lease(&guest).expect("a lease");
    assert!(address.starts_with("10.7.0.1"), "{address}");
    assert_eq!(lab.lease(&www).expect("a lease"), "10.7.0.5");
    reaches(&guest, "10.7.0.5");
    let answer = guest.exec(&["busybox", "nslookup", "www.lab.example", "10.7.0.1"]).expect("an answer");
    assert!(answer.contains("10.7.0.5"), "{answer}");
    let leases = lab.view()["leases"].clone();
    let of = |ip: &str| leases.as_array().expect("a list").iter().find(|l| l["ip"] == ip).cloned().expect("listed");
    assert_eq!(of("10.7.0.5")["client"], "52:54:00:00:00:05");
    assert_eq!(of(&address)["hostname"], "guest");
    let shown = lab.daemon.cli(&["network", "show", "lab"]).expect("shown");
    assert!(shown.contains("52:54:00:00:00:05") && shown.contains("www"), "{shown}");
    // The prefix by router advertisement, and a default route with it.
    let solicit =
        "echo 3 >/proc/sys/net/ipv6/conf/eth0/router_solicitations; ip link set eth0 down; ip link set eth0 up";
    guest.exec(&["sh", "-c", solicit]).expect("set");
    let own = || guest.exec(&["ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "global"]).expect("listed");
    wait_for("an address of the prefix", PATIENCE, || own().contains("fd07:")).expect("advertised");
    reaches(&guest, OUTSIDE6);
}

#[test]
fn dhclient_gets_what_busybox_gets() {
    if !installed("dhclient") {
        return skip("dhclient is missing: apt-get install isc-dhcp-client");
    }
    let lab = Lab::new();
    lab.start(NAT);
    let guest = lab.guest("one", &[], None);
    guest.exec(&["ip", "link", "set", "eth0", "address", "52:54:00:00:00:05"]).expect("set");
    let file = |name: &str| lab.daemon.file(name).display().to_string();
    let script = "#!/bin/sh\n[ \"$reason\" = BOUND ] || exit 0\n\
                  ip address add $new_ip_address/$new_subnet_mask dev $interface\nip route replace default via $new_routers\n";
    std::fs::write(file("dhclient.sh"), script).expect("written");
    std::fs::set_permissions(file("dhclient.sh"), std::fs::Permissions::from_mode(0o755)).expect("permitted");
    let (script, leases, pid) = (file("dhclient.sh"), file("dhclient.leases"), file("dhclient.pid"));
    let files = ["-cf", "/dev/null", "-sf", &script, "-lf", &leases, "-pf", &pid];
    let _client = guest.spawn(&[&["dhclient", "-4", "-d", "-q"][..], &files, &["eth0"]].concat()).expect("started");
    let shown = || guest.exec(&["ip", "-4", "-o", "address", "show", "dev", "eth0"]).expect("listed");
    wait_for("its reserved address", PATIENCE, || shown().contains("10.7.0.5/24")).expect("leased");
    reaches(&guest, OUTSIDE);
}

#[test]
fn changed_reservations_need_no_restart_and_a_dead_dnsmasq_gets_one() {
    let lab = Lab::new();
    lab.start(NAT);
    let before = lab.view()["dnsmasq"].as_u64().expect("running");
    let guest = lab.guest("one", &[], None);
    guest.exec(&["ip", "link", "set", "eth0", "address", "52:54:00:00:00:07"]).expect("set");
    let more = "{ mac = \"52:54:00:00:00:07\", ip = \"10.7.0.7\", name = \"seven\" }, { mac = \"52:54:00:00:00:05\"";
    lab.define(&NAT.replace("{ mac = \"52:54:00:00:00:05\"", more)).expect("defined");
    wait_for("the reservation counts", PATIENCE, || lab.lease(&guest).is_ok_and(|ip| ip == "10.7.0.7"))
        .expect("leased");
    assert_eq!(lab.view()["dnsmasq"], before);
    kill(Pid::from_raw(i32::try_from(before).expect("a pid")), Signal::SIGKILL).expect("killed");
    let again = || lab.view()["dnsmasq"].as_u64().is_some_and(|pid| pid != before);
    wait_for("another dnsmasq", PATIENCE, again).expect("restarted");
    assert_eq!(lab.log().matches("dnsmasq of network lab has ended").count(), 1, "{}", lab.log());
    assert_eq!(lab.lease(&guest).expect("a lease"), "10.7.0.7");
}
