//! What the API says: JSON bodies of answers and requests.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{
    desired::Origin,
    plan::Step,
    spec::{AttachmentSpec, DomainSpec, NetworkSpec, PortSpec},
};
use crate::{
    fdb::Kind,
    mac::MacAddr,
    network::{Blocker, Lease},
    port::bond::BondStatus,
    rate::Rate,
    stages::{STAGES, Sums},
};

/// Whether a port works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// Open and set up.
    Up,
    /// Open, but set down.
    Down,
    /// Not open yet; `reason` says why, and it is tried again.
    Waiting,
}

/// A port, wanted and observed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortView {
    /// What was asked for.
    pub spec: PortSpec,
    /// What is so, where it is something else: what its network gives to the port, and takes from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Box<PortSpec>>,
    /// Who asked; `None` for a domain's host port.
    pub origin: Option<Origin>,
    /// Whether it works.
    pub state: PortState,
    /// Why it is waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The address of its netdev.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_mac: Option<MacAddr>,
    /// What its netdev is: `tun`, `veth`, `bridge` …; nothing for physical devices and those that are not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_kind: Option<String>,
    /// Its netdev is a TAP that was made for several queues.
    #[serde(default)]
    pub multi_queue: bool,
    /// What a bond's members do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<BondStatus>,
    /// Learned and static addresses on it.
    pub fdb_entries: usize,
    /// Addresses that the station of a clean port has obtained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bindings: Vec<BindingView>,
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
    /// Drops by reason; reasons without drops are left out.
    pub drops: BTreeMap<String, u64>,
}

impl PortView {
    /// The port as it is.
    #[must_use]
    pub fn effective(&self) -> &PortSpec {
        self.effective.as_deref().unwrap_or(&self.spec)
    }
}

/// An address that the station of a clean port has obtained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingView {
    /// The address.
    pub address: IpAddr,
    /// `dhcp`: a server gave it; `nd`: the station claimed it, and nobody objected.
    pub source: String,
    /// Claimed just now: packets from it do not pass yet.
    #[serde(default)]
    pub tentative: bool,
    /// Seconds until the lease ends, or until a claim that is not heard of may give way to another.
    pub left_s: u64,
}

/// A domain, wanted and observed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DomainView {
    /// What was asked for.
    pub spec: DomainSpec,
    /// Who asked; `None` for the implied `default`.
    pub origin: Option<Origin>,
    /// The names of its members, with dress and role.
    pub members: Vec<String>,
}

/// One FDB entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbView {
    /// The domain's name.
    pub domain: String,
    /// The address.
    pub mac: MacAddr,
    /// The port's name.
    pub port: String,
    /// Learned, sticky or static.
    pub kind: Kind,
    /// Seconds since the last frame from it.
    pub age_s: u32,
}

/// The switch as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The version of vswitch.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it was started.
    pub uptime_s: u64,
    /// Worker threads.
    pub workers: usize,
    /// Nanoseconds that each worker has spent moving frames, as opposed to polling empty queues and sleeping.
    #[serde(default)]
    pub busy_ns: Vec<u64>,
    /// What the stages of each worker cost; there are none unless the switch was built to count them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StagesView>,
    /// The number of the topology in use.
    pub epoch: u64,
    /// The number of the desired state: another one after every change of it; see [`Edit::revision`].
    #[serde(default)]
    pub revision: u64,
    /// Ports by state.
    pub ports_up: usize,
    /// Ports set down.
    pub ports_down: usize,
    /// Ports that cannot be opened yet.
    pub ports_waiting: usize,
    /// Domains.
    pub domains: usize,
    /// FDB entries.
    pub fdb_entries: usize,
    /// FDB entries that there is room for.
    pub fdb_capacity: usize,
}

/// What the stages of a worker's turns have cost since it was started, by the time stamp counter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StagesView {
    /// Frames received.
    pub frames: u64,
    /// Cycles by stage.
    pub cycles: BTreeMap<String, u64>,
    /// The same per frame.
    pub cycles_per_frame: BTreeMap<String, f64>,
}

impl From<Sums> for StagesView {
    fn from(Sums { frames, cycles }: Sums) -> StagesView {
        let named = || STAGES.iter().map(|name| (*name).to_owned()).zip(cycles);
        StagesView {
            frames,
            cycles: named().collect(),
            cycles_per_frame: named().map(|(name, n)| (name, n as f64 / frames.max(1) as f64)).collect(),
        }
    }
}

