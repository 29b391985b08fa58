//! What `vswitch qemu-args` prints, given to a shell and a real QEMU: the firmware of the VM is heard, and hears.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use switch_core::mac::MacAddr;
use vswitch_benches::{
    netns::{Namespace, Process, exec, unique},
    tools::installed,
};
use vswitch_tests::{Daemon, firmware::DhcpServer, skip};

/// Firmware under emulation, on a machine that does other things too.
const BOOT_PATIENCE: Duration = Duration::from_secs(90);

/// A switch with one port for a VM and a TAP in a namespace, where a DHCP server listens.
struct Lab {
    daemon: Daemon,
    far: Namespace,
    directory: PathBuf,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Lab {
    /// `{}` in the SPEC is a directory for sockets. `None`, and a counted line, without QEMU.
    fn new(spec: &str) -> Option<Lab> {
        if !installed("qemu-system-x86_64") {
            skip("qemu-system-x86 is not installed");
            return None;
        }
        let far = Namespace::new("qa").expect("root");
        let directory = std::env::temp_dir().join(unique("vswitch-qemu-"));
        std::fs::create_dir(&directory).expect("made");
        let spec = spec.replace("{}", &directory.to_string_lossy());
        let wall = format!("far=tap,netns={}", far.name());
        let daemon = Daemon::start(&["--port", &wall, "--port", &spec]).expect("the switch starts");
        far.configure("far", &[]).expect("up");
        daemon.wait_state("far", "up").expect("up");
        Some(Lab { daemon, far, directory })
    }

    /// Pastes what is printed for the port into a shell.
    fn boot(&self, words: &[&str]) -> Process {
        let line = self.daemon.cli(&[&["qemu-args"], words].concat()).expect("printed");
        assert_eq!(line.lines().count(), 1, "{line}");
        let log = std::fs::File::create(self.directory.join("qemu.log")).expect("made");
        let command = format!("exec qemu-system-x86_64 -accel tcg -display none -nodefaults -boot n {line}");
        let child =
            Command::new("sh").arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        Process(child.expect("a shell"))
    }

    fn check(&self, words: &[&str], mac: MacAddr) {
        let mut server = DhcpServer::listen(&self.far, "far").expect("listens");
        let _vm = self.boot(words);
        if let Err(e) = server.serve(mac, BOOT_PATIENCE) {
            let log = std::fs::read_to_string(self.directory.join("qemu.log")).unwrap_or_default();
            panic!("{e}\n{log}\n{}", self.daemon.port("vm"));
        }
    }
}

/// The VM of a port, with the address that is printed by itself.
fn check(spec: &str) {
    let Some(lab) = Lab::new(spec) else { return };
    let words = lab.daemon.json(&["qemu-args", "vm"]).expect("printed");
    let device = words.as_array().and_then(|w| w.last()?.as_str()).expect("a device").to_owned();
    let (_, mac) = device.split_once("mac=").expect("an address");
    lab.check(&["vm", "--memory", "128M"], mac[..17].parse().expect("an address"));
}

/// A port number that nobody has now.
fn free_port() -> u16 {
    let probe = std::net::UdpSocket::bind("[::]:0").expect("bound");
    probe.local_addr().expect("an address").port()
}

#[test]
fn vhost_user_where_the_switch_listens() {
    check("vm=vhost-user,path={}/vm.sock");
}

#[test]
fn vhost_user_where_the_vm_listens_with_two_queues() {
    check("vm=vhost-user,path={}/vm.sock,mode=client,queues=2");
}

#[test]
fn streams() {
    check("vm=stream,path={}/vm.sock");
    check("vm=stream,path={}/vm.sock,mode=client");
    check(&format!("vm=stream,address=[::1]:{},mode=client", free_port()));
}

#[test]
fn datagrams() {
    check("vm=dgram,path={}/sw.sock,peer={}/vm.sock");
    check(&format!("vm=dgram,address=0.0.0.0:{},peer=127.0.0.1:{}", free_port(), free_port()));
}

/// A TAP of the host, removed on drop.
struct Tap(String);

impl Tap {
    fn new(flags: &[&str]) -> Tap {
        let name = unique("qt");
        exec(&[&["ip", "tuntap", "add", &name, "mode", "tap"], flags].concat()).expect("root");
        exec(&["ip", "link", "set", &name, "up"]).expect("up");
        Tap(name)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = exec(&["ip", "link", "del", &self.0]);
    }
}

#[test]
fn taps_behind_packet_ports() {
    for flags in [&[][..], &["multi_queue"]] {
        let tap = Tap::new(flags);
        check(&format!("vm=packet,device={}", tap.0));
    }
}

#[test]
fn two_ports_of_one_vm() {
    let Some(lab) = Lab::new("vm=vhost-user,path={}/vm.sock") else { return };
    lab.daemon
        .cli(&["port", "add", &format!("vm2=vhost-user,path={}/2.sock", lab.directory.display())])
        .expect("added");
    let words = lab.daemon.json(&["qemu-args", "vm", "vm2", "--memory", "128M"]).expect("printed");
    let memories = words.as_array().expect("words").iter().filter(|w| w.to_string().contains("memfd")).count();
    assert_eq!(memories, 1, "{words}");
    let _vm = lab.boot(&["vm2", "vm", "--memory", "128M"]);
    lab.daemon.wait_state("vm2", "up").or_else(|_| lab.daemon.wait_state("vm", "up")).expect("the first one boots");
}

#[test]
fn a_port_that_no_vm_can_hold_is_refused() {
    let daemon = Daemon::start(&["--port", &format!("{}=tap", unique("qt"))]).expect("starts");
    let name = daemon.json(&["port", "show"]).expect("shown")[0]["spec"]["name"].as_str().expect("a name").to_owned();
    for command in ["qemu-args", "libvirt-xml"] {
        let error = daemon.cli(&[command, &name]).expect_err("a tap port").to_string();
        assert!(error.contains("the switch itself holds the character device") && error.contains("=packet"), "{error}");
    }
    let error = daemon.cli(&["qemu-args", "nosuch"]).expect_err("no port").to_string();
    assert_eq!(error, "vswitch: there is no port \"nosuch\"; see: vswitch port show");
}
