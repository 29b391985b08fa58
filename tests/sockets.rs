//! `stream` and `dgram` ports against peers that speak QEMU's framing, and between two switches.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::Path,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use switch_core::mac::MacAddr;
use vswitch_benches::{
    frames,
    netns::{Namespace, wait_for},
};
use vswitch_tests::{Daemon, PATIENCE, answers_all, transfer};

const BROADCAST: MacAddr = MacAddr([0xff; 6]);

fn mac(host: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 9, host as u8])
}

/// The other side of a stream port.
struct Peer(File);

impl Peer {
    fn unix(stream: UnixStream) -> Peer {
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_write_timeout(Some(PATIENCE)).expect("set");
        Peer(OwnedFd::from(stream).into())
    }

    fn tcp(stream: TcpStream) -> Peer {
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_write_timeout(Some(PATIENCE)).expect("set");
        stream.set_nodelay(true).expect("set");
        Peer(OwnedFd::from(stream).into())
    }

    fn connect(path: &Path) -> Peer {
        Peer::unix(UnixStream::connect(path).expect("the port listens"))
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the port takes it");
    }

    fn send(&mut self, frame: &[u8]) {
        self.write(&wire(frame));
    }

    fn read(&mut self, bytes: &mut [u8]) {
        self.0.read_exact(bytes).expect("a frame arrives");
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.read(&mut length);
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.read(&mut frame);
        frame
    }

    /// Whether something can be read within so long.
    fn is_readable(&self, time: Duration) -> bool {
        let mut set = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let time = PollTimeout::try_from(time).expect("short");
        loop {
            match poll(&mut set, time) {
                Err(nix::errno::Errno::EINTR) => {}
                polled => return polled.expect("polled") > 0,
            }
        }
    }

