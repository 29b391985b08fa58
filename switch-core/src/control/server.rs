//! The API: HTTP + JSON on a Unix socket. `curl --unix-socket /run/vswitch/api.sock http://vswitch/v1/status` works.
//!
//! The socket has mode 0660, and the peer's credentials are checked as well: root, the user that runs the switch, and
//! members of the socket's group. Bodies are bounded; a client that sends half a request holds up nobody else.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Path as Name, Query, Request, State, connect_info::Connected},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, patch, post},
    serve::IncomingStream,
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream, unix::UCred};

use super::{
    config::Config,
    desired::{Desired, FdbSpec, Origin},
    manager::{Manager, ManagerError, Notice},
    networks,
    plan::plan,
    spec::{AttachmentSpec, DomainSpec, PortSpec, SpecError},
    wire::{Add, Apply, DomainView, Done, Edit, FdbView, FlushRequest, Flushed, PortChange, PortView, Refusal, Status},
};
use crate::{
    mac::MacAddr,
    port::socket::{self, SocketFile},
};

/// The largest request body: a configuration of some ten thousand ports.
pub const MAX_BODY_BYTES: usize = 4 << 20;
/// Group and others of the socket.
const SOCKET_MODE: u32 = 0o660;
/// How often waiting ports, ageing and reports are looked after.
const TICK: Duration = Duration::from_secs(1);
/// How long after news of a port all of them are looked at.
const SETTLE: Duration = Duration::from_millis(5);

/// A manager shared by requests; each holds it for one operation.
pub type Shared = Arc<Mutex<Manager>>;

#[derive(Clone, Debug)]
struct Peer(Option<UCred>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let stream: &UnixStream = stream.io();
        Peer(stream.peer_cred().ok())
    }
}

