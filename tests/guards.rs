//! Clean ports and rates in the real world: TAPs in namespaces, a driver on a vhost-user port, a DHCP server and its
//! client, and what the CLI says of it all.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::Value;
use switch_core::{
    frame::offload::Offload,
    mac::MacAddr,
    port::mem::MemFrame,
    sys::raw::RawSocket,
    verdict::{DropReason, Side},
};
use vswitch_benches::{
    frontend::Options,
    netns::{Namespace, Process, wait_for},
    packets::{UDP, dhcp, ether, ipv4, udp},
    tools::{ping, tcp},
};
use vswitch_tests::{
    Daemon, PATIENCE, answers_all, reaches, skip,
    spoof::{IP, NO_IP, OTHER, OTHER_IP, OWN, cases},
    vhost::{Lab, count},
};

fn drops(view: &Value) -> BTreeMap<String, u64> {
    serde_json::from_value(view["drops"].clone()).unwrap_or_default()
}

fn dropped_on_ingress(view: &Value) -> u64 {
    DropReason::ALL.iter().filter(|r| r.side() == Side::Ingress).map(|r| count(view, r.name())).sum()
}

/// Sends every frame of [`cases`] and holds against each what the port counts.
fn check_cases(view: impl Fn() -> Value, mut send: impl FnMut(&[u8])) {
    for (name, frame, expected) in cases() {
        let (before, received) = (drops(&view()), count(&view(), "rx_frames"));
        send(&frame);
        // Counters are written one after the other: what was received must have been decided or dropped as well.
        let mut now = view();
        wait_for("the frame is counted", PATIENCE, || {
            now = view();
            let frames = count(&now, "rx_frames");
            frames > received && frames == count(&now, "rx_decided") + dropped_on_ingress(&now)
        })
        .expect(name);
        let after = drops(&now);
        let news: Vec<&String> =
            after.iter().filter(|(key, n)| **n > *before.get(*key).unwrap_or(&0)).map(|d| d.0).collect();
        // What bridges keep to themselves is refused whoever says it.
        let reason = expected.err().map(DropReason::name);
        let fits = news.iter().all(|key| Some(key.as_str()) == reason || *key == "reserved_address");
        assert!(fits && news.is_empty() == reason.is_none(), "{name}: {news:?} instead of {reason:?}");
    }
}

/// A namespace in which nothing speaks of its own accord.
fn silent(prefix: &str) -> Namespace {
    let namespace = Namespace::new(prefix).expect("root");
    namespace
        .exec(&["sh", "-c", "for k in all default; do echo 1 >/proc/sys/net/ipv6/conf/$k/disable_ipv6; done"])
        .expect("set");
    namespace
}

fn tap(name: &str, home: &Namespace, mac: MacAddr, more: &str) -> String {
    format!("{name}=tap,device=eth0,netns={},mac={mac}{more}", home.name())
}

#[test]
fn every_lie_through_a_tap_is_refused_for_its_reason() {
    let (liar, other) = (silent("vgl"), silent("vgo"));
    let clean = ",clean=on,ip=10.0.0.1+fd00::1,domain=default:transparent";
    let daemon = Daemon::start(&[
        "--port",
        &tap("a", &liar, OWN, clean),
        "--port",
        &tap("b", &other, OTHER, ",domain=default:transparent"),
    ])
    .expect("starts");
    liar.configure("eth0", &[]).expect("up");
    other.configure("eth0", &["10.0.0.2/24"]).expect("up");
    let socket = liar.run(|| RawSocket::open("eth0", false)).expect("namespace").expect("opened");
    check_cases(|| daemon.port("a"), |frame| assert_eq!(socket.send(&[frame.to_vec()]).expect("sent"), 1));
    // The table has heard of nobody else.
    let fdb = daemon.json(&["fdb", "show"]).expect("shown");
    let on_a: Vec<_> =
        fdb.as_array().expect("a list").iter().filter(|e| e["port"] == "a").map(|e| e["mac"].clone()).collect();
    assert_eq!(on_a, [OWN.to_string()]);
    liar.configure("eth0", &["10.0.0.1/24"]).expect("up");
    assert!(answers_all(&liar, "10.0.0.2", 5), "the honest pass");
    liar.exec(&["ip", "addr", "flush", "dev", "eth0"]).expect("flushed");
    liar.configure("eth0", &["10.0.0.7/24"]).expect("up");
    assert_eq!(ping(&liar, "10.0.0.2", 2, false).expect("ping runs").received, 0);
    // What may be said changes while everything runs, and survives.
    daemon.cli(&["port", "set", "a", "ip=10.0.0.0/24"]).expect("set");
    assert!(answers_all(&liar, "10.0.0.2", 5));
    assert_eq!(daemon.port("a")["spec"]["ip"], "10.0.0.0/24");
}

