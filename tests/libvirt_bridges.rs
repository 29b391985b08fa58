//! libvirt and the switch, without a word of the user in between: machines on what libvirt takes for a bridge of Open vSwitch, ports that come and go by
//! libvirt's hook, and networks in libvirt's own XML.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use switch_core::{
    control::network_xml::{read, write},
    mac::MacAddr,
};
use vswitch_benches::netns::{Namespace, unique, wait_for};
use vswitch_tests::{
    Daemon, PATIENCE, binary,
    firmware::DhcpServer,
    libvirt::{BOOT_PATIENCE, Libvirt, Options},
};

/// A switch with a TAP in a namespace, where a DHCP server will listen.
fn switch() -> (Daemon, Namespace) {
    let far = Namespace::new("lb").expect("root");
    let daemon = Daemon::start(&["--port", &format!("far=tap,netns={}", far.name())]).expect("the switch starts");
    far.configure("far", &[]).expect("up");
    daemon.wait_state("far", "up").expect("up");
    (daemon, far)
}

/// Starts a machine and waits until its firmware has been heard and has heard.
fn boot(libvirt: &Libvirt, machine: &str, far: &Namespace, mac: MacAddr, daemon: &Daemon) {
    let mut server = DhcpServer::listen(far, "far").expect("listens");
    libvirt.virsh(&["start", machine]).unwrap_or_else(|e| panic!("{e:#}\n{}", libvirt.log(machine)));
    if let Err(e) = server.serve(mac, BOOT_PATIENCE) {
        panic!("{e}\n{}\n{:?}", libvirt.log(machine), daemon.cli(&["port", "show"]));
    }
}

#[test]
fn a_bridge_of_open_vswitch_is_a_domain() {
    let (daemon, far) = switch();
    let programs = daemon.file("programs");
    fs::create_dir(&programs).expect("made");
    symlink(binary().expect("built"), programs.join("ovs-vsctl")).expect("linked");
    let environment = vec![("VSWITCH_API".to_owned(), daemon.socket().display().to_string())];
    let Some(mut libvirt) =
        Libvirt::start_with(&Options { programs: Some(programs), environment, ..Options::default() })
    else {
        return;
    };
    let (bridge, tap) = (unique("ob"), unique("ot"));
    daemon.cli(&["ovs-vsctl", "add-br", &bridge]).expect("made");
    // The VLAN of the machine, where the far end is.
    let vlan = format!("{bridge}.10");
    daemon.cli(&["domain", "add", &vlan]).expect("made");
    daemon.cli(&["port", "detach", "far", "default"]).expect("left");
    daemon.cli(&["port", "attach", "far", &vlan]).expect("joined");
    let mac = MacAddr([2, 0, 0, 0, 0x12, 1]);
    let interface = |more: &str| {
        format!(
            "<interface type='bridge'><mac address='{mac}'/><source bridge='{bridge}'/><virtualport type='openvswitch'/>\
             <vlan><tag id='10'/></vlan><target dev='{tap}'/><model type='virtio'/>{more}</interface>"
        )
    };
    let machine = libvirt.define("", &interface("")).expect("defined");
    boot(&libvirt, &machine, &far, mac, &daemon);
    let listed = daemon.cli(&["ovs-vsctl", "list-ports", &bridge]).expect("listed");
    assert_eq!(listed, format!("far\n{tap}\n"));
    let port = daemon.port(&tap);
    assert_eq!(port["spec"]["domains"], serde_json::json!([vlan]), "{port}");
    let id = daemon.cli(&["ovs-vsctl", "get", "Interface", &tap, "external_ids:attached-mac"]).expect("kept");
    assert_eq!(id, format!("\"{mac}\"\n"));
    libvirt.virsh(&["domifstat", &machine, &tap]).expect("counted");
    libvirt.virsh(&["destroy", &machine]).expect("stopped");
    assert_eq!(daemon.cli(&["ovs-vsctl", "list-ports", &bridge]).expect("listed"), "far\n");
    // What the switch cannot do, the user is told by virsh, and nothing stays.
    let slow = libvirt.define("", &interface("<bandwidth><inbound average='100'/></bandwidth>")).expect("defined");
    let error = libvirt.virsh(&["start", &slow]).expect_err("refused").to_string();
    assert!(error.contains("qos"), "{error}");
    assert_eq!(daemon.cli(&["ovs-vsctl", "list-ports", &bridge]).expect("listed"), "far\n");
    // A machine on a network of libvirt's that the switch has as well, and a port of the switch, both with the same portgroup.
    let network = unique("on");
    let definition = format!(
        "<network><name>{network}</name><forward mode='bridge'/><bridge name='{bridge}'/><virtualport type='openvswitch'/>\
         <portgroup name='guests' default='yes'><vlan trunk='yes'><tag id='10' nativeMode='untagged'/><tag id='20'/></vlan></portgroup></network>"
    );
    let file = daemon.file("network.xml");
    fs::write(&file, definition).expect("written");
    daemon.cli(&["network", "define", file.to_str().expect("text")]).expect("defined");
    daemon.cli(&["network", "start", &network]).expect("started");
    let written = daemon.cli(&["network", "show", &network, "--xml"]).expect("written");
    let file = libvirt.file("network.xml", &written).expect("written");
    libvirt.virsh(&["net-define", &file]).expect("defined");
    libvirt.virsh(&["net-start", &network]).expect("started");
    let interface = format!(
        "<interface type='network'><mac address='{mac}'/><source network='{network}'/><target dev='{tap}'/>\
         <model type='virtio'/></interface>"
    );
    daemon.cli(&["port", "detach", "far", &vlan]).expect("left");
    daemon.cli(&["port", "set", "far", &format!("network={network}")]).expect("joined");
    let machine = libvirt.define("", &interface).expect("defined");
    boot(&libvirt, &machine, &far, mac, &daemon);
    let port = daemon.port(&tap);
    assert_eq!(port["spec"]["domains"], serde_json::json!([&vlan, format!("{bridge}.20:tag=20")]));
    libvirt.virsh(&["destroy", &machine]).expect("stopped");
    daemon.cli(&["port", "del", "far"]).expect("deleted");
    daemon.cli(&["network", "stop", &network]).expect("stopped");
    daemon.cli(&["network", "undefine", &network]).expect("undefined");
    daemon.cli(&["ovs-vsctl", "del-br", &bridge]).expect("removed");
}

