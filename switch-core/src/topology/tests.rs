use super::*;

fn port(id: u16, attachments: &[(u16, Dress, Role)]) -> PortDef {
    PortDef {
        id: PortId(id),
        attachments: attachments
            .iter()
            .map(|(d, dress, role)| Attachment { domain: DomainId(*d), dress: *dress, role: *role })
            .collect(),
        hairpin: false,
        up: true,
        carrier: true,
        learning: true,
        storm: StormLimits::default(),
        policy: Policy::default(),
        shared: Arc::new(PortShared::new(Vec::new(), 1)),
    }
}

fn domain(id: u16) -> DomainDef {
    DomainDef { id: DomainId(id), mtu: 1500, group_fwd_mask: DEFAULT_GROUP_FWD_MASK, rate: None }
}

fn flood(topology: &Topology, role: Role) -> Vec<u16> {
    topology.domain(DomainId(0)).expect("there").flood(role).iter().map(|t| t.port.0).collect()
}

#[test]
fn flood_lists_follow_the_role_pairs() {
    let red = Role::community(0);
    let blue = Role::community(1);
    let untagged = Dress::Untagged;
    let topology = Topology::build(
        Epoch(1),
        vec![
            port(0, &[(0, untagged, Role::PROMISCUOUS)]),
            port(1, &[(0, untagged, Role::ISOLATED)]),
            port(2, &[(0, untagged, Role::ISOLATED)]),
            port(3, &[(0, untagged, red)]),
            port(4, &[(0, untagged, red)]),
            port(5, &[(0, untagged, blue)]),
        ],
        &[domain(0)],
    )
    .expect("valid");
    assert_eq!(flood(&topology, Role::PROMISCUOUS), [0, 1, 2, 3, 4, 5]);
    assert_eq!(flood(&topology, Role::ISOLATED), [0]);
    assert_eq!(flood(&topology, red), [0, 3, 4]);
    assert_eq!(flood(&topology, blue), [0, 5]);
}

#[test]
fn contradictions_are_refused() {
    let p = Role::PROMISCUOUS;
    let tag = |vid| Dress::Tagged { tpid: 0x8100, vid };
    let build = |def| Topology::build(Epoch(1), vec![def], &[domain(0), domain(1)]).map(|_| ());
    assert_eq!(build(port(0, &[(7, Dress::Untagged, p)])), Err(TopologyError::NoDomain(PortId(0), DomainId(7))));
    assert_eq!(build(port(0, &[(0, tag(5), p), (0, tag(6), p)])), Err(TopologyError::Conflict(PortId(0))));
    assert_eq!(build(port(0, &[(0, tag(5), p), (1, tag(5), p)])), Err(TopologyError::Conflict(PortId(0))));
    assert_eq!(build(port(0, &[(0, Dress::Transparent, p), (1, tag(5), p)])), Err(TopologyError::Conflict(PortId(0))));
    assert_eq!(build(port(0, &[(0, tag(0), p)])), Err(TopologyError::BadTag(PortId(0), 0x8100, 0)));
    assert_eq!(build(port(0, &[(0, tag(5), p), (1, Dress::Untagged, p)])), Ok(()));
}

#[test]
fn storm_control_lets_the_rate_through_and_no_more() {
    let state = StormState::default();
    let limits = StormLimits { broadcast: 1000, multicast: 0, unknown: 0 };
    let admitted = (0..100_000u64).filter(|i| state.admit(StormClass::Broadcast, &limits, i * 100_000)).count();
    assert!((10_000..=10_102).contains(&admitted), "10 s at 1000/s plus one burst, got {admitted}");
    assert!((0..1000).all(|_| state.admit(StormClass::Multicast, &limits, 0)), "0 means no limit");
}

#[test]
fn replies_take_the_queue_of_the_flow() {
    let flows = FlowQueues::default();
    flows.note(0x1234_5678, 3);
    assert_eq!(flows.pick(0x1234_5678, 4), 3);
    assert!(flows.pick(0x1234_5678, 2) < 2, "a queue that is gone is not picked");
    assert!(flows.pick(0xffff_ffff, 4) < 4);
}
