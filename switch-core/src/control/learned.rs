//! The addresses that clean ports have learned, on disk: no station has to ask for them again because its port was opened anew or
//! the switch was restarted, also by `kill -9`.
//!
//! A copy of what the ports hold, made once per second if it has changed. Losing it costs stations no more than a new lease, so a
//! file that cannot be read or written is a warning. Times are those of the wall clock. Called by the manager only.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    clean::bindings::{Bindings, Writing},
    durable,
    mac::MacAddr,
};

/// Ends of a lease that differ by no more, in seconds, are the same: they are read off two clocks.
const SLACK_S: u64 = 2;

/// An address that a station has obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obtained {
    address: IpAddr,
    /// When the lease ends, in seconds since 1970; absent: it was claimed first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease_ends: Option<u64>,
}

/// What a port's station has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Station {
    station: MacAddr,
    addresses: Vec<Obtained>,
}

impl Station {
    /// What a station has now; what somebody may still object to is not among it.
    #[must_use]
    pub fn of(station: MacAddr, bindings: &Bindings, now_nanos: u64, wall_s: u64) -> Station {
        let mut addresses: Vec<Obtained> = bindings
            .list(now_nanos)
            .into_iter()
            .filter(|bound| !bound.tentative)
            .map(|b| Obtained { address: b.address, lease_ends: b.leased.then(|| wall_s.saturating_add(b.left_s)) })
            .collect();
        addresses.sort_by_key(|obtained| obtained.address);
        Station { station, addresses }
    }

    fn same(&self, other: &Station) -> bool {
        let close = |(a, b): (&Obtained, &Obtained)| {
            a.address == b.address
                && match (a.lease_ends, b.lease_ends) {
                    (Some(a), Some(b)) => a.abs_diff(b) <= SLACK_S,
                    (a, b) => a == b,
                }
        };
        self.station == other.station
            && self.addresses.len() == other.addresses.len()
            && self.addresses.iter().zip(&other.addresses).all(close)
    }

    /// Gives a port back what its station had, but for leases that have ended and what `taken` says is somebody else's now.
    pub fn restore(&self, bindings: &Bindings, now_nanos: u64, wall_s: u64, taken: impl Fn(u128) -> bool) {
        let writing = Writing::begin();
        for obtained in &self.addresses {
            let address = match obtained.address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
                IpAddr::V6(v6) => v6.to_bits(),
            };
            if taken(address) {
                continue;
            }
            match obtained.lease_ends {
                Some(ends) if ends <= wall_s => {}
                Some(ends) => {
                    let left = (ends - wall_s).saturating_mul(1_000_000_000);
                    bindings.lease(&writing, address, now_nanos.saturating_add(left), now_nanos);
                }
                None => {
                    bindings.keep_claim(&writing, address, now_nanos);
                }
            }
        }
    }
}

/// See the module page.
#[derive(Debug, Default)]
pub struct Learned {
    path: Option<PathBuf>,
    ports: BTreeMap<String, Station>,
    /// The last attempt to write failed, which was said.
    failing: bool,
}

impl Learned {
    /// What a state directory holds; without one it is kept in memory.
    #[must_use]
    pub fn open(directory: Option<&Path>) -> Learned {
        let path = directory.map(|directory| directory.join("bindings.json"));
        let read = |path: &PathBuf| match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(e),
        };
        let ports = path.as_ref().map_or_else(|| Ok(BTreeMap::new()), read).unwrap_or_else(|e| {
            tracing::warn!(
                "learned addresses are forgotten: cannot read {}: {e}",
                path.as_deref().unwrap_or(Path::new("")).display()
            );
            BTreeMap::new()
        });
        Learned { path, ports, failing: false }
    }

    /// What a port's station had, if it is still the same one.
    #[must_use]
    pub fn station(&self, port: &str, station: MacAddr) -> Option<&Station> {
        self.ports.get(port).filter(|known| known.station == station)
    }

    /// Takes up what the open ports hold; ports that are not open and not forgotten keep what they had.
    pub fn update(&mut self, open: BTreeMap<String, Station>, keep: impl Fn(&str) -> bool) {
        let mut ports: BTreeMap<String, Station> =
            self.ports.iter().filter(|(name, _)| keep(name)).map(|(name, s)| (name.clone(), s.clone())).collect();
        ports.extend(open);
        ports.retain(|_, station| !station.addresses.is_empty());
        let same = ports.len() == self.ports.len()
            && ports.iter().zip(&self.ports).all(|((a, x), (b, y))| a == b && x.same(y));
        if same {
            return;
        }
        self.ports = ports;
        let Some(path) = &self.path else { return };
        let written = serde_json::to_vec_pretty(&self.ports)
            .map_err(io::Error::other)
            .and_then(|bytes| durable::replace(path, &bytes));
        match written {
            Ok(()) => self.failing = false,
            Err(e) if !self.failing => {
                self.failing = true;
                tracing::warn!("learned addresses will not survive a restart: {e}");
            }
            Err(_) => {}
        }
    }
}

