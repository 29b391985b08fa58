//! The laboratory's generator and sink: their accounts over real wires must be exact, with a switch in between and without.

use std::{collections::BTreeSet, os::fd::AsRawFd, path::Path, time::Duration};

use switch_core::{
    mac::MacAddr,
    sys::{raw::Way, tap},
};
use vswitch_benches::{
    cpu::Meter,
    ends::{PacketRx, PacketTx, Receive, RingRx, RingTx, TapRx, TapTx, Transmit},
    frontend::{FrontEnd, Options},
    netns::{Namespace, wait_for},
    replay::{Pace, Recording},
    run::{Limit, run, run_traffic},
    selftest::{Loop, over},
    traffic::{
        Composer, Flows, JUMBO_SIZE, Layers, Outcome, OuterTag, Pattern, Rate, Sizes, Tally, Traffic, compose::Source,
    },
};
use vswitch_tests::{Daemon, PATIENCE};

/// Far enough apart for several addresses each.
const MACS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0x6c, 0]), MacAddr([2, 0, 0, 0, 0x6d, 0])];
/// Slow enough for every queue on the way.
const RATE: f64 = 20_000.0;
const FRAMES: u64 = 4000;
/// What has not come so long after the others does not come any more, however busy the machine.
const LATE: Duration = Duration::from_secs(3);
/// A TAP's queue with room for all of them, should its reader not get a processor for a while.
const QUEUE: &str = "8192";
/// As many as fit into the queue that a TAP has by itself.
const FEW: u64 = 900;

fn traffic() -> Traffic {
    Traffic::new(MACS[1], MACS[0]).rate(RATE)
}

/// One of each kind that has headers, sizes or tags of its own.
fn kinds() -> Vec<Traffic> {
    let flows = Flows { count: 40, sources: 8, destinations: 4, ..traffic().flows };
    vec![
        traffic(),
        Traffic {
            run: 1,
            flows: flows.clone(),
            layers: Layers::Ipv4,
            sizes: Sizes::Imix,
            pattern: Pattern::Random,
            ..traffic()
        },
        Traffic { run: 2, flows, layers: Layers::Ipv6, sizes: Sizes::Cycle(vec![84, 1518]), ..traffic() },
    ]
}

/// All that was sent arrived once, in order and intact.
fn all(sent: u64, foreign: u64) -> Outcome {
    Outcome { sent, received: sent, foreign, ..Outcome::default() }
}

#[test]
fn every_loop_delivers_every_kind_of_frame() {
    let tags = vec![OuterTag { tpid: 0x88a8, tci: 0x2005 }, OuterTag { tpid: 0x8100, tci: 6 }];
    let mut kinds = kinds();
    kinds.push(Traffic { tags: tags[1..].to_vec(), layers: Layers::Ipv4, ..traffic() });
    kinds.push(Traffic { tags, layers: Layers::Ipv6, ..traffic().size(JUMBO_SIZE) });
    kinds.push(Traffic { layers: Layers::Ipv4, sizes: Sizes::LARGE, ..traffic().rate(2000.0) });
    for way in Loop::ALL {
        for traffic in &kinds {
            let frames = match way {
                _ if traffic.segments() > 1 => 200,
                Loop::TapOut => FEW,
                _ => FRAMES,
            };
            let run = over(way, traffic, Limit::frames(frames).patient(LATE)).expect("root");
            let outcome = run.outcome();
            assert_eq!(run.sent.frames, frames);
            assert_eq!(outcome, all(frames * traffic.segments(), outcome.foreign), "{way:?} {traffic:?}");
            assert!(run.sent.lag.is_some() && run.sent.cpu_ns > 0 && run.seen.cpu_ns > 0);
        }
    }
}

#[test]
fn a_sink_that_is_too_slow_is_told_apart() {
    // A TAP whose queue nobody reads drops, which is the sink's loss and not a switch's.
    let home = Namespace::new("vl").expect("root");
    let queue = home.run(|| tap::attach_vnet("e0", false)).expect("namespace").expect("attached");
    home.exec(&["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/e0/disable_ipv6"]).expect("set");
    home.exec(&["ip", "link", "set", "e0", "txqueuelen", "100", "up"]).expect("set");
    let mut rx = TapRx::new(queue, &home, "e0").expect("there");
    let way = Way { direct: true, headers: false };
    let mut tx = PacketTx::open(&home, "e0", way).expect("opened");
    let mut source = Composer::new(traffic()).expect("it can be made");
    let (mut sent, mut refused) = (0, 0);
    for _ in 0..50 {
        // Past the queueing discipline, a full queue refuses or drops: what was taken must be found again somewhere.
        let taken = tx.send(source.frames(10, 0)).expect("the device is there");
        source.sent(taken);
        sent += taken as u64;
        refused += u64::from(taken < 10);
    }
    let mut tally = Tally::new(traffic()).expect("it can be made");
    while rx
        .receive(Duration::ZERO, &mut |frame| vswitch_benches::traffic::tally::Judge::note(&mut tally, frame, 0))
        .expect("there")
        > 0
    {}
    let drops = rx.take_lost().expect("there");
    let outcome = tally.outcome(sent, drops);
    assert!(drops > 0 || refused > 0, "500 frames do not fit");
    assert_eq!((outcome.received, outcome.lost), (100, 0), "{outcome:?}, {drops} drops, {refused} refusals");
    assert_eq!(rx.take_lost().expect("there"), 0, "each is told once");
}

