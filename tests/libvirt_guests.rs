//! Machines of libvirt with a system in them, on networks that were libvirt's: the XML of `virsh net-dumpxml` goes in, the interfaces that
//! `vswitch libvirt-xml` prints come out, and the guests get their leases, find names and reach the world, or do not.
//!
//! A namespace is the host, with the switch, libvirtd and its machines in it; another one is the world.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::PathBuf,
};

use switch_core::mac::MacAddr;
use vswitch_benches::netns::{Namespace, Process, exec, unique};
use vswitch_tests::{
    Daemon, binary,
    guest::{Booted, Machine, NetnsPeer, Turn, check_transfer, mac, turn},
    libvirt::{Libvirt, Options},
};

/// The world's address, and the host's to it.
const WORLD: &str = "192.0.2.2";
const HOST: &str = "192.0.2.1";
/// The world's address on the bridged network.
const LAN: &str = "10.64.0.9";

/// Networks as a user of libvirt has written them, the last one on a bridge that `ovs-vsctl` makes.
const NETWORKS: [&str; 4] = [
    "<network><name>nat</name><forward mode='nat'/><bridge name='virbr1'/><domain name='nat.example' localOnly='yes'/>\
     <dns><host ip='10.61.0.1'><hostname>door.nat.example</hostname></host></dns>\
     <ip address='10.61.0.1' netmask='255.255.255.0'><dhcp><range start='10.61.0.100' end='10.61.0.199'/></dhcp></ip></network>",
    "<network><name>routed</name><forward mode='route' dev='wan'/><bridge name='virbr2'/><domain name='routed.example' localOnly='yes'/>\
     <dns><host ip='10.62.0.1'><hostname>door.routed.example</hostname></host></dns>\
     <ip address='10.62.0.1' netmask='255.255.255.0'><dhcp><range start='10.62.0.100' end='10.62.0.199'/></dhcp></ip></network>",
    "<network><name>isolated</name><bridge name='virbr3'/><domain name='isolated.example' localOnly='yes'/>\
     <dns><host ip='10.63.0.1'><hostname>door.isolated.example</hostname></host></dns>\
     <ip address='10.63.0.1' netmask='255.255.255.0'><dhcp><range start='10.63.0.100' end='10.63.0.199'/></dhcp></ip></network>",
    "<network><name>lan</name><forward mode='bridge'/><bridge name='ovsbr'/></network>",
];

/// Everything; what is first here ends first.
struct Lab {
    libvirt: Libvirt,
    daemon: Daemon,
    sockets: PathBuf,
    _dhcp: Process,
    world: NetnsPeer,
    host: Namespace,
    _turn: Turn,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.sockets);
    }
}

