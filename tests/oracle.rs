//! The kernel bridge as an oracle: the same frames through a bridge of three veths and through a switch with three
//! transparent ports, and what each far end gets, frame by frame. Where the two differ on purpose, the case says why.

use std::time::{Duration, Instant};

use switch_core::{
    frame::offload::VNET_HDR_BYTES,
    sys::{
        packet::{PacketSocket, Received},
        raw::RawSocket,
    },
};
use vswitch_benches::netns::{KernelBridge, Namespace, wait_for};
use vswitch_tests::{Daemon, PATIENCE};

const FAR_ENDS: usize = 3;
/// Our own EtherType, so that nothing that a kernel says of its own accord is taken for an answer.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

type Mac = [u8; 6];
const A: Mac = [2, 0, 0, 0, 0x0a, 1];
const B: Mac = [2, 0, 0, 0, 0x0b, 2];
const C: Mac = [2, 0, 0, 0, 0x0c, 3];
const NOBODY: Mac = [2, 0, 0, 0, 0x0d, 9];
const BROADCAST: Mac = [0xff; 6];

/// One frame and what is expected of it.
struct Case {
    what: &'static str,
    from: usize,
    bytes: Vec<u8>,
    /// The switch does something else than the bridge, deliberately: who gets it from the switch, and why.
    intended: Option<(&'static [usize], &'static str)>,
}

fn frame(dst: Mac, src: Mac, tags: &[[u8; 4]], len: usize) -> Vec<u8> {
    let mut bytes = [dst, src].concat();
    bytes.extend(tags.iter().flatten());
    bytes.extend(ETHERTYPE);
    bytes.resize(len.max(bytes.len()), 0);
    bytes
}

fn case(what: &'static str, from: usize, bytes: Vec<u8>) -> Case {
    Case { what, from, bytes, intended: None }
}

fn cases() -> Vec<Case> {
    let plain = |dst, src| frame(dst, src, &[], 60);
    let group = |last| [0x01, 0x80, 0xc2, 0, 0, last];
    let tag = |pcp: u8, vid: u8| [0x81, 0, pcp << 5, vid];
    let mut cases = vec![
        case("broadcast", 0, plain(BROADCAST, A)),
        case("known unicast back", 1, plain(A, B)),
        case("known unicast there", 0, plain(B, A)),
        case("unknown unicast", 2, plain(NOBODY, C)),
        case("multicast", 1, plain([1, 0, 0x5e, 1, 2, 3], B)),
        case("to itself, no hairpin", 0, plain(A, A)),
        case("a neighbour on the same port", 0, plain(A, [2, 0, 0, 0, 0x0a, 9])),
        case("zero source", 0, plain(BROADCAST, [0; 6])),
        case("multicast source", 0, plain(BROADCAST, [3, 0, 0, 0, 0, 1])),
        case("broadcast source", 0, plain(B, BROADCAST)),
        case("zero destination", 0, plain([0; 6], A)),
        case("a move", 2, plain(BROADCAST, A)),
        case("after the move", 1, plain(A, B)),
        case("and back", 0, plain(BROADCAST, A)),
        case("after the way back", 1, plain(A, B)),
        case("priority tag", 0, frame(BROADCAST, A, &[tag(5, 0)], 64)),
        case("tag as payload, broadcast", 0, frame(BROADCAST, A, &[tag(3, 7)], 64)),
        case("tag as payload, unicast", 0, frame(B, A, &[tag(3, 7)], 64)),
        case("service tag", 0, frame(B, A, &[[0x88, 0xa8, 0, 9]], 64)),
        case("two tags", 0, frame(B, A, &[[0x88, 0xa8, 0, 9], tag(1, 7)], 68)),
        case("a tag behind a priority tag", 0, frame(B, A, &[tag(0, 0), tag(0, 7)], 68)),
        case("the longest frame", 0, frame(B, A, &[], 1514)),
        case("the longest tagged frame", 0, frame(B, A, &[tag(0, 7)], 1518)),
        case("shorter than Ethernet allows", 0, frame(B, A, &[], 20)),
        case("a header and nothing else", 0, frame(B, A, &[], 14)),
    ];
    cases.push(Case {
        what: "one byte too long",
        from: 0,
        bytes: frame(B, A, &[], 1515),
        intended: Some((
            &[],
            "the bridge leaves room for a tag that is not there; a guest with this MTU would lose it",
        )),
    });
    cases.push(case("longer than a tag explains", 0, frame(B, A, &[], 1519)));
    cases.extend((0..=16).map(|last| case("reserved group address", 0, plain(group(last), A))));
    cases
}

