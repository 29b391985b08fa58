//! Addresses and routes of the calling thread's namespace, over rtnetlink.

use std::{collections::BTreeSet, future::Future, io, net::IpAddr};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage},
};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::control::spec::{Cidr, network::RouteSpec};

/// Talks with the kernel.
fn with<T, F: Future<Output = Result<T, rtnetlink::Error>>>(
    what: &str,
    talk: impl FnOnce(Handle) -> F,
) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        talk(handle).await.map_err(|e| io::Error::other(format!("cannot {what}: {e}")))
    })
}

/// The index of a device.
#[must_use]
pub fn index_of(device: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(device).ok()
}

fn name_of(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

fn cidr(message: &AddressMessage) -> Option<Cidr> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    });
    Cidr::new(address?, message.header.prefix_len).ok()
}

/// All addresses, with the index of their device.
///
/// # Errors
/// The kernel refuses.
pub fn list() -> io::Result<Vec<(u32, Cidr)>> {
    with("list addresses", |handle| async move {
        let all: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
        Ok(all.iter().filter_map(|m| Some((m.header.index, cidr(m)?))).collect())
    })
}

/// Gives a device the addresses that it does not have, and the routes by it.
///
/// # Errors
/// The kernel refuses.
pub fn give(index: u32, addresses: &[Cidr], routes: &[RouteSpec]) -> io::Result<()> {
    let there: BTreeSet<Cidr> = list()?.into_iter().filter(|(at, _)| *at == index).map(|(_, a)| a).collect();
    for address in addresses.iter().filter(|a| !there.contains(a)) {
        with(&format!("give the host port {address}"), |handle| async move {
            let mut request = handle.address().add(index, address.address, address.prefix);
            if !address.is_ipv4() {
                // Nobody else has it yet: it is to be used at once.
                request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            request.execute().await
        })?;
    }
    for route in routes {
        with(&format!("make a route to {}", route.to), |handle| async move {
            handle.route().add(message(index, route)).replace().execute().await
        })?;
    }
    Ok(())
}

/// Takes addresses back from a device that stays; routes by them go with them.
///
/// # Errors
/// The kernel refuses.
pub fn take_back(index: u32, addresses: &[Cidr]) -> io::Result<()> {
    with("take back addresses", |handle| async move {
        let all: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
        let ours = |m: &AddressMessage| m.header.index == index && cidr(m).is_some_and(|a| addresses.contains(&a));
        for message in all.into_iter().filter(ours) {
            handle.address().del(message).execute().await?;
        }
        Ok(())
    })
}

fn message(index: u32, route: &RouteSpec) -> RouteMessage {
    let metric = route.metric.unwrap_or(0);
    match (route.to.address, route.gateway) {
        (IpAddr::V4(to), IpAddr::V4(gateway)) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(to, route.to.prefix)
            .gateway(gateway)
            .output_interface(index)
            .priority(metric)
            .build(),
        (IpAddr::V6(to), IpAddr::V6(gateway)) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(to, route.to.prefix)
            .gateway(gateway)
            .output_interface(index)
            .priority(metric)
            .build(),
        // The SPEC was checked: the two are of one family.
        _ => RouteMessage::default(),
    }
}

/// A network that another device is in already, with the device's name.
///
/// # Errors
/// The kernel refuses.
pub fn taken(device: &str, addresses: &[Cidr]) -> io::Result<Option<(Cidr, String)>> {
    let own = index_of(device);
    Ok(list()?.into_iter().filter(|(index, _)| Some(*index) != own).find_map(|(index, there)| {
        let hit = addresses.iter().find(|a| a.overlaps(&there))?;
        Some((hit.network(), name_of(index)?))
    }))
}

/// The devices of default routes.
///
/// # Errors
/// The kernel refuses.
pub fn uplinks() -> io::Result<Vec<String>> {
    let indices = with("list routes", |handle| async move {
        let mut all = BTreeSet::new();
        let four = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let six = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for family in [four, six] {
            let routes: Vec<RouteMessage> = handle.route().get(family).execute().try_collect().await?;
            let default = |r: &&RouteMessage| {
                r.header.destination_prefix_length == 0 && r.header.table == RouteHeader::RT_TABLE_MAIN
            };
            for route in routes.iter().filter(default) {
                all.extend(route.attributes.iter().filter_map(|a| match a {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                }));
            }
        }
        Ok(all)
    })?;
    Ok(indices.into_iter().filter_map(name_of).filter(|name| name != "lo").collect())
}
