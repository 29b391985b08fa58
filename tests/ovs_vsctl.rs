//! `vswitch ovs-vsctl` beside Open vSwitch's own: the same session, on a database of Open vSwitch and on the switch, must print the same
//! and end with the same status. And the two switches side by side, joined by a pair of devices.

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use vswitch_benches::{
    contestants::{DEVICE, ovs::Ovs},
    netns::{Namespace, Process, exec, unique, wait_for},
    tools::installed,
};
use vswitch_tests::{Daemon, PATIENCE, binary, skip, transfer};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A database of Open vSwitch without its switch; commands are carried out as far as it is concerned.
struct Database {
    directory: PathBuf,
    _server: Process,
}

impl Database {
    fn start() -> anyhow::Result<Database> {
        let directory = std::env::temp_dir().join(unique("vswitch-ovsdb-"));
        std::fs::create_dir(&directory)?;
        let file = |name: &str| directory.join(name).display().to_string();
        exec(&["ovsdb-tool", "create", &file("conf.db"), SCHEMA])?;
        let server = Command::new("ovsdb-server")
            .args([
                &file("conf.db"),
                &format!("--remote=punix:{}", file("db.sock")),
                &format!("--unixctl={}", file("ctl")),
            ])
            .args(["-vconsole:off", "-vsyslog:off"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let database = Database { directory, _server: Process(server) };
        wait_for("the database answers", PATIENCE, || database.run(&["init"]).status.success())?;
        Ok(database)
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new("ovs-vsctl");
        command.arg(format!("--db=unix:{}", self.directory.join("db.sock").display()));
        command.args(["--timeout=60", "--no-wait", "-vsyslog:off"]).args(words).output().expect("installed")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn a_session_prints_what_open_vswitch_prints() {
    if let Some(missing) = ["ovsdb-server", "ovsdb-tool", "ovs-vsctl"].into_iter().find(|program| !installed(program)) {
        return skip(&format!("{missing} is not installed"));
    }
    let database = Database::start().expect("a database");
    let daemon = Daemon::start(&[]).expect("starts");
    let link = daemon.file("ovs-vsctl");
    std::os::unix::fs::symlink(binary().expect("built"), &link).expect("linked");
    let (b, p) = (unique("ob"), unique("op"));
    let session = "add-br B|add-br B|--may-exist add-br B|br-exists B|br-exists nope|list-br|list-ports B|list-ports nope|br-to-vlan B|br-to-parent B\
         |add-port B P tag=10 -- set Interface P external-ids:attached-mac=\"52:54:00:00:00:01\" -- set Interface P external-ids:iface-status=active\
         |add-port B P|add-port nope P2|--may-exist add-port B P tag=10|list-ports B|list-ifaces B|port-to-br P|port-to-br nope|port-to-br B|iface-to-br P|iface-to-br nope\
         |get Port P tag|get Port P trunks vlan_mode|get Interface P external_ids:attached-mac|get Interface P external_ids|get interface P name\
         |get Interface P external_ids:PortData|--if-exists get Interface P external_ids:PortData|--if-exists get Interface nope name|get Interface nope name\
         |set Interface P external_ids:PortData=\"a,b=c\"|get Interface P external_ids:PortData|set Port P colour=red|set Port nope tag=1|--if-exists set Port nope tag=1\
         |set Port P tag|set Port P tag=9999|set Port P vlan_mode=native-untagged tag=7 trunk=7,8|get port P trunk tag vlan_mode|set Port P trunks=[9]|get Port P trunks\
         |--no-headings --columns=name find Interface options:vhost-server-path=/x|--no-headings --columns=name find Interface name=P|--columns=name,tag find Port tag=7\
         |--bare --columns=name,external_ids list Interface P|--data=json --columns=trunks,tag,external_ids list Port P|--data=json --no-headings --columns=external_ids list Interface P\
         |--no-heading --columns=_uuid find queue external-ids:a=b|--if-exists --format=list --data=json --no-headings --columns=statistics list Interface nope\
         |--if-exists clear Port P tag -- --if-exists clear Port P trunk -- --if-exists clear Port P vlan_mode -- --if-exists set Port P tag=7|get Port P tag trunks vlan_mode\
         |clear Port P name|remove Interface P external_ids PortData|get Interface P external_ids|set Port P other_config:transient=true|get Port P other_config\
         |set Interface P external_ids={x=y,\"z.z\"=\"a,b\"}|get interface P external_ids|br-set-external-id B k v|br-get-external-id B k|br-get-external-id B|get Bridge B external_ids\
         |frob|add-br|list-ports|add-port B|del-port B|del-port nope|--if-exists del-port nope|del-port nope P|--timeout=5 -- --if-exists del-port P|list-ports B\
         |add-port B P tag=1 -- add-port B P|list-ports B|del-br nope|--if-exists del-br nope|del-br B -- add-br B|list-br|del-br B|list-br";
    for line in session.split('|') {
        let words: Vec<String> = line
            .split_whitespace()
            .map(|word| match word {
                "B" => b.clone(),
                "P" => p.clone(),
                _ => word.replace("name=P", &format!("name={p}")),
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let theirs = database.run(&words);
        let ours = Command::new(&link).env("VSWITCH_API", daemon.socket()).args(&words).output().expect("runs");
        let seen = |output: &Output| (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned());
        assert_eq!(seen(&ours), seen(&theirs), "{line}: {ours:?} {theirs:?}");
    }
}

/// Two transactions at the same time: neither loses what the other did.
#[test]
fn transactions_do_not_overtake_each_other() {
    let daemon = Daemon::start(&[]).expect("starts");
    let bridge = unique("ob");
    daemon.cli(&["ovs-vsctl", "add-br", &bridge]).expect("made");
    let ports: Vec<String> = (1..=8).map(|n| format!("{bridge}-{n}")).collect();
    std::thread::scope(|scope| {
        for (port, vid) in ports.iter().zip(1..) {
            let (daemon, bridge) = (&daemon, &bridge);
            scope.spawn(move || {
                let tag = format!("tag={vid}");
                daemon.cli(&["ovs-vsctl", "add-port", bridge, port, &tag]).expect("added");
            });
        }
    });
    let listed = daemon.cli(&["ovs-vsctl", "list-ports", &bridge]).expect("listed");
    assert_eq!(listed.lines().collect::<Vec<_>>(), ports);
    assert_eq!(daemon.port(&bridge)["spec"]["domains"].as_array().map(Vec::len), Some(1 + ports.len()));
}

/// docs/libvirt.md: a pair of devices between the switch and a bridge of Open vSwitch, here with its userspace datapath.
#[test]
fn a_pair_of_devices_joins_the_two_switches() {
    if let Some(missing) = ["ovsdb-server", "ovs-vswitchd", "ovs-vsctl"].into_iter().find(|program| !installed(program))
    {
        return skip(&format!("{missing} is not installed"));
    }
    let [theirs, other, ours] = ["oa", "ob", "oc"].map(|prefix| Namespace::new(prefix).expect("root"));
    let ovs = Ovs::start(&[&theirs, &other], false).expect("Open vSwitch starts");
    let near = unique("ov");
    let pair = ["ip", "link", "add", &near, "type", "veth", "peer", "name", "patch0", "netns", ovs.home().name()];
    exec(&pair).expect("made");
    // It goes with its other end, which goes with its namespace.
    exec(&["ip", "link", "set", &near, "up"]).expect("up");
    ovs.home().exec(&["ip", "link", "set", "patch0", "up"]).expect("up");
    ovs.add_port("patch0").expect("added");
    let patch = format!("{near}=packet,offload=off");
    let daemon =
        Daemon::start(&["--port", &patch, "--port", &format!("here=tap,netns={}", ours.name())]).expect("starts");
    theirs.configure(DEVICE, &["10.97.0.1/24"]).expect("up");
    ours.configure("here", &["10.97.0.2/24"]).expect("up");
    daemon.wait_state(&near, "up").expect("up");
    daemon.wait_state("here", "up").expect("up");
    ours.exec(&["ping", "-c", "3", "-W", "5", "10.97.0.1"]).expect("answered");
    transfer(&ours, &theirs, "10.97.0.1", 1 << 20);
    transfer(&theirs, &ours, "10.97.0.2", 1 << 20);
}
