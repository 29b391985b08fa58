//! DPDK's virtio-user driver as a second opinion on `vhost-user` ports: an implementation that nobody here wrote, in
//! polling mode, without hugepages. Packets circle between its two ports through the switch.

use std::path::PathBuf;

use vswitch_benches::{
    dpdk::{self, Launch, PortStats, Testpmd},
    netns::{unique, wait_for},
};
use vswitch_tests::{Daemon, PATIENCE};

const SIZES: [usize; 4] = [64, 65, 1024, 1500];
/// Packets each way that are enough.
const ENOUGH: u64 = 5000;

struct Lab {
    drivers: Testpmd,
    daemon: Daemon,
    directory: PathBuf,
}

impl Lab {
    /// A switch whose two ports, `a` and `b`, connect to the drivers of one `dpdk-testpmd`.
    fn new(queues: usize) -> anyhow::Result<Lab> {
        let directory = std::env::temp_dir().join(unique("vswitch-testpmd-"));
        std::fs::create_dir(&directory)?;
        let sockets = [directory.join("a.sock"), directory.join("b.sock")];
        let spec = |name: &str, socket: &PathBuf| {
            format!("{name}=vhost-user,path={},mode=client,queues={queues}", socket.display())
        };
        let (a, b) = (spec("a", &sockets[0]), spec("b", &sockets[1]));
        let daemon = Daemon::start(&["--poll", "interrupt", "--port", &a, "--port", &b])?;
        let drivers = Testpmd::start(&Launch::drivers(&sockets, queues, 256), &directory, "drivers")?;
        let mut lab = Lab { drivers, daemon, directory };
        lab.drivers.ready()?;
        wait_for("both ports are up", PATIENCE, || ["a", "b"].iter().all(|port| lab.view(port)["state"] == "up"))?;
        Ok(lab)
    }

    fn view(&self, port: &str) -> serde_json::Value {
        self.daemon.json(&["port", "show", port]).expect("shown")[0].clone()
    }

    /// What the switch has counted, as the drivers see it: they receive what it sends.
    fn counted(&self) -> [PortStats; 2] {
        ["a", "b"].map(|port| {
            let view = self.view(port);
            let count = |name: &str| view["counters"][name].as_u64().unwrap_or(0);
            PortStats { rx: count("tx_frames"), tx: count("rx_frames") }
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn check(queues: usize) {
    if let Some(why) = dpdk::missing() {
        vswitch_tests::skip(&why);
        return;
    }
    let mut lab = Lab::new(queues).expect("drivers and switch are connected");
    for bytes in SIZES {
        let before = lab.drivers.stats().expect("counted").0;
        lab.drivers.circle(bytes).expect("started");
        wait_for("packets pass both ways", PATIENCE, || {
            let stats = lab.drivers.stats().expect("counted").0;
            stats.iter().zip(&before).all(|(now, then)| now.rx - then.rx > ENOUGH && now.tx - then.tx > ENOUGH)
        })
        .unwrap_or_else(|e| panic!("{bytes} bytes: {e}: {}", lab.drivers.output()));
        lab.drivers.stop().expect("stopped");
    }
    // What was under way when the drivers stopped is in their rings; they take it out when they start again, so the
    // switch has delivered all that it counted, and they have sent all that it counted.
    let mut seen = (Vec::new(), [PortStats::default(); 2]);
    wait_for("the counts agree", PATIENCE, || {
        seen = (lab.drivers.stats().expect("counted").0, lab.counted());
        let (drivers, switch) = &seen;
        drivers.iter().zip(switch).all(|(d, s)| d.tx == s.tx && d.rx <= s.rx && s.rx - d.rx <= 2 * 256 * queues as u64)
    })
    .unwrap_or_else(|e| panic!("{e}: drivers, switch: {seen:?}"));
    for port in ["a", "b"] {
        let view = lab.view(port);
        assert_eq!(view["counters"]["rx_errors"].as_u64().unwrap_or(0), 0, "{view}");
    }
}

#[test]
fn dpdk_drives_one_queue_pair() {
    check(1);
}

#[test]
fn dpdk_drives_two_queue_pairs() {
    check(2);
}
