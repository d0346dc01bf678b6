//! Connections to the API server: HTTP/2 where the server offers it in the TLS handshake, else HTTP/1.1.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::Config;
use kube::client::{Body, ConfigExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tower::ServiceExt;

use crate::source::kube::ConnectOptions;

/// Sends requests, on as few connections as their protocol allows.
pub(super) type Transport = legacy::Client<Connector, Body>;

/// How long the server may take to accept a connection; client-go's value.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// Idle time before the kernel asks whether the other side lives, and between its questions.
const TCP_PROBE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(10));
/// How long the other side may leave data or probes without acknowledgement.
const TCP_DEAD_AFTER: Duration = Duration::from_secs(30);
/// How long requests wait for the first one to open a connection that they can share.
const SHARE_WITHIN: Duration = Duration::from_secs(1);
/// What may be on its way to us in one stream, and in all: it can end up in memory before it is read.
const WINDOWS: (u32, u32) = (512 << 10, 2 << 20);

/// The transport for a configuration, and the gate before it.
pub(super) fn transport(
    config: &Config,
    proxy: Option<Intercept>,
    options: &ConnectOptions,
) -> kube::Result<(Transport, Gate)> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_WITHIN));
    tcp.set_keepalive(Some(TCP_PROBE.0));
    tcp.set_keepalive_interval(Some(TCP_PROBE.1));
    tcp.set_tcp_user_timeout(Some(TCP_DEAD_AFTER));
    let tcp = Tcp { tunnel: proxy.map(|proxy| tunnel(&proxy, tcp.clone())), direct: tcp };
    let mut tls = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = &config.tls_server_name
        && let Ok(name) = name.clone().try_into()
    {
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let gate = Gate::default();
    let connector = Connector { https: tls.enable_http1().enable_http2().wrap_connector(tcp), open: gate.open.clone() };
    let client = legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_initial_stream_window_size(WINDOWS.0)
        .http2_initial_connection_window_size(WINDOWS.1)
        .http2_keep_alive_interval(options.ping_interval)
        .http2_keep_alive_timeout(options.ping_timeout)
        .http2_keep_alive_while_idle(true)
        .build(connector);
    Ok((client, gate))
}

fn tunnel(proxy: &Intercept, tcp: HttpConnector) -> Tunnel<HttpConnector> {
    let tunnel = Tunnel::new(proxy.uri().clone(), tcp);
    match proxy.basic_auth() {
        Some(password) => tunnel.with_auth(password.clone()),
        None => tunnel,
    }
}

/// TCP to the server, through a proxy if there is one.
#[derive(Clone)]
pub(super) struct Tcp {
    direct: HttpConnector,
    tunnel: Option<Tunnel<HttpConnector>>,
}

impl tower::Service<http::Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = tower::BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), tower::BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let Tcp { direct, tunnel } = self.clone();
        Box::pin(async move {
            match tunnel {
                Some(tunnel) => Ok(tokio::time::timeout(CONNECT_WITHIN, tunnel.oneshot(uri)).await??),
                None => Ok(direct.oneshot(uri).await?),
            }
        })
    }
}

/// Lets the first request alone until it is answered. Only a connection that stands can say that it is HTTP/2, so
/// without this the three watches would open three at once and throw two away.
#[derive(Default)]
pub(super) struct Gate {
    open: Arc<AtomicUsize>,
    first: Arc<Mutex<()>>,
}

impl Gate {
    /// Waits for a moment if another request opens the first connection. Who gets a guard is that request.
    pub(super) async fn enter(&self) -> Option<OwnedMutexGuard<()>> {
        if self.connected() {
            return None;
        }
        let first = tokio::time::timeout(SHARE_WITHIN, Arc::clone(&self.first).lock_owned()).await.ok()?;
        (!self.connected()).then_some(first)
    }

    fn connected(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }
}

/// Opens connections and counts those that are open.
#[derive(Clone)]
pub(super) struct Connector {
    https: HttpsConnector<Tcp>,
    open: Arc<AtomicUsize>,
}

impl tower::Service<http::Uri> for Connector {
    type Response = Counted;
    type Error = tower::BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Counted, tower::BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), tower::BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let (https, open) = (self.https.clone(), Arc::clone(&self.open));
        Box::pin(async move {
            let stream = https.oneshot(uri).await?;
            open.fetch_add(1, Ordering::Relaxed);
            Ok(Counted { stream, open })
        })
    }
}

/// A connection that is counted as long as it is open.
pub(super) struct Counted {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    open: Arc<AtomicUsize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection for Counted {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

impl Read for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
