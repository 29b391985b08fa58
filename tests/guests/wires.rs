//! A guest on every wire that QEMU speaks over sockets, each with a TAP at the other end.

use std::net::{TcpListener, UdpSocket};

use vswitch_tests::guest::{Machine, NetnsPeer, Setup, check_transfer};

use crate::lab::Lab;

fn tcp_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

fn udp_ports() -> [u16; 2] {
    let sockets = [0; 2].map(|_| UdpSocket::bind("127.0.0.1:0").expect("a free port"));
    sockets.map(|socket| socket.local_addr().expect("bound").port())
}

/// The ports' SPECs without their names, and what QEMU's `-netdev` says. `@` is the directory of the sockets.
fn wires() -> Vec<(String, String)> {
    let tcp: Vec<_> = (0..4).map(|_| tcp_port()).collect();
    let inet = |port: u16| format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}");
    let ([a, b], [c, d]) = (udp_ports(), udp_ports());
    vec![
        ("stream,path=@/s0".into(), "stream,server=off,addr.type=unix,addr.path=@/s0".into()),
        ("stream,path=@/s1,mode=client".into(), "stream,server=on,addr.type=unix,addr.path=@/s1".into()),
        (format!("stream,address=127.0.0.1:{}", tcp[0]), format!("stream,server=off,{}", inet(tcp[0]))),
        (format!("stream,address=127.0.0.1:{},mode=client", tcp[1]), format!("stream,server=on,{}", inet(tcp[1]))),
        (format!("stream,address=127.0.0.1:{}", tcp[2]), format!("socket,connect=127.0.0.1:{}", tcp[2])),
        (format!("stream,address=127.0.0.1:{},mode=client", tcp[3]), format!("socket,listen=127.0.0.1:{}", tcp[3])),
        (
            "dgram,path=@/d0,peer=@/d0-vm".into(),
            "dgram,local.type=unix,local.path=@/d0-vm,remote.type=unix,remote.path=@/d0".into(),
        ),
        (
            format!("dgram,address=127.0.0.1:{a},peer=127.0.0.1:{b}"),
            format!(
                "dgram,local.type=inet,local.host=127.0.0.1,local.port={b},\
                 remote.type=inet,remote.host=127.0.0.1,remote.port={a}"
            ),
        ),
        (
            format!("dgram,address=127.0.0.1:{c},peer=127.0.0.1:{d}"),
            format!("socket,udp=127.0.0.1:{c},localaddr=127.0.0.1:{d}"),
        ),
    ]
}

#[test]
fn a_guest_exchanges_files_over_every_socket_wire() {
    let peer = NetnsPeer::new("vgw").expect("root");
    let wires = wires();
    let domains: Vec<_> = (0..wires.len()).map(|n| format!("d{n}")).collect();
    let mut ports = Vec::new();
    for (n, (spec, _)) in wires.iter().enumerate() {
        ports.push(format!("w{n}={spec},domain=d{n}"));
        ports.push(format!("t{n}=tap,device=eth{n},netns={},domain=d{n}", peer.namespace.name()));
    }
    let domains: Vec<_> = domains.iter().map(String::as_str).collect();
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let Some(mut lab) = Lab::new(&domains, &ports) else { return };
    let directory = lab.path("");
    let directory = directory.to_string_lossy();
    let guest = wires
        .iter()
        .fold(Setup::new(1), |setup, (_, netdev)| setup.nic(&netdev.replace("@/", &directory), ""))
        .start()
        .expect("started");
    guest.ready().expect("boots");
    for (n, (spec, netdev)) in wires.iter().enumerate() {
        lab.wait_up(&[&format!("w{n}")]);
        guest.configure(&format!("eth{n}"), &[&format!("10.4.{n}.1/24")]).expect("set");
        peer.namespace.configure(&format!("eth{n}"), &[&format!("10.4.{n}.2/24")]).expect("set");
        guest.reach(&format!("10.4.{n}.2")).unwrap_or_else(|e| panic!("{spec}, {netdev}: {e:#}"));
        check_transfer(&guest, &peer, &format!("10.4.{n}.2")).unwrap_or_else(|e| panic!("{spec} to {netdev}: {e:#}"));
        check_transfer(&peer, &guest, &format!("10.4.{n}.1")).unwrap_or_else(|e| panic!("{spec} from {netdev}: {e:#}"));
    }

    // After the death of the switch all go on but those who connected to it: QEMU 7.2 tries only once.
    lab.daemon.crash_and_restart().expect("starts again");
    for (n, (spec, netdev)) in wires.iter().enumerate() {
        if spec.starts_with("dgram") || spec.ends_with("mode=client") {
            lab.wait_up(&[&format!("w{n}")]);
            peer.namespace.configure(&format!("eth{n}"), &[&format!("10.4.{n}.2/24")]).expect("a new TAP");
            // It has another address than the guest remembers.
            peer.reach(&format!("10.4.{n}.1")).unwrap_or_else(|e| panic!("{spec}, {netdev}: {e:#}"));
            check_transfer(&peer, &guest, &format!("10.4.{n}.1")).unwrap_or_else(|e| panic!("{spec}: {e:#}"));
        }
    }

    // A connection ends with its QEMU; whoever listens here takes the next one.
    guest.kill().expect("killed");
    for n in 0..6 {
        lab.daemon.wait_state(&format!("w{n}"), "waiting").expect("nobody is connected");
    }
    peer.namespace.configure("eth0", &["10.4.0.2/24"]).expect("a new TAP");
    let guest = Setup::new(1).nic(&wires[0].1.replace("@/", &directory), "").start().expect("started");
    guest.ready().expect("boots");
    guest.configure("eth0", &["10.4.0.1/24"]).expect("set");
    peer.reach("10.4.0.1").expect("a way");
    check_transfer(&peer, &guest, "10.4.0.1").expect("from the next guest");
}
