//! What `vswitch libvirt-xml` prints, given to a real libvirt: machines are defined with it, started, and their firmware is
//! heard, and hears.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use switch_core::mac::MacAddr;
use vswitch_benches::netns::{Namespace, exec, unique};
use vswitch_tests::{
    Daemon,
    firmware::DhcpServer,
    libvirt::{BOOT_PATIENCE, Libvirt},
};

/// A switch with a TAP in a namespace, where a DHCP server listens, and a directory for sockets.
struct Lab {
    libvirt: Libvirt,
    daemon: Daemon,
    far: Namespace,
    sockets: PathBuf,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.sockets);
    }
}

impl Lab {
    fn new() -> Option<Lab> {
        let libvirt = Libvirt::start()?;
        let far = Namespace::new("lv").expect("root");
        let sockets = std::env::temp_dir().join(unique("vswitch-sockets-"));
        fs::create_dir(&sockets).expect("made");
        fs::set_permissions(&sockets, fs::Permissions::from_mode(0o755)).expect("set");
        let daemon = Daemon::start(&["--port", &format!("far=tap,netns={}", far.name())]).expect("the switch starts");
        far.configure("far", &[]).expect("up");
        daemon.wait_state("far", "up").expect("up");
        Some(Lab { libvirt, daemon, far, sockets })
    }

    /// A directory that QEMU may make sockets in.
    fn of_qemu(&self) -> &Path {
        chown(&self.sockets, Some(self.libvirt.user), None).expect("root");
        &self.sockets
    }

    /// Boots a machine on a port that is added for it.
    fn check(&mut self, spec: &str, mac: u8) {
        self.daemon.cli(&["port", "add", spec]).expect("added");
        let (name, _) = spec.split_once('=').expect("a SPEC");
        let mac = MacAddr([2, 0, 0, 0, 0x11, mac]);
        let printed = self.daemon.cli(&["libvirt-xml", name, "--mac", &mac.to_string()]).expect("printed");
        let mut server = DhcpServer::listen(&self.far, "far").expect("listens");
        self.libvirt.boot(&printed).unwrap_or_else(|e| panic!("{e:#}\n{printed}"));
        if let Err(e) = server.serve(mac, BOOT_PATIENCE) {
            let machine = self.libvirt.machines.last().expect("a machine");
            panic!("{e}\n{printed}\n{}\n{}", self.libvirt.log(machine), self.daemon.port(name));
        }
        // It would wait for an answer as fast as a processor can.
        let machine = self.libvirt.machines.pop().expect("a machine");
        self.libvirt.virsh(&["destroy", &machine]).expect("stopped");
        self.daemon.cli(&["port", "del", name]).expect("removed");
    }
}

#[test]
fn vhost_user_of_either_side() {
    let Some(mut lab) = Lab::new() else { return };
    let (at, user) = (lab.sockets.display().to_string(), lab.libvirt.user);
    lab.check(&format!("ours=vhost-user,path={at}/ours.sock,owner={user}"), 1);
    lab.of_qemu();
    lab.check(&format!("theirs=vhost-user,path={at}/theirs.sock,mode=client,queues=2"), 2);
}

#[test]
fn a_persistent_tap_behind_a_packet_port() {
    let Some(mut lab) = Lab::new() else { return };
    let tap = unique("lt");
    // The machine ends before the device does: libvirt must not be asked to close what is gone.
    exec(&["ip", "tuntap", "add", &tap, "mode", "tap"]).expect("root");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        exec(&["ip", "link", "set", &tap, "up"]).expect("up");
        lab.check(&format!("vm=packet,device={tap}"), 3);
    }));
    drop(lab);
    exec(&["ip", "link", "del", &tap]).expect("still there: it is the user's");
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn streams_and_datagrams() {
    let Some(mut lab) = Lab::new() else { return };
    let at = lab.of_qemu().display().to_string();
    let free = || std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a port");
    lab.check(&format!("listens=stream,address={},mode=client", free()), 4);
    lab.check(&format!("connects=stream,address={}", free()), 5);
    lab.check(&format!("udp=dgram,address={},peer={}", free(), free()), 6);
    lab.check(&format!("unix=stream,path={at}/unix.sock,mode=client"), 7);
}
