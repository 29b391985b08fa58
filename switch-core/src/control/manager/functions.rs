//! Virtual functions of NICs, as networks' pools have them, and who has which.

use std::path::Path;

use crate::{
    control::{
        spec::{NetworkSpec, SpecError},
        wire::PoolView,
    },
    hostdev::Pool,
};

/// A state directory in which nothing is.
const NOWHERE: &str = "/nonexistent";

fn pool(sysfs: &Path, state: Option<&Path>) -> Result<Pool, String> {
    Pool::read(sysfs, state.unwrap_or_else(|| Path::new(NOWHERE))).map_err(|e| e.to_string())
}

/// The netdevs of a NIC's virtual functions, but for those that `vswitch hostdev` has given away.
pub(super) fn functions(
    sysfs: &Path,
    state: Option<&Path>,
    network: &NetworkSpec,
    pf: &str,
) -> Result<Vec<String>, SpecError> {
    let named = |e: String| SpecError(format!("network \"{}\": {e}", network.name));
    let pool = pool(sysfs, state).map_err(named)?;
    let nic = pool.enabled(pf).map_err(|e| named(e.to_string()))?;
    let free = nic.vfs.iter().filter(|vf| pool.owner(pf, vf.index).is_none());
    Ok(free.filter_map(|vf| vf.netdev.clone()).collect())
}

/// The netdevs of a NIC's virtual functions, if it can be asked.
pub(super) fn netdevs(sysfs: &Path, state: Option<&Path>, pf: &str) -> Option<Vec<String>> {
    let pool = pool(sysfs, state).ok()?;
    Some(pool.pf(pf).ok()?.vfs.iter().filter_map(|vf| vf.netdev.clone()).collect())
}

/// The functions of a network that gives them to guests.
pub(super) fn given(sysfs: &Path, state: Option<&Path>, network: &NetworkSpec) -> Vec<PoolView> {
    // What cannot be read now is there again when it can be.
    let Ok(pool) = pool(sysfs, state) else { return Vec::new() };
    pool.of_network(network)
        .into_iter()
        .map(|(pf, vf)| PoolView {
            device: vf.address.to_string(),
            members: pool.owner(&pf.netdev, vf.index).map(|a| a.name.clone()).into_iter().collect(),
        })
        .collect()
}
