//! Golden output: what is printed for each kind of port, by version of QEMU.

use super::{super::vm::tests::view, *};

const MAC: &str = "02:00:00:00:00:01";

fn check(spec: &str, qemu: &str, expected: &str) {
    checked(&view(spec, Some("tun")), qemu, expected);
}

fn checked(view: &switch_core::control::wire::PortView, qemu: &str, expected: &str) {
    let wire = Wire::of(view).expect("a wire");
    let rendered = render(&view.spec.name, &wire, MAC, qemu.parse().expect("a version")).expect("arguments");
    let line = rendered.words.chunks(2).map(|pair| pair.join(" ")).collect::<Vec<_>>().join("\n");
    assert_eq!(line, expected.trim(), "{}", view.spec.name);
}

#[test]
fn vhost_user() {
    check(
        "vm1=vhost-user,path=/run/vm1.sock",
        "7.2",
        "
-chardev socket,id=chr-vm1,path=/run/vm1.sock,reconnect=1
-netdev vhost-user,id=net-vm1,chardev=chr-vm1
-device virtio-net-pci,netdev=net-vm1,mac=02:00:00:00:00:01",
    );
    check(
        "vm1=vhost-user,path=/run/vm1.sock,queues=4",
        "9.2",
        "
-chardev socket,id=chr-vm1,path=/run/vm1.sock,reconnect-ms=1000
-netdev vhost-user,id=net-vm1,chardev=chr-vm1,queues=4
-device virtio-net-pci,netdev=net-vm1,mac=02:00:00:00:00:01,mq=on,vectors=10",
    );
    check(
        "1@a=vhost-user,path=/run/vm1.sock,mode=client",
        "10.1",
        "
-chardev socket,id=chr-1_a,path=/run/vm1.sock,server=on,wait=off
-netdev vhost-user,id=net-1_a,chardev=chr-1_a
-device virtio-net-pci,netdev=net-1_a,mac=02:00:00:00:00:01",
    );
    assert_eq!(
        memory("2G").join(" "),
        "-object memory-backend-memfd,id=vswitch-mem,size=2G,share=on -machine memory-backend=vswitch-mem"
    );
}

#[test]
fn streams() {
    let device = "\n-device virtio-net-pci,netdev=net-s,mac=02:00:00:00:00:01";
    for (spec, qemu, netdev) in [
        ("path=/run/s", "9.2", "stream,id=net-s,server=off,addr.type=unix,addr.path=/run/s,reconnect-ms=1000"),
        ("path=/run/s", "8.0", "stream,id=net-s,server=off,addr.type=unix,addr.path=/run/s,reconnect=1"),
        ("path=/run/s", "7.2", "stream,id=net-s,server=off,addr.type=unix,addr.path=/run/s"),
        ("path=/run/s,mode=client", "7.2", "stream,id=net-s,server=on,addr.type=unix,addr.path=/run/s"),
        (
            "address=10.0.0.1:7001,mode=client",
            "7.2",
            "stream,id=net-s,server=on,addr.type=inet,addr.host=10.0.0.1,addr.port=7001",
        ),
        (
            "address=[::]:7001",
            "9.2",
            "stream,id=net-s,server=off,addr.type=inet,addr.host=::1,addr.port=7001,reconnect-ms=1000",
        ),
        ("address=10.0.0.1:7001", "6.2", "socket,id=net-s,connect=10.0.0.1:7001"),
        ("address=10.0.0.1:7001,mode=client", "6.2", "socket,id=net-s,listen=10.0.0.1:7001"),
    ] {
        check(&format!("s=stream,{spec}"), qemu, &format!("-netdev {netdev}{device}"));
    }
}

