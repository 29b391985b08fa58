//! What ports that are network devices have in common on the control side: a network device that can be set down, lose its
//! carrier or go away.

use std::sync::Arc;

use super::PortControl;
use crate::link::LinkSpace;

/// The control side of a port that is a network device.
pub struct Netdev {
    /// The devices of its namespace.
    pub space: Arc<LinkSpace>,
    /// Its name.
    pub device: String,
    /// Its index, if its queues cannot tell that it has gone away: another device of its name is not it.
    pub index: Option<u32>,
    /// Whether the carrier is the other side's to give (a wire), not the switch's (a TAP).
    pub wire: bool,
    /// What to do to the device when the port's administrative state changes.
    pub on_link: Option<Box<dyn FnMut(bool) + Send>>,
    /// Things of the driver's to drop when the port is closed.
    pub keep: Box<dyn std::any::Any + Send>,
}

impl PortControl for Netdev {
    fn missing(&mut self) -> Option<String> {
        let device = &self.device;
        match self.space.known(device) {
            None => Some(format!("device \"{device}\" has gone away")),
            Some(link) if !link.up => {
                Some(format!("device \"{device}\" is down; set it up with: ip link set {device} up"))
            }
            Some(link) if self.wire && !link.carrier => {
                Some(format!("device \"{device}\" has no carrier: its other end is down or the cable is out"))
            }
            Some(_) => None,
        }
    }

    fn gone(&mut self) -> bool {
        self.index.is_some_and(|index| self.space.known(&self.device).is_none_or(|link| link.index != index))
    }

    fn set_link(&mut self, up: bool) {
        if let Some(on_link) = &mut self.on_link {
            on_link(up);
        }
    }
}
