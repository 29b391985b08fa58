//! libvirt's network XML, read into a [`NetworkSpec`] and written from one.
//!
//! Both ways say what is lost: [`read`] returns a warning with the path of every element and attribute that it does not know, and
//! [`write`](write::write) one for each setting that libvirt has no words for. A value that is known and wrong is an error. Whether the switch can do what
//! was read is another question, which [`NetworkSpec::supported`] answers. The files in `tests/network-xml` are `virsh net-dumpxml`'s own.

mod read;
#[cfg(test)]
mod tests;
mod values;
mod write;

pub use read::read;
pub use write::write;

use super::spec::NetworkSpec;

/// The namespace of `<dnsmasq:options>`.
const DNSMASQ: &str = "http://libvirt.org/schemas/network/dnsmasq/1.0";

/// A network, and what was not understood of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The network.
    pub spec: NetworkSpec,
    /// One line each: `network/foo@bar is not known and was left out`.
    pub warnings: Vec<String>,
}

/// A document, and what it does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// For `virsh net-define`.
    pub xml: String,
    /// One line each.
    pub warnings: Vec<String>,
}