    /// The connection has been closed by the switch, after so many bytes.
    fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(n) => n == 0,
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn wire(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

fn number(frame: &[u8]) -> u64 {
    frames::number_of(frame).expect("ours").expect("intact")
}

fn view(daemon: &Daemon, port: &str) -> serde_json::Value {
    daemon.json(&["port", "show", port]).expect("shown")[0].clone()
}

fn up(daemon: &Daemon, port: &str) {
    wait_for(&format!("{port} is up"), PATIENCE, || view(daemon, port)["state"] == "up").expect("up");
}

fn waits(daemon: &Daemon, port: &str, why: &str) {
    wait_for(&format!("{port} waits because {why}"), PATIENCE, || {
        view(daemon, port)["reason"].as_str().is_some_and(|r| r.contains(why))
    })
    .expect("waiting");
}

fn counter(daemon: &Daemon, port: &str, name: &str) -> u64 {
    view(daemon, port)["counters"][name].as_u64().expect("a counter")
}

fn dropped(daemon: &Daemon, port: &str, reason: &str) -> u64 {
    view(daemon, port)["drops"][reason].as_u64().unwrap_or(0)
}

/// A switch without ports. They are added afterwards: their paths are in its directory.
fn switch(arguments: &[&str]) -> Daemon {
    Daemon::start(arguments).expect("the switch starts")
}

fn add(daemon: &Daemon, spec: &str) {
    daemon.cli(&["port", "add", spec]).expect("added");
}

/// Adds a stream port that listens, and connects to it.
fn add_server(daemon: &Daemon, name: &str, extra: &str) -> Peer {
    let path = daemon.file(name);
    add(daemon, &format!("{name}=stream,path={}{extra}", path.display()));
    let peer = Peer::connect(&path);
    up(daemon, name);
    peer
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
}

/// A peer of any kind of socket port.
enum Any {
    Stream(Peer),
    Unix(UnixDatagram, std::path::PathBuf),
    Udp(UdpSocket),
}

impl Any {
    fn send(&mut self, frame: &[u8]) {
        match self {
            Any::Stream(peer) => peer.send(frame),
            Any::Unix(socket, to) => drop(socket.send_to(frame, to).expect("sent")),
            Any::Udp(socket) => drop(socket.send(frame).expect("sent")),
        }
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut frame = vec![0; 10_000];
        let n = match self {
            Any::Stream(peer) => return peer.receive(),
            Any::Unix(socket, _) => socket.recv(&mut frame),
            Any::Udp(socket) => socket.recv(&mut frame),
        };
        frame.truncate(n.expect("a frame arrives"));
        frame
    }
}

#[test]
fn ports_of_all_kinds_of_socket_pass_each_other_frames() {
    let daemon = switch(&["--workers", "2", "--domain", "default,mtu=9000"]);
    let mut peers = vec![Any::Stream(add_server(&daemon, "p0", ""))];
    let theirs = daemon.file("theirs");
    let listener = UnixListener::bind(&theirs).expect("bound");
    add(&daemon, &format!("p1=stream,mode=client,path={}", theirs.display()));
    peers.push(Any::Stream(Peer::unix(listener.accept().expect("the port connects").0)));
    let address = free_address();
    add(&daemon, &format!("p2=stream,address={address}"));
    peers.push(Any::Stream(Peer::tcp(TcpStream::connect(address).expect("the port listens"))));
    let listener = TcpListener::bind("[::1]:0").expect("bound");
    add(&daemon, &format!("p3=stream,mode=client,address={}", listener.local_addr().expect("bound")));
    peers.push(Any::Stream(Peer::tcp(listener.accept().expect("the port connects").0)));
    let (ours, theirs) = (daemon.file("d-ours"), daemon.file("d-theirs"));
    add(&daemon, &format!("p4=dgram,path={},peer={}", ours.display(), theirs.display()));
    waits(&daemon, "p4", "nobody has bound");
    let socket = UnixDatagram::bind(&theirs).expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    peers.push(Any::Unix(socket, ours));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let address = free_address();
    add(&daemon, &format!("p5=dgram,address={address},peer={}", socket.local_addr().expect("bound")));
    socket.connect(address).expect("connected");
    peers.push(Any::Udp(socket));
    for port in 0..peers.len() {
        up(&daemon, &format!("p{port}"));
    }
    // A flood teaches the switch where everybody is.
    for from in 0..peers.len() {
        let frame = frames::build(BROADCAST, mac(from), 60, from as u64);
        peers[from].send(&frame);
        for to in (0..peers.len()).filter(|to| *to != from) {
            assert!(peers[to].receive() == frame, "flood from {from} to {to}");
        }
    }
    let mut sent = 1;
    for from in 0..peers.len() {
        for to in (0..peers.len()).filter(|to| *to != from) {
            for bytes in [60, 1514, 2112, 2113, 9014] {
                let frame = frames::build(mac(to), mac(from), bytes, sent);
                peers[from].send(&frame);
                assert!(peers[to].receive() == frame, "{bytes} bytes from {from} to {to}");
                sent += 1;
            }
        }
    }
    for port in 0..peers.len() {
        let port = format!("p{port}");
        let (rx, tx) = (counter(&daemon, &port, "rx_frames"), counter(&daemon, &port, "tx_frames"));
        assert_eq!((rx, tx, counter(&daemon, &port, "rx_errors")), (26, 30, 0), "{port}");
        assert_eq!(view(&daemon, &port)["drops"], serde_json::json!({}), "{port}");
    }
}

#[test]
fn frames_are_found_wherever_the_stream_is_cut() {
    let daemon = switch(&["--poll", "interrupt"]);
    let (mut from, mut to) = (add_server(&daemon, "s0", ""), add_server(&daemon, "s1", ""));
    let (first, second) = (frames::build(BROADCAST, mac(0), 60, 1), frames::build(BROADCAST, mac(0), 90, 2));
    let bytes = [wire(&first), wire(&second)].concat();
    for cut in 1..bytes.len() {
        from.write(&bytes[..cut]);
        // So that the switch has probably read the first part before the second comes.
        std::thread::sleep(Duration::from_micros(300));
        from.write(&bytes[cut..]);
        assert!(to.receive() == first && to.receive() == second, "cut at {cut}");
    }
    for byte in &bytes {
        from.write(std::slice::from_ref(byte));
    }
    assert!(to.receive() == first && to.receive() == second, "byte by byte");
    assert_eq!(counter(&daemon, "s0", "rx_frames"), 2 * bytes.len() as u64);
}

#[test]
fn no_wake_up_is_lost() {
    for mode in ["interrupt", "adaptive"] {
        let daemon = switch(&["--poll", mode, "--workers", "2"]);
        let (mut a, mut b) = (add_server(&daemon, "s0", ""), add_server(&daemon, "s1", ""));
        for round in 0..3000u64 {
            a.send(&frames::build(mac(1), mac(0), 60, 2 * round));
            assert_eq!(number(&b.receive()), 2 * round);
            b.send(&frames::build(mac(0), mac(1), 60, 2 * round + 1));
            assert_eq!(number(&a.receive()), 2 * round + 1);
            if round % 64 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        // Several frames at once, so that a drain ends in the middle of what comes.
        for burst in 0..500u64 {
            let bytes: Vec<u8> =
                (0..100).flat_map(|i| wire(&frames::build(mac(1), mac(0), 60, burst * 100 + i))).collect();
            a.write(&bytes);
            for i in 0..100 {
                assert_eq!(number(&b.receive()), burst * 100 + i);
            }
        }
    }
}

/// Floods until frames for `slow`, whose peer does not read, are dropped; `fast` gets them all meanwhile.
fn starve(daemon: &Daemon, source: &mut Peer, fast: &mut Peer, slow: &str) -> u64 {
    let mut sent = 0;
    while dropped(daemon, slow, "queue_full") < 1000 {
        assert!(sent < 200_000, "{slow} takes everything");
        for _ in 0..20 {
            let burst: Vec<u8> =
                (sent..sent + 50).flat_map(|n| wire(&frames::build(BROADCAST, mac(0), 1003, n))).collect();
            source.write(&burst);
            for n in sent..sent + 50 {
                assert_eq!(number(&fast.receive()), n, "the other port misses nothing");
            }
            sent += 50;
        }
    }
    sent
}

fn a_slow_reader(daemon: &Daemon, mut slow: Peer) {
    let mut source = add_server(daemon, "source", ",storm-broadcast=0");
    let mut fast = add_server(daemon, "fast", "");
    let sent = starve(daemon, &mut source, &mut fast, "slow");
    let (taken, full) = (counter(daemon, "slow", "tx_frames"), dropped(daemon, "slow", "queue_full"));
    assert_eq!(taken + full, sent, "sent or dropped");
    assert_eq!(counter(daemon, "source", "copies_decided"), 2 * sent);
    assert!(taken < 20_000, "bounded: {taken} frames of 1003 bytes");
    // What was taken comes whole and in order, the half-written frame included.
    let mut last = None;
    for _ in 0..taken {
        let n = number(&slow.receive());
        assert!(last.is_none_or(|last| n > last), "{n} after {last:?}");
        last = Some(n);
    }
    source.send(&frames::build(BROADCAST, mac(0), 60, sent));
    assert_eq!((number(&fast.receive()), number(&slow.receive())), (sent, sent), "and the port works again");
}

#[test]
fn a_unix_peer_that_does_not_read_loses_only_its_own_frames() {
    let daemon = switch(&["--workers", "2"]);
    let slow = add_server(&daemon, "slow", "");
    a_slow_reader(&daemon, slow);
}

#[test]
fn a_tcp_peer_that_does_not_read_loses_only_its_own_frames() {
    let daemon = switch(&["--workers", "2"]);
    let address = free_address();
    add(&daemon, &format!("slow=stream,address={address}"));
    let slow = Peer::tcp(TcpStream::connect(address).expect("the port listens"));
    up(&daemon, "slow");
    a_slow_reader(&daemon, slow);
}

#[test]
fn peers_come_and_go_one_at_a_time() {
    let daemon = switch(&[]);
    let (mut first, mut other) = (add_server(&daemon, "s0", ""), add_server(&daemon, "s1", ""));
    let path = daemon.file("s0");
    assert!(Peer::connect(&path).is_closed(), "there is one already");
    assert_eq!(counter(&daemon, "s0", "rx_errors"), 1);
    first.send(&frames::build(BROADCAST, mac(0), 60, 0));
    assert_eq!(number(&other.receive()), 0, "the first peer notices nothing");
    drop(first);
    waits(&daemon, "s0", "nobody is connected");
    assert!(!daemon.cli(&["fdb", "show"]).expect("shown").contains(&mac(0).to_string()), "its address is forgotten");
    other.send(&frames::build(BROADCAST, mac(1), 60, 0));
    wait_for("a flood has no destination", PATIENCE, || dropped(&daemon, "s1", "no_destination") == 1)
        .expect("counted");
    // The next peer is let in although the end of the one before may not have been found yet.
    for n in 1..100 {
        Peer::connect(&path).send(&frames::build(BROADCAST, mac(0), 60, n));
        assert_eq!(number(&other.receive()), n);
    }
    let mut peer = Peer::connect(&path);
    // The port may still be up for the peer before, so the first frames may find nobody.
    wait_for("the last peer hears", PATIENCE, || {
        other.send(&frames::build(BROADCAST, mac(1), 60, 100));
        peer.is_readable(Duration::from_millis(50))
    })
    .expect("heard");
    // Whatever of these is still on its way comes before this one.
    other.send(&frames::build(BROADCAST, mac(1), 60, 101));
    while number(&peer.receive()) == 100 {}
    assert_eq!(counter(&daemon, "s0", "rx_errors"), 1);
    // With the port its socket goes, and its peer is told.
    daemon.cli(&["port", "del", "s0"]).expect("removed");
    assert!(peer.is_closed() && !path.exists());
}

#[test]
fn a_client_connects_for_ever() {
    let daemon = switch(&[]);
    let mut other = add_server(&daemon, "s1", "");
    let path = daemon.file("theirs");
    add(&daemon, &format!("s0=stream,mode=client,path={}", path.display()));
    waits(&daemon, "s0", "cannot connect");
    for n in 0..4 {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("bound");
        let mut peer = Peer::unix(listener.accept().expect("the port connects").0);
        peer.send(&frames::build(BROADCAST, mac(0), 60, n));
        assert_eq!(number(&other.receive()), n);
    }
    waits(&daemon, "s0", "cannot connect");
}

#[test]
fn bytes_that_are_no_frames_end_that_connection_only() {
    let daemon = switch(&[]);
    let (mut peer, mut other) = (add_server(&daemon, "s0", ""), add_server(&daemon, "s1", ""));
    let path = daemon.file("s0");
    for (n, garbage) in [[0; 4], [0, 1, 0, 0x16], [0xff; 4]].into_iter().enumerate() {
        let frame = frames::build(BROADCAST, mac(0), 60, n as u64);
        peer.write(&[&wire(&frame), &garbage[..], b"GET / HTTP/1.1"].concat());
        assert_eq!(number(&other.receive()), n as u64, "what came before is good");
        assert!(peer.is_closed());
        waits(&daemon, "s0", "cannot be a frame");
        assert_eq!(counter(&daemon, "s0", "rx_errors"), n as u64 + 1);
        peer = Peer::connect(&path);
        up(&daemon, "s0");
    }
    // The shortest frames are the pipeline's to judge.
    peer.write(&[0, 0, 0, 1, 7]);
    wait_for("the runt is counted", PATIENCE, || dropped(&daemon, "s0", "runt") == 1).expect("counted");
    other.send(&frames::build(BROADCAST, mac(1), 60, 9));
    assert_eq!(number(&peer.receive()), 9);
    assert_eq!(view(&daemon, "s1")["state"], "up");
}

#[test]
fn a_socket_has_its_permissions_and_the_place_of_another_is_not_taken() {
    let daemon = switch(&[]);
    let path = daemon.file("s0");
    let (text, mode) = (path.display(), |path: &Path| std::fs::metadata(path).expect("there").permissions().mode());
    add(&daemon, &format!("s0=stream,path={text},perm=0600,owner=1,group=2"));
    let metadata = std::fs::metadata(&path).expect("there");
    use std::os::unix::fs::MetadataExt;
    assert_eq!((mode(&path) & 0o777, metadata.uid(), metadata.gid()), (0o600, 1, 2));
    add(&daemon, &format!("s1=stream,path={text}"));
    waits(&daemon, "s1", "another program answers there");
    daemon.cli(&["port", "del", "s0"]).expect("removed");
    up_for_peers(&daemon, "s1", &path);
    assert_eq!(mode(&path) & 0o777, 0o660);
}

#[test]
fn a_socket_that_a_crash_left_is_taken_again_and_none_is_left_by_a_stop() {
    let mut daemon = switch(&[]);
    let (stream, dgram) = (daemon.file("s0"), daemon.file("d0"));
    let _peer = add_server(&daemon, "s0", "");
    add(&daemon, &format!("d0=dgram,path={},peer={}.theirs", dgram.display(), dgram.display()));
    daemon.crash_and_restart().expect("restarted");
    up_for_peers(&daemon, "s0", &stream);
    waits(&daemon, "d0", "nobody has bound");
    assert_eq!(daemon.stop().expect("stopped"), Some(0));
    assert!(!stream.exists() && !dgram.exists());
}

/// Waits until a port listens, and connects.
fn up_for_peers(daemon: &Daemon, port: &str, path: &Path) {
    waits(daemon, port, "nobody is connected");
    let _peer = Peer::connect(path);
    up(daemon, port);
}

#[test]
fn a_datagram_peer_may_restart() {
    let daemon = switch(&[]);
    let mut other = add_server(&daemon, "s1", "");
    let (ours, theirs) = (daemon.file("ours"), daemon.file("theirs"));
    add(&daemon, &format!("d0=dgram,path={},peer={}", ours.display(), theirs.display()));
    for n in 0..3 {
        let peer = UnixDatagram::bind(&theirs).expect("bound");
        peer.set_read_timeout(Some(PATIENCE)).expect("set");
        up(&daemon, "d0");
        peer.send_to(&frames::build(BROADCAST, mac(0), 60, n), &ours).expect("sent");
        assert_eq!(number(&other.receive()), n);
        other.send(&frames::build(mac(0), mac(1), 60, n));
        let mut frame = [0; 60];
        assert_eq!(peer.recv(&mut frame).map(|len| number(&frame[..len])).expect("a frame"), n);
        drop(peer);
        std::fs::remove_file(&theirs).expect("removed");
        waits(&daemon, "d0", "nobody has bound");
    }
    let peer = UnixDatagram::unbound().expect("made");
    peer.send_to(&[0; 70_000], &ours).expect("sent");
    wait_for("a datagram that is no frame is refused", PATIENCE, || counter(&daemon, "d0", "rx_errors") == 1)
        .expect("counted");
}

/// Two switches that are connected by a pair of ports, each with a host; traffic must pass unchanged.
fn two_switches(spec: impl Fn(&Path, bool) -> String) {
    let hosts = [Namespace::new("vss").expect("root"), Namespace::new("vss").expect("root")];
    // The second host's device has no offloads, so its kernel checks every checksum.
    let taps: Vec<String> = hosts
        .iter()
        .zip(["", ",offload=off"])
        .map(|(host, extra)| format!("h=tap,device=eth0,netns={}{extra}", host.name()))
        .collect();
    let daemons = [switch(&["--port", &taps[0]]), switch(&["--port", &taps[1]])];
    for (i, daemon) in daemons.iter().enumerate() {
        add(daemon, &spec(&daemons[0].file("wire"), i == 0));
        hosts[i].configure("eth0", &[&format!("10.7.0.{}/24", i + 1), &format!("fd07::{}/64", i + 1)]).expect("there");
    }
    for daemon in &daemons {
        up(daemon, "wire");
    }
    let [near, far] = &hosts;
    assert!(answers_all(near, "10.7.0.2", 3));
    for (from, to, address) in
        [(near, far, "10.7.0.2"), (far, near, "10.7.0.1"), (near, far, "fd07::2"), (far, near, "fd07::1")]
    {
        transfer(from, to, address, 3_000_000);
    }
    assert!(counter(&daemons[0], "wire", "tx_segments") > 0, "what the first host left owed was done");
    for host in &hosts {
        let counts = host.exec(&["cat", "/proc/net/netstat", "/proc/net/snmp"]).expect("there");
        assert_eq!(value_of(&counts, "Tcp:", "InCsumErrors"), 0, "{counts}");
    }
}

/// One value of a table of /proc/net.
fn value_of(text: &str, table: &str, column: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(table));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let index = names.split(' ').position(|name| name == column).expect("the column");
    values.split(' ').nth(index).expect("a value").parse().expect("a number")
}

#[test]
fn two_switches_are_one_over_a_stream() {
    two_switches(|path, server| {
        format!("wire=stream,path={},mode={}", path.display(), if server { "server" } else { "client" })
    });
}

#[test]
fn two_switches_are_one_over_tcp() {
    let address = free_address();
    two_switches(|_, server| {
        format!("wire=stream,address={address},mode={}", if server { "server" } else { "client" })
    });
}

#[test]
fn two_switches_are_one_over_datagrams() {
    let ends = [free_address(), free_address()];
    two_switches(|_, first| {
        let (ours, theirs) = if first { (ends[0], ends[1]) } else { (ends[1], ends[0]) };
        format!("wire=dgram,address={ours},peer={theirs}")
    });
}
