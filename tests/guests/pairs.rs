//! Two guests on vhost-user ports: sockets of either side, every mixture of offloads, several queues.

use vswitch_tests::guest::{Machine, Setup, check_transfer, checksum};

use crate::lab::Lab;

/// Properties of the devices of both guests, one pair per domain; in the last one a port offers no offloads either.
const DEVICES: [(&str, &str); 5] = [
    ("", ""),
    ("", NOTHING),
    (NOTHING, ""),
    (
        ",mrg_rxbuf=off,guest_tso4=off,guest_tso6=off,guest_ecn=off",
        ",event_idx=off,indirect_desc=off,rx_queue_size=1024,tx_queue_size=1024",
    ),
    (",packed=off,host_tso4=off,host_tso6=off", ",guest_tso4=off,guest_tso6=off,disable-legacy=on"),
];

const NOTHING: &str = ",csum=off,guest_csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,\
    guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_ufo=off";

#[test]
fn two_guests_exchange_files_with_every_mixture_of_offloads() {
    let last = DEVICES.len();
    let names: Vec<_> = (0..=last).map(|i| format!("d{i}")).collect();
    let domains: Vec<_> = names.iter().map(String::as_str).collect();
    let mut ports = Vec::new();
    for (i, domain) in domains.iter().enumerate() {
        let queues = if i == last { ",queues=2" } else { "" };
        let offload = if i == 4 { ",offload=off" } else { "" };
        ports.push(format!("a{i}=vhost-user,path=@/a{i},domain={domain}{queues}{offload}"));
        // The second guest's sockets are QEMU's own.
        ports.push(format!("b{i}=vhost-user,path=@/b{i},mode=client,domain={domain}{queues}"));
    }
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let Some(lab) = Lab::new(&domains, &ports) else { return };
    let (mut a, mut b) = (Setup::new(1).cpus(2), Setup::new(2).cpus(2));
    for (i, (of_a, of_b)) in DEVICES.into_iter().chain([("", "")]).enumerate() {
        let queues = if i == last { 2 } else { 1 };
        a = a.vhost_user(&lab.path(&format!("a{i}")), false, queues, of_a);
        b = b.vhost_user(&lab.path(&format!("b{i}")), true, queues, of_b);
    }
    let (a, b) = (a.start().expect("started"), b.start().expect("started"));
    a.ready().expect("boots");
    b.ready().expect("boots");
    for i in 0..=last {
        for (guest, n) in [(&a, 1), (&b, 2)] {
            let device = format!("eth{i}");
            guest.configure(&device, &[&format!("10.1.{i}.{n}/24"), &format!("fd00:{i}::{n}/64")]).expect("set");
        }
        lab.wait_up(&[&format!("a{i}"), &format!("b{i}")]);
        let mixture = DEVICES.get(i);
        a.reach(&format!("10.1.{i}.2")).unwrap_or_else(|e| {
            let ports = [format!("a{i}"), format!("b{i}")].map(|port| lab.daemon.port(&port).to_string());
            let guests = [&a, &b]
                .map(|guest| guest.sh(&format!("cat /proc/net/dev /proc/interrupts; ip a show eth{i}; arp -n")));
            panic!("{mixture:?}: {e:#}\nthe ports: {ports:#?}\nthe guests: {guests:#?}")
        });
        a.sh(&format!("ping -c 2 -s 8000 10.1.{i}.2")).unwrap_or_else(|e| panic!("{mixture:?}: fragments: {e:#}"));
        for (to, from, n) in [(&a, &b, 2), (&b, &a, 1)] {
            for address in [format!("10.1.{i}.{n}"), format!("fd00:{i}::{n}")] {
                check_transfer(to, from, &address).unwrap_or_else(|e| panic!("{mixture:?}: {e:#}"));
            }
        }
    }
    // A DHCP client reads packets below the kernel's checks, and must understand that a checksum is owed.
    a.sh("printf 'start 10.1.0.50\\nend 10.1.0.60\\ninterface eth0\\nlease_file /tmp/leases\\n' >/tmp/udhcpd.conf")
        .expect("set");
    a.sh("touch /tmp/leases; udhcpd -I 10.1.0.1 /tmp/udhcpd.conf").expect("started");
    let lease = b.sh("udhcpc -i eth0 -n -q -f -s /bin/true").expect("an answer");
    assert!(lease.contains("lease of 10.1.0.5"), "{lease}");

    // The frames were as large as the devices allow, and were cut for the device that takes no large ones.
    let count = |port: &str, name: &str| lab.daemon.port(port)["counters"][name].as_u64().unwrap_or(0);
    assert!(count("a0", "rx_bytes") / count("a0", "rx_frames") > 2000, "{}", lab.daemon.port("a0"));
    assert_eq!(count("b0", "tx_completed"), 0, "{}", lab.daemon.port("b0"));
    assert!(count("b1", "tx_segments") > 500, "{}", lab.daemon.port("b1"));
    assert!(count("a2", "tx_segments") > 500, "{}", lab.daemon.port("a2"));

    // Both pairs of queues are in use, and flows at the same time do not mix.
    for guest in [&a, &b] {
        let queues = guest.sh(&format!("ls /sys/class/net/eth{last}/queues")).expect("shown");
        assert!(queues.contains("rx-1") && queues.contains("tx-1") && !queues.contains("rx-2"), "{queues}");
    }
    for flow in 0..4 {
        let fetch = format!("wget -q -O - http://10.1.{last}.1/data | md5sum");
        b.spawn(&format!("flow{flow}"), &fetch).expect("started");
    }
    let wanted = checksum(&a).expect("a sum");
    for flow in 0..4 {
        let (_, got) = b.finish(&format!("flow{flow}")).expect("ends");
        assert!(got.starts_with(&wanted), "{wanted} became {got}");
    }
}
