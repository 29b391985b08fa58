//! What the manager does without being asked: it follows devices and peers that come and go, ages the table, and moves
//! queues between workers.

use std::collections::HashMap;

use super::{BALANCE_EVERY_S, Manager, ManagerError};
use crate::{
    control::spec::PortSpec,
    fdb::Flush,
    id::{DomainId, PortId},
    network::Networks,
    worker::Event,
};

impl Manager {
    /// To be called about once per second: ages the FDB, writes down what clean ports have learned, and does what [`attend`](Self::attend) does.
    ///
    /// # Errors
    /// The switch itself failed.
    pub fn tick(&mut self) -> Result<(), ManagerError> {
        self.attend()?;
        let tick = self.switch.clock().now().tick;
        if tick.0.is_multiple_of(BALANCE_EVERY_S)
            && let Some((port, queue, from, to)) = self.switch.balance()?
        {
            let name = self.port_name(port);
            self.notice(format!("queue {queue} of port {name} has moved from worker {from} to worker {to}"));
        }
        let ageing: HashMap<DomainId, u32> = self
            .desired
            .effective_domains()
            .values()
            .filter_map(|d| Some((*self.domain_ids.get(&d.name)?, d.ageing)))
            .collect();
        self.switch.fdb().age(tick, |domain| ageing.get(&domain).copied().unwrap_or(1));
        self.remember_bindings();
        Ok(())
    }

    /// Takes reports of workers, looks after ports whose other side came or went, and tries again to open those that wait.
    ///
    /// # Errors
    /// The switch itself failed.
    pub fn attend(&mut self) -> Result<(), ManagerError> {
        while let Ok(event) = self.switch.reports().try_recv() {
            match event {
                Event::Gone { port } => self.lost_device(port)?,
                Event::Flap(flap) => {
                    let (kept, seen) = (self.port_name(flap.kept_on), self.port_name(flap.seen_on));
                    tracing::warn!(mac = %flap.mac, "address flaps between {kept} and {seen}; held on {kept}");
                    self.notice(format!("{} flaps between {kept} and {seen}; held on {kept}", flap.mac));
                }
            }
        }
        let gone: Vec<PortId> = self.open.values_mut().filter_map(|o| o.control.gone().then_some(o.id)).collect();
        for port in gone {
            self.lost_device(port)?;
        }
        self.follow_carriers()?;
        self.announce_stations();
        for text in self.networks.as_ref().map(Networks::notices).unwrap_or_default() {
            self.notice(text);
        }
        if !self.waiting.is_empty() {
            let ports = self.desired.effective_ports();
            let again: Vec<PortSpec> = self.waiting.keys().filter_map(|name| ports.get(name).cloned()).collect();
            let queues = self.open_devices(&again);
            if !queues.is_empty() {
                self.put_to_work(queues)?;
                let desired = self.desired.clone();
                self.pin_entries(&desired);
                self.set_quotas();
            }
        }
        self.tell_networks();
        Ok(())
    }

    /// Publishes which ports have a carrier, if that has changed; the addresses behind one that lost it are forgotten.
    fn follow_carriers(&mut self) -> Result<(), ManagerError> {
        let mut changed = Vec::new();
        for (name, open) in &mut self.open {
            let missing = open.control.missing();
            if missing != open.missing {
                changed.push((name.clone(), open.id, missing.clone()));
                open.missing = missing;
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        self.publish()?;
        for (name, id, missing) in changed {
            match missing {
                Some(reason) => {
                    self.switch.fdb().flush(Flush { port: Some(id), ..Flush::default() });
                    tracing::info!(port = name, "waiting: {reason}");
                    self.notice(format!("port {name} is waiting: {reason}"));
                }
                None => self.notice(format!("port {name} is up")),
            }
        }
        Ok(())
    }

    fn lost_device(&mut self, port: PortId) -> Result<(), ManagerError> {
        let Some(name) = self.open.iter().find(|(_, o)| o.id == port).map(|(n, _)| n.clone()) else { return Ok(()) };
        self.open.remove(&name);
        self.switch.revoke(port)?;
        self.publish()?;
        self.switch.fdb().flush(Flush { port: Some(port), include_static: true, ..Flush::default() });
        let reason = "its device has gone away".to_owned();
        tracing::warn!(port = name, "waiting: {reason}");
        self.notice(format!("port {name} is waiting: {reason}"));
        self.waiting.insert(name, reason);
        Ok(())
    }

    fn port_name(&self, id: PortId) -> String {
        self.open.iter().find(|(_, o)| o.id == id).map_or_else(|| id.to_string(), |(n, _)| n.clone())
    }
}
