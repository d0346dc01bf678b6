//! Where the client's configuration comes from, so that it can be read again: certificates and keys are renewed while we run.

use std::path::{Path, PathBuf};

use http::Uri;
use hyper_util::client::proxy::matcher::Intercept;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::source::kube::ConnectError;
use crate::source::kube::proxy::{self, Proxies};

/// Who asks, in the API server's audit log.
const USER_AGENT: &str = concat!("portolan/", env!("CARGO_PKG_VERSION"), " (linux)");

/// A kubeconfig, or the service account of the pod if there is none. `master` is the address of the API server and goes before
/// what the kubeconfig says; alone, it is used without credentials.
pub(super) struct Origin {
    kubeconfig: Option<PathBuf>,
    master: Option<String>,
    proxies: Proxies,
}

/// What was read.
pub(super) struct Loaded {
    /// kube's configuration.
    pub(super) config: Config,
    /// The proxy on the way to the server.
    pub(super) proxy: Option<Intercept>,
    /// The files that it comes from.
    pub(super) files: Files,
}

/// Files with their content at one time; `None`: it cannot be read. Not those that kube reads again itself: tokens, and the CA of
/// a service account.
pub(super) struct Files(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Files {
    fn read(paths: Vec<PathBuf>) -> Files {
        let with_content = |path: PathBuf| {
            let content = std::fs::read(&path).ok();
            (path, content)
        };
        Files(paths.into_iter().map(with_content).collect())
    }

    /// Whether one of them has another content now.
    pub(super) fn changed(&self) -> bool {
        self.0.iter().any(|(path, content)| std::fs::read(path).ok() != *content)
    }
}

impl Origin {
    /// Reads nothing yet.
    pub(super) fn new(kubeconfig: Option<&Path>, master: Option<&str>, proxies: Proxies) -> Origin {
        Origin { kubeconfig: kubeconfig.map(Path::to_owned), master: master.map(str::to_owned), proxies }
    }

    /// Reads the configuration.
    pub(super) async fn load(&self) -> Result<Loaded, ConnectError> {
        let mut named_proxy = None;
        let mut files = Files::read(Vec::new());
        let mut config = match (&self.kubeconfig, &self.master) {
            (Some(path), _) => {
                let unusable = |source| ConnectError::Kubeconfig { path: path.clone(), source: Box::new(source) };
                let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
                // Before they are read for use: what changes in between is seen as a change the next time.
                files = Files::read(files_of(path, &kubeconfig));
                named_proxy = proxy_of(&kubeconfig);
                from_kubeconfig(kubeconfig).await.map_err(unusable)?
            }
            (None, Some(master)) => Config::new(address(master, "http")?),
            (None, None) => Config::incluster()?,
        };
        if let Some(master) = &self.master {
            let scheme = config.cluster_url.scheme_str().unwrap_or("https").to_owned();
            config.cluster_url = address(master, &scheme)?;
        }
        if let (Ok(name), Ok(value)) = ("user-agent".parse(), USER_AGENT.parse()) {
            config.headers.push((name, value));
        }
        let proxy = match named_proxy {
            Some(named) => Some(proxy::named(&named)?),
            None => self.proxies.on_the_way_to(&config.cluster_url)?,
        };
        Ok(Loaded { config, proxy, files })
    }

    /// What the certificates of the server are to be named in, for people.
    pub(super) fn name(&self) -> String {
        self.kubeconfig.as_ref().map_or_else(|| "no kubeconfig".to_owned(), |path| path.display().to_string())
    }
}

async fn from_kubeconfig(kubeconfig: Kubeconfig) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}

/// The kubeconfig and the files with certificates and keys that it names, whoever uses them.
fn files_of(path: &Path, kubeconfig: &Kubeconfig) -> Vec<PathBuf> {
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    let authorities = clusters.filter_map(|cluster| cluster.certificate_authority.as_ref());
    let identities = users.flat_map(|user| [&user.client_certificate, &user.client_key]).flatten();
    let named = authorities.chain(identities).filter(|name| !name.is_empty()).map(PathBuf::from);
    std::iter::once(path.to_owned()).chain(named).collect()
}

/// `proxy-url` of the cluster in use.
fn proxy_of(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|named| named.name == *current)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|named| named.name == context.cluster)?.cluster.as_ref()?;
    cluster.proxy_url.clone().filter(|url| !url.is_empty())
}

fn address(master: &str, scheme: &str) -> Result<Uri, ConnectError> {
    let with_scheme = if master.contains("://") { master.to_owned() } else { format!("{scheme}://{master}") };
    with_scheme.parse().map_err(|_| ConnectError::Master(master.to_owned()))
}
