//! A libvirtd of our own, for tests.
//!
//! It runs by hand in namespaces of its own: its directories, and the accounts with Debian's `libvirt-qemu` in them, are
//! private, and all its processes end with it. An installed one is neither disturbed nor used. QEMU runs as `libvirt-qemu`, as on a real host, so that permissions
//! are tested too.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use vswitch_benches::{
    netns::{exec, unique, wait_for},
    tools::installed,
};

use crate::{
    guest::{Booted, KERNEL_ARGUMENTS},
    skip,
};

/// How long libvirtd, and the firmware of a machine, may take to be heard.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(90);
/// What libvirtd asks QEMU at its first start takes as long as a boot.
const COMMAND_PATIENCE_S: &str = "120";
/// Replaced as a whole, so that nothing need be made inside the real ones. `/etc/libvirt` comes with the programs.
const DIRECTORIES: [&str; 5] = ["/etc/libvirt", "/run", "/var/lib", "/var/cache", "/var/log"];
/// The user's id where there is no such user: the one that Debian allocates for it.
const LIBVIRT_QEMU: u32 = 64055;

/// What a libvirtd is started with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where it looks for programs first.
    pub programs: Option<PathBuf>,
    /// Its environment, besides.
    pub environment: Vec<(String, String)>,
    /// The script `/etc/libvirt/hooks/qemu`.
    pub hook: Option<String>,
    /// The network namespace that it runs in, with its machines; none: the test's.
    pub netns: Option<String>,
}

/// A libvirtd with everything it makes, and the machines it has.
#[derive(Debug)]
pub struct Libvirt {
    child: Child,
    directory: PathBuf,
    /// Machines that were started.
    pub machines: Vec<String>,
    /// The user that QEMU runs as.
    pub user: u32,
}

impl Libvirt {
    /// `None`, and a counted line, where it cannot be had.
    ///
    /// # Panics
    /// It is installed and does not come up.
    #[must_use]
    pub fn start() -> Option<Libvirt> {
        Libvirt::start_with(&Options::default())
    }

    /// The same, with something of our own in its way.
    ///
    /// # Panics
    /// It is installed and does not come up.
    #[must_use]
    pub fn start_with(options: &Options) -> Option<Libvirt> {
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
        Some(Libvirt::launch(options).expect("libvirtd starts"))
    }

