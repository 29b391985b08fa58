//! `vswitch run`: the daemon, in the foreground.

use std::{io::IsTerminal, path::Path, sync::Arc};

use anyhow::{Context, bail};
use switch_core::{
    control::{
        config::Config,
        desired::{Origin, Owned},
        journal::Journal,
        manager::Manager,
        server::{self, Socket},
        spec::{DomainSpec, PortSpec},
    },
    switch::Settings,
    worker::PollMode,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Poll, Run};

/// Runs until SIGINT or SIGTERM.
pub fn run(api: &Path, args: Run) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("VSWITCH_LOG").unwrap_or_else(|_| "info".into()))
        .init();
    if !(1024..=switch_core::fdb::MAX_CAPACITY).contains(&args.fdb_size) {
        bail!("--fdb-size {}: use 1024 to {}", args.fdb_size, switch_core::fdb::MAX_CAPACITY);
    }
    let file = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(Config::parse(&text).with_context(|| format!("{}", path.display()))?)
        }
        None => None,
    };
    let (journal, mut desired) = Journal::open(&args.state)?;
    if let Some(file) = file {
        desired = file.merge(&desired, false).context("the configuration contradicts what is kept from before")?;
    }
    // What the command line names is wanted as it says, whatever an earlier run kept under the same name.
    for text in &args.domains {
        let spec: DomainSpec = text.parse()?;
        desired.domains.insert(spec.name.clone(), Owned { spec, origin: Origin::Cli });
    }
    for text in &args.ports {
        let spec: PortSpec = text.parse()?;
        desired.ports.insert(spec.name.clone(), Owned { spec, origin: Origin::Cli });
    }
    let started = desired.networks.iter().filter(|(_, network)| network.spec.autostart == Some(true));
    desired.active.extend(started.map(|(name, _)| name.clone()).collect::<Vec<_>>());
    desired.check()?;
    journal.save(&desired)?;
    raise_limits();
    let settings = Settings {
        workers: usize::from(args.workers),
        cpus: args.cpus.0,
        poll: match args.poll {
            Poll::Adaptive => PollMode::Adaptive,
            Poll::Busy => PollMode::Busy,
            Poll::Interrupt => PollMode::Interrupt,
        },
        fdb_size: args.fdb_size,
        sysfs: args.sysfs,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let socket = Socket::bind(api)?;
        let manager = Manager::start(settings, Some((journal, desired)))?;
        let status = manager.status();
        tracing::info!(
            "switch is up: {} port(s) up, {} waiting, {} worker(s), API at {}",
            status.ports_up,
            status.ports_waiting,
            status.workers,
            api.display()
        );
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        server::serve(socket, Arc::new(parking_lot::Mutex::new(manager)), stop).await?;
        tracing::info!("stopped");
        Ok(())
    })
}

/// One descriptor per queue, and memory that is locked for AF_XDP: as much as the hard limits allow.
fn raise_limits() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    for resource in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK] {
        if let Ok((soft, hard)) = getrlimit(resource)
            && soft < hard
        {
            // A refusal shows later, as a port that waits and says what it lacks.
            let _ = setrlimit(resource, hard, hard);
        }
    }
}