impl Lab {
    fn new() -> Option<Lab> {
        let turn = turn()?;
        let host = Namespace::new("lgh").expect("root");
        let world = NetnsPeer::new("lgw").expect("root");
        for wire in ["wan", "nic"] {
            let ends = [host.name(), world.namespace.name()];
            exec(&["ip", "-n", ends[0], "link", "add", wire, "type", "veth", "peer", "name", wire, "netns", ends[1]])
                .expect("a wire");
        }
        host.configure("wan", &[&format!("{HOST}/24")]).expect("configured");
        host.configure("nic", &[]).expect("configured");
        host.exec(&["ip", "route", "add", "default", "via", WORLD]).expect("a route");
        world.namespace.configure("wan", &[&format!("{WORLD}/24")]).expect("configured");
        world.namespace.configure("nic", &[&format!("{LAN}/24")]).expect("configured");
        // The world knows the way to every guest; what it lets in is the host's business.
        world.sh(&format!("ip route add 10.60.0.0/14 via {HOST}")).expect("a route");
        let count = "add table ip count; add chain ip count in { type filter hook prerouting priority -300; }; \
                     add rule ip count in iif wan ip saddr 10.0.0.0/8 counter";
        world.namespace.exec(&["nft", count]).expect("counted");

        let daemon = Daemon::start_in(Some(host.name()), &[]).expect("the switch starts");
        let programs = daemon.file("programs");
        fs::create_dir(&programs).expect("made");
        symlink(binary().expect("built"), programs.join("ovs-vsctl")).expect("linked");
        let environment = vec![("VSWITCH_API".to_owned(), daemon.socket().display().to_string())];
        let netns = Some(host.name().to_owned());
        let libvirt = Libvirt::start_with(&Options { programs: Some(programs), environment, netns, hook: None })?;

        // Where both sides may make sockets.
        let sockets = std::env::temp_dir().join(unique("vswitch-sockets-"));
        fs::create_dir(&sockets).expect("made");
        fs::set_permissions(&sockets, fs::Permissions::from_mode(0o755)).expect("set");
        chown(&sockets, Some(libvirt.user), None).expect("root");
        let leases = format!("--dhcp-leasefile={}", sockets.join("lan-leases").display());
        let answer = format!("--address=/door.lan.example/{LAN}");
        let dhcp =
            ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--no-resolv"];
        let range = [
            "--interface=nic",
            "--bind-interfaces",
            "--no-hosts",
            "--dhcp-range=10.64.0.100,10.64.0.199",
            &leases,
            &answer,
        ];
        let dhcp = world.namespace.spawn(&[&dhcp[..], &range].concat()).expect("dnsmasq");
        Some(Lab { libvirt, daemon, sockets, _dhcp: dhcp, world, host, _turn: turn })
    }

    /// Takes a network over from libvirt.
    fn take_over(&self, xml: &str) {
        let name = xml.split("<name>").nth(1).and_then(|rest| rest.split('<').next()).expect("a name");
        let file = self.libvirt.file("network.xml", xml).expect("written");
        self.libvirt.virsh(&["net-define", &file]).expect("libvirt's own");
        let dumped = self.libvirt.virsh(&["net-dumpxml", name]).expect("printed");
        let file = self.libvirt.file("dumped.xml", &dumped).expect("written");
        self.libvirt.virsh(&["net-undefine", name]).expect("libvirt's no longer");
        self.daemon.cli(&["network", "define", &file]).unwrap_or_else(|e| panic!("{e:#}\n{dumped}"));
        self.daemon.cli(&["network", "start", name]).unwrap_or_else(|e| panic!("{e:#}\n{dumped}"));
    }

    /// Adds a port; the interface that plugs a machine into it.
    fn port(&self, name: &str, spec: &str, mac: MacAddr) -> String {
        let spec = spec.replace('@', &self.sockets.display().to_string());
        self.daemon.cli(&["port", "add", &format!("{name}={spec}")]).expect("added");
        self.daemon.cli(&["libvirt-xml", name, "--mac", &mac.to_string()]).expect("printed")
    }

    /// A TAP that is there before the machine is, as a port; as [`port`](Self::port).
    fn tap(&self, name: &str, domain: &str, mac: MacAddr) -> String {
        self.host.exec(&["ip", "tuntap", "add", name, "mode", "tap"]).expect("root");
        self.host.exec(&["ip", "link", "set", name, "up"]).expect("up");
        self.port(name, &format!("packet,domain={domain}"), mac)
    }

    fn boot(&mut self, interfaces: &[String]) -> Booted {
        let image = vswitch_tests::guest::image().expect("there is one, as `turn` said");
        self.libvirt.boot_guest(image, interfaces).unwrap_or_else(|e| panic!("{e:#}"))
    }

    fn network(&self, name: &str) -> serde_json::Value {
        self.daemon.json(&["network", "show", name]).expect("shown")[0].clone()
    }

