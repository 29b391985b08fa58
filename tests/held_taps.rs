//! TAPs as virtual machines have them today: another process holds the character device (here this test does, with virtio-net
//! headers, as QEMU would), and the switch takes the netdev as a `packet` port, beside ordinary `tap` ports.

use std::{
    fs::File,
    net::UdpSocket,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use switch_core::{
    frame::{
        checksum::checksum,
        offload::{Offload, VNET_HDR_BYTES},
    },
    mac::MacAddr,
    sys::tap,
};
use vswitch_benches::netns::{Namespace, wait_for};
use vswitch_tests::{Daemon, PATIENCE};

const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 7, 7]);
const GUEST_IP: [u8; 4] = [10, 8, 7, 7];
const HOST_IP: [u8; 4] = [10, 8, 7, 1];

/// What a virtual machine is to its host: the holder of a TAP's character device.
struct Guest {
    device: File,
}

impl Guest {
    fn send(&self, frame: &[u8], offload: Offload) {
        let mut bytes = vec![0; VNET_HDR_BYTES];
        offload.encode((&mut bytes[..]).try_into().expect("the header's length"));
        bytes.extend_from_slice(frame);
        tap::write(self.device.as_raw_fd(), &bytes).expect("the TAP is up");
    }

    /// The next frame to the guest's own address, with what is owed on it.
    fn receive(&self) -> Option<(Vec<u8>, Offload)> {
        let mut buffer = vec![0; 70_000];
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            match tap::read(self.device.as_raw_fd(), &mut buffer) {
                Ok(n) if buffer[VNET_HDR_BYTES..VNET_HDR_BYTES + 6] == GUEST.0 => {
                    let header = buffer[..VNET_HDR_BYTES].try_into().expect("the header's length");
                    return Some((
                        buffer[VNET_HDR_BYTES..n].to_vec(),
                        Offload::decode(header).expect("a known header"),
                    ));
                }
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }
}

/// An IPv4 UDP frame from the guest whose checksum is left to the device: the field holds the pseudo-header's sum.
fn udp_with_owed_checksum(to: MacAddr, to_port: u16, payload: &[u8]) -> (Vec<u8>, Offload) {
    let udp_len = (8 + payload.len()) as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    ip.extend(GUEST_IP);
    ip.extend(HOST_IP);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let pseudo = [&GUEST_IP[..], &HOST_IP, &[0, 17], &udp_len.to_be_bytes()].concat();
    let mut udp = [777u16.to_be_bytes(), to_port.to_be_bytes(), udp_len.to_be_bytes(), [0, 0]].concat();
    udp[6..8].copy_from_slice(&(!checksum(&pseudo)).to_be_bytes());
    let frame = [&to.0[..], &GUEST.0, &[8, 0], &ip, &udp, payload].concat();
    let offload = Offload { needs_csum: true, csum_start: 34, csum_offset: 6, ..Offload::NONE };
    (frame, offload)
}

#[test]
fn a_virtual_machines_tap_is_a_packet_port_beside_tap_ports() {
    for host_offload in ["on", "off"] {
        let home = Namespace::new("vgh").expect("root");
        let host = Namespace::new("vgn").expect("root");
        let guest = Guest { device: home.run(|| tap::attach_vnet("vm0", false)).expect("namespace").expect("made") };
        tap::set_offloads(guest.device.as_raw_fd(), true).expect("checksums and segmentation");
        home.exec(&["ip", "link", "set", "vm0", "up"]).expect("up");
        let near = format!("vm0=packet,netns={}", home.name());
        let far = format!("h=tap,device=eth0,netns={},offload={host_offload}", host.name());
        let daemon = Daemon::start(&["--port", &near, "--port", &far]).expect("starts");
        host.configure("eth0", &["10.8.7.1/24"]).expect("the TAP is there");
        host.exec(&["ip", "neigh", "add", "10.8.7.7", "lladdr", &GUEST.to_string(), "dev", "eth0"]).expect("set");
        wait_for("both ports are up", PATIENCE, || {
            daemon.json(&["status"]).is_ok_and(|status| status["ports_up"] == 2)
        })
        .expect("up");
        let mac: MacAddr =
            host.exec(&["cat", "/sys/class/net/eth0/address"]).expect("there").trim().parse().expect("an address");
        let socket = host.run(|| UdpSocket::bind("10.8.7.1:0")).expect("namespace").expect("bind");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        let port = socket.local_addr().expect("bound").port();

        // Guest to host: the kernel of the host takes the datagram only if its checksum is right or known to be owed.
        for len in [1, 17, 1400] {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let (frame, offload) = udp_with_owed_checksum(mac, port, &payload);
            guest.send(&frame, offload);
            let mut buffer = [0; 2000];
            let (n, from) = socket.recv_from(&mut buffer).expect("the datagram arrives");
            assert_eq!((&buffer[..n], from.to_string().as_str()), (&payload[..], "10.8.7.7:777"));
        }

        // Host to guest: complete, or owed and said so; in both cases the sum over everything comes out.
        socket.send_to(&[0xa5; 333], "10.8.7.7:777").expect("sent");
        let (frame, offload) = guest.receive().expect("the datagram arrives");
        let udp = &frame[34..];
        let pseudo = [&HOST_IP[..], &GUEST_IP, &[0, 17], &udp[4..6]].concat();
        if offload.needs_csum {
            assert_eq!((offload.csum_start, offload.csum_offset), (34, 6));
            assert_eq!(udp[6..8], (!checksum(&pseudo)).to_be_bytes(), "the field holds the pseudo-header's sum");
        } else {
            assert_eq!(checksum(&[&pseudo, udp].concat()), 0, "host offload {host_offload}");
        }
        assert_eq!(udp[8..], [0xa5; 333]);
        let counters = daemon.json(&["port", "show", "vm0"]).expect("shown")[0]["counters"].clone();
        assert!(counters["rx_frames"].as_u64() >= Some(3) && counters["tx_frames"].as_u64() >= Some(1), "{counters}");
    }
}
