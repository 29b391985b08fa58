//! The host is as it was: after a stop, after a crash, after a start that failed; and what others' rules do to a network.

use vswitch_benches::netns::wait_for;
use vswitch_tests::{Daemon, PATIENCE, transfer};

use super::lab::{Lab, NAT, OUTSIDE, feed, ping, reaches};

#[test]
fn a_stop_a_crash_and_a_failed_start_leave_nothing() {
    let mut lab = Lab::new();
    feed(
        &lab.host,
        "table inet mine {\nchain c {\ntype filter hook input priority 0\ntcp dport 9 counter drop\n}\n}\n",
    );
    let before = lab.host_state();
    // Its second address is the host's already: the first must be gone again.
    let clash = NAT.replace("10.7.0.", "192.0.2.").replace("192.0.2.1/24", "192.0.2.65/26").replace(".100\"", ".70\"");
    lab.define(&clash.replace("192.0.2.199", "192.0.2.80").replace("192.0.2.5", "192.0.2.69")).expect("defined");
    let error = lab.daemon.cli(&["network", "start", "lab"]).expect_err("in use").to_string();
    assert!(error.contains("in use on device \"wan\""), "{error}");
    assert_eq!(lab.host_state(), before);
    // What dnsmasq refuses is found last, when all else is there.
    lab.define(&format!("dnsmasq_options = [\"no-such-option\"]\n{NAT}")).expect("defined");
    let error = lab.daemon.cli(&["network", "start", "lab"]).expect_err("refused").to_string();
    assert!(error.contains("dnsmasq"), "{error}");
    assert_eq!((lab.host_state(), lab.dnsmasqs()), (before.clone(), Vec::new()));
    assert_eq!(lab.view()["state"], "stopped");

    lab.start(NAT);
    let while_up = lab.host_state();
    assert!(while_up.0.contains("table inet vswitch-lab") && while_up.1 != before.1, "{while_up:?}");
    lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");
    assert_eq!((lab.host_state(), lab.dnsmasqs()), (before.clone(), Vec::new()));
    lab.daemon.cli(&["network", "start", "lab"]).expect("started again");

    // After a crash the next run reaps what is left, and the network is back.
    let orphan = lab.dnsmasqs();
    lab.daemon.kill().expect("killed");
    assert_eq!(lab.dnsmasqs(), orphan);
    lab.daemon.restart().expect("restarted");
    wait_for("the network is back", PATIENCE, || lab.view()["state"] == "up").expect("up");
    assert_eq!(lab.dnsmasqs().len(), 1);
    assert_ne!(lab.dnsmasqs(), orphan);
    let guest = lab.guest("one", &["10.7.0.5/24"], Some("10.7.0.1"));
    reaches(&guest, OUTSIDE);
    assert_eq!(lab.host_state().0, while_up.0);
    lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");
    assert_eq!((lab.host_state(), lab.dnsmasqs()), (before.clone(), Vec::new()));
    lab.daemon.cli(&["port", "del", "one"]).expect("removed");
    lab.daemon.cli(&["network", "undefine", "lab"]).expect("undefined");
    let files = lab.daemon.file("state/networks/lab");
    wait_for("its files are gone", PATIENCE, || !files.exists()).expect("removed");

    // A switch that ends takes its networks along.
    lab.start(NAT);
    lab.daemon.stop().expect("stopped");
    assert_eq!((lab.host_state(), lab.dnsmasqs()), (before, Vec::new()));
}

#[test]
fn rules_of_others_are_named_and_never_touched_unasked() {
    let lab = Lab::new();
    // As Docker has it, and as firewalld has it.
    feed(
        &lab.host,
        "table ip filter {\nchain FORWARD {\ntype filter hook forward priority filter; policy drop;\ncounter\n}\n}\n\
         table inet firewalld {\nchain filter_FORWARD {\ntype filter hook forward priority filter + 10; policy accept;\n\
         ct state established,related accept\nreject with icmpx admin-prohibited\n}\n}\n",
    );
    let theirs = || lab.host.exec(&["nft", "-s", "list", "ruleset"]).expect("listed");
    let before = theirs();
    lab.start(NAT);
    let guest = lab.guest("one", &["10.7.0.5/24"], Some("10.7.0.1"));
    let other = lab.guest("two", &["10.7.0.6/24"], Some("10.7.0.1"));
    transfer(&guest, &other, "10.7.0.6", 1 << 20);
    assert!(!ping(&guest, OUTSIDE));
    let shown = lab.daemon.cli(&["network", "show", "lab"]).expect("shown");
    assert!(shown.contains("table ip filter, chain FORWARD (policy drop) may drop"), "{shown}");
    assert!(shown.contains("table inet firewalld, chain filter_FORWARD (its last rule: reject) may drop"), "{shown}");
    lab.daemon.cli(&["network", "start", "lab", "--fix-forward"]).expect("fixed");
    reaches(&guest, OUTSIDE);
    assert!(lab.view()["blockers"].as_array().expect("a list").iter().all(|b| b["fixed"] == true));
    lab.daemon.cli(&["network", "stop", "lab"]).expect("stopped");
    assert_eq!(theirs(), before);
}

