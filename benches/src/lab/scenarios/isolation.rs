//! What keeping hosts apart costs those who may talk.

use super::{parameters, throughput_metrics, throughput_turn};
use crate::{
    contestants::Setup,
    lab::{Fabric, Options, Place, Scenario, Turn, fabric::mac, load::Lane},
    results::{Parameter, Parameters, Round},
    selftest::Loop,
    traffic::{OuterTag, Traffic},
};

pub const SCENARIO: Scenario = Scenario {
    name: "isolation",
    about: "what isolation domains, private-VLAN roles and VLAN tags cost between two hosts that may talk",
    explain: "plain: the default domain; domain: one of 16; roles: from a promiscuous to an isolated port; tags: the \
        receiver's port is a trunk, so each frame gets a VLAN tag. The bridge, plain, is the control.",
    contestants: &["vswitch", "vswitch-interrupt", "vswitch-busy", "bridge"],
    needs: &[],
    quick: false,
    metrics: throughput_metrics,
    cases,
    fits: |who, parameters| who != "bridge" || parameters.get("isolation") == Some(&Parameter::from("plain")),
    turn,
};

/// Domains besides the one in use.
const OTHERS: usize = 15;
/// The tag of the trunk.
const VID: u16 = 10;

fn cases(_: &Options) -> Vec<Parameters> {
    ["plain", "domain", "roles", "tags"].map(|kind| parameters([("isolation", kind.into())])).to_vec()
}

fn turn(turn: &Turn<'_>) -> anyhow::Result<Round> {
    let kind = turn.word("isolation")?;
    let common = turn.context.setup.ports.first().map_or("", String::as_str);
    let tagged = format!("domain=blue:tag={VID}");
    let ports = match kind {
        "plain" => vec![common.to_owned()],
        "domain" => vec![format!("{common},domain=blue")],
        "roles" => vec![format!("{common},domain=blue"), format!("{common},domain=blue:isolated")],
        _ => vec![format!("{common},domain=blue"), format!("{common},{tagged}")],
    };
    let mut arguments = turn.context.setup.arguments.clone();
    if kind != "plain" {
        arguments.extend(["--domain".to_owned(), "blue".to_owned()]);
        arguments.extend((0..OTHERS).flat_map(|i| ["--domain".to_owned(), format!("other{i}")]));
    }
    let setup = Setup { ports, arguments, ..turn.context.setup.clone() };
    let vids = vec![None, (kind == "tags").then_some(VID)];
    let fabric = Fabric::with_trunks(&setup, turn.contestant, &[Place::Netns; 2], false, vids)?;
    let traffic = Traffic::new(mac(1), mac(0));
    let tag = OuterTag { tpid: 0x8100, tci: VID };
    let arrives = (kind == "tags").then(|| Traffic { tags: vec![tag], ..traffic.clone() });
    let lane = Lane { arrives, ..Lane::new(0, 1, traffic) };
    throughput_turn(turn, &fabric, &[lane], &[Loop::Veth])
}
