//! From a SPEC to an open port: each kind's settings, and what all drivers share on the control side.

use std::sync::Arc;

use super::spec::{Engine, Kind, LacpActivity, LacpRate, Mode, PortSpec};
use crate::{
    link::{Links, MacVtapMode},
    mac::mac_of,
    port::{Notifier, Opened, bond, dgram, guard::Guards, macvtap, packet, stream, tap, tun, vhost_user},
};

/// What drivers need beside their SPEC.
pub(super) struct Drivers {
    pub(super) links: Links,
    pub(super) guards: Arc<Guards>,
    pub(super) notifier: Notifier,
}

impl Drivers {
    /// Opens a port. The error is the reason for which it waits.
    pub(super) fn open(&self, spec: &PortSpec) -> Result<Opened, String> {
        match spec.kind {
            Kind::Tap => {
                let config = tap::TapConfig {
                    device: spec.device().to_owned(),
                    netns: spec.netns.clone(),
                    queues: spec.queues,
                    offload: spec.offload,
                    mtu: spec.mtu,
                    mac: spec.mac,
                    owner: spec.owner,
                    group: spec.group,
                    persist: spec.persist,
                    up: true,
                };
                tap::open(&config, &self.links).map_err(|e| e.to_string())
            }
            Kind::Packet => {
                let config = packet::PacketConfig {
                    device: spec.device().to_owned(),
                    netns: spec.netns.clone(),
                    xdp: spec.engine == Some(Engine::Xdp),
                    queues: spec.queues,
                    offload: spec.offload,
                    guards: spec.guarded().then(|| Arc::clone(&self.guards)),
                };
                packet::open(&config, &self.links).map_err(|e| e.to_string())
            }
            Kind::Bond => {
                let config = bond::BondConfig {
                    devices: spec.devices.clone(),
                    netns: spec.netns.clone(),
                    sharing: match spec.mode {
                        Some(Mode::BalanceXor) => bond::Sharing::BalanceXor,
                        Some(Mode::Lacp) => bond::Sharing::Lacp(bond::lacp::Settings {
                            system: spec.mac.unwrap_or_else(|| mac_of(&spec.name)),
                            active: spec.lacp != Some(LacpActivity::Passive),
                            fast: spec.lacp_rate != Some(LacpRate::Slow),
                        }),
                        _ => bond::Sharing::ActiveBackup,
                    },
                    offload: spec.offload,
                    guards: spec.guarded().then(|| Arc::clone(&self.guards)),
                };
                bond::open(&config, &self.links, self.notifier.clone()).map_err(|e| e.to_string())
            }
            Kind::Macvtap => {
                let config = macvtap::MacvtapConfig {
                    name: spec.name.clone(),
                    device: spec.device.clone(),
                    netns: spec.netns.clone(),
                    mode: match spec.mode {
                        Some(Mode::Private) => MacVtapMode::Private,
                        Some(Mode::Vepa) => MacVtapMode::Vepa,
                        Some(Mode::Passthrough) => MacVtapMode::Passthrough,
                        _ => MacVtapMode::Bridge,
                    },
                    queues: spec.queues,
                    offload: spec.offload,
                    mtu: spec.mtu,
                    mac: spec.mac,
                };
                macvtap::open(&config, &self.links).map_err(|e| e.to_string())
            }
            Kind::Tun => {
                let config = tun::TunConfig {
                    device: spec.device().to_owned(),
                    netns: spec.netns.clone(),
                    offload: spec.offload,
                    mtu: spec.mtu,
                    own: tun::resolver::Own {
                        mac: spec.mac.unwrap_or_else(|| mac_of(&spec.name)),
                        addresses: spec.addresses.clone(),
                        onlink: spec.onlink.clone(),
                        gateways: spec.gateways.clone(),
                    },
                };
                tun::open(&config, &self.links).map_err(|e| e.to_string())
            }
            Kind::Stream => {
                let place = match (&spec.path, spec.address) {
                    (Some(path), _) => stream::Place::Path(path.clone()),
                    (None, Some(address)) => stream::Place::Address(address),
                    (None, None) => return Err("neither path= nor address= is given".to_owned()),
                };
                let config = stream::StreamConfig {
                    place,
                    server: spec.mode != Some(Mode::Client),
                    owner: spec.owner,
                    group: spec.group,
                    perm: spec.perm,
                };
                stream::open(&config, self.notifier.clone()).map_err(|e| e.to_string())
            }
            Kind::Dgram => {
                let ends = match (&spec.path, &spec.peer, spec.address) {
                    (Some(path), Some(peer), _) => dgram::Ends::Unix { path: path.clone(), peer: peer.clone() },
                    (None, _, Some(address)) => {
                        let peer = spec.peer_address().map_err(|e| e.to_string())?;
                        dgram::Ends::Udp { address, peer }
                    }
                    _ => return Err("path= or address=, or peer= is not given".to_owned()),
                };
                let config = dgram::DgramConfig { ends, owner: spec.owner, group: spec.group, perm: spec.perm };
                dgram::open(&config).map_err(|e| e.to_string())
            }
            Kind::VhostUser => {
                let config = vhost_user::VhostConfig {
                    path: spec.path.clone().ok_or("path= is not given")?,
                    client: spec.mode == Some(Mode::Client),
                    queues: spec.queues,
                    offload: spec.offload,
                    owner: spec.owner,
                    group: spec.group,
                    perm: spec.perm,
                };
                vhost_user::open(&config, self.notifier.clone()).map_err(|e| e.to_string())
            }
        }
    }
}