#[test]
fn rules_that_somebody_flushes_come_back() {
    let lab = Lab::new();
    lab.start(NAT);
    let rules = || lab.host.exec(&["nft", "list", "ruleset"]).expect("listed");
    let wanted = rules();
    lab.host.exec(&["nft", "flush", "ruleset"]).expect("flushed");
    wait_for("the rules are back", PATIENCE, || rules() == wanted).expect("put back");
    let guest = lab.guest("one", &["10.7.0.5/24"], Some("10.7.0.1"));
    reaches(&guest, OUTSIDE);
}

#[test]
fn the_rules_of_another_switch_s_network_stay() {
    let lab = Lab::new();
    lab.start(NAT);
    let rules = || lab.host.exec(&["nft", "-s", "list", "ruleset"]).expect("listed");
    let before = rules();
    let other = Daemon::start_in(Some(lab.host.name()), &[]).expect("starts");
    let path = other.file("network.toml");
    let path = path.to_str().expect("text");
    let define = |text: &str| {
        std::fs::write(path, text).expect("written");
        other.cli(&["network", "define", path]).expect("defined");
    };
    define("name = \"lab\"\nbridge = { name = \"gate\" }\n[[ip]]\naddress = \"10.8.0.1/24\"\n");
    let error = other.cli(&["network", "start", "lab"]).expect_err("the name is taken").to_string();
    assert!(error.contains("nftables table \"vswitch-lab\" already") && error.contains("another name"), "{error}");
    assert_eq!(rules(), before);
    other.cli(&["network", "undefine", "lab"]).expect("undefined");
    define("name = \"lab2\"\nbridge = { name = \"gate\" }\n[[ip]]\naddress = \"10.8.0.1/24\"\n");
    other.cli(&["network", "start", "lab2"]).expect("another name");
    other.cli(&["network", "stop", "lab2"]).expect("stopped");
    assert_eq!(rules(), before);
}

#[test]
fn a_file_owns_its_networks() {
    let lab = Lab::new();
    let before = lab.host_state();
    let file = lab.daemon.file("c.toml");
    let path = file.to_str().expect("text").to_owned();
    let network = NAT.replace("[[ip]]", "[[network.ip]]").replace("[ip.dhcp]", "[network.ip.dhcp]");
    std::fs::write(&file, format!("[[network]]\n{network}")).expect("written");
    let done = lab.daemon.cli(&["apply", &path]).expect("applied");
    assert_eq!(done, "add domain lab\nadd port lab\nadd network lab\nstart network lab\n");
    wait_for("the network is up", PATIENCE, || lab.view()["state"] == "up").expect("up");
    assert_eq!(lab.daemon.cli(&["apply", &path]).expect("applied"), "nothing to do\n");
    let error = lab.define(NAT).expect_err("the file's").to_string();
    assert!(error.contains("configuration file"), "{error}");
    std::fs::write(&file, "").expect("written");
    lab.daemon.cli(&["apply", &path]).expect("applied");
    wait_for("all is gone", PATIENCE, || lab.host_state() == before && lab.dnsmasqs().is_empty()).expect("gone");
}

#[test]
fn mistakes_are_named() {
    let lab = Lab::new();
    lab.daemon.cli(&["domain", "add", "red"]).expect("added");
    for (text, part) in [
        ("name = \"red\"", "domain of the same name"),
        ("name = \"a\"\nforward = { mode = \"bridge\", domain = \"blue\" }", "vswitch domain add blue"),
        ("name = \"a\"\nforward = { mode = \"macvtap\" }", "needs either interfaces"),
        ("name = \"a\"\nforward = { mode = \"openvswitch\" }\nbridge = { name = \"ob\" }", "ovs-vsctl add-br ob"),
        ("name = \"a\"\nbridge = { zone = \"lab\" }", "firewall-cmd --zone=lab --change-interface=a"),
        ("name = \"a\"\nip = [{ address = \"10.0.0.1\" }]", "ADDRESS/PREFIX"),
        ("name = \"a\"\ncolour = 1", "colour"),
    ] {
        let error = lab.define(text).expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    for (words, part) in [
        (&["network", "start", "nobody"][..], "vswitch network list"),
        (&["network", "stop", "nobody"], "vswitch network list"),
        (&["network", "undefine", "nobody"], "vswitch network list"),
    ] {
        let error = lab.daemon.cli(words).expect_err("refused").to_string();
        assert!(error.contains(part), "{words:?}: {error}");
    }
    // A device of somebody else's is never configured.
    lab.define("name = \"n\"\nbridge = { name = \"wan\" }\nip = [{ address = \"10.0.0.1/24\" }]").expect("defined");
    let before = lab.host_state();
    let error = lab.daemon.cli(&["network", "start", "n"]).expect_err("taken").to_string();
    assert!(error.contains("its host port"), "{error}");
    assert_eq!(lab.host_state(), before);
}
