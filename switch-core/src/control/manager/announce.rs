//! Stations that can be reached by another way than before: a bond whose active member has changed announces them there.

use std::collections::{BTreeMap, HashMap};

use super::Manager;
use crate::{
    control::spec::{AttachmentSpec, DressSpec, PortSpec, RoleSpec},
    frame::{rarp, vlan::OuterTag},
    id::{DomainId, PortId},
    mac::MacAddr,
};

/// Announcements of one change: as many stations as a failover should wait for. Others are found when they speak.
const MAX_ANNOUNCED: usize = 4096;

impl Manager {
    /// Announces the stations behind other ports by those ports that have moved.
    pub(super) fn announce_stations(&mut self) {
        let moved: Vec<String> =
            self.open.iter_mut().filter_map(|(name, open)| open.control.moved().then(|| name.clone())).collect();
        if moved.is_empty() {
            return;
        }
        let ports = self.desired.effective_ports();
        let names: HashMap<PortId, &String> = self.open.iter().map(|(name, open)| (open.id, name)).collect();
        let domains: HashMap<DomainId, &String> = self.domain_ids.iter().map(|(name, id)| (*id, name)).collect();
        let entries = self.switch.fdb().entries(self.switch.clock().now().tick);
        let mut frames: BTreeMap<&String, Vec<Vec<u8>>> = moved.iter().map(|name| (name, Vec::new())).collect();
        for entry in &entries {
            let (Some(domain), Some(behind)) = (domains.get(&entry.domain), names.get(&entry.port)) else { continue };
            for (name, frames) in frames.iter_mut().filter(|(name, _)| *name != behind) {
                let (from, to) = (membership(&ports, behind, domain), membership(&ports, name, domain));
                if let (Some(from), Some(to)) = (from, to)
                    && self.desired.passes(domain)
                    && reaches(&from.role, &to.role)
                    && frames.len() < MAX_ANNOUNCED
                {
                    frames.push(dressed(entry.mac, to.dress));
                }
            }
        }
        let frames: Vec<(String, Vec<Vec<u8>>)> = frames.into_iter().map(|(name, list)| (name.clone(), list)).collect();
        for (name, frames) in frames {
            self.notice(format!("port {name} has another active member; {} stations announced there", frames.len()));
            if let Some(open) = self.open.get_mut(&name) {
                open.control.announce(&frames);
            }
        }
    }
}

fn membership<'a>(ports: &'a BTreeMap<String, PortSpec>, port: &str, domain: &str) -> Option<&'a AttachmentSpec> {
    ports.get(port)?.domains.iter().find(|a| a.domain == domain)
}

fn reaches(from: &RoleSpec, to: &RoleSpec) -> bool {
    match (from, to) {
        (RoleSpec::Promiscuous, _) | (_, RoleSpec::Promiscuous) => true,
        (RoleSpec::Community(a), RoleSpec::Community(b)) => a == b,
        _ => false,
    }
}

/// The announcement as it leaves by an attachment.
fn dressed(station: MacAddr, dress: DressSpec) -> Vec<u8> {
    let frame = rarp::announcement(station);
    match dress {
        DressSpec::Untagged | DressSpec::Transparent => frame.to_vec(),
        DressSpec::Tag { vid, tpid } | DressSpec::Native { vid, tpid } => {
            [&frame[..12], &OuterTag { tpid, tci: vid }.to_bytes(), &frame[12..]].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_has_the_tag_of_its_domain() {
        let station = MacAddr([2, 0, 0, 0, 0, 7]);
        let plain = dressed(station, DressSpec::Untagged);
        assert_eq!((plain.len(), &plain[6..14]), (60, &[2, 0, 0, 0, 0, 7, 0x80, 0x35][..]));
        let tagged = dressed(station, DressSpec::Tag { vid: 42, tpid: 0x88a8 });
        assert_eq!(tagged[12..18], [0x88, 0xa8, 0, 42, 0x80, 0x35]);
        assert_eq!([&tagged[..12], &tagged[16..]].concat(), plain);
    }

    #[test]
    fn who_may_not_be_heard_is_not_announced() {
        let community = |name: &str| RoleSpec::Community(name.to_owned());
        assert!(reaches(&RoleSpec::Isolated, &RoleSpec::Promiscuous) && reaches(&community("a"), &community("a")));
        assert!(!reaches(&RoleSpec::Isolated, &RoleSpec::Isolated) && !reaches(&community("a"), &community("b")));
    }
}
