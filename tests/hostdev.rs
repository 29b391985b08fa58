//! `vswitch hostdev` on a sysfs tree written down by hand: one NIC with four of eight functions enabled, one without any, one
//! that is no SR-IOV NIC. What this cannot show is in docs/guide/reference.md.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::bail;
use switch_core::hostdev::{Pool, Wish, discover};
use vswitch_benches::netns::unique;
use vswitch_tests::{Daemon, binary};

const ROOT_PORT: &str = "devices/pci0000:00/0000:00:01.0";

/// A tree and a state directory, removed on drop.
struct Host {
    directory: PathBuf,
}

impl Host {
    fn new() -> Host {
        let host = Host { directory: std::env::temp_dir().join(unique("vswitch-hostdev-")) };
        for directory in ["class/net", "bus/pci/devices", "bus/pci/drivers/ixgbe", "bus/pci/drivers/ixgbevf"] {
            fs::create_dir_all(host.sysfs().join(directory)).expect("made");
        }
        host.physical("eth0", "0000:03:00.0", Some((8, 4)));
        for index in 0..4 {
            host.enable(index);
        }
        host.physical("eth1", "0000:03:00.1", Some((8, 0)));
        host.physical("eth2", "0000:04:00.0", None);
        host.physical("eth3", "0000:05:00.0", Some((0, 0)));
        // A device without a device: `lo`, a bridge.
        fs::create_dir_all(host.sysfs().join("devices/virtual/net/lo")).expect("made");
        host.link("class/net/lo", "../../devices/virtual/net/lo");
        host
    }

