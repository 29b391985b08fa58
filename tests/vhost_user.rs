//! `vhost-user` ports: drivers without VMs on a running switch, among themselves and with a TAP; VMs that come, go, break
//! the rules or say only half of what they want.

use std::path::PathBuf;

use switch_core::{
    frame::offload::{Gso, Offload},
    mac::MacAddr,
    port::{mem::MemFrame, vhost_user::features},
};
use vswitch_benches::{
    frames,
    frontend::{FrontEnd, Options},
    netns::wait_for,
};
use vswitch_tests::{Daemon, PATIENCE};

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 7, n])
}

struct Lab {
    daemon: Daemon,
    directory: PathBuf,
}

impl Lab {
    /// A switch with `ports` vhost-user ports `vm0`…, and further arguments.
    fn new(ports: usize, extra: &str, arguments: &[&str]) -> Lab {
        let directory = std::env::temp_dir().join(vswitch_benches::netns::unique("vswitch-vhost-"));
        std::fs::create_dir(&directory).expect("made");
        let specs: Vec<_> = (0..ports)
            .map(|i| format!("vm{i}=vhost-user,path={}{extra}", directory.join(format!("{i}.sock")).display()))
            .collect();
        let mut all = arguments.to_vec();
        for spec in &specs {
            all.extend(["--port", spec]);
        }
        Lab { daemon: Daemon::start(&all).expect("the switch starts"), directory }
    }

    fn path(&self, port: usize) -> PathBuf {
        self.directory.join(format!("{port}.sock"))
    }

    fn connect(&self, port: usize, options: Options) -> FrontEnd {
        let front = FrontEnd::connect(&self.path(port), options).expect("connected");
        self.wait_state(&format!("vm{port}"), "up");
        front
    }

    fn view(&self, port: &str) -> serde_json::Value {
        self.daemon.json(&["port", "show", port]).expect("shown")[0].clone()
    }

    fn wait_state(&self, port: &str, state: &str) {
        wait_for(&format!("{port} is {state}"), PATIENCE, || self.view(port)["state"] == state)
            .unwrap_or_else(|e| panic!("{e}: {}", self.view(port)));
    }

    /// Frames received = dropped on ingress + decided; copies decided = sent + dropped on egress, over all ports.
    fn check_balance(&self, ports: &[&str]) {
        let drops_on = |view: &serde_json::Value, egress: bool| -> u64 {
            view["drops"]
                .as_object()
                .expect("drops")
                .iter()
                .filter(|(name, _)| is_egress(name) == egress)
                .map(|(_, n)| n.as_u64().unwrap_or(0))
                .sum()
        };
        let mut last = String::new();
        wait_for("the accounts balance", PATIENCE, || {
            let views: Vec<_> = ports.iter().map(|p| self.view(p)).collect();
            let counter = |view: &serde_json::Value, name: &str| view["counters"][name].as_u64().unwrap_or(0);
            let ingress =
                views.iter().all(|v| counter(v, "rx_frames") == counter(v, "rx_decided") + drops_on(v, false));
            let decided: u64 = views.iter().map(|v| counter(v, "copies_decided")).sum();
            let sent: u64 = views.iter().map(|v| counter(v, "tx_frames") + drops_on(v, true)).sum();
            last = format!("decided {decided}, sent or dropped {sent}: {views:?}");
            ingress && decided == sent
        })
        .unwrap_or_else(|e| panic!("{e}: {last}"));
    }
}

