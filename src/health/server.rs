//! The two HTTP servers of the settings, and the thread that all HTTP runs on.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::accept::{self, Port, Stack};
use super::pages::{self, Pages};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `/healthz` and `/livez`; `None`: not served.
    pub healthz: Option<SocketAddr>,
    /// The metrics server; `None`: not served.
    pub metrics: Option<SocketAddr>,
    /// The time until an address that could not be bound is tried again; kube-proxy's is [`Listen::RETRY`].
    pub retry: Duration,
}

impl Listen {
    /// The usual time until an address is tried again.
    pub const RETRY: Duration = Duration::from_secs(5);
}

/// One of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// The one of `healthzBindAddress`.
    Health,
    /// The one of `metricsBindAddress`.
    Metrics,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Server::Health => "health",
            Server::Metrics => "metrics",
        })
    }
}

/// A new address cannot be had. The servers are what they were.
#[derive(Debug, thiserror::Error)]
#[error("the {server} server cannot listen on {address}: {error}")]
pub struct RebindError {
    /// Which server.
    pub server: Server,
    /// Where it was to listen.
    pub address: SocketAddr,
    /// Why it cannot.
    #[source]
    pub error: io::Error,
}

/// The addresses that are listened on now, with the ports that the kernel chose for port 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// The health server; `None`: not bound (yet).
    pub healthz: Option<SocketAddr>,
    /// The metrics server, likewise.
    pub metrics: Option<SocketAddr>,
}

/// The running servers. Dropping the value stops them and closes all listeners.
pub struct Servers {
    kept: Mutex<Kept>,
    pages: Arc<Pages>,
    routers: [Router; 2],
    handle: Handle,
    retry: Duration,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The servers that are to run, whether they are bound or not.
#[derive(Default)]
struct Kept {
    health: Option<Keeper>,
    metrics: Option<Keeper>,
}

/// One server; it ends when this is dropped.
struct Keeper {
    address: SocketAddr,
    now: Now,
    task: AbortHandle,
}

/// The socket that is listened on now; dead: none is.
type Now = Arc<Mutex<Weak<TcpListener>>>;

impl Keeper {
    fn socket(&self) -> Option<Arc<TcpListener>> {
        lock(&self.now).upgrade()
    }

    fn bound(&self) -> Option<SocketAddr> {
        self.socket()?.local_addr().ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Addresses that are bound, to be listened on in place of those of now. Dropped, it closes them.
pub struct Move {
    health: Change,
    metrics: Change,
}

/// What becomes of a server when others are wanted.
enum Change {
    Stay,
    Close,
    Move(SocketAddr, TcpListener),
}

impl Servers {
    /// Starts the thread and begins to bind. An address that cannot be bound is logged, told to [`Pages::on_failure`], and
    /// tried again for ever; so is one whose server stops.
    pub fn start(listen: Listen, pages: Pages) -> io::Result<Servers> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let pages = Arc::new(pages);
        let routers = [pages::health_router(&pages), pages::metrics_router(&pages)];
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            // An error means that the sender is gone, which is a reason to stop as well.
            let _ = runtime.block_on(stopped);
        })?;
        let (stop, thread, kept) = (Some(stop), Some(thread), Mutex::default());
        let servers = Servers { kept, pages, routers, handle, retry: listen.retry, stop, thread };
        let health = listen.healthz.map(|address| servers.keep(Server::Health, address, None));
        let metrics = listen.metrics.map(|address| servers.keep(Server::Metrics, address, None));
        *lock(&servers.kept) = Kept { health, metrics };
        Ok(servers)
    }

    /// Binds other addresses, and leaves what is listened on now alone. Nobody is answered on them before [`Servers::move_to`].
    /// A server whose address does not change is left out. `listen.retry` does not count.
    pub fn bind(&self, listen: &Listen) -> Result<Move, RebindError> {
        let kept = lock(&self.kept);
        let health = self.prepare(Server::Health, kept.health.as_ref(), listen.healthz)?;
        let metrics = self.prepare(Server::Metrics, kept.metrics.as_ref(), listen.metrics)?;
        Ok(Move { health, metrics })
    }