/// A far end: what it sends by, and what it hears with, tags included.
struct FarEnd {
    mouth: RawSocket,
    ear: PacketSocket,
}

impl FarEnd {
    fn new(host: &Namespace) -> FarEnd {
        host.exec(&["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6"]).expect("set");
        // Longer frames than the bridge's and the switch's MTU allow can be sent.
        host.exec(&["ip", "link", "set", "eth0", "up", "arp", "off", "mtu", "1600"]).expect("up");
        let index =
            host.exec(&["cat", "/sys/class/net/eth0/ifindex"]).expect("there").trim().parse().expect("a number");
        let open =
            || (RawSocket::open("eth0", false).expect("opened"), PacketSocket::open(index, None).expect("opened"));
        let (mouth, ear) = host.run(open).expect("namespace");
        FarEnd { mouth, ear }
    }

    /// Hears the next frame as it was on the wire.
    fn hear(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; VNET_HDR_BYTES + 4096];
        let mut received = Default::default();
        let buffers = std::iter::once((&mut buffer[..], &mut [][..]));
        if self.ear.receive(buffers, &mut received).ok()? == 0 {
            return None;
        }
        let Received { len, tag, .. } = received[0];
        let mut bytes = buffer[VNET_HDR_BYTES..VNET_HDR_BYTES + len].to_vec();
        if let Some(tag) = tag {
            bytes.splice(12..12, tag.to_bytes());
        }
        Some(bytes)
    }
}

/// What a kernel says of its own accord is IPv6 or IPv4, which no case is: a bridge reports itself to 224.0.0.106, some time after it came up.
fn is_the_kernels(frame: &[u8]) -> bool {
    matches!(frame.get(12..14), Some([0x86, 0xdd] | [8, 0]))
}

struct Side {
    ends: Vec<FarEnd>,
}