/// A switch between two namespaces, each with the netdev of a TAP of its own that says nothing by itself.
fn switch(extra: &str, arguments: &[&str]) -> (Daemon, [Namespace; 2]) {
    let hosts = [Namespace::new("vl"), Namespace::new("vl")].map(|host| host.expect("root"));
    let specs = [0, 1].map(|i| format!("h{i}=tap,device=eth0,netns={}{extra}", hosts[i].name()));
    let mut all = arguments.to_vec();
    for host in &hosts {
        host.exec(&["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6"]).expect("set");
    }
    specs.iter().for_each(|spec| all.extend(["--port", spec]));
    let daemon = Daemon::start(&all).expect("the switch starts");
    for (i, host) in hosts.iter().enumerate() {
        host.exec(&["ip", "link", "set", "eth0", "txqueuelen", QUEUE, "up"]).expect("the TAP is there");
        daemon.wait_state(&format!("h{i}"), "up").expect("up");
    }
    (daemon, hosts)
}

fn ends(hosts: &[Namespace; 2]) -> (PacketTx, PacketRx) {
    let tx = PacketTx::open(&hosts[0], "eth0", Way::default()).expect("opened");
    (tx, PacketRx::open(&hosts[1], "eth0").expect("opened"))
}

/// Frames that the switch dropped for a reason at a port, once that many were.
fn dropped(daemon: &Daemon, port: &str, reason: &str, expected: u64) -> u64 {
    let count = || daemon.port(port)["drops"][reason].as_u64().unwrap_or(0);
    // Counters are published once per turn.
    let _ = wait_for("the drops are counted", PATIENCE, || count() >= expected);
    count()
}

#[test]
fn a_switch_delivers_every_kind_of_frame() {
    let (daemon, hosts) = switch("", &[]);
    let (mut tx, mut rx) = ends(&hosts);
    let meter = Meter::start(Some(daemon.pid())).expect("it runs");
    let mut cpu = [0; 2];
    for traffic in kinds() {
        let run = run_traffic(&traffic, &mut tx, &mut rx, Limit::frames(FRAMES).patient(LATE)).expect("the ends hold");
        let outcome = run.outcome();
        assert_eq!(outcome, all(FRAMES, outcome.foreign), "{traffic:?}");
        assert_eq!(outcome.foreign, 0, "nobody else says anything");
        cpu = [cpu[0] + run.sent.cpu_ns, cpu[1] + run.seen.cpu_ns];
    }
    let charge = meter.charge(cpu[0], cpu[1]).expect("it still runs");
    assert!(charge.switch > 0 && charge.generator > 0 && charge.sink > 0, "{charge:?}");
}

#[test]
fn frames_too_long_for_a_domain_are_lost_exactly_as_the_switch_says() {
    let (daemon, hosts) = switch(",mtu=9000", &[]);
    let (mut tx, mut rx) = ends(&hosts);
    let traffic = Traffic { sizes: Sizes::Cycle(vec![64, 3000, 1518, 9000]), ..traffic() };
    let run = run_traffic(&traffic, &mut tx, &mut rx, Limit::frames(FRAMES).patient(LATE)).expect("the ends hold");
    let (sent, lost) = (FRAMES, FRAMES / 2);
    let expected = Outcome { sent, received: sent - lost, lost, ..Outcome::default() };
    assert_eq!(run.outcome(), expected);
    assert_eq!(dropped(&daemon, "h0", "giant", lost), lost);
}

#[test]
fn what_storm_control_drops_is_lost_exactly_as_the_switch_says() {
    let (daemon, hosts) = switch(",storm-broadcast=500", &[]);
    let (mut tx, mut rx) = ends(&hosts);
    let traffic = Traffic { flows: Flows::one(MacAddr::BROADCAST, MACS[0]), ..traffic() };
    let outcome =
        run_traffic(&traffic, &mut tx, &mut rx, Limit::frames(FRAMES).patient(LATE)).expect("the ends hold").outcome();
    let expected = Outcome { sent: FRAMES, received: FRAMES - outcome.lost, lost: outcome.lost, ..Outcome::default() };
    assert_eq!(outcome, expected);
    assert!(outcome.lost > 0 && outcome.received > 0, "{outcome:?}");
    assert_eq!(dropped(&daemon, "h0", "storm_broadcast", outcome.lost), outcome.lost);
}