#[test]
fn datagrams() {
    let device = "\n-device virtio-net-pci,netdev=net-d,mac=02:00:00:00:00:01";
    for (spec, qemu, netdev) in [
        (
            "path=/run/sw,peer=/run/vm",
            "7.2",
            "dgram,id=net-d,local.type=unix,local.path=/run/vm,remote.type=unix,remote.path=/run/sw",
        ),
        (
            "address=0.0.0.0:7001,peer=127.0.0.1:7002",
            "7.2",
            "dgram,id=net-d,local.type=inet,local.host=127.0.0.1,local.port=7002,remote.type=inet,remote.host=127.0.0.1,remote.port=7001",
        ),
        (
            "address=127.0.0.1:7001,peer=127.0.0.1:7002",
            "5.2",
            "socket,id=net-d,udp=127.0.0.1:7001,localaddr=127.0.0.1:7002",
        ),
    ] {
        check(&format!("d=dgram,{spec}"), qemu, &format!("-netdev {netdev}{device}"));
    }
}

#[test]
fn taps_behind_packet_ports() {
    check(
        "tap3=packet",
        "7.2",
        "
-netdev tap,id=net-tap3,ifname=tap3,script=no,downscript=no
-device virtio-net-pci,netdev=net-tap3,mac=02:00:00:00:00:01",
    );
    let mut several = view("up=packet,device=tap4", Some("tun"));
    several.multi_queue = true;
    checked(
        &several,
        "7.2",
        "
-netdev tap,id=net-up,ifname=tap4,script=no,downscript=no,queues=2
-device virtio-net-pci,netdev=net-up,mac=02:00:00:00:00:01,mq=on,vectors=6",
    );
}

#[test]
fn what_the_arguments_cannot_say_is_a_note() {
    for (spec, device, part) in [
        ("s=stream,path=/run/s", None, "does not connect again"),
        ("t=packet,netns=blue", Some("tun"), "ip netns exec blue"),
        ("t=packet,netns=pid:77", Some("tun"), "nsenter --target 77 --net"),
        ("t=packet", None, "ip tuntap add t mode tap"),
    ] {
        let wire = Wire::of(&view(spec, device)).expect("a wire");
        let notes = render("x", &wire, MAC, Version(7, 2)).expect("arguments").notes;
        assert!(notes.len() == 1 && notes[0].contains(part), "{spec}: {notes:?}");
    }
}

#[test]
fn an_old_qemu_is_refused_what_it_cannot_do() {
    for (spec, part) in [
        ("s=stream,path=/run/s", "frames over Unix sockets (7.2 can)"),
        ("s=stream,address=[::1]:7001", "IPv4 only"),
        ("d=dgram,path=/run/s,peer=/run/v", "datagrams over Unix sockets (7.2 can)"),
        ("d=dgram,address=[::1]:7001,peer=[::1]:7002", "IPv4 only"),
    ] {
        let wire = Wire::of(&view(spec, None)).expect("a wire");
        let error = render("x", &wire, MAC, Version(6, 2)).expect_err(spec).to_string();
        assert!(error.contains(part), "{spec}: {error}");
    }
    assert!("4.2".parse::<Version>().is_err() && "new".parse::<Version>().is_err());
    assert_eq!("7.2.22".parse(), Ok(Version(7, 2)));
    assert!(Version(9, 2) < Version(10, 0));
}

#[test]
fn words_survive_qemu_and_the_shell() {
    let mut odd = view("v=vhost-user,path=/run/a", None);
    odd.spec.path = Some("/run/my VMs/a,b.sock".into());
    let words = render("v", &Wire::of(&odd).expect("a wire"), MAC, Version(9, 2)).expect("arguments").words;
    assert_eq!(words[1], "socket,id=chr-v,path=/run/my VMs/a,,b.sock,reconnect-ms=1000");
    assert_eq!(quoted(&words[1]), "'socket,id=chr-v,path=/run/my VMs/a,,b.sock,reconnect-ms=1000'");
    assert_eq!(quoted("it's"), r"'it'\''s'");
    assert_eq!(quoted("/run/[a]"), "'/run/[a]'");
    for (size, good) in
        [("512M", true), ("4G", true), ("4", false), ("G", false), ("0G", false), ("4GG", false), ("4G,x", false)]
    {
        assert_eq!(memory_size(size).is_ok(), good, "{size}");
    }
}