    /// Has a guest join a network as a host of this name, by the device with this address: the lease is what the switch shows. Its address.
    fn join(&self, guest: &Booted, name: &str, mac: MacAddr, network: &str) -> String {
        let device = guest.device(mac).expect("a device");
        let told = |e| panic!("{network}: {e:#}\n{}\n{:?}", self.network(network), self.daemon.cli(&["port", "show"]));
        let address = guest.lease(&device, name).unwrap_or_else(told);
        if network != "lan" {
            let shown = self.network(network)["leases"].clone();
            let lease = shown.as_array().expect("a list").iter().find(|l| l["ip"] == address.as_str()).cloned();
            let lease = lease.unwrap_or_else(|| panic!("{address} is not among {shown}"));
            assert_eq!((&lease["client"], &lease["hostname"]), (&mac.to_string().into(), &name.into()), "{lease}");
        }
        let door = if network == "lan" { LAN.to_owned() } else { self.gateway(network) };
        let answer = guest.sh(&format!("nslookup -type=a door.{network}.example")).expect("an answer");
        assert!(answer.contains(&door), "{answer}");
        guest.reach(&door).unwrap_or_else(|e| panic!("{network}: {e:#}"));
        address
    }

    fn gateway(&self, network: &str) -> String {
        let address = self.network(network)["spec"]["ip"][0]["address"].as_str().expect("an address").to_owned();
        address.split('/').next().expect("an address").to_owned()
    }

    /// A guest leaves a network, so that its routes are no other's.
    fn leave(&self, guest: &Booted, mac: MacAddr) {
        let device = guest.device(mac).expect("a device");
        guest.sh(&format!("ip addr flush dev {device}; ip link set {device} down")).expect("left");
    }

    /// Packets with addresses of guests that came to the world by the host's NIC.
    fn seen_outside(&self) -> u64 {
        let text = self.world.sh("nft list table ip count").expect("listed");
        let count = text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
        count.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("a counter: {text}"))
    }
}

