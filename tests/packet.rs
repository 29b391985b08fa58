//! Existing netdevs as ports over AF_PACKET: veth ends among themselves and with TAPs, tags, devices that come and go. What
//! holds for the other engine too is in `vswitch_tests::wired`.

use switch_core::{
    batch::Batch,
    frame::offload::VNET_HDR_BYTES,
    sys::packet::{PacketSocket, Received},
};
use vswitch_benches::{netns::Namespace, tools::installed};
use vswitch_tests::wired::{self, FLOWS, Lab, PER_FLOW, numbered, send_flows, wire};

#[test]
fn netdevs_and_taps_reach_each_other_and_data_arrives_unchanged() {
    let lab = Lab::new(&["packet", "packet,offload=off", "tap", "tap,offload=off"], &[]);
    wired::all_reach_all(&lab);
    let segments = |port: &str| {
        lab.daemon.json(&["port", "show", port]).expect("shown")[0]["counters"]["tx_segments"].as_u64().unwrap_or(0)
    };
    assert_eq!(segments("h0"), 0, "the device segments");
    assert!(segments("h1") > 0, "without offload the switch does");
}

#[test]
fn data_over_a_tagged_wire_between_two_ports_arrives_unchanged() {
    wired::a_tagged_wire_carries_data("packet");
}

#[test]
fn a_frame_with_a_tag_goes_to_the_domain_of_the_tag_and_keeps_it() {
    wired::a_tag_decides_and_is_kept("packet");
}

#[test]
fn a_port_waits_for_its_device_and_comes_back_with_it() {
    wired::a_port_comes_back_with_its_device("packet");
}

#[test]
fn several_queues_keep_the_order_of_each_flow() {
    wired::queues_keep_the_order_of_each_flow(&["packet,queues=2", "packet,queues=2,offload=off"]);
}

#[test]
fn a_group_of_sockets_divides_flows_and_sees_nothing_twice() {
    let (home, far) = (Namespace::new("vph").expect("root"), Namespace::new("vp").expect("root"));
    wire(&home, &far, 0, "1");
    far.exec(&["ip", "link", "set", "eth0", "up"]).expect("up");
    let sockets = home
        .run(|| {
            let index = nix::net::if_::if_nametoindex("p0").expect("there");
            PacketSocket::open_many(index, None, 2)
        })
        .expect("namespace")
        .expect("opened");
    send_flows(&far, "eth0");
    // What leaves by the device is nobody's to receive.
    send_flows(&home, "p0");
    let mut seen = vec![Vec::new(); usize::from(FLOWS)];
    let mut batch = Batch::new();
    for (which, socket) in sockets.iter().enumerate() {
        loop {
            let mut received = [Received::default(); switch_core::batch::BURST_FRAMES];
            let burst = batch.begin_burst();
            let Ok(n) = socket.receive(batch.burst_buffers(burst), &mut received) else { break };
            for (index, received) in received[..n].iter().enumerate() {
                let (slot, _) = batch.burst_buffer(burst, index);
                if let Some((flow, number)) = numbered(&slot[VNET_HDR_BYTES..][..received.len]) {
                    seen[usize::from(flow)].push((which, number));
                }
            }
        }
    }
    for (flow, numbers) in seen.iter().enumerate() {
        assert!(numbers.iter().map(|(_, n)| *n).eq(0..PER_FLOW), "flow {flow}");
        assert!(numbers.iter().all(|(which, _)| *which == numbers[0].0), "flow {flow} comes to one socket");
    }
    let firsts: Vec<usize> = seen.iter().map(|numbers| numbers[0].0).collect();
    assert!(firsts.contains(&0) && firsts.contains(&1), "both have some: {firsts:?}");
}

#[test]
fn frames_that_find_the_socket_full_are_counted() {
    let (home, far) = (Namespace::new("vph").expect("root"), Namespace::new("vp").expect("root"));
    wire(&home, &far, 0, "1");
    far.exec(&["ip", "link", "set", "eth0", "up"]).expect("up");
    let socket = home
        .run(|| PacketSocket::open(nix::net::if_::if_nametoindex("p0").expect("there"), None))
        .expect("namespace")
        .expect("opened");
    // What the kernels of both ends had to say before.
    let _ = socket.take_lost();
    let rounds = 16;
    (0..rounds).for_each(|_| send_flows(&far, "eth0"));
    let lost = socket.take_lost();
    let (mut batch, mut kept) = (Batch::new(), 0);
    let mut received = [Received::default(); switch_core::batch::BURST_FRAMES];
    loop {
        let burst = batch.begin_burst();
        let Ok(n) = socket.receive(batch.burst_buffers(burst), &mut received) else { break };
        for (index, received) in received[..n].iter().enumerate() {
            let (slot, _) = batch.burst_buffer(burst, index);
            kept += u64::from(numbered(&slot[VNET_HDR_BYTES..][..received.len]).is_some());
        }
    }
    let sent = rounds * u64::from(FLOWS) * u64::from(PER_FLOW);
    assert!(lost > 0, "{sent} frames are more than a socket holds");
    // The far end's own chatter may be among the lost, not among the kept.
    assert!(kept + lost >= sent && kept + lost <= sent + 100, "{kept} + {lost} of {sent}");
}

#[test]
fn a_device_without_offloads_is_given_what_its_kernel_segments() {
    if !installed("ethtool") {
        vswitch_tests::skip("ethtool is not installed");
        return;
    }
    let lab = Lab::new(&["packet", "packet"], &[]);
    lab.home.exec(&["ethtool", "-K", "p0", "tso", "off", "tx", "off", "gso", "off"]).expect("veth can");
    assert!(lab.reaches(0, 1));
    lab.transfer(1, 0, "10.8.0.1", 5_000_000);
    lab.transfer(1, 0, "fd08::1", 5_000_000);
    lab.transfer(0, 1, "10.8.0.2", 5_000_000);
    let shown = lab.daemon.json(&["port", "show", "h0"]).expect("shown");
    assert_eq!(shown[0]["counters"]["tx_segments"], 0, "the switch leaves it to the kernel: {shown}");
}
