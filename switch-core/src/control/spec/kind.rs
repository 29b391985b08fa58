//! The kinds of ports, and the keys that each takes; the modes and engines that some have.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{SpecError, wrong};

/// The driver of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A TAP device whose character device the switch holds.
    Tap,
    /// A netdev that exists already, over an AF_PACKET or AF_XDP socket.
    Packet,
    /// Several netdevs that exist already, as one way out.
    Bond,
    /// A macvtap that the switch makes on a netdev.
    Macvtap,
    /// A TUN device: IP packets, for which the switch is a neighbour in the domain.
    Tun,
    /// Frames over a connection (QEMU's `-netdev stream`).
    Stream,
    /// Frames in datagrams (QEMU's `-netdev dgram`).
    Dgram,
    /// A VM's virtio-net device, over a vhost-user socket.
    VhostUser,
}

impl Kind {
    /// All kinds, for messages.
    pub const ALL: &'static [(&'static str, Kind)] = &[
        ("tap", Kind::Tap),
        ("packet", Kind::Packet),
        ("bond", Kind::Bond),
        ("macvtap", Kind::Macvtap),
        ("tun", Kind::Tun),
        ("stream", Kind::Stream),
        ("dgram", Kind::Dgram),
        ("vhost-user", Kind::VhostUser),
    ];

    /// The keys that describe the device or socket of this kind; the others every port has.
    #[must_use]
    pub const fn keys(self) -> &'static [&'static str] {
        match self {
            Kind::Tap => &["device", "netns", "queues", "offload", "mtu", "mac", "owner", "group", "persist"],
            Kind::Packet => &["device", "netns", "engine", "queues", "offload", "guard"],
            Kind::Bond => &["devices", "netns", "mode", "lacp", "lacp-rate", "mac", "offload", "guard"],
            Kind::Macvtap => &["device", "netns", "mode", "queues", "offload", "mtu", "mac"],
            Kind::Tun => &["device", "netns", "offload", "mtu", "mac", "address", "onlink", "gateway"],
            Kind::Stream => &["path", "address", "mode", "owner", "group", "perm"],
            Kind::Dgram => &["path", "address", "peer", "owner", "group", "perm"],
            Kind::VhostUser => &["path", "mode", "queues", "offload", "owner", "group", "perm"],
        }
    }

    /// Whether the port is one network device (and not a socket, nor several devices).
    #[must_use]
    pub fn is_device(self) -> bool {
        self.keys().contains(&"device")
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("?", |(name, _)| name)
    }
}

impl FromStr for Kind {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Self::ALL.iter().find(|(name, _)| *name == text) {
            Some((_, kind)) => Ok(*kind),
            None => {
                let known: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
                wrong(format!("there is no port kind \"{text}\"; known kinds: {}", known.join(", ")))
            }
        }
    }
}

/// Which side of a socket the switch is, how a macvtap treats its siblings, or how a bond shares frames among its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It listens.
    Server,
    /// It connects, and does so again for ever.
    Client,
    /// A macvtap that hears nothing of its siblings.
    Private,
    /// A macvtap whose frames to its siblings leave by the wire, and come back from there.
    Vepa,
    /// A macvtap that reaches its siblings inside the host.
    Bridge,
    /// A macvtap that has the device to itself.
    Passthrough,
    /// A bond one member of which carries everything.
    #[serde(rename = "active-backup")]
    ActiveBackup,
    /// A bond whose members share the flows.
    #[serde(rename = "balance-xor")]
    BalanceXor,
    /// The same, as agreed on by LACP.
    #[serde(rename = "802.3ad")]
    Lacp,
}

impl Mode {
    /// All modes, for messages.
    pub(super) const ALL: &'static [(&'static str, Mode)] = &[
        ("server", Mode::Server),
        ("client", Mode::Client),
        ("private", Mode::Private),
        ("vepa", Mode::Vepa),
        ("bridge", Mode::Bridge),
        ("passthrough", Mode::Passthrough),
        ("active-backup", Mode::ActiveBackup),
        ("balance-xor", Mode::BalanceXor),
        ("802.3ad", Mode::Lacp),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).map_or("?", |(name, _)| name)
    }

    /// Whether it is a socket's.
    pub(super) const fn is_socket(self) -> bool {
        matches!(self, Mode::Server | Mode::Client)
    }

    /// Whether it is a bond's.
    pub(super) const fn is_bond(self) -> bool {
        matches!(self, Mode::ActiveBackup | Mode::BalanceXor | Mode::Lacp)
    }
}

/// By which kind of socket a packet port takes its device's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// AF_PACKET.
    #[default]
    Packet,
    /// AF_XDP.
    Xdp,
}

impl FromStr for Engine {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "packet" => Ok(Engine::Packet),
            "xdp" => Ok(Engine::Xdp),
            _ => wrong(format!(
                "engine={text}: use packet (AF_PACKET) or xdp (AF_XDP: small frames, devices with native XDP)"
            )),
        }
    }
}
