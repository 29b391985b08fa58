//! SPECs: how ports, domains and attachments are written on a command line, in a file and in the API.
//!
//! Text: `NAME=KIND[,key=value]...` for a port, `NAME[,key=value]...` for a domain, `DOMAIN[:dress][:role]` for an
//! attachment. TOML and JSON use the same keys as fields.

mod attachment;
mod bond;
mod device;
mod domain;
mod kind;
mod labels;
mod membership;
pub mod network;
mod policy;
mod port;

pub use crate::cidr::Cidr;
pub use attachment::{AttachmentSpec, DressSpec, RoleSpec};
use bond::check_devices as check_bond_devices;
pub use bond::{LacpActivity, LacpRate};
pub use domain::DomainSpec;
pub use kind::{Engine, Kind, Mode};
pub use labels::{Labels, MAX_LABELS};
pub use network::NetworkSpec;
pub use port::PortSpec;

/// The domain that ports join unless told otherwise.
pub const DEFAULT_DOMAIN: &str = "default";
/// The largest MTU of a domain (GSO frames are judged by their segments).
pub const MAX_MTU: u32 = 9216;
/// The smallest MTU that IPv4 allows.
pub const MIN_MTU: u32 = 68;
const MAX_NAME: usize = 63;

/// A SPEC that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(pub String);

impl From<crate::cidr::CidrError> for SpecError {
    fn from(error: crate::cidr::CidrError) -> SpecError {
        SpecError(error.to_string())
    }
}

fn wrong<T>(message: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError(message.into()))
}

/// Checks a name of a port or domain.
///
/// # Errors
/// It is empty, too long or has characters that would need quoting.
pub fn check_name(what: &str, name: &str) -> Result<(), SpecError> {
    let good = !name.is_empty()
        && name.len() <= MAX_NAME
        && name != "none"
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-@".contains(c));
    if good {
        Ok(())
    } else {
        wrong(format!(
            "\"{name}\" cannot be a {what} name: use 1 to {MAX_NAME} letters, digits and . _ - @ (and not \"none\")"
        ))
    }
}

fn number<T: TryFrom<u64>>(key: &str, text: &str) -> Result<T, SpecError> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match parsed.and_then(|n| T::try_from(n).ok()) {
        Some(n) => Ok(n),
        None => wrong(format!("{key}={text}: not a number in range")),
    }
}

fn switch_value(key: &str, text: &str) -> Result<bool, SpecError> {
    match text {
        "on" | "up" | "true" | "yes" => Ok(true),
        "off" | "down" | "false" | "no" => Ok(false),
        _ => wrong(format!("{key}={text}: use on or off")),
    }
}

#[cfg(test)]
mod tests {
    use super::{port::default_attachments, *};

