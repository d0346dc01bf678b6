//! Health-check node ports: a load balancer asks each node whether it has endpoints of a Service with external traffic
//! policy Local.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::accept::{self, Port, Stack};
use super::pages::json;
use super::server::Servers;
use super::state::HealthState;
use crate::model::ServiceName;
use crate::net::{IpFamily, PerFamily};
use crate::sync::{HealthCheck, HealthChecks};

/// Where the ports of one family are opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListenAddresses {
    /// Nowhere: the family is off.
    #[default]
    None,
    /// On the unspecified address.
    All,
    /// On these.
    Only(Vec<IpAddr>),
}

#[derive(Clone, Default)]
struct Wanted {
    checks: HealthChecks,
    addresses: PerFamily<ListenAddresses>,
}

/// The listeners of all Services. They live on the thread of [`Servers`] and close when either value is dropped.
pub struct ServiceHealth {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    wanted: Mutex<Wanted>,
    changed: Notify,
    health: Arc<HealthState>,
    on_failure: OnceLock<OnFailure>,
}

/// Told of a Service whose port cannot be opened, and why.
type OnFailure = Box<dyn Fn(&ServiceName, String) + Send + Sync>;

impl ServiceHealth {
    /// Begins with no listeners. A port that cannot be opened is logged and tried again as the servers' addresses are.
    pub fn start(servers: &Servers, health: Arc<HealthState>, addresses: PerFamily<ListenAddresses>) -> ServiceHealth {
        let wanted = Mutex::new(Wanted { checks: HealthChecks::new(), addresses });
        let shared = Arc::new(Shared { wanted, changed: Notify::new(), health, on_failure: OnceLock::new() });
        let keeper = Keeper { shared: Arc::clone(&shared), retry: servers.retry(), listeners: BTreeMap::new() };
        let task = servers.handle().spawn(keeper.run()).abort_handle();
        ServiceHealth { shared, task }
    }

    /// States what is wanted now, for all Services; call it after each successful sync. Listeners of Services that are
    /// gone or whose port changed are closed, new ones are opened, all others only get their counts. Returns at once;
    /// the counts take effect before it returns, listeners soon after.
    pub fn sync(&self, wanted: &HealthChecks) {
        self.shared.wanted().checks.clone_from(wanted);
        self.shared.changed.notify_one();
    }

    /// Has each failed attempt to open a port told to somebody, once and for all.
    pub fn on_failure(&self, tell: impl Fn(&ServiceName, String) + Send + Sync + 'static) {
        // The first one stays.
        let _taken = self.shared.on_failure.set(Box::new(tell));
    }

    /// States where to listen from now on. Takes effect with the next [`ServiceHealth::sync`].
    pub fn set_addresses(&self, addresses: PerFamily<ListenAddresses>) {
        self.shared.wanted().addresses = addresses;
    }
}

impl Drop for ServiceHealth {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, service: &ServiceName, family: IpFamily) -> Response {
        // Gone between the connection and the request.
        let Some(local) = self.wanted().checks.get(service).and_then(|check| check.local_endpoints[family]) else {
            return StatusCode::OK.into_response();
        };
        let healthy = self.health.healthy();
        let status = if local != 0 && healthy { 200 } else { 503 };
        let mut response = json(status, body(service, local, healthy));
        let weight = HeaderName::from_static("x-load-balancing-endpoint-weight");
        response.headers_mut().insert(weight, HeaderValue::from(local));
        response
    }
}

/// Keeps the listeners as they are wanted.
struct Keeper {
    shared: Arc<Shared>,
    retry: Duration,
    listeners: BTreeMap<(ServiceName, IpFamily), Listeners>,
}

