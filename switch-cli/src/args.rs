//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use switch_core::mac::MacAddr;

use crate::commands::qemu_args::{Version, memory_size};

/// A userspace Ethernet switch for virtual machines and network namespaces.
#[derive(Parser)]
#[command(
    name = "vswitch",
    version,
    after_help = "Examples:
  vswitch demo                                   see it work, in throw-away namespaces
  vswitch run --port vm1=tap --port vm2=tap      a switch with two TAPs, in the foreground
  vswitch domain add blue && vswitch port add vm3=tap,domain=blue:isolated
  vswitch fdb show --json
  vswitch bench --quick                          measure it beside the kernel bridge"
)]
pub struct Cli {
    /// API socket of the switch.
    #[arg(long, env = "VSWITCH_API", default_value = "/run/vswitch/api.sock", global = true)]
    pub api: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Subcommand)]
pub enum Command {
    /// Run a switch in the foreground; Ctrl-C or SIGTERM ends it and cleans up
    Run(Run),
    /// Make the objects of a file what it says; leave those made by commands
    #[command(after_help = "Example file:
  [[domain]]
  name = \"blue\"
  [[port]]
  name = \"vm1\"
  kind = \"tap\"
  domains = [\"blue:isolated\"]")]
    Apply {
        /// TOML file.
        file: PathBuf,
        /// Only print what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Also remove what the file did not make.
        #[arg(long)]
        prune: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the switch as a whole
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ports: add, del, show, set, attach, detach
    #[command(subcommand)]
    Port(Port),
    /// Isolation domains: add, del, show, set
    #[command(subcommand)]
    Domain(Domain),
    /// The MAC table: show, add, del, flush
    #[command(subcommand)]
    Fdb(Fdb),
    /// Virtual networks: define, start, stop, show, list, undefine
    #[command(subcommand)]
    Network(Network),
    /// Print the QEMU arguments that plug a VM into a port
    QemuArgs(QemuArgs),
    /// Print the libvirt XML that plugs a domain into a port
    LibvirtXml(LibvirtXml),
    /// Virtual functions of SR-IOV NICs for guests: list, allocate, release, libvirt-xml
    Hostdev(crate::commands::hostdev::Hostdev),
    /// What libvirt's hook calls: ports of a machine come before it starts, and go after it has ended
    #[command(after_help = "In /etc/libvirt/hooks/qemu:
  #!/bin/sh
  exec vswitch libvirt-hook qemu \"$@\"")]
    LibvirtHook(LibvirtHook),
    /// Print what happens, line by line, until Ctrl-C
    Monitor {
        /// Print JSON lines.
        #[arg(long)]
        json: bool,
    },
    /// Bridges in the words of bridge-utils; a link to this program named brctl does the same
    #[command(after_help = "Examples:
  vswitch brctl addbr br0 && vswitch brctl addif br0 eth1
  ln -s $(command -v vswitch) /usr/local/sbin/brctl && brctl show")]
    Brctl {
        /// addbr, delbr, addif, delif, show, showmacs, showstp, setageing, hairpin, stp, …: all of them without arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Bridges in the words of Open vSwitch, as libvirt speaks them; a link to this program named ovs-vsctl does the same
    #[command(
        disable_help_flag = true,
        after_help = "Examples:
  vswitch ovs-vsctl add-br br0 -- add-port br0 eth1 -- add-port br0 tap3 tag=10
  ln -s $(command -v vswitch) /usr/local/bin/ovs-vsctl && ovs-vsctl show"
    )]
    OvsVsctl {
        /// add-br, del-br, add-port, del-port, show, get, set, list, find, …: all of them with --help.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// See it work: namespaces, isolation, throughput beside the kernel bridge; cleans up after itself
    Demo,
    /// Measure: scenarios, this switch and others in turn, a table and a report
    Bench(Bench),
    /// What the laboratory's contestants `loop` and `loop-busy` are.
    #[command(hide = true)]
    Loop {
        /// NETNS:DEVICE
        ends: Vec<String>,
        /// Never sleep.
        #[arg(long)]
        busy: bool,
    },
}

/// `vswitch bench`.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_help_heading = "Other than measuring",
    after_help = "Examples:
  vswitch bench list                             scenarios and contestants, and what this machine lacks
  vswitch bench --quick                          a few scenarios in under three minutes
  vswitch bench netns latency --against bridge,ovs --out before
  vswitch bench netns latency --against bridge,ovs --out after && vswitch bench compare before after
  vswitch bench frame-size --size 64,1518,imix --runs 9 --time 2
  vswitch bench --pcap office.pcap --speed 2     a capture, twice as fast as it was recorded
  vswitch bench --full --out nightly             everything; the same command goes on after an interruption

