//! A guest that moves, running, from one QEMU and one port to others.

use serde_json::json;
use vswitch_benches::netns::{Namespace, wait_for};
use vswitch_tests::{
    PATIENCE,
    guest::{GUEST_PATIENCE, Machine, Setup, check_transfer, mac},
    skip,
};

use crate::lab::{Lab, Pings, long_checksum, slow_fetch};

#[test]
fn a_running_guest_migrates_from_port_to_port() {
    let witness = Namespace::new("vgm").expect("root");
    let tap = format!("w=tap,device=eth0,netns={}", witness.name());
    let ports = ["from=vhost-user,path=@/from", "to=vhost-user,path=@/to", "b=vhost-user,path=@/b,mode=client", &tap];
    let Some(lab) = Lab::new(&[], &ports) else { return };
    // The guest does not announce itself: QEMU has the switch do it.
    let moving = |port: &str| Setup::new(1).vhost_user(&lab.path(port), false, 1, ",guest_announce=off");
    let source = moving("from").start().expect("started");
    let b = Setup::new(2).vhost_user(&lab.path("b"), true, 1, "").start().expect("started");
    source.ready().expect("boots");
    b.ready().expect("boots");
    source.configure("eth0", &["10.7.0.1/24"]).expect("set");
    b.configure("eth0", &["10.7.0.2/24"]).expect("set");
    source.reach("10.7.0.2").expect("a way");

    let way = format!("unix:{}", lab.path("migration").display());
    let target = moving("to").with(&["-incoming", &way]).start().expect("started");
    witness.configure("eth0", &[]).expect("the TAP is there");
    let station = mac(1, 0).to_string();
    let mut announcement = witness
        .spawn(&["timeout", "120", "tcpdump", "-n", "-i", "eth0", "-c", "1", "rarp", "and", "ether", "src", &station])
        .expect("started");
    // The guest writes into its own memory, and the switch does, while that is copied.
    source.spawn("fetch", &slow_fetch("10.7.0.2")).expect("started");
    source.sh("while [ ! -s /tmp/chunk ]; do usleep 100000; done").expect("data flow");
    let pings = Pings::start(&b, "10.7.0.1").expect("started");
    pings.more().expect("answered");
    wait_for("the target listens", PATIENCE, || lab.path("migration").exists()).expect("it does");
    source.qmp("migrate-set-parameters", json!({"max-bandwidth": 24 << 20})).expect("set");
    if let Err(e) = source.qmp("migrate", json!({"uri": way})) {
        let why = e.to_string();
        assert!(why.contains("VHOST_USER_PROTOCOL_F_LOG_SHMFD"), "{why}");
        skip(&format!("QEMU says of the switch: {why}"));
        return;
    }
    let mut state = json!(null);
    wait_for("the guest has moved", GUEST_PATIENCE, || {
        state = source.qmp("query-migrate", json!({})).unwrap_or_default();
        state["status"] == "completed" || state["status"] == "failed"
    })
    .unwrap_or_else(|e| panic!("{e}: {state}"));
    assert_eq!(state["status"], "completed", "{state}");
    let said = || {
        let switch = std::fs::read_to_string(lab.daemon.file("log")).unwrap_or_default();
        format!("the source's {}\nthe target's {}\nthe switch: {switch}", source.logs(), target.logs())
    };
    lab.daemon.wait_state("to", "up").unwrap_or_else(|e| panic!("the guest is here now: {e}, {}", said()));
    lab.daemon.wait_state("from", "waiting").unwrap_or_else(|e| panic!("no longer there: {e}, {}", said()));
    target.adopt(&source);
    source.kill().expect("killed");

    pings.more().expect("answered from the new place");
    println!(
        "migrated in {} ms, downtime {} ms by QEMU: {}",
        state["total-time"],
        state["downtime"],
        pings.stop().expect("stopped")
    );
    let wanted = long_checksum(&b);
    let (status, got) = target.finish("fetch").expect("ends");
    assert!(status == 0 && got.starts_with(&wanted), "a transfer on the move: {wanted} became {got}");
    assert!(announcement.0.wait().expect("waited").success(), "the station was announced");
    let place = lab.daemon.json(&["fdb", "show"]).expect("shown").to_string();
    assert!(place.contains(&station), "{place}");
    assert_eq!(lab.daemon.port("to")["fdb_entries"], 1, "{place}");
    check_transfer(&b, &target, "10.7.0.1").expect("from the new place");
    check_transfer(&target, &b, "10.7.0.2").expect("to the new place");
}
