//! The tables Bridge, Port and Interface: columns that can be read, and those that can be written.
//!
//! Maps that others keep (`external_ids`, `other_config`) are labels `ovs.TABLE.COLUMN:KEY`. What would change how frames are carried and cannot is
//! an error, never a value that is kept and has no effect. The tables QoS and Queue are always empty: the switch does not limit rates.

use std::{collections::BTreeMap, path::PathBuf};

use switch_core::control::{
    spec::{Kind, Labels, Mode, PortSpec},
    wire::{PortState, PortView},
};

use super::{
    Failure,
    datum::{Atom, Datum},
    fail,
    model::{Model, Vlans},
    words::{Command, Data, items, single},
};

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Bridges.
    Bridge,
    /// Ports.
    Port,
    /// Their interfaces: one each, of the same name.
    Interface,
    /// Always empty.
    Qos,
    /// Always empty.
    Queue,
}

const TABLES: [(&str, Table); 5] = [
    ("Bridge", Table::Bridge),
    ("Port", Table::Port),
    ("Interface", Table::Interface),
    ("QoS", Table::Qos),
    ("Queue", Table::Queue),
];

const MAPS: [&str; 2] = ["external_ids", "other_config"];

/// What is said of `<bandwidth>` in every form.
pub const NO_RATES: &str = "ovs-vsctl does not limit rates here; remove <bandwidth> (QoS, ingress_policing_rate) from the \
    interface, and limit its port: vswitch port set NAME rate-to=KIB rate-from=KIB";

impl Table {
    /// By name: in any case, or the beginning of it.
    ///
    /// # Errors
    /// There is no such table.
    pub fn find(text: &str) -> Result<Table, Failure> {
        let lower = text.to_lowercase();
        match TABLES.iter().filter(|(name, _)| name.to_lowercase().starts_with(&lower)).collect::<Vec<_>>()[..] {
            [(_, table)] => Ok(*table),
            _ => fail(format!(
                "unknown table \"{text}\"; known here: Bridge, Port, Interface, QoS, Queue (the last two are empty)"
            )),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        TABLES.iter().find(|(_, table)| *table == self).map_or("?", |(name, _)| name)
    }

    fn columns(self) -> &'static [&'static str] {
        match self {
            Table::Bridge => &["name", "datapath_type", "external_ids", "fail_mode", "other_config", "stp_enable"],
            Table::Port => &["name", "external_ids", "other_config", "qos", "tag", "trunks", "vlan_mode"],
            Table::Interface => &[
                "name",
                "admin_state",
                "error",
                "external_ids",
                "ingress_policing_burst",
                "ingress_policing_rate",
                "link_state",
                "mac_in_use",
                "options",
                "other_config",
                "statistics",
                "type",
            ],
            Table::Qos | Table::Queue => &["_uuid", "external_ids", "other_config", "queues", "type"],
        }
    }

    /// A column by name: `-` is `_`, and the beginning of it is enough.
    fn column(self, text: &str) -> Result<&'static str, Failure> {
        let wanted = text.replace('-', "_").to_lowercase();
        let columns = self.columns();
        let exact = columns.iter().find(|c| **c == wanted);
        let mut longer = columns.iter().filter(|c| c.starts_with(&wanted));
        match (exact.or_else(|| longer.next()), longer.next()) {
            (Some(column), None) => Ok(column),
            (Some(column), Some(_)) if *column == wanted => Ok(column),
            (Some(_), Some(_)) => {
                fail(format!("{} contains more than one column whose name matches \"{text}\"", self.name()))
            }
            (None, _) => fail(format!(
                "{} does not contain a column whose name matches \"{text}\"; here it has: {}",
                self.name(),
                columns.join(" ")
            )),
        }
    }

    /// The names of its rows.
    pub fn rows(self, model: &Model) -> Vec<String> {
        match self {
            Table::Bridge => model.bridges().cloned().collect(),
            Table::Port | Table::Interface => model.ports.keys().cloned().collect(),
            Table::Qos | Table::Queue => Vec::new(),
        }
    }

    /// A row by name, or for an interface by the name of its vhost-user socket's file, which Open vSwitch names after it.
    fn row(self, model: &Model, name: &str) -> Result<String, Failure> {
        if self.rows(model).iter().any(|row| row == name) {
            return Ok(name.to_owned());
        }
        let of_socket = |p: &&PortSpec| {
            p.kind == Kind::VhostUser
                && p.path.as_ref().and_then(|path| path.file_name()).is_some_and(|file| file == name)
        };
        match model.ports.values().filter(of_socket).collect::<Vec<_>>()[..] {
            [port] if self == Table::Interface => Ok(port.name.clone()),
            _ => fail(format!("no row \"{name}\" in table {}", self.name())),
        }
    }
}