    fn sysfs(&self) -> PathBuf {
        self.directory.join("sys")
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn device(&self, address: &str) -> PathBuf {
        self.sysfs().join(ROOT_PORT).join(address)
    }

    fn link(&self, at: impl AsRef<Path>, to: impl AsRef<Path>) {
        symlink(to, self.sysfs().join(at)).expect("linked");
    }

    fn write(&self, at: PathBuf, text: &str) {
        fs::write(at, text).expect("written");
    }

    /// A PCI function with a driver and a netdev, in an IOMMU group of its own.
    fn function(&self, address: &str, driver: &str, netdev: &str, group: u32) {
        let device = self.device(address);
        fs::create_dir_all(device.join("net").join(netdev)).expect("made");
        let up = PathBuf::from("../../../..");
        symlink(up.join("bus/pci/drivers").join(driver), device.join("driver")).expect("linked");
        symlink(format!("../../../{address}"), device.join("net").join(netdev).join("device")).expect("linked");
        symlink(up.join(format!("kernel/iommu_groups/{group}")), device.join("iommu_group")).expect("linked");
        self.join(address, group);
        self.link(Path::new("bus/pci/devices").join(address), format!("../../../{ROOT_PORT}/{address}"));
        self.link(Path::new("class/net").join(netdev), format!("../../{ROOT_PORT}/{address}/net/{netdev}"));
    }

    /// Puts a function into the list of an IOMMU group.
    fn join(&self, address: &str, group: u32) {
        let devices = format!("kernel/iommu_groups/{group}/devices");
        fs::create_dir_all(self.sysfs().join(&devices)).expect("made");
        self.link(Path::new(&devices).join(address), format!("../../../../{ROOT_PORT}/{address}"));
    }

    fn physical(&self, netdev: &str, address: &str, functions: Option<(u32, u32)>) {
        let group = 10 + netdev.as_bytes()[3] as u32;
        self.function(address, "ixgbe", netdev, group);
        if let Some((total, enabled)) = functions {
            self.write(self.device(address).join("sriov_totalvfs"), &format!("{total}\n"));
            self.write(self.device(address).join("sriov_numvfs"), &format!("{enabled}\n"));
        }
    }

    /// The function of this number of eth0.
    fn enable(&self, index: u32) {
        let address = address(index);
        self.function(&address, "ixgbevf", &format!("eth0v{index}"), 200 + index);
        symlink("../0000:03:00.0", self.device(&address).join("physfn")).expect("linked");
        symlink(format!("../{address}"), self.device("0000:03:00.0").join(format!("virtfn{index}"))).expect("linked");
    }

    fn disable(&self, index: u32) {
        fs::remove_file(self.device("0000:03:00.0").join(format!("virtfn{index}"))).expect("removed");
        fs::remove_file(self.sysfs().join("bus/pci/devices").join(address(index))).expect("removed");
    }

    fn cli(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(binary()?);
        command.arg("hostdev").args(words).arg("--sysfs").arg(self.sysfs()).arg("--state").arg(self.state());
        let output = command.output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn refused(&self, words: &[&str]) -> String {
        self.cli(words).expect_err(&words.join(" ")).to_string()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Functions of an 82599 lie on every other function number from slot 16 on.
fn address(index: u32) -> String {
    format!("0000:03:{:02x}.{}", 16 + index / 4, index * 2 % 8)
}

#[test]
fn a_host_is_read_from_its_tree() {
    let host = Host::new();
    let pfs = discover(&host.sysfs()).expect("read");
    let names: Vec<_> = pfs.iter().map(|pf| (pf.netdev.as_str(), pf.total, pf.enabled, pf.vfs.len())).collect();
    assert_eq!(names, [("eth0", 8, 4, 4), ("eth1", 8, 0, 0), ("eth3", 0, 0, 0)]);
    let vf = &pfs[0].vfs[2];
    assert_eq!((vf.index, vf.address.to_string(), vf.iommu_group), (2, address(2), Some(202)));
    assert_eq!((vf.driver.as_deref(), vf.netdev.as_deref()), (Some("ixgbevf"), Some("eth0v2")));
    assert!(vf.is_separate());
    // One with a guest has another driver and no netdev.
    fs::remove_file(host.device(&address(1)).join("driver")).expect("removed");
    symlink("../../../../bus/pci/drivers/vfio-pci", host.device(&address(1)).join("driver")).expect("linked");
    fs::remove_dir_all(host.device(&address(1)).join("net")).expect("removed");
    // One whose way back leads elsewhere is none of this NIC's.
    fs::remove_file(host.device(&address(3)).join("physfn")).expect("removed");
    let pfs = discover(&host.sysfs()).expect("read");
    let vfs: Vec<_> = pfs[0].vfs.iter().map(|vf| (vf.index, vf.driver.as_deref(), vf.netdev.is_some())).collect();
    assert_eq!(vfs, [(0, Some("ixgbevf"), true), (1, Some("vfio-pci"), false), (2, Some("ixgbevf"), true)]);
    assert!(discover(&host.directory.join("nowhere")).is_err());
}

#[test]
fn functions_are_given_to_names_and_taken_back() {
    let host = Host::new();
    assert!(host.cli(&["list"]).expect("listed").contains("eth0 (0000:03:00.0): 4 of 8 VFs enabled"));
    assert_eq!(
        host.cli(&["allocate", "vm1", "eth0"]).expect("allocated"),
        format!("vm1: VF 0 of eth0 at {}\n", address(0))
    );
    let second = host
        .cli(&["allocate", "vm2", "eth0", "--mac", "02:00:00:00:00:02", "--vlan", "42", "--json"])
        .expect("allocated");
    let second: serde_json::Value = serde_json::from_str(&second).expect("JSON");
    assert_eq!(
        (&second["index"], &second["vlan"], &second["mac"]),
        (&1.into(), &42.into(), &"02:00:00:00:00:02".into())
    );

    let all: serde_json::Value =
        serde_json::from_str(&host.cli(&["list", "eth0", "--json"]).expect("listed")).expect("JSON");
    let owners: Vec<_> =
        all["pfs"][0]["vfs"].as_array().expect("VFs").iter().map(|vf| vf["allocated_to"].clone()).collect();
    assert_eq!(owners, ["vm1".into(), "vm2".into(), serde_json::Value::Null, serde_json::Value::Null]);
    assert_eq!((&all["pfs"][0]["enabled"], &all["gone"]), (&4.into(), &serde_json::json!([])));

    host.cli(&["release", "vm1"]).expect("released");
    assert!(host.cli(&["allocate", "vm3", "eth0"]).expect("allocated").contains("VF 0 of eth0"), "the first free one");
}

#[test]
fn libvirt_is_told_address_mac_and_vlan() {
    let host = Host::new();
    for name in ["vm0", "vm1", "vm2"] {
        host.cli(&["allocate", name, "eth0", "--mac", &format!("02:00:00:00:00:0{}", &name[2..])]).expect("allocated");
    }
    host.cli(&["allocate", "vm3", "eth0", "--mac", "02:00:00:00:00:03", "--vlan", "42"]).expect("allocated");
    let xml = |vlan: &str, n: u32| {
        format!(
            "<interface type='hostdev' managed='yes'>\n  <mac address='02:00:00:00:00:0{n}'/>\n  <source>\n    \
             <address type='pci' domain='0x0000' bus='0x03' slot='0x10' function='0x{}'/>\n  </source>\n{vlan}</interface>\n",
            n * 2
        )
    };
    assert_eq!(host.cli(&["libvirt-xml", "vm2"]).expect("printed"), xml("", 2));
    let vlan = "  <vlan>\n    <tag id='42'/>\n  </vlan>\n";
    assert_eq!(host.cli(&["libvirt-xml", "vm3"]).expect("printed"), xml(vlan, 3));
}

#[test]
fn what_cannot_be_done_names_the_mend() {
    let host = Host::new();
    let numvfs = host.sysfs().join("class/net/eth1/device/sriov_numvfs").display().to_string();
    for (words, part) in [
        (&["allocate", "vm1", "eth1"][..], format!("0 of 8 VFs of \"eth1\" are enabled: echo 8 > {numvfs}")),
        (&["allocate", "vm1", "eth2"], "NICs that have: eth0, eth1, eth3".to_owned()),
        (&["allocate", "vm1", "eth3"], "in the firmware".to_owned()),
        (&["allocate", "no blanks", "eth0"], "cannot be a guest name".to_owned()),
        (&["allocate", "vm1", "eth0", "--vlan", "4095"], "use 1 to 4094".to_owned()),
        (&["allocate", "vm1", "eth0", "--mac", "01:00:00:00:00:01"], "unicast".to_owned()),
        (&["release", "vm1"], "has no virtual function".to_owned()),
        (&["libvirt-xml", "vm1"], "see: vswitch hostdev list".to_owned()),
        (&["list", "eth9"], "NICs that have".to_owned()),
    ] {
        let error = host.refused(words);
        assert!(error.contains(&part), "{words:?}: {error}");
    }
    for name in ["vm0", "vm1", "vm2", "vm3"] {
        host.cli(&["allocate", name, "eth0"]).expect("allocated");
    }
    assert!(
        host.refused(&["allocate", "vm4", "eth0"]).contains("all 4 enabled VFs of \"eth0\" are allocated (8 can be")
    );
    assert!(host.refused(&["allocate", "vm0", "eth0"]).contains("vswitch hostdev release vm0"));
    host.cli(&["release", "vm0"]).expect("released");
    let mac = serde_json::from_slice::<serde_json::Value>(&fs::read(host.state().join("hostdev.json")).expect("kept"))
        .expect("JSON")["allocations"][0]["mac"]
        .as_str()
        .expect("an address")
        .to_owned();
    assert!(host.refused(&["allocate", "vm5", "eth0", "--mac", &mac]).contains("belongs to \"vm1\" already"));
}

#[test]
fn a_function_without_an_iommu_group_of_its_own_is_not_given_away() {
    let host = Host::new();
    for index in 0..3 {
        fs::remove_file(host.device(&address(index)).join("iommu_group")).expect("removed");
    }
    assert!(host.cli(&["allocate", "vm1", "eth0"]).expect("allocated").contains("VF 3 of eth0"), "the one that has");
    host.cli(&["release", "vm1"]).expect("released");
    host.join(&address(0), 203);
    assert!(host.cli(&["list"]).expect("listed").contains("203, shared"));
    assert!(host.refused(&["allocate", "vm1", "eth0"]).contains("intel_iommu=on"));
}

#[test]
fn a_function_that_is_gone_stays_allocated_and_says_so() {
    let host = Host::new();
    host.cli(&["allocate", "vm1", "eth0"]).expect("allocated");
    host.disable(0);
    assert!(host.cli(&["list"]).expect("listed").contains("vm1: VF 0 of eth0 is not there any more"));
    let error = host.refused(&["libvirt-xml", "vm1"]);
    assert!(error.contains("echo 8 >") && error.contains("vswitch hostdev release vm1"), "{error}");
    assert!(host.cli(&["allocate", "vm2", "eth0"]).expect("allocated").contains("VF 1 of eth0"));
    host.enable_again(0);
    assert!(host.cli(&["libvirt-xml", "vm1"]).expect("printed").contains("function='0x0'"), "back where it was");
}

impl Host {
    fn enable_again(&self, index: u32) {
        let address = address(index);
        self.link(Path::new("bus/pci/devices").join(&address), format!("../../../{ROOT_PORT}/{address}"));
        symlink(format!("../{address}"), self.device("0000:03:00.0").join(format!("virtfn{index}"))).expect("linked");
    }
}

#[test]
fn no_function_is_given_away_twice_however_many_ask_at_once() {
    let host = Host::new();
    let given: Vec<Option<u32>> = std::thread::scope(|scope| {
        let ask = |n: usize| {
            let (sysfs, state) = (host.sysfs(), host.state());
            scope.spawn(move || {
                let mut pool = Pool::lock(&sysfs, &state).expect("locked");
                pool.allocate(&Wish { name: format!("vm{n}"), ..Wish::default() }, "eth0").ok().map(|a| a.index)
            })
        };
        let all: Vec<_> = (0..8).map(ask).collect();
        all.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut indices: Vec<u32> = given.into_iter().flatten().collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2, 3]);
    // A damaged file is not taken for an empty one.
    fs::write(host.state().join("hostdev.json"), "{").expect("written");
    assert!(host.refused(&["list"]).contains("is damaged"));
}

/// A switch that reads the tree, and keeps its state where functions are given away.
fn switch(host: &Host, network: &str) -> Daemon {
    let daemon = Daemon::start(&["--sysfs", host.sysfs().to_str().expect("text")]).expect("starts");
    define(&daemon, network).expect("defined");
    daemon.cli(&["network", "start", "fast"]).expect("started");
    daemon
}

fn define(daemon: &Daemon, text: &str) -> anyhow::Result<String> {
    let file = daemon.file("network");
    fs::write(&file, text)?;
    daemon.cli(&["network", "define", file.to_str().expect("text")])
}

/// `vswitch hostdev` beside a switch.
fn beside(host: &Host, daemon: &Daemon, words: &[&str]) -> anyhow::Result<String> {
    let (sysfs, state) = (host.sysfs(), daemon.file("state"));
    let places = ["--sysfs", sysfs.to_str().expect("text"), "--state", state.to_str().expect("text")];
    daemon.cli(&[&["hostdev"], words, &places].concat())
}

const FAST: &str = r#"
name = "fast"
forward = { mode = "hostdev", pf = "eth0", managed = true, driver = "vfio" }
[[portgroup]]
name = "red"
default = true
vlan = { tags = [{ id = 42 }] }
[[portgroup]]
name = "blue"
"#;

#[test]
fn a_network_is_a_pool_of_functions() {
    let host = Host::new();
    let daemon = switch(&host, FAST);
    let given = beside(&host, &daemon, &["allocate", "vm1", "--network", "fast", "--mac", "02:00:00:00:00:01"]);
    assert_eq!(given.expect("allocated"), format!("vm1: VF 0 of eth0 at {}\n", address(0)));
    assert_eq!(
        beside(&host, &daemon, &["libvirt-xml", "vm1"]).expect("printed"),
        "<interface type='hostdev' managed='yes'>\n  <driver name='vfio'/>\n  <mac address='02:00:00:00:00:01'/>\n  <source>\n    \
         <address type='pci' domain='0x0000' bus='0x03' slot='0x10' function='0x0'/>\n  </source>\n  \
         <vlan>\n    <tag id='42'/>\n  </vlan>\n</interface>\n"
    );
    let more = ["allocate", "vm2", "--network", "fast", "--portgroup", "blue", "--json"];
    let second: serde_json::Value =
        serde_json::from_str(&beside(&host, &daemon, &more).expect("allocated")).expect("JSON");
    assert_eq!((&second["vlan"], &second["network"]), (&serde_json::Value::Null, &"fast".into()));
    let shown = daemon.cli(&["network", "show", "fast"]).expect("shown");
    for line in [format!("  pool      {} vm1\n", address(0)), format!("  pool      {} free\n", address(3))] {
        assert!(shown.contains(&line), "{line}: {shown}");
    }
    let refused = |words: &[&str]| beside(&host, &daemon, words).expect_err("refused").to_string();
    assert!(refused(&["allocate", "vm1", "--network", "fast"]).contains("vswitch hostdev release vm1"));
    assert!(refused(&["allocate", "x", "--network", "slow"]).contains("vswitch network list"));
    let error = refused(&["allocate", "x", "--network", "fast", "--portgroup", "green"]);
    assert!(error.contains("known: red, blue"), "{error}");
    let error = daemon.cli(&["port", "add", "x=tap,network=fast"]).expect_err("no port").to_string();
    assert!(error.contains("vswitch hostdev allocate x --network fast"), "{error}");
    for name in ["vm3", "vm4"] {
        beside(&host, &daemon, &["allocate", name, "--network", "fast"]).expect("allocated");
    }
    let error = refused(&["allocate", "vm5", "--network", "fast"]);
    assert!(
        error.contains("every virtual function of network \"fast\" is allocated") && error.contains("to vm4"),
        "{error}"
    );
    daemon.cli(&["network", "stop", "fast"]).expect("stopped");
    beside(&host, &daemon, &["release", "vm4"]).expect("released");
    assert!(refused(&["allocate", "vm5", "--network", "fast"]).contains("vswitch network start fast"));
}

#[test]
fn a_pool_can_be_written_down_by_address() {
    let host = Host::new();
    // As libvirt writes it, with the functions of this tree; not managed.
    let xml = include_str!("network-xml/hostdev.xml")
        .replace("<name>hostdev<", "<name>fast<")
        .replace(" managed='yes'", "")
        .replace("bus='0x04' slot='0x00' function='0x1'", "bus='0x03' slot='0x10' function='0x6'")
        .replace("bus='0x04' slot='0x00' function='0x2'", "bus='0x03' slot='0x10' function='0x2'");
    let daemon = switch(&host, &xml);
    let given = beside(&host, &daemon, &["allocate", "vm1", "--network", "fast"]).expect("allocated");
    assert_eq!(given, format!("vm1: VF 3 of eth0 at {}\n", address(3)));
    assert!(beside(&host, &daemon, &["libvirt-xml", "vm1"]).expect("printed").contains("managed='no'"));
    assert_eq!(daemon.json(&["network", "show", "fast"]).expect("shown")[0]["pool"].as_array().map(Vec::len), Some(2));
    define(&daemon, &xml.replace("function='0x2'", "function='0x7'")).expect("defined");
    let error = beside(&host, &daemon, &["allocate", "vm2", "--network", "fast"]).expect_err("refused").to_string();
    assert!(error.contains("no virtual function at 0000:03:10.7"), "{error}");
    // A network of another mode has no functions.
    define(&daemon, "name = \"fast\"").expect("defined");
    let error = beside(&host, &daemon, &["allocate", "vm2", "--network", "fast"]).expect_err("refused").to_string();
    assert!(error.contains("vswitch port add NAME=KIND,network=fast"), "{error}");
}
