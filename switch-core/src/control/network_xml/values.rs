//! Attributes and texts of elements, as values. Errors name the element by its path.

use std::{fmt::Display, net::IpAddr, str::FromStr};

use roxmltree::Node;

use crate::control::spec::{Cidr, SpecError};

type Result<T> = std::result::Result<T, SpecError>;

pub(super) fn path(node: Node<'_, '_>) -> String {
    let mut names: Vec<&str> = node.ancestors().filter(Node::is_element).map(|n| n.tag_name().name()).collect();
    names.reverse();
    names.join("/")
}

pub(super) fn wrong<T>(node: Node<'_, '_>, attribute: &str, why: impl Display) -> Result<T> {
    Err(SpecError(format!("{}@{attribute}: {why}", path(node))))
}

pub(super) fn attribute<T: FromStr>(node: Node<'_, '_>, name: &str) -> Result<Option<T>> {
    match node.attribute(name).map(str::parse) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => wrong(node, name, format!("\"{}\" cannot be understood", node.attribute(name).unwrap_or(""))),
    }
}

pub(super) fn needed<T: FromStr>(node: Node<'_, '_>, name: &str) -> Result<T> {
    attribute(node, name)?.map_or_else(|| wrong(node, name, "is missing"), Ok)
}

pub(super) fn words(node: Node<'_, '_>, name: &str) -> Option<String> {
    node.attribute(name).map(str::to_owned)
}

pub(super) fn yes_no(node: Node<'_, '_>, name: &str) -> Result<Option<bool>> {
    choice(node, name, &[("yes", true), ("no", false)])
}

pub(super) fn is_yes(node: Node<'_, '_>, name: &str) -> Result<bool> {
    Ok(yes_no(node, name)? == Some(true))
}

pub(super) fn choice<T: Copy>(node: Node<'_, '_>, name: &str, known: &[(&str, T)]) -> Result<Option<T>> {
    let Some(text) = node.attribute(name) else { return Ok(None) };
    match known.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(Some(*value)),
        None => {
            let known: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
            wrong(node, name, format!("\"{text}\" is not known; known: {}", known.join(", ")))
        }
    }
}

pub(super) fn content(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|n| n.text()).collect::<String>().trim().to_owned()
}

/// `0x0a`, or digits of base 10.
pub(super) fn pci_number(node: Node<'_, '_>, name: &str) -> Result<u32> {
    let text = node.attribute(name).unwrap_or("0");
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.or_else(|_| wrong(node, name, format!("\"{text}\" is not a number")))
}

/// An address with `prefix`, `netmask`, or what libvirt takes when neither is there.
pub(super) fn cidr(node: Node<'_, '_>) -> Result<Cidr> {
    let address: IpAddr = needed(node, "address")?;
    if let Some(family) = node.attribute("family")
        && (family == "ipv6") != address.is_ipv6()
    {
        return wrong(node, "family", format!("{address} is not of family {family}"));
    }
    let prefix = match (attribute::<u8>(node, "prefix")?, attribute::<IpAddr>(node, "netmask")?) {
        (Some(prefix), _) => prefix,
        (None, Some(IpAddr::V4(mask))) if mask.to_bits().leading_ones() + mask.to_bits().trailing_zeros() == 32 => {
            mask.to_bits().leading_ones() as u8
        }
        (None, Some(mask)) => return wrong(node, "netmask", format!("\"{mask}\" is not a netmask")),
        (None, None) => match address {
            IpAddr::V6(_) => 64,
            IpAddr::V4(v4) if v4.octets()[0] < 128 => 8,
            IpAddr::V4(v4) if v4.octets()[0] < 192 => 16,
            IpAddr::V4(_) => 24,
        },
    };
    Ok(Cidr::new(address, prefix)?)
}
