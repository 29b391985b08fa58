//! Newtypes for everything that is counted or indexed.
//!
//! Ids are dense indices into tables of the [`Topology`](crate::topology::Topology); they are reused only
//! after every worker has acknowledged an epoch in which the old owner no longer exists.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($repr:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            /// The id as a table index.
            #[inline]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id! {
    /// A port of the switch. At most [`MAX_PORTS`] exist at a time.
    PortId(u16), "port#"
}
id! {
    /// An isolation domain. At most [`MAX_DOMAINS`] exist at a time.
    DomainId(u16), "domain#"
}
id! {
    /// A worker thread.
    WorkerId(u16), "worker#"
}
id! {
    /// A transmit queue, counted over all ports of one topology.
    TxId(u32), "tx#"
}

/// Ports that one switch can hold: ids 0 to 16382 (the FDB packs a port id into 14 bits).
pub const MAX_PORTS: usize = (1 << 14) - 1;
/// Domains that one switch can hold.
pub const MAX_DOMAINS: usize = 1 << 16;

/// The number of a published [`Topology`](crate::topology::Topology); grows by one with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);