fn is_egress(reason: &str) -> bool {
    use switch_core::verdict::{DropReason, Side};
    DropReason::ALL.iter().any(|r| r.name() == reason && r.side() == Side::Egress)
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn plain(from: u8, to: u8, bytes: usize, number: u64) -> MemFrame {
    MemFrame { bytes: frames::build(mac(to), mac(from), bytes, number), offload: Offload::NONE }
}

/// Each end sends once, so that the switch knows where they are.
fn introduce(a: &mut FrontEnd, b: &mut FrontEnd) {
    a.send_all(0, &[plain(0, 1, 60, 0)], PATIENCE).expect("sent");
    b.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
    b.send_all(0, &[plain(1, 0, 60, 0)], PATIENCE).expect("sent");
    a.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
}

/// A TCP segment of IPv4 with its checksum (and, past one segment, its segmentation) owed.
fn tcp(from: u8, to: u8, payload: usize, segment: u16) -> MemFrame {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&mac(to).0);
    bytes.extend_from_slice(&mac(from).0);
    bytes.extend_from_slice(&[8, 0]);
    let total = (40 + payload) as u16;
    let mut ip =
        vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, from, 10, 0, 0, to];
    let sum = !ones_sum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let tcp_len = (20 + payload) as u16;
    let pseudo = ones_sum(&[&ip[12..20], &[0, 6], &tcp_len.to_be_bytes()].concat(), 0);
    bytes.extend_from_slice(&ip);
    let mut header = vec![0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    header[16..18].copy_from_slice(&pseudo.to_be_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend((0..payload).map(|i| (i * 7 + i / 251) as u8));
    let gso = if payload > usize::from(segment) { Gso::TcpV4 } else { Gso::None };
    let offload = Offload {
        needs_csum: true,
        gso,
        hdr_len: if gso == Gso::None { 0 } else { 54 },
        gso_size: if gso == Gso::None { 0 } else { segment },
        csum_start: 34,
        csum_offset: 16,
        ..Offload::NONE
    };
    MemFrame { bytes, offload }
}

fn differences(wanted: &MemFrame, got: &[MemFrame]) -> String {
    let lengths: Vec<_> = got.iter().map(|f| f.bytes.len()).collect();
    let at = got.first().and_then(|f| f.bytes.iter().zip(&wanted.bytes).position(|(a, b)| a != b));
    format!(
        "{:?} became {:?}, of {lengths:?} bytes, differing from {at:?} on",
        wanted.offload,
        got.first().map(|f| f.offload)
    )
}

fn ones_sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn frames_of_all_lengths_arrive_unchanged_both_ways() {
    let sets = [
        Options::default(),
        Options { size: 64, rx_buffer: 1600, ..Options::default() },
        Options { features: features::offered(true) & !features::EVENT_IDX, ..Options::default() },
        Options { features: features::offered(true) & !features::INDIRECT_DESC, ..Options::default() },
        Options { features: features::offered(true) & !features::MRG_RXBUF, rx_buffer: 66_000, ..Options::default() },
        Options {
            features: features::offered(true) & !(features::MRG_RXBUF | features::VERSION_1),
            rx_buffer: 66_000,
            size: 128,
            ..Options::default()
        },
    ];
    let lab = Lab::new(2, "", &["--domain", "default,mtu=9216"]);
    for options in sets {
        let mut a = lab.connect(0, options.clone());
        let mut b = lab.connect(1, options);
        introduce(&mut a, &mut b);
        let short = [60, 61, 1500, 1514, 2047, 2048, 2100, 2112, 2113, 4084, 4085, 8180, 8181, 9000];
        let plains = |from, to| short.map(|len| plain(from, to, len, len as u64)).to_vec();
        let owed =
            |from, to| [1, 1448, 1449, 4000, 32_000, 64_999, 65_495].map(|len| tcp(from, to, len, 1448)).to_vec();
        for frame in [plains(0, 1), owed(0, 1)].concat() {
            a.send_all(0, std::slice::from_ref(&frame), PATIENCE).expect("sent");
            let got = b.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
            assert!(got == [frame.clone()], "{} bytes forth: {}", frame.bytes.len(), differences(&frame, &got));
        }
        for frame in [plains(1, 0), owed(1, 0)].concat() {
            b.send_all(0, std::slice::from_ref(&frame), PATIENCE).expect("sent");
            let got = a.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
            assert!(got == [frame.clone()], "{} bytes back: {}", frame.bytes.len(), differences(&frame, &got));
        }
        // Many at once, of mixed lengths, in order.
        let many: Vec<_> = (0..400u64).map(|n| plain(0, 1, 60 + (n as usize * 37) % 3000, n)).collect();
        let mut got = Vec::new();
        for some in many.chunks(16) {
            a.send_all(0, some, PATIENCE).expect("sent");
            got.extend(b.receive_until(0, PATIENCE, |all| all.len() == some.len()).expect("received"));
        }
        assert!(got == many, "{} of {} arrived, or changed", got.len(), many.len());
        lab.check_balance(&["vm0", "vm1"]);
    }
}
