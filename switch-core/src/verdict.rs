//! Why a frame was dropped: one list from which the enum, the CLI names, the metric names and the sentences
//! of `vswitch explain` come.

macro_rules! reasons {
    ($($variant:ident, $name:literal, $side:ident, $sentence:literal;)*) => {
        /// The reason of one drop. `as usize` indexes a counter block.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $sentence] $variant,)*
        }

        impl DropReason {
            /// All reasons in counter order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in `--json`, tables and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }

            /// One sentence for humans.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(DropReason::$variant => $sentence,)* }
            }

            /// Whether the frame (ingress) or one of its copies (egress) was dropped.
            #[must_use]
            pub const fn side(self) -> Side {
                match self { $(DropReason::$variant => Side::$side,)* }
            }
        }
    };
}

/// Which account a drop belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The received frame was dropped before any copy was decided; counted on the port it came in by.
    Ingress,
    /// One decided copy was not sent; counted on the port it should have left by.
    Egress,
}

reasons! {
    Runt, "runt", Ingress, "The frame is shorter than an Ethernet header with its tags.";
    Giant, "giant", Ingress, "The frame (for a GSO frame: one of its segments) is longer than the MTU of its domain allows.";
    BadOffload, "bad_offload", Ingress, "The virtio-net header does not match the frame it describes.";
    MulticastSource, "multicast_source", Ingress, "The source address is a group address.";
    ZeroSource, "zero_source", Ingress, "The source address is all zero.";
    ReservedAddress, "reserved_address", Ingress, "The destination is a link-local group address (01-80-C2-00-00-0X) that a bridge keeps.";
    NoDomain, "no_domain", Ingress, "The port is attached to no domain that takes this untagged frame.";
    TagNotAllowed, "tag_not_allowed", Ingress, "The port has no attachment for this VLAN tag.";
    IngressPortDown, "ingress_port_down", Ingress, "The port on which the frame came in is set down.";
    SpoofedMac, "spoofed_mac", Ingress, "Clean port: the source address is not the station's.";
    SpoofedArp, "spoofed_arp", Ingress, "Clean port: an ARP packet speaks for an address that is not the station's.";
    SpoofedIpv4, "spoofed_ipv4", Ingress, "Clean port: the IPv4 source address is not the station's.";
    SpoofedIpv6, "spoofed_ipv6", Ingress, "Clean port: the IPv6 source address is not the station's.";
    SpoofedNd, "spoofed_nd", Ingress, "Clean port: a neighbour discovery packet speaks for an address that is not the station's, or has passed a router.";
    SpoofedDhcp, "spoofed_dhcp", Ingress, "Clean port: a DHCP request is for another station.";
    DhcpServer, "dhcp_server", Ingress, "Clean port: the station answers as a DHCP server.";
    RouterAdvertisement, "router_advertisement", Ingress, "Clean port: the station speaks as an IPv6 router (advertisement or redirect).";
    Bpdu, "bpdu", Ingress, "Clean port: the station speaks as a bridge (spanning tree).";
    OtherProtocol, "other_protocol", Ingress, "Clean port: the frame is neither IPv4 nor IPv6 nor ARP.";
    UnreadableHeaders, "unreadable_headers", Ingress, "Clean port: headers are malformed, cut into fragments or too long to be judged.";
    BindingsFull, "bindings_full", Ingress, "Clean port: the station claims too many IPv6 addresses, or too many per second.";
    RateDomain, "rate_domain", Ingress, "The domain's rate is used up.";
    FlapHold, "flap_hold", Ingress, "The source address flaps between ports and is held on the first one.";
    StormBroadcast, "storm_broadcast", Ingress, "Storm control: too many broadcast frames on this port.";
    StormMulticast, "storm_multicast", Ingress, "Storm control: too many multicast frames on this port.";
    StormUnknown, "storm_unknown", Ingress, "Storm control: too many frames to unknown unicast addresses on this port.";
    InactiveMember, "inactive_member", Ingress, "Bond: the frame came by a member that is not in use (a backup, or one that LACP has not joined).";
    SamePort, "same_port", Ingress, "The destination is known on the port on which the frame came in (no hairpin).";
    NotMember, "not_member", Ingress, "The destination's port is not a member of the frame's domain.";
    RoleForbidden, "role_forbidden", Ingress, "The roles of the two attachments (isolated, community) forbid this pair.";
    AmbiguousTag, "ambiguous_tag", Egress, "The payload begins with a VLAN tag and would be read as another domain.";
    NoDestination, "no_destination", Ingress, "No port is left to flood to.";
    EgressPortDown, "egress_port_down", Egress, "The port by which the frame should leave is down.";
    RateTo, "rate_to", Egress, "The rate towards the port is used up.";
    QueueFull, "queue_full", Egress, "The transmit queue had no room.";
    EgressTooBig, "egress_too_big", Egress, "The frame is longer than the port can carry.";
    EgressOffload, "egress_offload", Egress, "The owed checksum or segmentation could not be done for this frame.";
    TxError, "tx_error", Egress, "The device refused the frame.";
    NotForPort, "not_for_port", Egress, "The port takes no such frame: a tun port takes IP packets to its own addresses, and questions for them.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_indices_dense() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(reason.sentence().ends_with('.'));
        }
    }
}
