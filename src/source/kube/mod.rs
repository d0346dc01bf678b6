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
mod transport;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use crate::model::convert::Interner;
use crate::source::Event;
use kinds::{Nodes, Services, Slices};
pub use limit::Limiter;
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
    /// The configuration or the environment names a proxy.
    #[error("the API server is to be reached through the proxy {0}, which is not supported")]
    Proxy(String),
    /// No TLS, no credentials, or similar.
    #[error("cannot make a client for the API server: {0}")]
    Client(Box<kube::Error>),
}

/// Makes a client from a kubeconfig, or from the service account of the pod if there is none. `master` is the
/// address of the API server and goes before what the kubeconfig says; alone, it is used without credentials.
/// Sends nothing: whether the server can be reached is found out by the watches. Needs a tokio runtime.
pub async fn connect(
    kubeconfig: Option<&Path>,
    master: Option<&str>,
    options: ConnectOptions,
) -> Result<Client, ConnectError> {
    let mut config = match (kubeconfig, master) {
        (Some(path), _) => read_kubeconfig(path)
            .await
            .map_err(|source| ConnectError::Kubeconfig { path: path.to_owned(), source: Box::new(source) })?,
        (None, Some(master)) => Config::new(with_scheme(master, "http").parse().map_err(|_| bad_master(master))?),
        (None, None) => Config::incluster()?,
    };
    if let Some(master) = master {
        let scheme = config.cluster_url.scheme_str().unwrap_or("https").to_owned();
        config.cluster_url = with_scheme(master, &scheme).parse().map_err(|_| bad_master(master))?;
    }
    if let (Ok(name), Ok(value)) = ("user-agent".parse(), USER_AGENT.parse()) {
        config.headers.push((name, value));
    }
    if let Some(proxy) = &config.proxy_url {
        return Err(ConnectError::Proxy(proxy.authority().map_or_else(String::new, ToString::to_string)));
    }
    client::client(config, options).map_err(|error| ConnectError::Client(Box::new(error)))
}

/// Who asks, in the API server's audit log.
const USER_AGENT: &str = concat!("portolan/", env!("CARGO_PKG_VERSION"), " (linux)");

async fn read_kubeconfig(path: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}

fn with_scheme(master: &str, scheme: &str) -> String {
    if master.contains("://") { master.to_owned() } else { format!("{scheme}://{master}") }
}

fn bad_master(master: &str) -> ConnectError {
    ConnectError::Master(master.to_owned())
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