#[test]
fn every_lie_of_a_guest_is_refused_for_its_reason() {
    let lab = Lab::new(2, ",domain=default:transparent", &[]);
    lab.daemon.cli(&["port", "set", "vm0", "clean=on", &format!("station={OWN}"), "ip=10.0.0.1+fd00::1"]).expect("set");
    let mut guest = lab.connect(0, Options::default());
    let mut server = lab.connect(1, Options::default());
    let whole = |bytes: &[u8]| [MemFrame { bytes: bytes.to_vec(), offload: Offload::NONE }];
    check_cases(|| lab.view("vm0"), |frame| guest.send_all(0, &whole(frame), PATIENCE).expect("sent"));
    // A server's answer is longer than what a driver copies of a frame that owes nothing.
    lab.daemon.cli(&["port", "set", "vm0", "ip=learn"]).expect("set");
    let message = udp(67, 68, &dhcp(2, 5, OWN, NO_IP, OTHER_IP, 600));
    let answer = ether(OWN, OTHER, 0x0800, &ipv4(IP, OTHER_IP, UDP, 0, &message));
    server.send_all(0, &whole(&answer), PATIENCE).expect("sent");
    wait_for("it is bound", PATIENCE, || lab.view("vm0")["bindings"][0]["address"] == OTHER_IP.to_string())
        .unwrap_or_else(|e| panic!("{e}: {}", lab.view("vm0")));
}

/// A DHCP server in a namespace, with its files.
struct Server {
    directory: PathBuf,
    _process: Process,
}

impl Server {
    fn start(home: &Namespace) -> Server {
        let directory = std::env::temp_dir().join(vswitch_benches::netns::unique("vswitch-dhcp-"));
        std::fs::create_dir(&directory).expect("made");
        let file = |name: &str| directory.join(name).display().to_string();
        let process = home
            .spawn(&[
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--port=0",
                "--interface=eth0",
                "--bind-interfaces",
                "--no-ping",
                "--dhcp-range=10.9.0.100,10.9.0.110,255.255.255.0,2m",
                &format!("--dhcp-leasefile={}", file("leases")),
                &format!("--pid-file={}", file("pid")),
            ])
            .expect("started");
        let script = "#!/bin/sh\n[ \"$1\" = bound ] && ip addr add \"$ip/24\" dev \"$interface\"\nexit 0\n";
        std::fs::write(directory.join("script"), script).expect("written");
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(directory.join("script"), std::fs::Permissions::from_mode(0o755)).expect("set");
        Server { directory, _process: process }
    }