/// The listeners of one Service in one family; closed when dropped.
struct Listeners {
    port: NonZeroU16,
    addresses: ListenAddresses,
    tasks: Vec<AbortHandle>,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Keeper {
    async fn run(mut self) {
        loop {
            // Aborted tasks let go of their sockets only when the runtime comes to them; a port that moves from one
            // Service to another has to be free before it is opened again.
            self.close();
            tokio::task::yield_now().await;
            if self.open() {
                self.shared.changed.notified().await;
            } else {
                // Either way something is to be done: the time-out means that the missing ones are tried again.
                let _ = tokio::time::timeout(self.retry, self.shared.changed.notified()).await;
            }
        }
    }

    fn close(&mut self) {
        let wanted = self.shared.wanted();
        self.listeners.retain(|(service, family), open| {
            let port = wanted.checks.get(service).and_then(|check| port_in(check, *family));
            port == Some(open.port) && wanted.addresses[*family] == open.addresses
        });
    }

    /// Opens what is missing and says whether all of it could be opened.
    fn open(&mut self) -> bool {
        let wanted = self.shared.wanted().clone();
        let mut complete = true;
        for (service, check) in wanted.checks {
            for family in IpFamily::ALL {
                let Some(port) = port_in(&check, family) else { continue };
                let key = (service.clone(), family);
                if self.listeners.contains_key(&key) {
                    continue;
                }
                let addresses = &wanted.addresses[family];
                match self.listen(&service, family, addresses, port) {
                    Ok(tasks) => {
                        self.listeners.insert(key, Listeners { port, addresses: addresses.clone(), tasks });
                    }
                    Err(error) => {
                        complete = false;
                        tracing::error!(%service, %family, port, %error, "cannot listen on health-check node port");
                        if let Some(tell) = self.shared.on_failure.get() {
                            tell(
                                &service,
                                format!("health-check node port {port} ({family}) cannot be opened: {error}"),
                            );
                        }
                    }
                }
            }
        }
        complete
    }

    /// Opens the port on all addresses of the family, or on none.
    fn listen(
        &self,
        service: &ServiceName,
        family: IpFamily,
        addresses: &ListenAddresses,
        port: NonZeroU16,
    ) -> io::Result<Vec<AbortHandle>> {
        let addresses = match (addresses, family) {
            (ListenAddresses::None, _) => Vec::new(),
            (ListenAddresses::All, IpFamily::V4) => vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
            (ListenAddresses::All, IpFamily::V6) => vec![IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
            (ListenAddresses::Only(addresses), _) => addresses.clone(),
        };
        let sockets = addresses
            .into_iter()
            .map(|address| {
                // `::` must leave IPv4 to the other listener.
                let listener = accept::listen(SocketAddr::new(address, port.get()), Stack::Single, Port::Own);
                listener.and_then(tokio::net::TcpListener::from_std)
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(sockets.into_iter().map(|socket| self.serve(service.clone(), family, socket)).collect())
    }

    fn serve(&self, service: ServiceName, family: IpFamily, socket: tokio::net::TcpListener) -> AbortHandle {
        let shared = Arc::clone(&self.shared);
        let router = Router::new().fallback(move || std::future::ready(shared.answer(&service, family)));
        tokio::spawn(async move {
            let error = accept::serve(&socket, router).await;
            tracing::error!(%error, "health-check node port stopped");
        })
        .abort_handle()
    }
}

/// The port that a Service needs in a family; `None`: it does not exist there.
fn port_in(check: &HealthCheck, family: IpFamily) -> Option<NonZeroU16> {
    check.local_endpoints[family].map(|_| check.port)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: BodyService<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct BodyService<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// The body, one field per line, indented with tabs.
fn body(service: &ServiceName, local_endpoints: usize, service_proxy_healthy: bool) -> String {
    let service = BodyService { namespace: &service.namespace, name: &service.name };
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, format);
    // Writing plain fields to memory cannot fail.
    let _ = Body { service, local_endpoints, service_proxy_healthy }.serialize(&mut serializer);
    String::from_utf8(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;
    use crate::sync::clock::TestClock;

    #[test]
    fn a_service_that_is_removed_between_the_connection_and_its_request_gets_an_empty_200() {
        let health = Arc::new(HealthState::new(Duration::from_secs(30), TestClock::default()));
        let addresses = PerFamily::from_fn(|_| ListenAddresses::All);
        let wanted = Mutex::new(Wanted { checks: HealthChecks::default(), addresses });
        let shared = Shared { wanted, changed: Notify::new(), health, on_failure: OnceLock::new() };
        let service = ServiceName::new("ns", "web");
        let answer = |shared: &Shared| {
            let answer = shared.answer(&service, IpFamily::V4);
            (answer.status().as_u16(), answer.body().size_hint().exact() == Some(0), answer.headers().is_empty())
        };
        let of = |local_endpoints| HealthCheck { port: NonZeroU16::MIN, local_endpoints };
        let one = of(PerFamily { v4: Some(1), v6: None });
        shared.wanted().checks.insert(service.clone(), one);
        assert_eq!(answer(&shared), (200, false, false));
        let other_family = of(PerFamily { v4: None, v6: Some(1) });
        shared.wanted().checks.insert(service.clone(), other_family);
        assert_eq!(answer(&shared), (200, true, true), "it is gone from this family");
        shared.wanted().checks.clear();
        assert_eq!(answer(&shared), (200, true, true));
    }
}