fn labels_of<'a>(model: &'a Model, table: Table, row: &str) -> Option<&'a Labels> {
    match table {
        Table::Bridge => model.domains.get(row).map(|d| &d.labels),
        _ => model.ports.get(row).map(|p| &p.labels),
    }
}

fn labels_mut<'a>(model: &'a mut Model, table: Table, row: &str) -> Option<&'a mut Labels> {
    match table {
        Table::Bridge => model.domains.get_mut(row).map(|d| &mut d.labels),
        _ => model.ports.get_mut(row).map(|p| &mut p.labels),
    }
}

fn label(table: Table, column: &str, key: &str) -> String {
    format!("ovs.{}.{column}:{key}", table.name().to_lowercase())
}

/// Frames and bytes as the switch counts them, under Open vSwitch's names: `rx` is what comes in by the port.
fn statistics(view: &PortView) -> BTreeMap<String, Atom> {
    let counter = |name: &str| view.counters.get(name).copied().unwrap_or(0);
    let (egress, ingress): (Vec<_>, Vec<_>) = view.drops.iter().partition(|(reason, _)| is_egress(reason));
    let sum = |drops: Vec<(&String, &u64)>| drops.into_iter().map(|(_, n)| n).sum::<u64>();
    [
        ("rx_bytes", counter("rx_bytes")),
        ("rx_dropped", counter("rx_lost") + sum(ingress)),
        ("rx_errors", counter("rx_errors")),
        ("rx_packets", counter("rx_frames")),
        ("tx_bytes", counter("tx_bytes")),
        ("tx_dropped", sum(egress)),
        ("tx_errors", 0),
        ("tx_packets", counter("tx_frames")),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), Atom::Number(value)))
    .collect()
}

fn is_egress(reason: &str) -> bool {
    use switch_core::verdict::{DropReason, Side};
    DropReason::ALL.iter().any(|known| known.name() == reason && known.side() == Side::Egress)
}