impl IntoResponse for ManagerError {
    fn into_response(self) -> Response {
        let status = match &self {
            ManagerError::Refused(_) => StatusCode::BAD_REQUEST,
            ManagerError::NotFound(_) => StatusCode::NOT_FOUND,
            ManagerError::Conflict => StatusCode::CONFLICT,
            ManagerError::Journal(_) | ManagerError::Switch(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(Refusal { error: self.to_string() })).into_response()
    }
}

pub(super) type Answer<T> = Result<Json<T>, ManagerError>;

fn no_port(name: &str) -> ManagerError {
    ManagerError::NotFound(format!("there is no port \"{name}\"; see: vswitch port show"))
}

/// Why a port cannot be changed that nobody asked for.
fn not_asked_for(desired: &Desired, name: &str) -> ManagerError {
    if desired.effective_ports().contains_key(name) {
        return SpecError(format!("port \"{name}\" is a network's; change that instead, see: vswitch network show"))
            .into();
    }
    no_port(name)
}

async fn status(State(manager): State<Shared>) -> Json<Status> {
    Json(manager.lock().status())
}

async fn ports(State(manager): State<Shared>) -> Json<Vec<PortView>> {
    Json(manager.lock().ports())
}

async fn port(State(manager): State<Shared>, Name(name): Name<String>) -> Answer<PortView> {
    manager.lock().ports().into_iter().find(|p| p.spec.name == name).map(Json).ok_or_else(|| no_port(&name))
}

async fn add_port(State(manager): State<Shared>, Json(add): Json<Add>) -> Answer<Done> {
    let spec: PortSpec = add.spec.parse()?;
    manager.lock().add_port(spec, Origin::Cli).map(Json)
}

async fn del_port(State(manager): State<Shared>, Name(name): Name<String>) -> Answer<Done> {
    let mut manager = manager.lock();
    let mut desired = manager.desired().clone();
    if !desired.remove_port(&name) {
        if desired.domains.contains_key(&name) {
            return Err(SpecError(format!(
                "\"{name}\" is the host port of a domain; use: vswitch domain set {name} host=off"
            ))
            .into());
        }
        return Err(not_asked_for(&desired, &name));
    }
    manager.change(desired).map(Json)
}

fn settings(set: &[String]) -> Result<Vec<(&str, &str)>, SpecError> {
    set.iter()
        .map(|text| text.split_once('=').ok_or_else(|| SpecError(format!("\"{text}\": write key=value"))))
        .collect()
}

async fn change_port(
    State(manager): State<Shared>,
    Name(name): Name<String>,
    Json(change): Json<PortChange>,
) -> Answer<Done> {
    let mut manager = manager.lock();
    let mut desired = manager.desired().clone();
    let Some(owned) = desired.ports.get_mut(&name) else { return Err(not_asked_for(&desired, &name)) };
    let spec = &mut owned.spec;
    for (key, value) in settings(&change.set)? {
        spec.set(key, value)?;
    }
    if let Some(domain) = &change.detach {
        let before = spec.domains.len();
        spec.domains.retain(|a| a.domain != *domain);
        if spec.domains.len() == before {
            if let Some(network) = &spec.network {
                return Err(SpecError(format!(
                    "port \"{name}\" is in domain \"{domain}\" by network \"{network}\" if at all; take it out there: vswitch port set {name} network=none"
                ))
                .into());
            }
            return Err(ManagerError::NotFound(format!("port \"{name}\" is not attached to domain \"{domain}\"")));
        }
    }
    let left = change.detach.clone();
    if let Some(text) = &change.attach {
        let attachment: AttachmentSpec = text.parse()?;
        spec.domains.retain(|a| a.domain != attachment.domain);
        spec.domains.push(attachment);
    }
    // Entries go with the membership that they need.
    desired.fdb.retain(|e| e.port != name || Some(&e.domain) != left.as_ref());
    manager.change(desired).map(Json)
}

async fn domains(State(manager): State<Shared>) -> Json<Vec<DomainView>> {
    Json(manager.lock().domains())
}

async fn add_domain(State(manager): State<Shared>, Json(add): Json<Add>) -> Answer<Done> {
    let spec: DomainSpec = add.spec.parse()?;
    manager.lock().add_domain(spec, Origin::Cli).map(Json)
}

async fn change_domain(
    State(manager): State<Shared>,
    Name(name): Name<String>,
    Json(change): Json<PortChange>,
) -> Answer<Done> {
    let mut manager = manager.lock();
    let mut desired = manager.desired().clone();
    let owned = desired
        .domains
        .get_mut(&name)
        .ok_or_else(|| ManagerError::NotFound(format!("there is no domain \"{name}\"; see: vswitch domain show")))?;
    for (key, value) in settings(&change.set)? {
        owned.spec.set(key, value)?;
    }
    manager.change(desired).map(Json)
}

#[derive(Deserialize)]
struct WithPorts {
    #[serde(default)]
    ports: bool,
}

async fn del_domain(
    State(manager): State<Shared>,
    Name(name): Name<String>,
    Query(with): Query<WithPorts>,
) -> Answer<Done> {
    manager.lock().del_domain(&name, with.ports).map(Json)
}

async fn fdb(State(manager): State<Shared>) -> Json<Vec<FdbView>> {
    Json(manager.lock().fdb())
}

async fn add_fdb(State(manager): State<Shared>, Json(entry): Json<FdbSpec>) -> Answer<Done> {
    let mut manager = manager.lock();
    let mut desired = manager.desired().clone();
    desired.fdb.retain(|e| e.mac != entry.mac || e.domain != entry.domain);
    desired.fdb.push(entry);
    manager.change(desired).map(Json)
}

#[derive(Deserialize)]
struct FdbKey {
    mac: MacAddr,
    domain: String,
}

async fn del_fdb(State(manager): State<Shared>, Query(key): Query<FdbKey>) -> Answer<Done> {
    let mut manager = manager.lock();
    let mut desired = manager.desired().clone();
    desired.fdb.retain(|e| e.mac != key.mac || e.domain != key.domain);
    let learned = manager.forget(&key.domain, key.mac)?;
    if desired == *manager.desired() && !learned {
        return Err(ManagerError::NotFound(format!("{} is not in the table of domain \"{}\"", key.mac, key.domain)));
    }
    manager.change(desired).map(Json)
}

async fn flush(State(manager): State<Shared>, Json(request): Json<FlushRequest>) -> Answer<Flushed> {
    let removed = manager.lock().flush(request.port.as_deref(), request.domain.as_deref())?;
    Ok(Json(Flushed { removed }))
}

async fn apply(State(manager): State<Shared>, Json(request): Json<Apply>) -> Answer<Done> {
    let mut manager = manager.lock();
    let mut desired = Config::parse(&request.toml)?.merge(manager.desired(), request.prune)?;
    if request.dry_run {
        manager.settle(&mut desired)?;
        return Ok(Json(Done { steps: plan(manager.desired(), &desired), ..Done::default() }));
    }
    manager.change(desired).map(Json)
}

async fn edit(State(manager): State<Shared>, Json(edit): Json<Edit>) -> Answer<Done> {
    manager.lock().edit(edit).map(Json)
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn events(State(manager): State<Shared>, Query(query): Query<After>) -> Json<Vec<Notice>> {
    Json(manager.lock().notices(query.after))
}

async fn openapi() -> impl IntoResponse {
    ([("content-type", "application/json")], include_str!("openapi.json"))
}

/// Who may speak to the switch.
#[derive(Clone, Copy)]
struct Allowed {
    uid: u32,
    gid: u32,
}

async fn check_peer(
    State(allowed): State<Allowed>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match peer {
        Some(cred) if cred.uid() == 0 || cred.uid() == allowed.uid || cred.gid() == allowed.gid => {
            next.run(request).await
        }
        _ => {
            let error =
                "permission denied: run the command as root, or as a member of the API socket's group".to_owned();
            (StatusCode::FORBIDDEN, Json(Refusal { error })).into_response()
        }
    }
}

fn router(manager: Shared, allowed: Allowed) -> Router {
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/v1/status", get(status))
        .route("/v1/ports", get(ports).post(add_port))
        .route("/v1/ports/{name}", get(port).patch(change_port).delete(del_port))
        .route("/v1/domains", get(domains).post(add_domain))
        .route("/v1/domains/{name}", patch(change_domain).delete(del_domain))
        .route("/v1/fdb", get(fdb).post(add_fdb).delete(del_fdb))
        .route("/v1/fdb/flush", post(flush))
        .merge(networks::routes())
        .route("/v1/apply", post(apply))
        .route("/v1/edit", post(edit))
        .route("/v1/events", get(events))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(allowed, check_peer))
        .with_state(manager)
}

/// A bound socket that is removed when it is dropped.
pub struct Socket {
    listener: std::os::unix::net::UnixListener,
    file: SocketFile,
}

impl Socket {
    /// Binds the API socket. A left-over of a dead switch is replaced, that of a living one is not.
    ///
    /// # Errors
    /// The directory cannot be made, somebody answers on the socket, or something else lies at the path.
    pub fn bind(path: &Path) -> io::Result<Socket> {
        let named = |e: io::Error| {
            let mend = if e.kind() == io::ErrorKind::AddrInUse { "; stop it, or use --api SOCKET" } else { "" };
            io::Error::new(e.kind(), format!("cannot bind API socket {}: {e}{mend}", path.display()))
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(named)?;
        }
        let (listener, file) = socket::listen(path, None, None, Some(SOCKET_MODE)).map_err(named)?;
        Ok(Socket { listener, file })
    }
}

/// Serves the API and looks after the switch until `stop` completes.
///
/// # Errors
/// The listener fails.
pub async fn serve(socket: Socket, manager: Shared, stop: impl Future<Output = ()>) -> io::Result<()> {
    let gid = fs::metadata(socket.file.path())?.gid();
    let allowed = Allowed { uid: nix::unistd::geteuid().as_raw(), gid };
    let listener = UnixListener::from_std(socket.listener.try_clone()?)?;
    let app = router(Arc::clone(&manager), allowed).into_make_service_with_connect_info::<Peer>();
    let news = manager.lock().news();
    let ticking = async {
        let mut interval = tokio::time::interval(TICK);
        loop {
            let result = tokio::select! {
                _ = interval.tick() => manager.lock().tick(),
                () = news.notified() => {
                    // News come in swarms: one look at the end of it is enough.
                    tokio::time::sleep(SETTLE).await;
                    manager.lock().attend()
                }
            };
            if let Err(e) = result {
                tracing::error!("{e}");
            }
        }
    };
    tokio::select! {
        result = async { axum::serve(listener, app).await } => result,
        () = ticking => Ok(()),
        () = stop => Ok(()),
    }
}
