//! What `vswitch libvirt-xml` prints, given to a real libvirt: machines are defined with it, started, and their firmware is
//! heard, and hears.
//!
//! libvirtd runs by hand in namespaces of its own: its directories, and the accounts with Debian's `libvirt-qemu` in them, are
//! private, and all its processes end with it. An installed one is neither disturbed nor used. QEMU runs as `libvirt-qemu`, as on a real host, so that permissions
//! are tested too.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use switch_core::mac::MacAddr;
use vswitch_benches::{
    netns::{Namespace, exec, unique, wait_for},
    tools::installed,
};
use vswitch_tests::{Daemon, PATIENCE, firmware::DhcpServer, skip};

const BOOT_PATIENCE: Duration = Duration::from_secs(90);
/// What libvirtd asks QEMU at its first start takes as long as a boot.
const COMMAND_PATIENCE_S: &str = "120";
/// Replaced as a whole, so that nothing need be made inside the real ones. `/etc/libvirt` comes with the programs.
const DIRECTORIES: [&str; 5] = ["/etc/libvirt", "/run", "/var/lib", "/var/cache", "/var/log"];
/// The user's id where there is no such user: the one that Debian allocates for it.
const LIBVIRT_QEMU: u32 = 64055;

/// A libvirtd with everything it makes, and the machines it has.
struct Libvirt {
    child: Child,
    directory: PathBuf,
    machines: Vec<String>,
    user: u32,
}

impl Libvirt {
    /// `None`, and a counted line, where it cannot be had.
    fn start() -> Option<Libvirt> {
        let programs = ["libvirtd", "virsh", "qemu-system-x86_64", "unshare"];
        if let Some(missing) = programs.into_iter().find(|program| !installed(program)) {
            skip(&format!("{missing} is not installed"));
            return None;
        }
        let profiles = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
        if profiles.contains("libvirtd") {
            skip("AppArmor confines libvirtd to its own directories here");
            return None;
        }
        Some(Libvirt::launch().expect("libvirtd starts"))
    }

    fn launch() -> anyhow::Result<Libvirt> {
        let directory = std::env::temp_dir().join(unique("vswitch-libvirt-"));
        fs::create_dir(&directory)?;
        let user = nix::unistd::User::from_name("libvirt-qemu")?.map(|user| user.uid.as_raw());
        let mut script = String::from("set -e\n");
        let here = directory.to_str().context("a path in UTF-8")?;
        for (index, place) in DIRECTORIES.into_iter().enumerate() {
            fs::create_dir(directory.join(index.to_string()))?;
            script += &format!("mount --bind {here}/{index} {place}\n");
        }
        fs::write(
            directory.join("0/qemu.conf"),
            "security_driver = \"none\"\nstdio_handler = \"file\"\nnamespaces = []\ncgroup_controllers = []\n",
        )?;
        fs::write(
            directory.join("0/libvirtd.conf"),
            format!(
                "unix_sock_dir = \"{here}\"\nauth_unix_rw = \"none\"\nlog_outputs = \"3:file:{here}/libvirtd.log\"\n"
            ),
        )?;
        if user.is_none() {
            for (file, line) in [
                ("passwd", format!("{LIBVIRT_QEMU}:{LIBVIRT_QEMU}::/var/lib/libvirt:/bin/false")),
                ("group", format!("{LIBVIRT_QEMU}:")),
            ] {
                let accounts = fs::read_to_string(format!("/etc/{file}"))?;
                fs::write(directory.join(file), format!("{accounts}libvirt-qemu:x:{line}\n"))?;
                script += &format!("mount --bind {here}/{file} /etc/{file}\n");
            }
        }
        // There may be a KVM that cannot run guests.
        script += "[ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm\n";
        // The shell is the namespace's first process: it must take the dead ones away, which libvirtd waits for.
        script += &format!("libvirtd --config /etc/libvirt/libvirtd.conf --pid-file {here}/libvirtd.pid & wait");
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("stderr"))?)
            .spawn()?;
        let libvirt = Libvirt { child, directory, machines: Vec::new(), user: user.unwrap_or(LIBVIRT_QEMU) };
        wait_for("libvirtd answers", PATIENCE, || libvirt.virsh(&["list"]).is_ok())
            .with_context(|| libvirt.text("stderr") + &libvirt.text("libvirtd.log"))?;
        Ok(libvirt)
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }

    fn virsh(&self, words: &[&str]) -> anyhow::Result<String> {
        let uri = format!("qemu+unix:///system?socket={}", self.directory.join("libvirt-sock").display());
        exec(&[&["timeout", COMMAND_PATIENCE_S, "virsh", "--quiet", "--connect", &uri], words].concat())
    }

    /// Defines and starts a machine with this network device: an element for `<devices>`, given to `virsh attach-device`
    /// as it was printed, or `<qemu:commandline>`, pasted. What is printed as a comment for `<domain>` is pasted there.
    fn boot(&mut self, printed: &str) -> anyhow::Result<()> {
        let name = unique("vswitch-");
        let memory = between(printed, "<memoryBacking>", "</memoryBacking>").unwrap_or_default();
        let arguments = between(printed, "<qemu:commandline", "</qemu:commandline>").map_or(String::new(), |element| {
            // A device that libvirt does not know cannot be named in its boot order.
            let order = "<qemu:arg value='-boot'/><qemu:arg value='strict=off,order=n'/></qemu:commandline>";
            element.replace("</qemu:commandline>", order)
        });
        let domain = format!(
            "<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory>
  {memory}
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='network'/></os>
  <devices>
    <emulator>{}</emulator>
  </devices>
  {arguments}
</domain>",
            exec(&["sh", "-c", "command -v qemu-system-x86_64"])?.trim()
        );
        let file = |suffix: &str, text: &str| -> anyhow::Result<String> {
            let path = self.directory.join(format!("{name}{suffix}"));
            fs::write(&path, text)?;
            Ok(path.to_string_lossy().into_owned())
        };
        let (machine, device) = (file(".xml", &domain)?, file("-device.xml", printed)?);
        self.virsh(&["define", &machine])?;
        self.machines.push(name.clone());
        if arguments.is_empty() {
            self.virsh(&["attach-device", &name, &device, "--config"])?;
        }
        if let Err(e) = self.virsh(&["start", &name]) {
            bail!("{e:#}\n{}", self.log(&name));
        }
        Ok(())
    }

    fn log(&self, machine: &str) -> String {
        self.text(&format!("4/libvirt/qemu/{machine}.log"))
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // With the first process of their namespace all others are killed, machines and all.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn between(text: &str, from: &str, to: &str) -> Option<String> {
    let start = text.find(from)?;
    let end = start + text[start..].find(to)? + to.len();
    Some(text[start..end].to_owned())
}

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