/// Seconds since 1970.
#[must_use]
pub fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn mapped(text: &str) -> u128 {
        match text.parse().expect("an address") {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    /// A lease of 100 s, a claim that holds, and one that does not yet; at 10 s.
    fn bindings() -> Bindings {
        let (bindings, writing) = (Bindings::default(), Writing::begin());
        assert!(bindings.lease(&writing, mapped("10.0.0.5"), 100 * SECOND, SECOND));
        assert!(bindings.claim(&writing, mapped("fd00::5"), SECOND));
        assert!(bindings.claim(&writing, mapped("fd00::6"), 10 * SECOND));
        bindings
    }

    fn listed(bindings: &Bindings, now: u64) -> Vec<String> {
        bindings.list(now).iter().map(|b| format!("{} {} {}", b.address, b.leased, b.tentative)).collect()
    }

    #[test]
    fn what_held_holds_again_and_what_ended_does_not() {
        let station = Station::of(STATION, &bindings(), 10 * SECOND, 1000);
        let text = serde_json::to_string(&station).expect("JSON");
        let station: Station = serde_json::from_str(&text).expect("JSON");
        let again = Bindings::default();
        station.restore(&again, SECOND, 1005, |_| false);
        assert_eq!(listed(&again, SECOND), ["10.0.0.5 true false", "fd00::5 false false"]);
        assert!(again.holds(mapped("10.0.0.5"), 85 * SECOND) && !again.holds(mapped("10.0.0.5"), 87 * SECOND));
        let late = Bindings::default();
        station.restore(&late, SECOND, 1091, |_| false);
        assert_eq!(listed(&late, SECOND), ["fd00::5 false false"], "the lease ended meanwhile");
        let taken = Bindings::default();
        station.restore(&taken, SECOND, 1005, |address| address == mapped("fd00::5"));
        assert_eq!(listed(&taken, SECOND), ["10.0.0.5 true false"]);
    }

    #[test]
    fn the_file_is_written_on_change_only_and_a_damaged_one_is_no_obstacle() {
        let directory = std::env::temp_dir().join(format!("vswitch-learned-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("made");
        let file = directory.join("bindings.json");
        let mut learned = Learned::open(Some(&directory));
        let now = |at: u64, wall| BTreeMap::from([("vm1".to_owned(), Station::of(STATION, &bindings(), at, wall))]);
        learned.update(now(10 * SECOND, 1000), |_| false);
        assert!(Learned::open(Some(&directory)).station("vm1", STATION).is_some());
        fs::remove_file(&file).expect("there");
        learned.update(now(10 * SECOND + SECOND / 4, 1000), |_| false);
        assert!(!file.exists(), "nothing new but the readings of two clocks");
        learned.update(BTreeMap::new(), |name| name == "vm1");
        assert!(learned.station("vm1", STATION).is_some() && !file.exists(), "it is not open now");
        assert!(learned.station("vm1", MacAddr([2, 0, 0, 0, 0, 2])).is_none(), "another station");
        learned.update(BTreeMap::new(), |_| false);
        assert!(learned.station("vm1", STATION).is_none() && file.exists(), "the port is gone");
        fs::write(&file, "{").expect("written");
        assert!(Learned::open(Some(&directory)).station("vm1", STATION).is_none());
        fs::remove_dir_all(&directory).expect("removed");
    }
}