A run whose directory has an unfinished results.json goes on with it. Exit status: 0 all was measured, 1 something
failed, 2 bad options, 130 interrupted (partial results are written, nothing is left behind)."
)]
pub struct Bench {
    /// Other than measuring.
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// Scenarios [default: with --quick a few, with --full all].
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// Contestants; without a vswitch among them, vswitch is added [default: all that a scenario has, with --quick a few].
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub against: Option<Vec<String>>,
    /// Frame sizes: bytes with FCS, imix, jumbo, gso.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub size: Option<Vec<String>>,
    /// Length of one measurement [default: 0.5 with --quick, else 1].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub time: Option<f64>,
    /// Rounds, in each of which every contestant has a turn [default: 3 with --quick, else 5].
    #[arg(long, value_name = "N")]
    pub runs: Option<u32>,
    /// Few and short rounds.
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,
    /// All scenarios and contestants; throughput is searched for (MLRsearch, RFC 9971), which takes hours.
    #[arg(long)]
    pub full: bool,
    /// Directory for results.json, results.csv and report.html [default: bench-<time>].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replay a capture (scenario replay).
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// So many times as fast as it was recorded.
    #[arg(long, value_name = "X", requires = "pcap", conflicts_with = "fast", default_value_t = 1.0)]
    pub speed: f64,
    /// As fast as frames are taken.
    #[arg(long, requires = "pcap")]
    pub fast: bool,
    /// Profile the switch with perf, beside the measurements.
    #[arg(long)]
    pub profile: bool,
    /// Print the results as JSON.
    #[arg(long)]
    pub json: bool,
    /// The smallest cases only.
    #[arg(long, hide = true)]
    pub smoke: bool,
}

