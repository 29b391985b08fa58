//! Guests' rings: a driver without a VM at either end, over a real `vhost-user` connection.
//!
//! The connection is only used to set the rings up; its thread sleeps afterwards. What the driver does is preparation.

use std::path::PathBuf;

use anyhow::ensure;
use switch_core::{
    batch::BATCH_FRAMES,
    port::{
        Notifier, Opened, PortControl, PortRx, PortTx,
        vhost_user::{self, VhostConfig},
    },
    topology::Dress,
};

use super::{
    BATCH, Case, SHORTEST,
    bed::{Bed, Repeat},
    frame, station, swallow,
};
use crate::{
    frontend::{FrontEnd, Options},
    netns::unique,
};

/// A port with a driver on it.
struct Guest {
    rx: Box<dyn PortRx>,
    tx: Box<dyn PortTx>,
    driver: FrontEnd,
    control: Box<dyn PortControl>,
}

/// The directory of one socket, which is needed until the driver is connected.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Guest {
    fn new() -> anyhow::Result<Guest> {
        let directory = Directory(std::env::temp_dir().join(unique("vswitch-case-")));
        std::fs::create_dir(&directory.0)?;
        let path = directory.0.join("guest.sock");
        let Opened { mut queues, control } = vhost_user::open(&VhostConfig::new(&path), Notifier::new(|| {}))?;
        let pair = queues.remove(0);
        let driver = FrontEnd::connect(&path, Options::default())?;
        Ok(Guest { rx: pair.rx, tx: pair.tx, driver, control })
    }
}

/// Has a driver send a batch of frames, again and again.
fn sending(mut driver: FrontEnd) -> impl FnMut() -> anyhow::Result<()> {
    let mut first = Some(vec![frame(station(1), SHORTEST); BATCH_FRAMES]);
    move || {
        let sent = match first.take() {
            Some(frames) => driver.send(0, &frames)?,
            None => driver.send_again(0)?,
        };
        ensure!(sent == BATCH_FRAMES, "the switch has returned {sent} frames of {BATCH_FRAMES}");
        Ok(())
    }
}

pub(super) fn from_guest() -> anyhow::Result<Case> {
    let Guest { rx, tx, driver, control } = Guest::new()?;
    let mut bed = Bed::new(rx, vec![(Dress::Untagged, tx), swallow(Dress::Untagged)])?;
    bed.know(station(1), 1);
    bed.keep(control);
    Ok(bed.case(BATCH, 1, sending(driver)))
}

pub(super) fn to_guest() -> anyhow::Result<Case> {
    let Guest { rx, tx, mut driver, control } = Guest::new()?;
    let source = Repeat::new(vec![frame(station(1), SHORTEST)], BATCH_FRAMES);
    let mut bed = Bed::new(Box::new(source), vec![swallow(Dress::Untagged), (Dress::Untagged, tx)])?;
    bed.know(station(1), 1);
    bed.keep((rx, control));
    Ok(bed.case(BATCH, 1, move || driver.discard(0).map(drop)))
}

pub(super) fn between() -> anyhow::Result<Case> {
    let Guest { rx, tx, driver, control } = Guest::new()?;
    let mut far = Guest::new()?;
    let mut bed = Bed::new(rx, vec![(Dress::Untagged, tx), (Dress::Untagged, far.tx)])?;
    bed.know(station(1), 1);
    bed.keep((far.rx, control, far.control));
    let mut send = sending(driver);
    Ok(bed.case(BATCH, 1, move || {
        far.driver.discard(0)?;
        send()
    }))
}