    fn launch(options: &Options) -> anyhow::Result<Libvirt> {
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
        if let Some(hook) = &options.hook {
            let path = directory.join("0/hooks/qemu");
            fs::create_dir(directory.join("0/hooks"))?;
            fs::write(&path, hook)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let path = options.programs.as_ref().map_or(path.clone(), |first| format!("{}:{path}", first.display()));
        // There may be a KVM that cannot run guests.
        script += "[ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm\n";
        // The shell is the namespace's first process: it must take the dead ones away, which libvirtd waits for.
        script += &format!("libvirtd --config /etc/libvirt/libvirtd.conf --pid-file {here}/libvirtd.pid & wait");
        let mut command = match &options.netns {
            // With a /sys that shows the devices there.
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, "unshare"]);
                command
            }
            None => Command::new("unshare"),
        };
        let child = command
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &script])
            .env("PATH", path)
            .envs(options.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("stderr"))?)
            .spawn()?;
        let libvirt = Libvirt { child, directory, machines: Vec::new(), user: user.unwrap_or(LIBVIRT_QEMU) };
        wait_for("libvirtd answers", BOOT_PATIENCE, || libvirt.virsh(&["list"]).is_ok())
            .with_context(|| libvirt.text("stderr") + &libvirt.text("libvirtd.log"))?;
        Ok(libvirt)
    }

    /// A file of it, or nothing.
    #[must_use]
    pub fn text(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }

    /// Runs virsh; an error has what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn virsh(&self, words: &[&str]) -> anyhow::Result<String> {
        let uri = format!("qemu+unix:///system?socket={}", self.directory.join("libvirt-sock").display());
        exec(&[&["timeout", COMMAND_PATIENCE_S, "virsh", "--quiet", "--connect", &uri], words].concat())
    }

    /// Writes a file for virsh; its path.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn file(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.directory.join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Defines a machine whose firmware boots from the network, with these elements in `<domain>` and in `<devices>`; its name.
    ///
    /// # Errors
    /// libvirt refuses.
    pub fn define(&mut self, elements: &str, devices: &str) -> anyhow::Result<String> {
        let name = unique("vswitch-");
        let machine = format!(
            "<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory>
  {elements}
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='network'/></os>
  <devices>
    <emulator>{}</emulator>
    {devices}
  </devices>
</domain>",
            exec(&["sh", "-c", "command -v qemu-system-x86_64"])?.trim()
        );
        self.virsh(&["define", &self.file(&format!("{name}.xml"), &machine)?])?;
        Ok(name)
    }

    /// Defines and starts a machine with this network device: an element for `<devices>`, given to `virsh attach-device`
    /// as it was printed, or `<qemu:commandline>`, pasted. What is printed as a comment for `<domain>` is pasted there.
    ///
    /// # Errors
    /// libvirt or QEMU refuses; the error has the machine's log.
    pub fn boot(&mut self, printed: &str) -> anyhow::Result<()> {
        let memory = between(printed, "<memoryBacking>", "</memoryBacking>").unwrap_or_default();
        let arguments = between(printed, "<qemu:commandline", "</qemu:commandline>").map_or(String::new(), |element| {
            // A device that libvirt does not know cannot be named in its boot order.
            let order = "<qemu:arg value='-boot'/><qemu:arg value='strict=off,order=n'/></qemu:commandline>";
            element.replace("</qemu:commandline>", order)
        });
        let name = self.define(&(memory + &arguments), "")?;
        let device = self.file(&format!("{name}-device.xml"), printed)?;
        self.machines.push(name.clone());
        if arguments.is_empty() {
            self.virsh(&["attach-device", &name, &device, "--config"])?;
        }
        if let Err(e) = self.virsh(&["start", &name]) {
            bail!("{e:#}\n{}", self.log(&name));
        }
        Ok(())
    }

    /// Defines and starts a machine that boots a guest, with these `<interface>` elements, as they were printed or written by hand.
    /// It boots while the caller does other things; see [`Booted::ready`].
    ///
    /// # Errors
    /// libvirt or QEMU refuses; the error has the machine's log.
    pub fn boot_guest(&mut self, image: &Path, printed: &[String]) -> anyhow::Result<Booted> {
        let name = unique("vswitch-");
        let file = |what: &str| self.directory.join(format!("{name}.{what}"));
        // Copies, because libvirt gives them to the user of QEMU.
        for what in ["vmlinuz", "initrd"] {
            fs::copy(image.join(what), file(what))?;
        }
        let (agent, kernel) = (file("agent"), file("console"));
        let machine = guest_xml(&name, &self.directory, printed)?;
        let path = self.file(&format!("{name}.xml"), &machine)?;
        self.virsh(&["define", &path]).with_context(|| machine.clone())?;
        self.machines.push(name.clone());
        // Its first words must not be lost.
        if let Err(e) = self.virsh(&["start", &name, "--paused"]) {
            bail!("{e:#}\n{machine}\n{}", self.log(&name));
        }
        let booted = Booted::connect(&agent, &kernel)?;
        self.virsh(&["resume", &name])?;
        Ok(booted)
    }

    /// What QEMU said.
    #[must_use]
    pub fn log(&self, machine: &str) -> String {
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

/// A machine with a kernel of `directory`, its agent's console and its serial port there, and these network devices.
fn guest_xml(name: &str, directory: &Path, printed: &[String]) -> anyhow::Result<String> {
    let here = directory.join(name);
    let here = here.to_str().context("a path in UTF-8")?;
    let memory = printed.iter().find_map(|text| between(text, "<memoryBacking>", "</memoryBacking>"));
    let (mut interfaces, mut overrides) = (String::new(), String::new());
    for (index, text) in printed.iter().enumerate() {
        let interface = between(text, "<interface", "</interface>").context("an interface")?;
        // The kernel is given to QEMU, so no firmware need look for one in the network.
        let more = format!("  <alias name='ua-nic{index}'/>\n  <rom enabled='no'/>\n</interface>\n");
        if interface.contains("type='vhostuser'") {
            // docs/qemu.md: QEMU 7.2 without KVM cannot wire a vhost-user device's interrupts to MSI-X.
            overrides += &format!(
                "<qemu:device alias='ua-nic{index}'><qemu:frontend>\
                 <qemu:property name='vectors' type='unsigned' value='0'/></qemu:frontend></qemu:device>\n"
            );
        }
        interfaces += &interface.replace("</interface>", &more);
    }
    Ok(format!(
        "<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory>
  {}
  <vcpu current='1'>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{here}.vmlinuz</kernel>
    <initrd>{here}.initrd</initrd>
    <cmdline>{KERNEL_ARGUMENTS}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>{}</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{here}.console'/></serial>
    <console type='unix'><source mode='bind' path='{here}.agent'/><target type='virtio'/></console>
    <memballoon model='none'/>
{interfaces}  </devices>
  <qemu:override xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
{overrides}  </qemu:override>
</domain>",
        memory.unwrap_or_default(),
        exec(&["sh", "-c", "command -v qemu-system-x86_64"])?.trim()
    ))
}

fn between(text: &str, from: &str, to: &str) -> Option<String> {
    let start = text.find(from)?;
    let end = start + text[start..].find(to)? + to.len();
    Some(text[start..end].to_owned())
}
