//! What a SPEC must say of a network device.

use super::{Kind, PortSpec, SpecError, wrong};
use crate::port::tap::MAX_NAME;

impl PortSpec {
    /// Checks that the keys of a network device go together.
    pub(super) fn check_device(&self) -> Result<(), SpecError> {
        match self.kind {
            Kind::Macvtap => self.check_macvtap(),
            _ => Ok(()),
        }
    }

    fn check_macvtap(&self) -> Result<(), SpecError> {
        let name = &self.name;
        if name.len() > MAX_NAME {
            return wrong(format!(
                "port \"{name}\": a macvtap has the port's name, which therefore has 1 to {MAX_NAME} characters"
            ));
        }
        if self.device.as_ref() == Some(name) {
            return wrong(format!(
                "port \"{name}\": the macvtap has the port's name, so the port must be called otherwise than its device, for example vtap0=macvtap,device={name}"
            ));
        }
        match self.mode {
            Some(mode) if mode.is_socket() => {
                wrong(format!("port \"{name}\": mode={}: use bridge, private, vepa or passthrough", mode.name()))
            }
            _ => Ok(()),
        }
    }
}
