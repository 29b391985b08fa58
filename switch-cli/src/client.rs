//! The client's side of the API: one request over the Unix socket.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use switch_core::control::wire::Refusal;

/// A switch to talk to.
pub struct Client {
    socket: PathBuf,
    timeout: Option<Duration>,
}

/// The switch has been changed since it was asked; ask, and try again.
#[derive(Debug)]
pub struct Conflict(String);

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Conflict {}

/// Percent-encodes what may be in a name but not in a URL path or query.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-_.:".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

impl Client {
    /// A client of the switch that listens on `socket`.
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned(), timeout: None }
    }

    /// The same, which waits so long for each answer and no longer.
    pub fn with_timeout(self, timeout: Duration) -> Client {
        Client { timeout: Some(timeout), ..self }
    }

    /// `GET path`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::GET, path, None::<&()>)
    }

    /// `POST path` with a body.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.call(Method::POST, path, Some(body))
    }

    /// `POST base/name/action` with a body.
    pub fn post_to<T: DeserializeOwned>(
        &self,
        base: &str,
        name: &str,
        action: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.call(Method::POST, &format!("{base}/{}/{action}", encode(name)), Some(body))
    }

    /// `PATCH base/name` with a body.
    pub fn patch<T: DeserializeOwned>(&self, base: &str, name: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.call(Method::PATCH, &format!("{base}/{}", encode(name)), Some(body))
    }

    /// `DELETE base/name`.
    pub fn delete<T: DeserializeOwned>(&self, base: &str, name: &str) -> anyhow::Result<T> {
        self.call(Method::DELETE, &format!("{base}/{}", encode(name)), None::<&()>)
    }

    /// `DELETE path?key=value&…`.
    pub fn delete_where<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<T> {
        let query: Vec<_> = query.iter().map(|(k, v)| format!("{k}={}", encode(v))).collect();
        self.call(Method::DELETE, &format!("{path}?{}", query.join("&")), None::<&()>)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = async {
            let stream = tokio::net::UnixStream::connect(&self.socket).await.with_context(|| {
                format!(
                    "cannot reach a switch at {}; start one with: vswitch run, or name its socket with --api",
                    self.socket.display()
                )
            })?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let bytes = match body {
                Some(body) => Bytes::from(serde_json::to_vec(body)?),
                None => Bytes::new(),
            };
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "vswitch")
                .header("content-type", "application/json")
                .body(Full::new(bytes))?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let bytes = response.into_body().collect().await?.to_bytes();
            if status.is_success() {
                return serde_json::from_slice(&bytes).context("the switch's answer is not what this version expects");
            }
            match serde_json::from_slice::<Refusal>(&bytes) {
                Ok(refusal) if status == StatusCode::CONFLICT => Err(Conflict(refusal.error).into()),
                Ok(refusal) => bail!(refusal.error),
                Err(_) => Err(anyhow!("the switch answered {status}: {}", String::from_utf8_lossy(&bytes))),
            }
        };
        runtime.block_on(async {
            let Some(timeout) = self.timeout else { return answer.await };
            match tokio::time::timeout(timeout, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    bail!("the switch at {} did not answer within {} s", self.socket.display(), timeout.as_secs())
                }
            }
        })
    }
}
