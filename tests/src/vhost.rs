//! A running switch with `vhost-user` ports, and drivers without VMs on them.

use std::path::PathBuf;

use switch_core::{frame::offload::Offload, mac::MacAddr, port::mem::MemFrame};
use vswitch_benches::{
    frames,
    frontend::{FrontEnd, Options},
    netns::wait_for,
};

use crate::{Daemon, PATIENCE};

/// The station of port `n`.
#[must_use]
pub fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 7, n])
}

/// A switch with `vhost-user` ports.
pub struct Lab {
    /// The switch.
    pub daemon: Daemon,
    directory: PathBuf,
}

impl Lab {
    /// A switch with `ports` vhost-user ports `vm0`…, and further arguments.
    ///
    /// # Panics
    /// All of these panic if something is not as it should be.
    #[must_use]
    pub fn new(ports: usize, extra: &str, arguments: &[&str]) -> Lab {
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

    /// The socket of a port.
    #[must_use]
    pub fn path(&self, port: usize) -> PathBuf {
        self.directory.join(format!("{port}.sock"))
    }

    /// A driver on a port, which is up afterwards.
    pub fn connect(&self, port: usize, options: Options) -> FrontEnd {
        let front = FrontEnd::connect(&self.path(port), options).expect("connected");
        self.wait_state(&format!("vm{port}"), "up");
        front
    }

    /// What `port show` says.
    pub fn view(&self, port: &str) -> serde_json::Value {
        self.daemon.json(&["port", "show", port]).expect("shown")[0].clone()
    }

    /// Waits until a port is in a state.
    pub fn wait_state(&self, port: &str, state: &str) {
        wait_for(&format!("{port} is {state}"), PATIENCE, || self.view(port)["state"] == state)
            .unwrap_or_else(|e| panic!("{e}: {}", self.view(port)));
    }

    /// Frames received = dropped on ingress + decided; copies decided = sent + dropped on egress, over all ports.
    pub fn check_balance(&self, ports: &[&str]) {
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

/// A numbered frame from one station to another that owes nothing.
#[must_use]
pub fn plain(from: u8, to: u8, bytes: usize, number: u64) -> MemFrame {
    MemFrame { bytes: frames::build(mac(to), mac(from), bytes, number), offload: Offload::NONE }
}

/// Each end sends once, so that the switch knows where they are.
///
/// # Panics
/// If that does not arrive.
pub fn introduce(a: &mut FrontEnd, b: &mut FrontEnd) {
    a.send_all(0, &[plain(0, 1, 60, 0)], PATIENCE).expect("sent");
    b.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
    b.send_all(0, &[plain(1, 0, 60, 0)], PATIENCE).expect("sent");
    a.receive_until(0, PATIENCE, |all| !all.is_empty()).expect("received");
}

/// The value of a counter or of a kind of drop.
#[must_use]
pub fn count(view: &serde_json::Value, name: &str) -> u64 {
    view["counters"].get(name).or_else(|| view["drops"].get(name)).and_then(serde_json::Value::as_u64).unwrap_or(0)
}
