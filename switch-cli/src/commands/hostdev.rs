//! `vswitch hostdev`: virtual functions of SR-IOV NICs for guests. It works without a running switch, because no frame of
//! such a function passes through one. Only a network's pool is asked for there.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;
use switch_core::{
    control::wire::{NetworkState, NetworkView},
    hostdev::{Allocation, Pf, Pool, Vf, Wish},
    mac::MacAddr,
};

use super::{network, print_json, print_table};
use crate::client::Client;

/// `vswitch hostdev`.
#[derive(Args)]
#[command(after_help = "Examples:
  vswitch hostdev list
  vswitch hostdev allocate vm1 eth0 --vlan 42    the first free virtual function of eth0
  vswitch hostdev allocate vm2 --network fast    the first free one of a network of mode hostdev
  vswitch hostdev libvirt-xml vm1 > vm1.xml && virsh attach-device DOMAIN vm1.xml --config
  vswitch hostdev release vm1

The frames of a virtual function do not pass through the switch: domains, roles, storm control,
counters and the rest do not reach them. The NIC's own switch carries them.")]
pub struct Hostdev {
    /// Where allocations are kept.
    #[arg(long, default_value = "/var/lib/vswitch", value_name = "DIRECTORY", global = true)]
    state: PathBuf,
    /// Where sysfs is.
    #[arg(long, default_value = "/sys", value_name = "DIRECTORY", global = true)]
    sysfs: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show NICs with virtual functions, and whose these are
    List {
        /// Only this NIC.
        pf: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Give the first free virtual function of a NIC, or of a network, to a name
    Allocate {
        /// Whose it is to be.
        name: String,
        /// The NIC.
        #[arg(required_unless_present = "network", conflicts_with = "network")]
        pf: Option<String>,
        /// The network (forward mode hostdev), which must be started; its VLAN is the function's.
        #[arg(long)]
        network: Option<String>,
        /// The network's portgroup [default: its default one].
        #[arg(long, requires = "network")]
        portgroup: Option<String>,
        /// Address of the guest's device [default: one that belongs to the name on this host].
        #[arg(long)]
        mac: Option<MacAddr>,
        /// VLAN that the NIC puts the guest's frames into.
        #[arg(long)]
        vlan: Option<u16>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take a name's virtual function back
    Release {
        /// Whose it was.
        name: String,
    },
    /// Print the libvirt XML that gives a guest its virtual function
    LibvirtXml {
        /// Whose it is.
        name: String,
    },
}

#[derive(Serialize)]
struct VfView<'a> {
    #[serde(flatten)]
    vf: &'a Vf,
    allocated_to: Option<&'a str>,
}

#[derive(Serialize)]
struct PfView<'a> {
    netdev: &'a str,
    address: String,
    total: u32,
    enabled: u32,
    vfs: Vec<VfView<'a>>,
}

#[derive(Serialize)]
struct Listing<'a> {
    pfs: Vec<PfView<'a>>,
    /// What is given away and not there any more.
    gone: Vec<&'a Allocation>,
}

fn listing<'a>(pool: &'a Pool, only: Option<&str>) -> anyhow::Result<Listing<'a>> {
    if let Some(pf) = only {
        pool.pf(pf)?;
    }
    let wanted = |pf: &&Pf| only.is_none_or(|name| name == pf.netdev);
    let view = |pf: &'a Pf| PfView {
        netdev: &pf.netdev,
        address: pf.address.to_string(),
        total: pf.total,
        enabled: pf.enabled,
        vfs: pf
            .vfs
            .iter()
            .map(|vf| VfView { vf, allocated_to: pool.owner(&pf.netdev, vf.index).map(|a| a.name.as_str()) })
            .collect(),
    };
    Ok(Listing {
        pfs: pool.pfs().iter().filter(wanted).map(view).collect(),
        gone: pool
            .allocations()
            .iter()
            .filter(|a| only.is_none_or(|name| name == a.pf) && pool.find(&a.name).is_err())
            .collect(),
    })
}

fn show(listing: &Listing<'_>) {
    if listing.pfs.is_empty() {
        println!("no NIC of this host has virtual functions");
    }
    let mut rows = Vec::new();
    for pf in &listing.pfs {
        println!("{} ({}): {} of {} VFs enabled", pf.netdev, pf.address, pf.enabled, pf.total);
        for VfView { vf, allocated_to } in &pf.vfs {
            let group = match vf.iommu_group {
                Some(group) if vf.shares_group => format!("{group}, shared"),
                Some(group) => group.to_string(),
                None => "none".to_owned(),
            };
            let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            rows.push(vec![
                pf.netdev.to_owned(),
                vf.index.to_string(),
                vf.address.to_string(),
                or_none(&vf.driver),
                or_none(&vf.netdev),
                group,
                allocated_to.unwrap_or("-").to_owned(),
            ]);
        }
    }
    if !rows.is_empty() {
        print_table(&["NIC", "VF", "ADDRESS", "DRIVER", "NETDEV", "IOMMU GROUP", "ALLOCATED TO"], &rows);
    }
    for allocation in &listing.gone {
        println!("{}: VF {} of {} is not there any more", allocation.name, allocation.index, allocation.pf);
    }
}

/// A network that gives to guests now.
fn started(client: &Client, name: &str) -> anyhow::Result<NetworkView> {
    let view = network::one(client, name)?;
    if view.state == NetworkState::Stopped {
        bail!("network \"{name}\" is stopped; start it: vswitch network start {name}");
    }
    Ok(view)
}

/// Carries out the command.
pub fn hostdev(client: &Client, wish: Hostdev) -> anyhow::Result<()> {
    let Hostdev { state, sysfs, command } = wish;
    match command {
        Command::List { pf, json } => {
            let pool = Pool::read(&sysfs, &state)?;
            let listing = listing(&pool, pf.as_deref())?;
            if json {
                return print_json(&listing);
            }
            show(&listing);
        }
        Command::Allocate { name, pf, network, portgroup, mac, vlan, json } => {
            let wish = Wish { name, mac, vlan };
            let allocation = match network {
                Some(network) => {
                    let spec = started(client, &network)?.spec;
                    Pool::lock(&sysfs, &state)?.allocate_in(&wish, &spec, portgroup.as_deref())?
                }
                None => Pool::lock(&sysfs, &state)?.allocate(&wish, &pf.unwrap_or_default())?,
            };
            if json {
                return print_json(&allocation);
            }
            let Allocation { name, pf, index, address, .. } = allocation;
            println!("{name}: VF {index} of {pf} at {address}");
        }
        Command::Release { name } => {
            let allocation = Pool::lock(&sysfs, &state)?.release(&name)?;
            println!("VF {} of {} at {} is free", allocation.index, allocation.pf, allocation.address);
        }
        Command::LibvirtXml { name } => print!("{}", Pool::read(&sysfs, &state)?.find(&name)?.libvirt_xml()),
    }
    Ok(())
}