#[test]
fn drivers_of_two_ports_account_for_everything_at_full_speed() {
    let directory = std::env::temp_dir().join(vswitch_benches::netns::unique("vswitch-lab-"));
    std::fs::create_dir(&directory).expect("made");
    let paths = [0, 1].map(|i| directory.join(format!("{i}.sock")));
    let spec = |i: usize| format!("vm{i}=vhost-user,path={}", paths[i].display());
    let daemon = Daemon::start(&["--port", &spec(0), "--port", &spec(1)]).expect("the switch starts");
    let connect = |path: &Path| {
        wait_for("the port listens", PATIENCE, || path.exists()).expect("it does");
        FrontEnd::connect(path, Options::default()).expect("connected")
    };
    let fronts = [connect(&paths[0]), connect(&paths[1])];
    for i in 0..2 {
        daemon.wait_state(&format!("vm{i}"), "up").expect("up");
    }
    let [from, to] = fronts;
    let (mut tx, mut rx) = (RingTx::new(from, 0), RingRx::new(to, 0));
    let mut lost = 0;
    let plain = Traffic { rate: Rate::Unlimited, ..traffic() };
    let large = Traffic { run: 9, layers: Layers::Ipv6, sizes: Sizes::LARGE, ..plain.clone() };
    for traffic in [plain, large] {
        let outcome = run_traffic(&traffic, &mut tx, &mut rx, Limit::frames(10_000).patient(LATE))
            .expect("the rings hold")
            .outcome();
        let segments = traffic.segments();
        let expected =
            Outcome { received: outcome.sent - outcome.lost, lost: outcome.lost, ..all(10_000 * segments, 0) };
        assert_eq!(outcome, Outcome { sent: 10_000 * segments, ..expected });
        // A large frame is lost as a whole, for here it is never cut.
        assert_eq!(outcome.lost % segments, 0);
        lost += outcome.lost / segments;
        // What did not arrive, the switch could not deliver: the ring was full.
        assert_eq!(dropped(&daemon, "vm1", "queue_full", lost), lost, "{outcome:?}");
    }
    std::fs::remove_dir_all(&directory).expect("removed");
}

#[test]
fn two_held_taps_deliver_over_a_kernel_bridge() {
    let home = Namespace::new("vl").expect("root");
    home.exec(&["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6"]).expect("set");
    home.exec(&["ip", "link", "add", "br0", "type", "bridge"]).expect("made");
    home.exec(&["ip", "link", "set", "br0", "up"]).expect("up");
    let [from, to] = ["p0", "p1"].map(|device| {
        let queue = home.run(|| tap::attach_vnet(device, false)).expect("namespace").expect("attached");
        tap::set_offloads(queue.as_raw_fd(), true).expect("set");
        home.exec(&["ip", "link", "set", device, "txqueuelen", QUEUE, "master", "br0", "up"]).expect("set");
        queue
    });
    let large = Traffic { run: 1, layers: Layers::Ipv4, sizes: Sizes::LARGE, ..traffic().rate(1000.0) };
    let (mut tx, mut rx) = (TapTx::new(from), TapRx::new(to, &home, "p1").expect("there"));
    for (traffic, frames) in [(traffic(), FRAMES), (large, 200)] {
        let outcome = run_traffic(&traffic, &mut tx, &mut rx, Limit::frames(frames).patient(LATE))
            .expect("the ends hold")
            .outcome();
        assert_eq!(outcome, all(frames * traffic.segments(), outcome.foreign), "{traffic:?}");
    }
}

/// A classic capture of these frames, a millisecond apart.
fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for (frame, i) in frames.iter().zip(0u32..) {
        for word in [7, 1000 * i, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

#[test]
fn a_recording_is_replayed_through_a_switch() {
    let (_daemon, hosts) = switch("", &[]);
    let (mut tx, mut rx) = ends(&hosts);
    let imix = Traffic { layers: Layers::Ipv4, sizes: Sizes::Imix, ..traffic() };
    let mut source = Composer::new(imix).expect("it can be made");
    let frames: Vec<Vec<u8>> =
        source.frames(300, 0).iter().map(|frame| vswitch_benches::traffic::tally::bare(frame).to_vec()).collect();
    assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), 300, "all differ");
    let recording = Recording::read(&capture(&frames)[..]).expect("sound");
    for pace in [Pace::Times(1.0), Pace::Times(10.0), Pace::Unlimited] {
        let limit = Limit::frames(u64::MAX).patient(LATE);
        let run = run(&mut recording.source(), &mut tx, &mut rx, recording.schedule(pace), recording.judge(), limit)
            .expect("the ends hold");
        let accounts = run.seen.judge.accounts();
        assert_eq!((run.sent.frames, run.seen.judge.lost(300)), (300, 0), "{pace:?}");
        assert_eq!((accounts.received, accounts.reordered, accounts.duplicated), (300, 0, 0), "{pace:?}");
        if pace == Pace::Times(1.0) {
            let time = run.sent.end_ns - run.sent.begin_ns;
            assert!(time >= 299_000_000, "not before they are due: {time} ns");
        }
    }
}