#[test]
fn guests_of_libvirt_live_on_networks_taken_over_from_it() {
    let Some(mut lab) = Lab::new() else { return };
    lab.daemon.cli(&["ovs-vsctl", "add-br", "ovsbr", "--", "add-port", "ovsbr", "nic"]).expect("made");
    let before = lab.host.exec(&["nft", "list", "ruleset"]).expect("listed");
    NETWORKS.iter().for_each(|xml| lab.take_over(xml));
    let owner = lab.libvirt.user;
    let a = [
        lab.port("a-nat", &format!("vhost-user,path=@/a-nat,owner={owner},domain=nat"), mac(1, 0)),
        lab.port("a-routed", "vhost-user,path=@/a-routed,mode=client,domain=routed", mac(1, 1)),
        lab.tap("a-isolated", "isolated", mac(1, 2)),
        format!(
            "<interface type='bridge'><mac address='{}'/><source bridge='ovsbr'/><virtualport type='openvswitch'/>\
             <target dev='a-lan'/><model type='virtio'/></interface>",
            mac(1, 3)
        ),
    ];
    let b = [
        lab.tap("b-nat", "nat", mac(2, 0)),
        lab.port("b-isolated", &format!("vhost-user,path=@/b-isolated,owner={owner},domain=isolated"), mac(2, 1)),
        // These are addresses of the host, which has no others at these ports.
        lab.port("b-listens", "stream,address=127.0.0.1:7001,mode=client,domain=isolated", mac(2, 2)),
        lab.port("b-connects", "stream,address=127.0.0.1:7002,domain=isolated", mac(2, 3)),
        lab.port("b-udp", "dgram,address=127.0.0.1:7003,peer=127.0.0.1:7004,domain=isolated", mac(2, 4)),
    ];
    let (a, b) = (lab.boot(&a), lab.boot(&b));
    a.ready().expect("boots");

    // Bridged: the lease is of a server in the world, by what libvirt takes for a bridge of Open vSwitch.
    let listed = lab.daemon.cli(&["ovs-vsctl", "list-ports", "ovsbr"]).expect("listed");
    assert_eq!(listed, "a-lan\nnic\n");
    let address = lab.join(&a, "a", mac(1, 3), "lan");
    assert!(address.starts_with("10.64.0.1"), "{address}");
    check_transfer(&a, &lab.world, LAN).expect("to the guest");
    check_transfer(&lab.world, &a, &address).expect("from the guest");
    lab.leave(&a, mac(1, 3));

    // NAT: out, and nobody out there sees the guest's own address or gets in uncalled.
    let address = lab.join(&a, "a", mac(1, 0), "nat");
    a.reach(WORLD).expect("out");
    check_transfer(&a, &lab.world, WORLD).expect("from the world");
    assert!(!lab.world.pings(&address).expect("asked"), "uncalled");
    assert_eq!(lab.seen_outside(), 0);
    b.ready().expect("boots");
    let other = lab.join(&b, "b", mac(2, 0), "nat");
    b.reach(WORLD).expect("out");
    check_transfer(&b, &a, &address).expect("from guest to guest");
    check_transfer(&a, &b, &other).expect("from guest to guest");
    [(&a, 1), (&b, 2)].into_iter().for_each(|(guest, id)| lab.leave(guest, mac(id, 0)));

    // Isolated: guests, the gateway and names, and nothing of the world, although guests and the world know the way.
    let address = lab.join(&a, "a", mac(1, 2), "isolated");
    lab.join(&b, "b", mac(2, 1), "isolated");
    let answer = b.sh("nslookup -type=a a.isolated.example").expect("an answer");
    assert!(answer.contains(&address), "{answer}");
    for nic in 1..=4 {
        // By each of the sockets that libvirt has an interface for, one after the other.
        if nic > 1 {
            lab.join(&b, &format!("b{nic}"), mac(2, nic), "isolated");
        }
        check_transfer(&b, &a, &address).unwrap_or_else(|e| panic!("network device {nic}: {e:#}"));
        lab.leave(&b, mac(2, nic));
    }
    assert_eq!(a.sh("ip route | grep default || true").expect("shown"), "", "an isolated network offers no way out");
    a.sh(&format!("ip route add default via {}", lab.gateway("isolated"))).expect("taken all the same");
    assert!(!a.pings(WORLD).expect("asked") && !lab.world.pings(&address).expect("asked"));
    assert_eq!(lab.seen_outside(), 0);
    lab.host.exec(&["ping", "-c", "1", "-W", "20", &address]).expect("the host is not the world");
    lab.leave(&a, mac(1, 2));

    // Routed: both ways, with the guest's own address.
    let address = lab.join(&a, "a", mac(1, 1), "routed");
    a.reach(WORLD).expect("out");
    lab.world.reach(&address).expect("in");
    check_transfer(&a, &lab.world, WORLD).expect("from the world");
    check_transfer(&lab.world, &a, &address).expect("from the guest");
    assert!(lab.seen_outside() > 0);

    // The machines end, and take along what was made for them; the networks end, and the host is as it was.
    for machine in std::mem::take(&mut lab.libvirt.machines) {
        lab.libvirt.virsh(&["destroy", &machine]).expect("stopped");
    }
    let listed = lab.daemon.cli(&["ovs-vsctl", "list-ports", "ovsbr"]).expect("listed");
    assert_eq!(listed, "nic\n");
    for port in ["a-nat", "a-routed", "a-isolated", "b-nat", "b-isolated", "b-listens", "b-connects", "b-udp"] {
        // Nobody notices that datagrams are not heard.
        if port != "b-udp" {
            lab.daemon.wait_state(port, "waiting").expect("no machine");
        }
        lab.daemon.cli(&["port", "del", port]).expect("removed");
    }
    for network in ["nat", "routed", "isolated", "lan"] {
        lab.daemon.cli(&["network", "stop", network]).expect("stopped");
    }
    assert_eq!(lab.host.exec(&["nft", "list", "ruleset"]).expect("listed"), before);
}