fn value(model: &Model, table: Table, row: &str, column: &str) -> Datum {
    if MAPS.contains(&column) {
        let prefix = label(table, column, "");
        let labels = labels_of(model, table, row).into_iter().flatten();
        return Datum::Map(
            labels.filter_map(|(k, v)| Some((k.strip_prefix(&prefix)?.to_owned(), Atom::Text(v.clone())))).collect(),
        );
    }
    let port = model.ports.get(row);
    let view = model.views.get(row);
    let vlans = port.map(Vlans::of).unwrap_or_default();
    let up = |up: bool| Datum::Maybe(Some(Atom::Text(if up { "up" } else { "down" }.to_owned())));
    match (table, column) {
        (_, "name") => Datum::text(row),
        (Table::Bridge, "datapath_type") => Datum::text("netdev"),
        (Table::Bridge, "fail_mode") => Datum::Maybe(Some(Atom::Text("standalone".to_owned()))),
        (Table::Bridge, "stp_enable") => Datum::One(Atom::Bool(false)),
        (_, "tag") => Datum::Maybe(vlans.tag.map(|tag| Atom::Number(tag.into()))),
        (_, "trunks") => Datum::Set(vlans.trunks.iter().map(|vid| Atom::Number((*vid).into())).collect()),
        (_, "vlan_mode") => Datum::Maybe(vlans.mode.map(Atom::Text)),
        (_, "admin_state") => up(port.is_some_and(|p| p.link)),
        (_, "link_state") => up(view.is_some_and(|v| v.state == PortState::Up)),
        (_, "error") => Datum::Maybe(view.and_then(|v| v.reason.clone()).map(Atom::Text)),
        (_, "ingress_policing_rate" | "ingress_policing_burst") => Datum::One(Atom::Number(0)),
        (_, "mac_in_use") => Datum::Maybe(view.and_then(|v| v.device_mac).map(|mac| Atom::Text(mac.to_string()))),
        (_, "options") => {
            let path = port
                .filter(|p| p.kind == Kind::VhostUser && p.mode == Some(Mode::Client))
                .and_then(|p| p.path.as_ref());
            Datum::Map(
                path.map(|p| ("vhost-server-path".to_owned(), Atom::Text(p.display().to_string())))
                    .into_iter()
                    .collect(),
            )
        }
        (_, "statistics") => Datum::Map(view.map(statistics).unwrap_or_default()),
        (_, "type") => Datum::text(port.map_or("", interface_type)),
        _ => Datum::Maybe(None),
    }
}

/// The type of an interface, in Open vSwitch's words.
pub fn interface_type(port: &PortSpec) -> &'static str {
    match (port.kind, port.mode) {
        (Kind::Tap, _) => "internal",
        (Kind::VhostUser, Some(Mode::Client)) => "dpdkvhostuserclient",
        (Kind::VhostUser, _) => "dpdkvhostuser",
        _ => "",
    }
}

/// `COLUMN[:KEY]`, and what is after `=`.
struct Place<'a> {
    column: &'static str,
    key: Option<String>,
    value: Option<&'a str>,
}

fn place(table: Table, text: &str) -> Result<Place<'_>, Failure> {
    let end = text.find([':', '=']).unwrap_or(text.len());
    let column = table.column(&text[..end])?;
    let rest = &text[end..];
    let Some(keyed) = rest.strip_prefix(':') else {
        return Ok(Place { column, key: None, value: rest.strip_prefix('=') });
    };
    let (key, value) = match keyed.split_once('=') {
        Some((key, value)) if !keyed.starts_with('"') => (key, Some(value)),
        _ => (keyed, None),
    };
    Ok(Place { column, key: Some(single(key)?), value })
}

/// `get TABLE RECORD COLUMN[:KEY]...`
pub fn get(model: &Model, command: &Command, arguments: &[String], out: &mut String) -> Result<(), Failure> {
    let (table, row, columns) = (Table::find(&arguments[0])?, &arguments[1], &arguments[2..]);
    let row = match table.row(model, row) {
        Err(_) if command.if_exists => return Ok(()),
        row => row?,
    };
    for text in columns {
        let place = place(table, text)?;
        match (value(model, table, &row, place.column), place.key) {
            (datum, None) => out.push_str(&datum.print(Data::Text)),
            (Datum::Map(map), Some(key)) => match map.get(&key) {
                Some(atom) => out.push_str(&atom.print(Data::Text)),
                None if command.if_exists => {}
                None => {
                    return fail(format!(
                        "no key \"{key}\" in {} record \"{row}\" column {}",
                        table.name(),
                        place.column
                    ));
                }
            },
            (_, Some(_)) => return fail(format!("cannot specify key to get for non-map column {}", place.column)),
        }
        out.push('\n');
    }
    Ok(())
}