    /// Listens on these addresses from now on. There is no time in which nobody answers; requests that are being answered are
    /// answered to their end.
    pub fn move_to(&self, to: Move) {
        let mut kept = lock(&self.kept);
        self.apply(Server::Health, &mut kept.health, to.health);
        self.apply(Server::Metrics, &mut kept.metrics, to.metrics);
    }

    /// What is listened on now.
    pub fn bound(&self) -> Bound {
        let kept = lock(&self.kept);
        let bound = |keeper: &Option<Keeper>| keeper.as_ref().and_then(Keeper::bound);
        Bound { healthz: bound(&kept.health), metrics: bound(&kept.metrics) }
    }

    /// The runtime on which everything of this module runs.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The time until an address is tried again.
    pub(super) fn retry(&self) -> Duration {
        self.retry
    }

    /// The socket of the health server, so that a test can break it.
    #[cfg(test)]
    pub(super) fn health_socket(&self) -> Option<Arc<TcpListener>> {
        lock(&self.kept).health.as_ref()?.socket()
    }

    fn prepare(&self, server: Server, old: Option<&Keeper>, wanted: Option<SocketAddr>) -> Result<Change, RebindError> {
        let Some(address) = wanted else { return Ok(Change::Close) };
        if old.is_some_and(|old| old.address == address) {
            return Ok(Change::Stay);
        }
        let socket = old.and_then(Keeper::socket);
        if let Some(socket) = &socket {
            accept::share(socket.as_ref());
        }
        let listener = accept::listen(address, Stack::Usual, Port::Shared).inspect(accept::unshare);
        if let Some(socket) = &socket {
            accept::unshare(socket.as_ref());
        }
        let listener = listener.and_then(|listener| self.on_runtime(listener));
        listener.map(|listener| Change::Move(address, listener)).map_err(|error| RebindError { server, address, error })
    }

    fn on_runtime(&self, listener: StdListener) -> io::Result<TcpListener> {
        let _runtime = self.handle.enter();
        TcpListener::from_std(listener)
    }

    fn apply(&self, server: Server, keeper: &mut Option<Keeper>, change: Change) {
        match change {
            Change::Stay => {}
            Change::Close => *keeper = None,
            Change::Move(address, listener) => *keeper = Some(self.keep(server, address, Some(listener))),
        }
    }

    fn keep(&self, server: Server, address: SocketAddr, ready: Option<TcpListener>) -> Keeper {
        let now = Now::default();
        let [health, metrics] = &self.routers;
        let router = match server {
            Server::Health => health,
            Server::Metrics => metrics,
        };
        let on = On { server, address, retry: self.retry, now: Arc::clone(&now) };
        let task = self.handle.spawn(keep(on, ready, router.clone(), Arc::clone(&self.pages))).abort_handle();
        Keeper { address, now, task }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a server needs to know of itself.
struct On {
    server: Server,
    address: SocketAddr,
    retry: Duration,
    now: Now,
}

/// Serves on one address for ever; at first on the socket that is ready, if there is one.
async fn keep(on: On, mut ready: Option<TcpListener>, router: Router, pages: Arc<Pages>) {
    let On { server, address, retry, now } = on;
    loop {
        let listener = match ready.take() {
            Some(listener) => Ok(listener),
            None => accept::listen(address, Stack::Usual, Port::Own).and_then(TcpListener::from_std),
        };
        match listener {
            Ok(listener) => {
                let listener = Arc::new(listener);
                *lock(&now) = Arc::downgrade(&listener);
                tracing::info!(%address, "{server} server listens");
                let error = accept::serve(&listener, router.clone()).await;
                drop(listener);
                tracing::error!(%address, %error, "{server} server stopped");
                (pages.on_failure)(server, format!("the {server} server on {address} stopped: {error}"));
            }
            Err(error) => {
                tracing::error!(%address, %error, "{server} server cannot listen; trying again in {retry:?}");
                (pages.on_failure)(server, format!("the {server} server cannot listen on {address}: {error}"));
            }
        }
        tokio::time::sleep(retry).await;
    }
}

/// What is locked here is changed by single assignments, so a panic elsewhere cannot leave it half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