/// Commands of `vswitch bench` other than measuring.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Explain scenarios and contestants, and say what this machine lacks
    List,
    /// Compare two runs: 0 no regression, 1 a regression, 2 nothing could be judged
    Compare {
        /// results.json, or its directory.
        old: PathBuf,
        /// results.json, or its directory.
        new: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write results.csv and report.html anew, and print the table
    Report {
        /// results.json, or its directory.
        results: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `vswitch run`.
#[derive(Args)]
#[command(after_help = "Examples:
  vswitch run --port vm1=tap --port vm2=tap,domain=none
  vswitch run -c /etc/vswitch.toml --workers 2 --poll busy --cpus 2,3")]
pub struct Run {
    /// Configuration file (TOML), applied at the start.
    #[arg(short, long)]
    pub config: Option<PathBuf>,
    /// Worker threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// CPUs to pin workers to, for example 2,3 or 4-7.
    #[arg(long, value_parser = cpu_list, default_value = "")]
    pub cpus: Cpus,
    /// How workers wait for frames.
    #[arg(long, value_enum, default_value = "adaptive")]
    pub poll: Poll,
    /// A port: NAME=KIND[,key=value]...
    #[arg(long = "port", value_name = "SPEC")]
    pub ports: Vec<String>,
    /// A domain: NAME[,key=value]...
    #[arg(long = "domain", value_name = "SPEC")]
    pub domains: Vec<String>,
    /// Entries of the MAC table (1024 to 1048576).
    #[arg(long, default_value_t = 65_536)]
    pub fdb_size: usize,
    /// Where desired state is kept across restarts.
    #[arg(long, default_value = "/var/lib/vswitch", value_name = "DIRECTORY")]
    pub state: PathBuf,
    /// Where sysfs is: networks take virtual functions of NICs from there.
    #[arg(long, default_value = switch_core::switch::SYSFS, value_name = "DIRECTORY")]
    pub sysfs: PathBuf,
}

/// `vswitch qemu-args`.
#[derive(Args)]
#[command(after_help = "Examples:
  vswitch port add vm1=vhost-user,path=/run/vm1.sock
  qemu-system-x86_64 -enable-kvm vm1.qcow2 $(vswitch qemu-args vm1 --memory 4G)
  vswitch qemu-args vm1 storage1                 one VM with two devices
  vswitch qemu-args vm1 --json                   an array of words, for programs

--memory is the VM's memory (-m, if given, must say the same); it is printed for vhost-user
ports, which need it shared. What arguments cannot say goes to standard error.")]
pub struct QemuArgs {
    /// The ports, all for one VM.
    #[arg(required = true, value_name = "PORT")]
    pub ports: Vec<String>,
    /// Address of the device [default: the port's station=, or one that belongs to its name on this host].
    #[arg(long)]
    pub mac: Option<MacAddr>,
    /// Memory of the VM, for example 512M or 4G.
    #[arg(long, default_value = "1G", value_parser = memory_size, value_name = "SIZE")]
    pub memory: String,
    /// The version of QEMU to write for [default: that of the QEMU installed here].
    #[arg(long, value_name = "VERSION")]
    pub qemu: Option<Version>,
    /// Print a JSON array of words.
    #[arg(long)]
    pub json: bool,
}

/// `vswitch libvirt-xml`.
#[derive(Args)]
#[command(after_help = "Examples:
  vswitch port add vm1=vhost-user,path=/run/vm1.sock,owner=libvirt-qemu
  vswitch libvirt-xml vm1                        to be pasted with: virsh edit DOMAIN
  vswitch libvirt-xml vm1 > vm1.xml && virsh attach-device DOMAIN vm1.xml --config

What belongs beside <devices> (the shared memory that vhost-user needs) is printed as a comment.")]
pub struct LibvirtXml {
    /// The port.
    pub port: String,
    /// Address of the device [default: the port's station=, or one that belongs to its name on this host].
    #[arg(long)]
    pub mac: Option<MacAddr>,
    /// The version of QEMU, where its own arguments are needed [default: that of the QEMU installed here].
    #[arg(long, value_name = "VERSION")]
    pub qemu: Option<Version>,
}

/// `vswitch libvirt-hook`: the hook's own arguments, and the machine's XML on standard input.
#[derive(Args)]
pub struct LibvirtHook {
    /// The driver that calls.
    #[arg(value_parser = ["qemu"])]
    pub driver: String,
    /// The machine's name.
    pub machine: String,
    /// prepare, start, started, stopped, release, reconnect, migrate, restore, attach.
    pub operation: String,
    /// begin or end, and what libvirt adds.
    pub rest: Vec<String>,
}

/// A list of CPUs.
#[derive(Clone, Debug, Default)]
pub struct Cpus(pub Vec<usize>);

fn cpu_list(text: &str) -> Result<Cpus, String> {
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |t: &str| t.parse::<usize>().map_err(|_| format!("\"{part}\" is not a CPU or a range of CPUs"));
        cpus.extend(number(from)?..=number(to)?);
    }
    Ok(Cpus(cpus))
}

/// Poll modes.
#[derive(Clone, Copy, ValueEnum)]
pub enum Poll {
    /// Spin for a short time after work, then sleep
    Adaptive,
    /// Never sleep
    Busy,
    /// Sleep whenever nothing is ready
    Interrupt,
}

/// `vswitch port`.
#[derive(Subcommand)]
pub enum Port {
    /// Add a port
    #[command(after_help = "Examples:
  vswitch port add vm1=tap
  vswitch port add t0=tap,netns=blue,queues=2,offload=off,domain=red:tag=10
  vswitch port add eth1=packet,domain=br1
  vswitch port add veth1=packet,engine=xdp        (AF_XDP: for small frames; needs native XDP)
  vswitch port add vtap0=macvtap,device=eth0,mode=bridge,mac=52:54:00:12:34:56
  vswitch port add vm1=vhost-user,path=/run/vm1.sock,network=lab,portgroup=slow
  vswitch port add l3=tun,address=10.0.0.5,gateway=10.0.0.1,onlink=10.0.0.0/24
  vswitch port add up=bond,devices=eth0+eth1,mode=802.3ad,domain=red:tag=10,domain=blue:tag=20")]
    Add {
        /// NAME=KIND[,key=value]...
        spec: String,
    },
    /// Remove a port
    Del {
        /// Its name.
        name: String,
    },
    /// Show ports with their counters; of a bond named, what its members do
    Show {
        /// Only this one.
        name: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Change settings of a port: link=up|down hairpin=on|off clean=on|off ip=… rate-to=… mtu=… network=NAME|none portgroup=…
    Set {
        /// Its name.
        name: String,
        /// key=value.
        #[arg(required = true)]
        settings: Vec<String>,
    },
    /// Attach a port to a domain: DOMAIN[:untagged|:tag=VID|:transparent][:isolated|:community=NAME]
    Attach {
        /// Its name.
        name: String,
        /// The attachment.
        attachment: String,
    },
    /// Detach a port from a domain
    Detach {
        /// Its name.
        name: String,
        /// The domain.
        domain: String,
    },
}

/// `vswitch domain`.
#[derive(Subcommand)]
pub enum Domain {
    /// Add a domain
    #[command(after_help = "Example: vswitch domain add blue mtu=9000 ageing=600 host=on")]
    Add {
        /// Its name.
        name: String,
        /// key=value: mtu, ageing, group-fwd-mask, host, transparent, fdb-limit, rate.
        settings: Vec<String>,
    },
    /// Remove a domain without members
    Del {
        /// Its name.
        name: String,
    },
    /// Show domains with their members
    Show {
        /// Only this one.
        name: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Change settings of a domain
    Set {
        /// Its name.
        name: String,
        /// key=value.
        #[arg(required = true)]
        settings: Vec<String>,
    },
}

/// `vswitch network`.
#[derive(Subcommand)]
pub enum Network {
    /// Define a network, or change its definition; one that is started follows at once
    #[command(after_help = "Example, from standard input:
  vswitch network define - <<'END'
  name = \"lab\"
  forward = { mode = \"nat\" }
  [[ip]]
  address = \"10.7.0.1/24\"
  dhcp = { range = [{ start = \"10.7.0.100\", end = \"10.7.0.199\" }] }
  END
  vswitch network start lab
  vswitch port add vm1=tap,domain=lab

A network of libvirt's:
  virsh net-dumpxml default | vswitch network define -

Settings by name, of a network on a bridge that vswitch ovs-vsctl made, and a port that takes them:
  vswitch network define - <<'END'
  name = \"office\"
  forward = { mode = \"openvswitch\" }
  bridge = { name = \"ovsbr0\" }
  [[portgroup]]
  name = \"guests\"
  vlan = { tags = [{ id = 42 }] }
  bandwidth = { inbound = { average = 1000 }, outbound = { average = 500 } }
  END
  vswitch network start office
  vswitch port add vm1=vhost-user,path=/run/vm1.sock,network=office,portgroup=guests

Modes: isolated (default), nat, routed, open, bridge (with dev, uplink or domain), openvswitch (with bridge.name),
macvtap (with interfaces or pf), hostdev (with pf or addresses; see: vswitch hostdev allocate --help).
Several VLANs on one device, or on a bond:
  forward = { mode = \"bridge\", uplink = { device = \"eth0\", vlan = 42 } }
  forward = { mode = \"bridge\", uplink = { bond = { devices = [\"eth0\", \"eth1\"], mode = \"802.3ad\" }, vlan = 42 } }")]
    Define {
        /// What virsh net-dumpxml prints, or a TOML file with a network or several as [[network]]; - for standard input.
        file: PathBuf,
    },
    /// Start a network: its gateway, forwarding, DHCP and DNS
    #[command(after_help = "Examples:
  vswitch network start lab
  vswitch network start lab --fix-forward        with an exception in chains of others that drop what is forwarded")]
    Start {
        /// Its name.
        name: String,
        /// While it is started, chains that drop what is forwarded (Docker's, firewalld's) have an exception for it.
        #[arg(long)]
        fix_forward: bool,
    },
    /// Stop a network: nothing passes in its domain any more, and the host is as before
    Stop {
        /// Its name.
        name: String,
    },
    /// List networks
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show networks with the addresses that guests have, and what is in the way
    Show {
        /// Only this one.
        name: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Print libvirt's network XML, for virsh net-define.
        #[arg(long, requires = "name", conflicts_with = "json")]
        xml: bool,
    },
    /// Forget a network that is stopped
    Undefine {
        /// Its name.
        name: String,
    },
}

/// `vswitch fdb`.
#[derive(Subcommand)]
pub enum Fdb {
    /// Show the MAC table
    Show {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Add an entry: MAC PORT [domain D] [static|sticky]
    Add {
        /// The address.
        mac: String,
        /// The port.
        port: String,
        /// `domain D`, `static`, `sticky`.
        words: Vec<String>,
    },
    /// Remove an entry: MAC [domain D]
    Del {
        /// The address.
        mac: String,
        /// `domain D`.
        words: Vec<String>,
    },
    /// Forget learned addresses: [port P] [domain D]
    Flush {
        /// `port P`, `domain D`.
        words: Vec<String>,
    },
}