/// `list TABLE [RECORD]...` and `find TABLE [COLUMN[:KEY]=VALUE]...`
pub fn list(model: &Model, command: &Command, arguments: &[String], out: &mut String) -> Result<(), Failure> {
    let table = Table::find(&arguments[0])?;
    let style = &command.table;
    let columns = match &style.columns {
        Some(names) => names.iter().map(|name| table.column(name)).collect::<Result<Vec<_>, _>>()?,
        None => table.columns().to_vec(),
    };
    let mut rows = Vec::new();
    if command.words[0] == "find" {
        let conditions = arguments[1..].iter().map(|text| place(table, text)).collect::<Result<Vec<_>, _>>()?;
        for row in table.rows(model) {
            let mut all = true;
            for condition in &conditions {
                let Some(wanted) = condition.value else {
                    return fail(format!("{}: only \"=\" is known here", condition.column));
                };
                let wanted = single(wanted)?;
                let found = match (value(model, table, &row, condition.column), &condition.key) {
                    (Datum::Map(map), Some(key)) => map.get(key).map(|atom| atom.print(Data::Bare)),
                    (datum, _) => Some(datum.print(Data::Bare)),
                };
                all &= found.as_deref() == Some(&wanted);
            }
            if all {
                rows.push(row);
            }
        }
    } else if arguments.len() == 1 {
        rows = table.rows(model);
    } else {
        for name in &arguments[1..] {
            match table.row(model, name) {
                Err(_) if command.if_exists => {}
                row => rows.push(row?),
            }
        }
    }
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        for column in &columns {
            let text = value(model, table, row, column).print(style.data);
            let heading = if style.no_headings { String::new() } else { format!("{column:<20}: ") };
            out.push_str(&format!("{heading}{text}\n"));
        }
    }
    Ok(())
}

/// `set TABLE RECORD COLUMN[:KEY]=VALUE...`
pub fn set(model: &mut Model, command: &Command, arguments: &[String]) -> Result<(), Failure> {
    let (table, row) = (Table::find(&arguments[0])?, &arguments[1]);
    if let Table::Qos | Table::Queue = table {
        return fail(NO_RATES);
    }
    let row = match table.row(model, row) {
        Err(_) if command.if_exists => return Ok(()),
        row => row?,
    };
    assign(model, table, &row, &arguments[2..])
}

/// Assigns columns of one row.
pub fn assign(model: &mut Model, table: Table, row: &str, assignments: &[String]) -> Result<(), Failure> {
    for text in assignments {
        let place = place(table, text)?;
        let Some(new) = place.value else {
            return fail(format!("{text}: argument does not end in \"=\" followed by a value."));
        };
        match (place.column, place.key) {
            (column, Some(key)) if MAPS.contains(&column) => {
                let new = single(new)?;
                labels_mut(model, table, row).map(|labels| labels.insert(label(table, column, &key), new));
            }
            (column, None) if MAPS.contains(&column) => {
                let pairs = items(new)?;
                clear(model, table, row, column)?;
                for (key, new) in pairs {
                    let Some(new) = new else { return fail(format!("{text}: \"{key}\" has no value")) };
                    labels_mut(model, table, row).map(|labels| labels.insert(label(table, column, &key), new));
                }
            }
            ("tag" | "trunks" | "vlan_mode", None) => set_vlans(model, row, place.column, new)?,
            ("qos", _) => return fail(NO_RATES),
            ("ingress_policing_rate" | "ingress_policing_burst", None) => {
                // The rate decides: a burst without one has no effect in Open vSwitch either.
                if place.column == "ingress_policing_rate" && single(new)? != "0" {
                    return fail(NO_RATES);
                }
            }
            ("type", None) => set_type(model, row, &single(new)?)?,
            ("options", Some(key)) if key == "vhost-server-path" => {
                let path = PathBuf::from(single(new)?);
                if let Some(port) = model.ports.get_mut(row) {
                    port.path = Some(path);
                }
            }
            ("datapath_type", None) if single(new)? == "netdev" => {}
            ("fail_mode", None) if single(new)? == "standalone" => {}
            ("stp_enable", None) if single(new)? == "false" => {}
            (column, _) => {
                return fail(format!("{} column {column} cannot be set to {new} here", table.name()));
            }
        }
    }
    Ok(())
}

