//! A bridge of Open vSwitch and a domain of this switch, joined by a `vhost-user` port: Open vSwitch with DPDK is its driver, as a guest
//! would be. (Joined by a pair of devices they are in `ovs_vsctl.rs`.)

use vswitch_benches::{
    contestants::{DEVICE, Directory, Ovs},
    netns::Namespace,
};
use vswitch_tests::{Daemon, reaches, skip, transfer, vhost::count};

/// The ports of both switches, and who makes the socket.
fn check(listens: bool) {
    if let Some(why) = Ovs::driver_missing() {
        return skip(&why);
    }
    let [theirs, ours] = ["oa", "oc"].map(|prefix| Namespace::new(prefix).expect("root"));
    let sockets = Directory::new("vswitch-patch-").expect("made");
    let socket = sockets.path().join("patch.sock");
    let mode = if listens { "client" } else { "server" };
    let patch = format!("patch=vhost-user,path={},mode={mode}", socket.display());
    let here = format!("here=tap,netns={}", ours.name());
    let mut daemon = Daemon::start(&["--port", &patch, "--port", &here]).expect("the switch starts");
    let ovs = Ovs::start_driver(&[&theirs]).expect("Open vSwitch starts");
    ovs.add_driver("patch", &socket, listens).expect("added");
    theirs.configure(DEVICE, &["10.97.1.1/24"]).expect("up");
    let exchange = |daemon: &Daemon| {
        ours.configure("here", &["10.97.1.2/24"]).expect("up");
        daemon.wait_state("here", "up").expect("up");
        daemon.wait_state("patch", "up").expect("driven");
        assert!(reaches(&ours, "10.97.1.1"), "{}", daemon.port("patch"));
        transfer(&ours, &theirs, "10.97.1.1", 1 << 20);
        transfer(&theirs, &ours, "10.97.1.2", 1 << 20);
    };
    exchange(&daemon);
    for _ in 0..2 {
        daemon.crash_and_restart().expect("starts again");
        // A driver that listens lets the next switch in; one that connects does so once.
        if !listens {
            ovs.remove_port("patch").expect("removed");
            ovs.add_driver("patch", &socket, listens).expect("added");
        }
        exchange(&daemon);
        let errors = count(&daemon.port("patch"), "rx_errors");
        assert_eq!(errors, 0, "its ring goes on where it was: {}", daemon.port("patch"));
    }
}

#[test]
fn a_socket_of_the_switch_joins_it_with_open_vswitch() {
    check(false);
}

#[test]
fn a_socket_of_open_vswitch_joins_it_with_the_switch() {
    check(true);
}
