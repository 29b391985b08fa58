//! Networks in the API. What takes programs to do is waited for here, while the manager is free for others.

use axum::{
    Json, Router,
    extract::{Path as Name, State},
    routing::{get, post},
};

use super::{
    desired::Origin,
    manager::ManagerError,
    server::{Answer, Shared},
    spec::{NetworkSpec, SpecError},
    wire::{Done, NetworkView, StartNetwork},
};
use crate::network::Outcome;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/networks", get(list).post(define))
        .route("/v1/networks/{name}", get(show).delete(undefine))
        .route("/v1/networks/{name}/start", post(start))
        .route("/v1/networks/{name}/stop", post(stop))
}

async fn list(State(manager): State<Shared>) -> Json<Vec<NetworkView>> {
    Json(manager.lock().networks())
}

async fn show(State(manager): State<Shared>, Name(name): Name<String>) -> Answer<NetworkView> {
    let found = manager.lock().networks().into_iter().find(|n| n.spec.name == name);
    found
        .map(Json)
        .ok_or_else(|| ManagerError::NotFound(format!("there is no network \"{name}\"; see: vswitch network list")))
}

async fn define(State(manager): State<Shared>, Json(spec): Json<NetworkSpec>) -> Answer<Done> {
    manager.lock().define_network(spec, Origin::Cli).map(Json)
}

async fn undefine(State(manager): State<Shared>, Name(name): Name<String>) -> Answer<Done> {
    manager.lock().undefine_network(&name).map(Json)
}

/// Waits for the thread of networks; it bounds all that it does.
async fn settled(outcome: Option<Outcome>) -> Result<(), String> {
    match outcome {
        Some(outcome) => outcome.await.unwrap_or_else(|_| Err("the switch is being stopped".to_owned())),
        None => Ok(()),
    }
}

async fn start(
    State(manager): State<Shared>,
    Name(name): Name<String>,
    Json(wish): Json<StartNetwork>,
) -> Answer<Done> {
    let (done, outcome) = manager.lock().start_network(&name, wish.fix_forward)?;
    let Err(why) = settled(outcome).await else { return Ok(Json(done)) };
    // As if nobody had asked; whatever else was changed meanwhile stays.
    let (_, undone) = manager.lock().stop_network(&name)?;
    // Taking down tells of no failure.
    let _ = settled(undone).await;
    Err(SpecError(format!("network \"{name}\" cannot be started: {why}")).into())
}

async fn stop(State(manager): State<Shared>, Name(name): Name<String>) -> Answer<Done> {
    let (done, outcome) = manager.lock().stop_network(&name)?;
    let _ = settled(outcome).await;
    Ok(Json(done))
}