    #[test]
    fn specs_of_the_manual_are_understood() {
        let port: PortSpec =
            "up=tap,device=eth0,domain=red:tag=10,domain=blue:tag=20:tpid=0x88a8:isolated".parse().expect("valid");
        assert_eq!(port.device(), "eth0");
        let shown: Vec<_> = port.domains.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["red:tag=10", "blue:tag=20:tpid=0x88a8:isolated"]);
        let port: PortSpec = "t0=tap,queues=2,offload=off".parse().expect("valid");
        assert_eq!((port.queues, port.offload, port.domains), (2, false, default_attachments()));
        let port: PortSpec = "t0=tap,domain=none".parse().expect("valid");
        assert!(port.domains.is_empty());
        let port: PortSpec = "s0=stream,path=/run/s0,mode=client".parse().expect("valid");
        assert_eq!((port.path, port.mode), (Some("/run/s0".into()), Some(Mode::Client)));
        let port: PortSpec = "s0=dgram,address=[::1]:7001,peer=[::1]:7002".parse().expect("valid");
        assert_eq!(port.peer_address().map(|a| a.port()), Ok(7002));
        let port: PortSpec = "t0=tap,network=lab,portgroup=slow".parse().expect("valid");
        assert_eq!(
            (port.network.as_deref(), port.portgroup.as_deref(), port.domains),
            (Some("lab"), Some("slow"), vec![])
        );
        let port: PortSpec = "t0=tap,domain=red:isolated,network=lab".parse().expect("valid");
        assert_eq!(port.domains[0].to_string(), "red:isolated");
        let read = |more: &str| serde_json::from_str::<PortSpec>(&format!(r#"{{"name":"t0","kind":"tap"{more}}}"#));
        assert_eq!(read("").expect("valid").domains, default_attachments());
        assert!(read(r#","network":"lab""#).expect("valid").domains.is_empty());
        assert!(read(r#","domains":[]"#).expect("valid").domains.is_empty());
        let trunk = "up=tap,domain=red:tag=10:native:isolated,domain=blue:tag=20:tpid=0x88a8:native";
        let wrong = trunk.parse::<PortSpec>().expect_err("two native VLANs").to_string();
        assert!(wrong.contains("same frames"), "{wrong}");
        let port: PortSpec = trunk.replace("0x88a8:native", "0x88a8").parse().expect("valid");
        assert_eq!(port.domains[0].to_string(), "red:tag=10:native:isolated");
        let port: PortSpec =
            "t0=tap,clean=on,station=52:54:00:00:00:01,ip=learn+10.0.0.5,flood=off,rate-to=1000:2000:512,rate-from=5"
                .parse()
                .expect("valid");
        let written = serde_json::to_string(&port).expect("JSON");
        assert!(written.contains(r#""ip":"learn+10.0.0.5","flood":false,"rate_to":"1000:2000:512""#), "{written}");
        assert_eq!(serde_json::from_str::<PortSpec>(&written).expect("JSON"), port);
        let port: PortSpec =
            "b=bond,devices=eth0+eth1,mode=802.3ad,lacp-rate=slow,domain=red:tag=10".parse().expect("valid");
        let written = serde_json::to_string(&port).expect("JSON");
        let part = r#""devices":["eth0","eth1"],"lacp_rate":"slow""#;
        assert!(written.contains(part) && written.contains(r#""mode":"802.3ad""#), "{written}");
        assert_eq!(serde_json::from_str::<PortSpec>(&written).expect("JSON"), port);
        let domain: DomainSpec = "br0,host=on,mtu=9000,ageing=0".parse().expect("valid");
        assert_eq!((domain.host, domain.mtu, domain.ageing), (true, 9000, 0));
    }

    #[test]
    fn wrong_specs_name_the_mistake() {
        for (text, part) in [
            ("t0", "NAME=KIND"),
            ("t0=team", "known kinds"),
            ("b=bond", "devices=eth0+eth1"),
            ("b=bond,devices=eth0+eth0", "twice"),
            ("b=bond,devices=eth0+", "device name"),
            ("b=bond,devices=eth0+eth1,mode=balance-alb", "802.3ad"),
            ("b=bond,devices=eth0+eth1,mode=vepa", "802.3ad"),
            ("b=bond,devices=eth0+eth1,lacp=passive", "mode=802.3ad"),
            ("b=bond,devices=eth0+eth1,mode=802.3ad,lacp-rate=often", "fast"),
            ("b=bond,devices=eth0+eth1,mac=02:00:00:00:00:01", "mode=802.3ad"),
            ("b=bond,devices=eth0+eth1,mode=802.3ad,mac=01:00:00:00:00:01", "no unicast"),
            ("b=bond,devices=eth0+eth1,queues=2", "queues= is not for bond"),
            ("b=bond,device=eth0", "device= is not for bond"),
            ("p=packet,devices=eth0+eth1", "devices= is not for packet"),
            ("m=macvtap,device=eth0,mode=802.3ad", "passthrough"),
            ("s=stream,path=/run/x,mode=802.3ad", "server"),
            ("t0=tap,domain=a:tag=5000", "1 to 4094"),
            ("t0=tap,domain=a:tpid=0x8100", "after tag"),
            ("t0=tap,domain=a,domain=a:tag=4", "twice"),
            ("t0=tap,domain=a,domain=b", "same frames"),
            ("t0=tap,domain=a,domain=b:tag=4:native", "same frames"),
            ("t0=tap,domain=a:tag=4,domain=b:tag=4:native", "same frames"),
            ("t0=tap,domain=a:native", "after tag=VID"),
            ("t0=tap,clean=on", "station="),
            ("t0=tap,station=01:00:00:00:00:01", "unicast"),
            ("t0=tap,ip=here", "ip=learn"),
            ("t0=tap,rate-to=fast", "AVERAGE[:PEAK[:BURST]]"),
            ("t0=tap,domain=a:transparent,domain=b:tag=4", "same frames"),
            ("t0=tap,queues=0", "queues=0"),
            ("t0=packet,queues=0", "queues=0"),
            ("t0=tap,guard=off", "guard= is not for tap ports"),
            ("t0=tap,engine=xdp", "engine= is not for tap ports"),
            ("t0=packet,engine=dpdk", "use packet (AF_PACKET) or xdp"),
            ("t0=packet,mtu=1400", "mtu= is not for packet"),
            ("t0=tap,path=/run/x", "path= is not for tap"),
            ("s0=stream", "either path="),
            ("s0=stream,path=/run/x,address=1.2.3.4:5", "either path="),
            ("s0=stream,address=here", "ADDRESS:PORT"),
            ("s0=stream,path=/run/x,mode=client,perm=0600", "that the switch makes"),
            ("s0=stream,path=/run/x,peer=/run/y", "peer= is not for stream"),
            ("s0=dgram,path=/run/x", "peer= is missing"),
            ("s0=dgram,address=1.2.3.4:5,peer=/run/y", "ADDRESS:PORT"),
            ("t0=tap,portgroup=slow", "network=NAME"),
            ("t0=tap,network=a/b", "network name"),
            ("t0=tap,colour=red", "unknown key \"colour\""),
            ("a-very-long-port-name=tap", "device="),
            ("a/b=tap", "cannot be a port name"),
            ("t0=tap,mac=5", "MAC address"),
        ] {
            let error = text.parse::<PortSpec>().expect_err(text);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        assert!("d,mtu=10000".parse::<DomainSpec>().is_err());
        assert!("d,ageing=70000".parse::<DomainSpec>().is_err());
    }
}