/// `POST /v1/ports` and `POST /v1/domains`: a SPEC as text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// The SPEC.
    pub spec: String,
}

/// `PATCH /v1/ports/{name}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortChange {
    /// `key=value` settings.
    #[serde(default)]
    pub set: Vec<String>,
    /// An attachment to add (or to replace that of the same domain).
    #[serde(default)]
    pub attach: Option<String>,
    /// A domain to leave.
    #[serde(default)]
    pub detach: Option<String>,
}

/// `POST /v1/apply`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// The text of the file.
    pub toml: String,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Also remove what the file did not make.
    #[serde(default)]
    pub prune: bool,
}

/// `POST /v1/edit`: several changes, carried out as a whole or not at all.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// Refuse (409) unless [`Status::revision`] is still this.
    #[serde(default)]
    pub revision: Option<u64>,
    /// Who asks: objects that are new become theirs.
    #[serde(default = "cli")]
    pub origin: Origin,
    /// Ports to be removed; those that are not there are gone already.
    #[serde(default)]
    pub remove_ports: Vec<String>,
    /// Domains to be removed, which must not have members then; likewise.
    #[serde(default)]
    pub remove_domains: Vec<String>,
    /// Domains to be added, or to be made so.
    #[serde(default)]
    pub domains: Vec<DomainSpec>,
    /// Ports to be added, or to be made so.
    #[serde(default)]
    pub ports: Vec<PortSpec>,
}

fn cli() -> Origin {
    Origin::Cli
}

impl Default for Edit {
    fn default() -> Edit {
        Edit {
            revision: None,
            origin: cli(),
            remove_ports: Vec::new(),
            remove_domains: Vec::new(),
            domains: Vec::new(),
            ports: Vec::new(),
        }
    }
}

/// The answer to every change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// What was (or would be) done.
    pub steps: Vec<Step>,
    /// Ports that wait, with the reason.
    #[serde(default)]
    pub waiting: BTreeMap<String, String>,
}

/// `POST /v1/fdb/flush`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlushRequest {
    /// Only this port's.
    #[serde(default)]
    pub port: Option<String>,
    /// Only this domain's.
    #[serde(default)]
    pub domain: Option<String>,
}

/// The answer to a flush.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Flushed {
    /// Entries removed.
    pub removed: usize,
}

/// An error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong and what to do.
    pub error: String,
}

/// Whether a network works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkState {
    /// Started, and everything it needs is there.
    Up,
    /// Started, but `reason` keeps it from working; it is tried again.
    Waiting,
    /// Not started: nothing passes in its domain.
    Stopped,
}

/// A port that joins a network by its name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberView {
    /// The port.
    pub port: String,
    /// Its portgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portgroup: Option<String>,
    /// The device that its macvtap is made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Its attachments.
    pub domains: Vec<AttachmentSpec>,
    /// What may be sent to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_to: Option<Rate>,
    /// What is read from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_from: Option<Rate>,
    /// The address that alone is known behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<MacAddr>,
}

/// A device of a network's pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// Its name, or a function's address.
    pub device: String,
    /// Who has it.
    pub members: Vec<String>,
}

/// A network, wanted and observed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkView {
    /// What was asked for.
    pub spec: NetworkSpec,
    /// Who asked.
    pub origin: Origin,
    /// Whether it works.
    pub state: NetworkState,
    /// What does not work, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its nftables table, of the family `inet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Chains of others that may drop what it forwards.
    #[serde(default)]
    pub blockers: Vec<Blocker>,
    /// The id of its dnsmasq.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dnsmasq: Option<u32>,
    /// Addresses that guests have.
    #[serde(default)]
    pub leases: Vec<Lease>,
    /// Ports that join by its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberView>,
    /// Devices that guests are given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pool: Vec<PoolView>,
}

/// `POST /v1/networks/{name}/start`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartNetwork {
    /// Chains of others that drop what is forwarded are given an exception.
    #[serde(default)]
    pub fix_forward: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_named_and_divided_by_the_frames() {
        let view = StagesView::from(Sums { frames: 4, cycles: [40, 8, 0, 0, 2, 0] });
        assert_eq!((view.cycles["rx"], view.cycles_per_frame["rx"]), (40, 10.0));
        assert_eq!((view.cycles_per_frame["classify"], view.cycles_per_frame["transmit"]), (2.0, 0.5));
        assert_eq!(StagesView::from(Sums::default()).cycles_per_frame["rx"], 0.0, "of no frames");
    }
}