#[test]
fn the_hook_makes_ports_and_takes_them_back() {
    let (mut daemon, far) = switch();
    let hook = format!(
        "#!/bin/sh\nexec {} --api {} libvirt-hook qemu \"$@\"\n",
        binary().expect("built").display(),
        daemon.socket().display()
    );
    let Some(mut libvirt) = Libvirt::start_with(&Options { hook: Some(hook), ..Options::default() }) else { return };
    let socket = daemon.file("hooked.sock");
    let mac = MacAddr([2, 0, 0, 0, 0x12, 2]);
    let memory = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>";
    let wish = |domain: &str| {
        format!(
            "<metadata><v:ports xmlns:v='https://github.com/vswitch/vswitch/libvirt/1'>\
             <v:port mac='{mac}' domains='{domain}' hairpin='on'/></v:ports></metadata>{memory}"
        )
    };
    let interface = format!(
        "<interface type='vhostuser'><mac address='{mac}'/><source type='unix' path='{}' mode='client'/>\
         <model type='virtio'/></interface>",
        socket.display()
    );
    let machine = libvirt.define(&wish("default"), &interface).expect("defined");
    boot(&libvirt, &machine, &far, mac, &daemon);
    let port = daemon.port("hooked");
    assert_eq!(
        (&port["origin"], &port["spec"]["hairpin"]),
        (&serde_json::json!("hook"), &serde_json::json!(true)),
        "{port}"
    );
    libvirt.virsh(&["destroy", &machine]).expect("stopped");
    wait_for("the port is gone", PATIENCE, || daemon.port("hooked").is_null()).expect("gone");
    assert!(!socket.exists());
    let astray = libvirt.define(&wish("nowhere"), &interface).expect("defined");
    let error = libvirt.virsh(&["start", &astray]).expect_err("refused").to_string();
    assert!(error.contains("there is no domain") && error.contains("nowhere"), "{error}");
    // No machine waits for a switch that does not run; one without ports does not even ask.
    daemon.kill().expect("killed");
    let error = libvirt.virsh(&["start", &machine]).expect_err("refused").to_string();
    assert!(error.contains("cannot reach a switch"), "{error}");
    let alone = libvirt.define("", "").expect("defined");
    libvirt.virsh(&["start", &alone]).expect("it has no ports");
    libvirt.virsh(&["destroy", &alone]).expect("stopped");
}

/// What libvirt says of its networks is read, and what is written of them libvirt takes, and says the same again.
#[test]
fn networks_go_both_ways() {
    let Some(libvirt) = Libvirt::start() else { return };
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/network-xml"));
    let mut networks = 0;
    for entry in fs::read_dir(directory).expect("recorded") {
        let path = entry.expect("recorded").path();
        let spec = read(&fs::read_to_string(&path).expect("recorded")).expect("understood").spec;
        if spec.name == "hostdev" {
            // libvirt wants to see the devices.
            continue;
        }
        let file = libvirt.file(&format!("{}.xml", spec.name), &write(&spec).xml).expect("written");
        libvirt.virsh(&["net-define", &file]).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()));
        let again = libvirt.virsh(&["net-dumpxml", &spec.name]).expect("defined");
        let again = read(&again).unwrap_or_else(|e| panic!("{e}\n{again}"));
        assert_eq!(again.spec, spec, "{}", path.display());
        assert!(again.warnings.is_empty(), "{:?}", again.warnings);
        networks += 1;
    }
    assert!(networks >= 20, "{networks} networks");
}