    /// Has a client ask for a lease, once per second, so often.
    fn ask(&self, client: &Namespace, times: &str) -> bool {
        let script = self.directory.join("script").display().to_string();
        let words = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", times, "-T", "1", "-s", &script];
        client.output(&words).expect("runs").status.success()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn an_honest_client_gets_its_lease_and_pings_and_a_second_server_is_not_heard() {
    for program in ["dnsmasq", "busybox"] {
        if !vswitch_benches::tools::installed(program) {
            return skip(&format!("{program} is missing"));
        }
    }
    let (home, client, rogue) = (silent("vgh"), silent("vgc"), silent("vgr"));
    let mut daemon = Daemon::start(&[
        "--port",
        &tap("gw", &home, MacAddr([2, 0, 0, 0, 9, 1]), ",persist=on"),
        "--port",
        &tap("vm", &client, OWN, ",clean=on,persist=on"),
        "--port",
        &tap("evil", &rogue, OTHER, ",clean=on,ip=10.9.0.9"),
    ])
    .expect("starts");
    home.configure("eth0", &["10.9.0.1/24"]).expect("up");
    rogue.configure("eth0", &["10.9.0.9/24"]).expect("up");
    client.configure("eth0", &["10.9.0.50/24"]).expect("up");
    assert_eq!(ping(&client, "10.9.0.1", 2, false).expect("ping runs").received, 0, "no lease, no address");
    client.exec(&["ip", "addr", "flush", "dev", "eth0"]).expect("flushed");
    let evil = Server::start(&rogue);
    assert!(!evil.ask(&client, "5"), "nobody hears the second server");
    assert!(count(&daemon.port("evil"), "dhcp_server") > 0, "{}", daemon.port("evil"));
    let server = Server::start(&home);
    assert!(server.ask(&client, "30"), "{}", daemon.port("vm"));
    assert!(answers_all(&client, "10.9.0.1", 5), "{}", daemon.port("vm"));
    let bindings = daemon.port("vm")["bindings"].clone();
    let address = bindings[0]["address"].as_str().expect("bound");
    assert!(address.starts_with("10.9.0.1") && bindings[0]["source"] == "dhcp", "{bindings}");
    assert!((1..=120).contains(&bindings[0]["left_s"].as_u64().expect("a number")), "{bindings}");
    assert!(daemon.cli(&["port", "show", "vm"]).expect("shown").contains(address), "the table has it too");
    // The switch dies; the client knows nothing of it, and does not ask again.
    let state = daemon.file("state").join("bindings.json");
    let written = || std::fs::read_to_string(&state).is_ok_and(|text| text.contains(address));
    wait_for("the lease is written down", PATIENCE, written).expect("within a second or so");
    daemon.crash_and_restart().expect("comes up again");
    for port in ["vm", "gw"] {
        daemon.wait_state(port, "up").expect("up");
    }
    assert_eq!(daemon.port("vm")["bindings"][0]["address"], address);
    assert_eq!(ping(&client, "10.9.0.1", 5, false).expect("ping runs").received, 5, "{}", daemon.port("vm"));
}

#[test]
fn addresses_of_stateless_configuration_are_the_first_claimants() {
    let (one, two, router) = (silent("vgs"), silent("vgt"), silent("vgu"));
    let third = MacAddr([2, 0, 0, 0, 9, 1]);
    let daemon = Daemon::start(&[
        "--port",
        &tap("one", &one, OWN, ",clean=on"),
        "--port",
        &tap("two", &two, OTHER, ",clean=on"),
        "--port",
        &tap("r", &router, third, ""),
    ])
    .expect("starts");
    // With duplicate address detection, as everywhere but in laboratories.
    let live = "for k in all default eth0; do echo 1 >/proc/sys/net/ipv6/conf/$k/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/$k/disable_ipv6; done";
    let join = |namespace: &Namespace, address: &str| {
        namespace.exec(&["sh", "-c", live]).expect("set");
        namespace.exec(&["ip", "link", "set", "eth0", "up"]).expect("up");
        namespace.exec(&["ip", "addr", "add", address, "dev", "eth0"]).expect("added");
        wait_for("it is looked for", PATIENCE, || {
            let shown = namespace.exec(&["ip", "-6", "addr", "show", "dev", "eth0"]).expect("shown");
            !shown.contains("tentative") || shown.contains("dadfailed")
        })
        .expect("found");
        namespace.exec(&["ip", "-6", "addr", "show", "dev", "eth0"]).expect("shown")
    };
    join(&router, "fd09::1/64");
    assert!(!join(&one, "fd09::5/64").contains("dadfailed"));
    assert!(reaches(&one, "fd09::1"), "{}", daemon.port("one"));
    let bound = |port: &str| -> Vec<String> {
        let bindings = daemon.port(port)["bindings"].clone();
        bindings
            .as_array()
            .into_iter()
            .flatten()
            .map(|b| b["address"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert!(bound("one").contains(&"fd09::5".to_owned()), "{:?}", bound("one"));
    // The same address again: the owner objects.
    assert!(join(&two, "fd09::5/64").contains("dadfailed"), "{:?}", bound("two"));
    assert!(!bound("two").contains(&"fd09::5".to_owned()));
    // And one without that question: it is not its own.
    two.exec(&["ip", "addr", "flush", "dev", "eth0", "scope", "global"]).expect("flushed");
    two.exec(&["ip", "addr", "add", "fd09::6/64", "dev", "eth0", "nodad"]).expect("added");
    assert_eq!(ping(&two, "fd09::1", 2, false).expect("ping runs").received, 0);
    assert!(count(&daemon.port("two"), "spoofed_ipv6") > 0, "{}", daemon.port("two"));
}

#[test]
fn a_station_is_pinned_where_nothing_is_learned() {
    let (a, b) = (silent("vgp"), silent("vgq"));
    let mut daemon =
        Daemon::start(&["--port", &tap("a", &a, OWN, ""), "--port", &tap("b", &b, OTHER, "")]).expect("starts");
    let pinned = |daemon: &Daemon| {
        let fdb = daemon.json(&["fdb", "show"]).expect("shown");
        let all = fdb.as_array().expect("a list").clone();
        all.iter().any(|e| e["port"] == "a" && e["mac"] == OWN.to_string() && e["kind"] == "static")
    };
    assert!(!pinned(&daemon));
    daemon.cli(&["port", "set", "a", "learning=off", "flood=off"]).expect("set");
    assert!(pinned(&daemon));
    a.configure("eth0", &["10.0.0.1/24"]).expect("up");
    b.configure("eth0", &["10.0.0.2/24"]).expect("up");
    assert!(answers_all(&b, "10.0.0.1", 5));
    let again = daemon.cli(&["port", "set", "b", "clean=on", &format!("station={OWN}")]).expect_err("refused");
    assert!(again.to_string().contains("is the station of port \"a\""), "{again}");
    daemon.crash_and_restart().expect("comes up again");
    daemon.wait_state("a", "up").expect("up");
    assert!(pinned(&daemon), "it is journalled");
    daemon.cli(&["port", "set", "a", "learning=on"]).expect("set");
    assert!(!pinned(&daemon));
}

#[test]
fn tcp_keeps_to_the_rate_of_a_port_in_both_directions() {
    let (a, b) = (silent("vgx"), silent("vgy"));
    let daemon =
        Daemon::start(&["--port", &tap("a", &a, OWN, ""), "--port", &tap("b", &b, OTHER, "")]).expect("starts");
    a.configure("eth0", &["10.0.0.1/24"]).expect("up");
    b.configure("eth0", &["10.0.0.2/24"]).expect("up");
    assert!(answers_all(&a, "10.0.0.2", 3));
    // 80 Mbit/s in KiB/s; bytes of frames, of which TCP's are a part.
    const KIB_PER_SECOND: u64 = 9766;
    let check = |setting: &str, from: &Namespace, to: &Namespace, address: &str, port: &str, counter: &str| {
        daemon.cli(&["port", "set", "a", &format!("{setting}={KIB_PER_SECOND}")]).expect("set");
        let before = count(&daemon.port(port), counter);
        let begin = std::time::Instant::now();
        let measured = tcp(from, to, address, Duration::from_secs(3)).expect("iperf3 runs");
        // What still waits goes on after the end; no more than the rate in all.
        let (bytes, took) = (count(&daemon.port(port), counter) - before, begin.elapsed());
        let most = KIB_PER_SECOND * 1024 / 4 + (took.as_secs_f64() * (KIB_PER_SECOND * 1024) as f64) as u64 + 70_000;
        assert!(measured.bits_per_second > 0.0 && bytes <= most, "{bytes} bytes in {took:?} with {setting}");
        daemon.cli(&["port", "set", "a", &format!("{setting}=off")]).expect("set");
    };
    check("rate-to", &b, &a, "10.0.0.1", "a", "tx_bytes");
    assert!(count(&daemon.port("a"), "rate_to") > 0, "{}", daemon.port("a"));
    check("rate-from", &a, &b, "10.0.0.2", "a", "rx_bytes");
    assert_eq!(count(&daemon.port("a"), "rate_from"), 0, "what waits is not dropped");
    let refused = drops(&daemon.port("a"));
    assert!(refused.keys().all(|reason| reason == "rate_to"), "{refused:?}");
}
