//! The API server as a source: watches of Services, EndpointSlices and the own Node.
//!
//! The requests are kube's, the watch loop is ours (see [`watch`]), because each event has to be accounted for: a
//! line that cannot be read, or a position that the server no longer knows, must lead to a new list and not to a
//! change that we never hear of.

mod backoff;
mod client;
pub mod events;
mod kinds;
mod limit;
mod origin;
mod proxy;
mod transport;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;
use kube::config::{InClusterError, KubeconfigError};

use crate::model::convert::Interner;
use crate::source::Event;
use kinds::{Nodes, Services, Slices};
pub use limit::Limiter;
use origin::Origin;
pub use proxy::Proxies;
use watch::Watch;

/// How patient the watches are. The default is right for everything but tests.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// After which time at most the server is asked to end a watch, in whole seconds; a quarter of it is left to chance.
    pub watch_timeout: Duration,
    /// A watch on which nothing has been heard for this long is taken for dead and continued on a new connection.
    /// Servers send a bookmark about once a minute.
    pub idle_timeout: Duration,
    /// A list on which nothing has been heard for this long is begun again. The server's own limit is a minute.
    pub list_timeout: Duration,
    /// How many objects to ask for at once where the server cannot stream lists.
    pub page_size: u32,
    /// The delay after the first failure; it doubles with each further one, and up to half of it is left to chance
    /// so that the nodes of a cluster do not return all at once.
    pub min_backoff: Duration,
    /// The longest delay.
    pub max_backoff: Duration,
}

impl Default for WatchOptions {
    fn default() -> WatchOptions {
        WatchOptions {
            watch_timeout: Duration::from_secs(290),
            idle_timeout: Duration::from_secs(150),
            list_timeout: Duration::from_secs(65),
            page_size: 500,
            min_backoff: Duration::from_millis(800),
            max_backoff: Duration::from_secs(30),
        }
    }
}

/// What one request was: for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation<'a> {
    /// It waited for its turn.
    Limited {
        /// The method: `GET`.
        verb: &'a str,
        /// Host and port of the server.
        host: &'a str,
        /// For how long; 0 where there is a turn at once.
        waited: Duration,
    },
    /// The head of an answer came, or none will.
    Answered {
        /// The method: `GET`.
        verb: &'a str,
        /// Host and port of the server.
        host: &'a str,
        /// The status; `None`: the connection failed.
        code: Option<u16>,
        /// From the moment of sending.
        took: Duration,
    },
}

/// Who hears of requests.
pub type Observer = Arc<dyn Fn(Observation<'_>) + Send + Sync>;

/// How a client is connected. The default is right for everything but tests, save that it limits nothing.
#[derive(Clone)]
pub struct ConnectOptions {
    /// How fast requests may be made, all together.
    pub limiter: Limiter,
    /// Who hears of requests.
    pub observer: Option<Observer>,
    /// The proxies of the environment.
    pub proxies: Proxies,
    /// How often an HTTP/2 connection is asked whether it lives; client-go's value.
    pub ping_interval: Duration,
    /// How long its answer may take; client-go's value.
    pub ping_timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions {
            limiter: Limiter::unlimited(),
            observer: None,
            proxies: Proxies::default(),
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(15),
        }
    }
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a kubeconfig was given nor is this a pod.
    #[error("no kubeconfig was given, and this is not a pod with a service account: {0}")]
    InCluster(#[from] InClusterError),
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// The address of the API server is not one.
    #[error("{0:?} is not the address of an API server")]
    Master(String),
    /// The kubeconfig or the environment names a proxy that is none, or of a kind that is not supported.
    #[error("the API server is to be reached through the proxy {0:?}: only proxies with http:// are supported")]
    Proxy(String),
    /// Nothing says which certificates to believe.
    #[error(
        "{0} names no certificate-authority for the API server, and this system has no certificates of its own: set \
         certificate-authority or certificate-authority-data, or install the system's CA certificates"
    )]
    NoAuthority(String),
    /// No TLS, no credentials, or similar.
    #[error("cannot make a client for the API server: {0}")]
    Client(Box<kube::Error>),
}

/// Makes a client from a kubeconfig, or from the service account of the pod if there is none. `master` is the
/// address of the API server and goes before what the kubeconfig says; alone, it is used without credentials.
/// Files that they name are read again when they change, at the next request. Sends nothing: whether the server can be reached is found out by the watches. Needs a tokio runtime.
pub async fn connect(
    kubeconfig: Option<&Path>,
    master: Option<&str>,
    options: ConnectOptions,
) -> Result<Client, ConnectError> {
    let origin = Origin::new(kubeconfig, master, options.proxies.clone());
    client::client(origin, options).await
}

/// Watches Services, EndpointSlices and the Node of this name, and sends what they report, until nobody listens
/// any more. Whatever the server does, this goes on; drop the future to stop.
pub async fn run(client: Client, node_name: &str, sender: Sender<Event>, options: WatchOptions) {
    let interner = Mutex::new(Interner::default());
    let mut services = Watch::new(&client, Services, &sender, &interner, &options);
    let mut slices = Watch::new(&client, Slices, &sender, &interner, &options);
    let mut nodes = Watch::new(&client, Nodes::new(node_name), &sender, &interner, &options);
    tokio::join!(services.run(), slices.run(), nodes.run());
}