impl Side {
    /// Takes what has arrived, until a marker frame has come to each of the other two: what came before it came from
    /// frames sent before it.
    fn exchange(&self, from: usize, bytes: &[u8], number: u32) -> Vec<Vec<Vec<u8>>> {
        if !bytes.is_empty() {
            let sent = self.ends[from].mouth.send(&[bytes.to_vec()]).unwrap_or(0);
            // A veth refuses at once what its peer's MTU does not allow.
            assert!(sent == 1 || bytes.len() > 1518, "the kernel takes {:02x?}", &bytes[..14]);
        }
        let mut marker = frame([1, 0, 0x5e, 0x7f, 0, 1], [2, 0, 0, 0, 0xee, from as u8], &[], 60);
        marker[14..18].copy_from_slice(&number.to_be_bytes());
        self.ends[from].mouth.send(&[marker.clone()]).expect("sent");
        let deadline = Instant::now() + PATIENCE;
        let mut got = vec![Vec::new(); FAR_ENDS];
        for (index, end) in self.ends.iter().enumerate() {
            // The sender has no marker to wait for; by then the others have theirs, or will give it time.
            let mut marked = index == from;
            loop {
                match end.hear() {
                    Some(heard) if heard == marker => marked = true,
                    Some(heard) if !is_the_kernels(&heard) => got[index].push(heard),
                    Some(_) => {}
                    None if marked => break,
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
                assert!(Instant::now() < deadline, "the marker does not come to far end {index}");
            }
        }
        // What was sent back came no later than what was sent on.
        while let Some(heard) = self.ends[from].hear() {
            if !is_the_kernels(&heard) {
                got[from].push(heard);
            }
        }
        got
    }
}

fn heard(got: &[Vec<Vec<u8>>]) -> Vec<usize> {
    got.iter().enumerate().flat_map(|(end, frames)| vec![end; frames.len()]).collect()
}

fn compare(ports: &str) {
    let bridge_hosts: Vec<Namespace> = (0..FAR_ENDS).map(|_| Namespace::new("vok").expect("root")).collect();
    let bridge = KernelBridge::new(&bridge_hosts.iter().collect::<Vec<_>>(), "eth0").expect("root");
    let switch_hosts: Vec<Namespace> = (0..FAR_ENDS).map(|_| Namespace::new("vos").expect("root")).collect();
    let home = Namespace::new("voh").expect("root");
    let mut specs = Vec::new();
    for (i, host) in switch_hosts.iter().enumerate() {
        if ports == "packet" {
            let near = format!("p{i}");
            home.exec(&["ip", "link", "add", &near, "type", "veth", "peer", "name", "eth0", "netns", host.name()])
                .expect("root");
            home.exec(&["sh", "-c", &format!("echo 1 >/proc/sys/net/ipv6/conf/{near}/disable_ipv6")]).expect("set");
            home.exec(&["ip", "link", "set", &near, "up"]).expect("root");
            specs.push(format!("h{i}=packet,device={near},netns={},domain=default:transparent", home.name()));
        } else {
            specs.push(format!("h{i}=tap,device=eth0,netns={},domain=default:transparent", host.name()));
        }
    }
    let arguments: Vec<&str> = specs.iter().flat_map(|spec| ["--port", spec.as_str()]).collect();
    let daemon = Daemon::start(&arguments).expect("the switch starts");
    let kernel = Side { ends: bridge_hosts.iter().map(FarEnd::new).collect() };
    let switch = Side { ends: switch_hosts.iter().map(FarEnd::new).collect() };
    // A marker that is sent before all of them forward comes to nobody. (3 is BR_STATE_FORWARDING.)
    for i in 0..FAR_ENDS {
        let state = || bridge.home.exec(&["cat", &format!("/sys/class/net/p{i}/brport/state")]).expect("a port");
        wait_for("the bridge forwards", PATIENCE, || state().trim() == "3").expect("it does");
        daemon.wait_state(&format!("h{i}"), "up").expect("up");
    }
    for host in bridge_hosts.iter().chain(&switch_hosts) {
        let state = || host.exec(&["cat", "/sys/class/net/eth0/carrier"]).expect("it is up");
        wait_for("the far end has its carrier", PATIENCE, || state().trim() == "1").expect("it has");
    }
    let mut number = 0;
    for side in [&kernel, &switch] {
        for from in 0..FAR_ENDS {
            number += 1;
            side.exchange(from, &[], number);
        }
    }
    let mut differences = Vec::new();
    let (mut forwarded, mut kept) = (0, 0);
    for case in cases() {
        number += 1;
        let oracle = kernel.exchange(case.from, &case.bytes, number);
        let ours = switch.exchange(case.from, &case.bytes, number);
        if heard(&oracle).is_empty() {
            kept += 1;
        } else {
            forwarded += 1;
        }
        let head = &case.bytes[..case.bytes.len().min(22)];
        match case.intended {
            Some((to, why)) if heard(&ours) != to => {
                differences.push(format!("{} {head:02x?}: {why}: {:?} got it", case.what, heard(&ours)));
            }
            None if ours != oracle => differences.push(format!(
                "{} {head:02x?}: the bridge gave it to {:?}, the switch to {:?}{}",
                case.what,
                heard(&oracle),
                heard(&ours),
                if heard(&oracle) == heard(&ours) {
                    format!(", changed: {oracle:02x?} {ours:02x?}")
                } else {
                    String::new()
                }
            )),
            _ => {}
        }
    }
    drop(bridge);
    assert!(forwarded > 15 && kept > 15, "the bridge works: {forwarded} forwarded, {kept} kept");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn packet_ports_do_what_bridge_ports_do() {
    compare("packet");
}

#[test]
fn tap_ports_do_what_bridge_ports_do() {
    compare("tap");
}
