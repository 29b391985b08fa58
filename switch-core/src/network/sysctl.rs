//! Kernel settings that forwarding needs, and what they were before.
//!
//! They are shared: two networks may want forwarding on one uplink, so a setting is restored when the last network that wanted it
//! stops, and only if it still has the value that we gave it. Everything is recorded before it is changed. Called in the
//! network's namespace.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::record::{Book, Place};

/// One changed setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// In which namespace.
    pub place: Place,
    /// Below /proc/sys/net.
    pub path: String,
    /// What it was.
    pub before: String,
    /// What it is restored from: any other value is somebody else's.
    pub ours: String,
    /// The networks that want it.
    pub users: Vec<String>,
}

const ROOT: &str = "/proc/sys/net";

fn read(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(Path::new(ROOT).join(path))?.trim().to_owned())
}

fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new(ROOT).join(path), value).map_err(|e| {
        let name = path.replace('/', ".");
        io::Error::new(
            e.kind(),
            format!("cannot set net.{name} = {value}: {e}; set it with: sysctl -w net.{name}={value}"),
        )
    })
}

/// Gives a setting a value for a network; one that has it already is left alone.
fn set(book: &mut Book, place: &Place, user: &str, path: &str, value: &str) -> io::Result<()> {
    let now =
        read(path).map_err(|e| io::Error::new(e.kind(), format!("cannot read net.{}: {e}", path.replace('/', "."))))?;
    let known = book.file.settings.iter_mut().find(|s| s.place == *place && s.path == path && s.ours == value);
    match known {
        Some(setting) if setting.users.iter().any(|u| u == user) => {}
        Some(setting) => {
            setting.users.push(user.to_owned());
            book.save()?;
        }
        None if now == value => return Ok(()),
        None => {
            book.file.settings.push(Setting {
                place: place.clone(),
                path: path.to_owned(),
                before: now.clone(),
                ours: value.to_owned(),
                users: vec![user.to_owned()],
            });
            book.save()?;
        }
    }
    if now == value { Ok(()) } else { write(path, value) }
}

/// Names in a directory of /proc/sys/net.
fn devices(family: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(ROOT).join(family).join("conf"));
    entries.into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// The host must not take routes or addresses from what guests say.
///
/// # Errors
/// The setting cannot be changed.
pub fn deaf(book: &mut Book, place: &Place, user: &str, device: &str) -> io::Result<()> {
    match set(book, place, user, &format!("ipv6/conf/{device}/accept_ra"), "0") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// IPv4 is forwarded from these devices. Devices that are not there yet are left out.
///
/// # Errors
/// A setting cannot be changed.
pub fn forward_ipv4(book: &mut Book, place: &Place, user: &str, devices: &[String]) -> io::Result<()> {
    for device in devices {
        match set(book, place, user, &format!("ipv4/conf/{device}/forwarding"), "1") {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// IPv6 is forwarded: in Linux for all devices or none. Devices that took router advertisements go on doing so.
///
/// # Errors
/// A setting cannot be changed.
pub fn forward_ipv6(book: &mut Book, place: &Place, user: &str, gateway: &str) -> io::Result<()> {
    const ALL: &str = "ipv6/conf/all/forwarding";
    if read(ALL)? != "1" {
        for device in devices("ipv6").into_iter().filter(|d| d != "all" && d != gateway) {
            let forwarding = format!("ipv6/conf/{device}/forwarding");
            if read(&forwarding).is_ok_and(|now| now == "1") {
                // Switching all of them off again would switch off this one, too: it is recorded first, so restored last.
                book.file.settings.push(Setting {
                    place: place.clone(),
                    path: forwarding,
                    before: "1".to_owned(),
                    ours: "0".to_owned(),
                    users: vec![user.to_owned()],
                });
                continue;
            }
            let accept_ra = format!("ipv6/conf/{device}/accept_ra");
            if device != "default" && device != "lo" && read(&accept_ra).is_ok_and(|now| now == "1") {
                set(book, place, user, &accept_ra, "2")?;
            }
        }
    } else {
        // Another network may have done this: then these settings are wanted by this one, too.
        for setting in book.file.settings.iter_mut().filter(|s| s.place == *place && s.path.starts_with("ipv6/conf/")) {
            let shared = setting.ours == "2" || setting.path.ends_with("/forwarding");
            if shared && !setting.users.iter().any(|u| u == user) {
                setting.users.push(user.to_owned());
            }
        }
    }
    set(book, place, user, ALL, "1")
}

/// A network wants its settings no more: those that nobody wants are restored, last ones first.
///
/// # Errors
/// The record cannot be written.
pub fn release(book: &mut Book, place: &Place, user: &str) -> io::Result<()> {
    for setting in book.file.settings.iter_mut().filter(|s| s.place == *place) {
        setting.users.retain(|u| u != user);
    }
    while let Some(at) = book.file.settings.iter().rposition(|s| s.users.is_empty() && s.place == *place) {
        let setting = book.file.settings.remove(at);
        let ours = read(&setting.path).is_ok_and(|now| now == setting.ours);
        if ours && let Err(e) = write(&setting.path, &setting.before) {
            tracing::warn!("{e}");
        }
    }
    book.save()
}