fn vid(column: &str, text: &str) -> Result<u16, Failure> {
    match text.parse() {
        Ok(vid @ 0..=4094) => Ok(vid),
        _ => fail(format!("{column}: {text} is not a VLAN id (0 to 4094)")),
    }
}

fn set_vlans(model: &mut Model, row: &str, column: &str, new: &str) -> Result<(), Failure> {
    let Some(port) = model.ports.get_mut(row) else { return Ok(()) };
    let words: Vec<String> = items(new)?.into_iter().map(|(word, _)| word).collect();
    let mut vlans = Vlans::of(port);
    match (column, words.as_slice()) {
        ("tag", []) => vlans.tag = None,
        ("tag", [word]) => vlans.tag = Some(vid(column, word)?),
        ("trunks", words) => vlans.trunks = words.iter().map(|word| vid(column, word)).collect::<Result<_, _>>()?,
        ("vlan_mode", []) => vlans.mode = None,
        ("vlan_mode", [word]) => vlans.mode = Some(word.clone()),
        _ => return fail(format!("{column}={new}: one value at most")),
    }
    vlans.keep(port);
    Ok(())
}

fn set_type(model: &mut Model, row: &str, kind: &str) -> Result<(), Failure> {
    let Some(port) = model.ports.get_mut(row) else { return Ok(()) };
    (port.kind, port.mode) = match kind {
        "" | "system" => (Kind::Packet, None),
        "internal" | "tap" => (Kind::Tap, None),
        "dpdkvhostuserclient" => (Kind::VhostUser, Some(Mode::Client)),
        "dpdkvhostuser" => {
            return fail(
                "type=dpdkvhostuser: its socket would have no path; use dpdkvhostuserclient with options:vhost-server-path=, or: vswitch port add NAME=vhost-user,path=…",
            );
        }
        _ => {
            return fail(format!("type={kind}: interfaces here are system, internal, tap or dpdkvhostuserclient"));
        }
    };
    Ok(())
}

/// Empties a column.
///
/// # Errors
/// It is not one that can be.
pub fn clear(model: &mut Model, table: Table, row: &str, column: &str) -> Result<(), Failure> {
    match table.column(column)? {
        column if MAPS.contains(&column) => {
            let prefix = label(table, column, "");
            if let Some(labels) = labels_mut(model, table, row) {
                labels.retain(|key, _| !key.starts_with(&prefix));
            }
            Ok(())
        }
        column @ ("tag" | "trunks" | "vlan_mode") => set_vlans(model, row, column, "[]"),
        "qos" => Ok(()),
        column => fail(format!("cannot modify read-only column {column} in table {}", table.name())),
    }
}

/// `clear TABLE RECORD COLUMN...`
pub fn clear_all(model: &mut Model, command: &Command, arguments: &[String]) -> Result<(), Failure> {
    let table = Table::find(&arguments[0])?;
    match table.row(model, &arguments[1]) {
        Err(_) if command.if_exists => Ok(()),
        row => {
            let row = row?;
            arguments[2..].iter().try_for_each(|column| clear(model, table, &row, column))
        }
    }
}

/// `remove TABLE RECORD COLUMN KEY...`
pub fn remove(model: &mut Model, command: &Command, arguments: &[String]) -> Result<(), Failure> {
    let table = Table::find(&arguments[0])?;
    let row = match table.row(model, &arguments[1]) {
        Err(_) if command.if_exists => return Ok(()),
        row => row?,
    };
    let column = table.column(&arguments[2])?;
    for text in &arguments[3..] {
        for (key, _) in items(text)? {
            if MAPS.contains(&column) {
                labels_mut(model, table, &row).map(|labels| labels.remove(&label(table, column, &key)));
            } else if let ("trunks", Some(port)) = (column, model.ports.get_mut(&row)) {
                let mut vlans = Vlans::of(port);
                vlans.trunks.remove(&vid(column, &key)?);
                vlans.keep(port);
            } else {
                return fail(format!("{} column {column}: nothing can be removed from it here", table.name()));
            }
        }
    }
    Ok(())
}
