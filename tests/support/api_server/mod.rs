//! An API server for tests: real HTTP over TCP on the loopback address, objects in memory, list and watch as a real
//! server does them (pages, bookmarks, streamed lists, selectors, expiry), and a switch for each way to fail.
//!
//! It runs on a thread of its own, so that tests may block. Dropping it ends it and all connections.

#![allow(dead_code, reason = "each test program uses a part of it")]

mod access;
mod faults;
mod http;
mod selector;
mod store;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{broadcast, oneshot, watch};

#[allow(unused_imports, reason = "not every test program lets the server go away")]
pub(crate) use faults::History;
use faults::{Body, Failure, Faults};
pub(crate) use store::Resource;
use store::Store;

/// A query, decoded.
type Params = BTreeMap<String, String>;

/// One request that was received.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// What was asked for.
    pub resource: Resource,
    /// The query, decoded.
    pub query: Params,
    /// Whether the answer may be compressed.
    pub takes_gzip: bool,
    /// When it came.
    pub at: Instant,
}

impl Request {
    /// A parameter; empty if it is not there.
    pub(crate) fn param(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// Whether this is a watch.
    pub(crate) fn is_watch(&self) -> bool {
        self.param("watch") == "true"
    }

    /// Whether this is a watch that begins with a list.
    pub(crate) fn is_streamed_list(&self) -> bool {
        self.is_watch() && self.param("sendInitialEvents") == "true"
    }

    /// Whether this is a list (one page of it).
    pub(crate) fn is_list(&self) -> bool {
        !self.is_watch()
    }
}

/// What can be done to all watches of a resource that are open now.
#[derive(Clone, Debug)]
enum Command {
    /// Break the connection.
    Drop,
    /// End the watch in the ordinary way.
    End,
    /// Send a 410 event and end.
    Expire,
    /// Send these bytes.
    Raw(String),
    /// Send these bytes, then nothing any more, and keep the connection open.
    RawThenStall(String),
    /// Send a bookmark.
    Bookmark,
    /// Send nothing any more and keep the connection open.
    Stall,
}

struct Shared {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    requests: Mutex<Vec<Request>>,
    denied: Mutex<Vec<String>>,
    events: Mutex<Vec<Value>>,
    commands: broadcast::Sender<(Resource, Command)>,
    /// The newest version; watches wait for it to change.
    changed: watch::Sender<u64>,
    /// Wakes stalled pages.
    released: watch::Sender<u64>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap()
    }
}

/// What the server's thread is told. Without anybody who could tell it ends.
enum Control {
    /// Cut all connections and refuse new ones.
    Close(oneshot::Sender<()>),
    /// Listen again.
    Open(oneshot::Sender<()>),
}

/// A running server.
pub(crate) struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    control: Option<UnboundedSender<Control>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Starts a server without objects on a free port of the loopback address.
    pub(crate) fn start() -> ApiServer {
        ApiServer::start_at("127.0.0.1:0".parse().expect("an address"))
    }

    /// Starts a server without objects at an address (port 0: a free one) in the namespace of the calling thread.
    pub(crate) fn start_at(address: SocketAddr) -> ApiServer {
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            denied: Mutex::default(),
            events: Mutex::default(),
            commands: broadcast::channel(64).0,
            changed: watch::channel(0).0,
            released: watch::channel(0).0,
        });
        let listener = TcpListener::bind(address).expect("bind the server's address");
        let address = listener.local_addr().expect("the port");
        let (control, told) = unbounded_channel();
        let for_thread = shared.clone();
        let thread = std::thread::spawn(move || keep_serving(&for_thread, listener, told));
        ApiServer { address, shared, control: Some(control), thread: Some(thread) }
    }

    /// What it serves, to be served elsewhere too.
    pub(crate) fn router(&self) -> axum::Router {
        http::router(self.shared.clone())
    }

    /// `http://` with address and port.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates or replaces an object, which must have `kind` and `metadata.name`. Returns its version.
    pub(crate) fn apply(&self, object: Value) -> u64 {
        let version = self.shared.store().apply(object);
        self.shared.changed.send_replace(version);
        version
    }

    /// Removes an object; without effect if there is none. An empty namespace for objects without one.
    pub(crate) fn delete(&self, resource: Resource, namespace: &str, name: &str) {
        let version = self.shared.store().delete(resource, namespace, name);
        self.shared.changed.send_replace(version);
    }

    /// Forgets history: positions from before now, and lists under way, get 410.
    pub(crate) fn compact(&self) {
        self.shared.store().compact();
    }

    /// All requests so far, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// How many requests so far are such.
    pub(crate) fn count(&self, such: impl Fn(&Request) -> bool) -> usize {
        self.requests().iter().filter(|request| such(request)).count()
    }

    /// How many watches of a resource are open.
    pub(crate) fn open_watches(&self, resource: Resource) -> usize {
        self.shared.store().open_watches(resource)
    }

    /// Refuses streamed lists from now on.
    pub(crate) fn refuse_streaming(&self) {
        self.shared.faults().refuse_streaming = true;
    }

    /// Takes streamed lists for ordinary watches from now on: no bookmark ends them.
    pub(crate) fn ignore_streaming(&self) {
        self.shared.faults().ignore_streaming = true;
    }

    /// Answers 410 to watches by an HTTP status from now on.
    pub(crate) fn expire_by_status(&self) {
        self.shared.faults().expire_by_status = true;
    }

    /// Answers the next `times` requests for the resource with this status.
    pub(crate) fn fail(&self, resource: Resource, times: usize, status: u16, retry_after: u32) {
        let failure = Failure { resource: Some(resource), times: Some(times), status, retry_after, body: Body::Status };
        self.shared.faults().failures.push(failure);
    }

    /// Answers properly again after [`ApiServer::fail`], [`ApiServer::refuse`] and [`ApiServer::throttle`].
    pub(crate) fn heal(&self) {
        self.shared.faults().failures.clear();
    }

    /// Lets each list hang at this page (counted from 0) until [`ApiServer::release`].
    pub(crate) fn stall_page(&self, page: usize) {
        self.shared.faults().stalled_page = Some(page);
    }

    /// Lets lists go on.
    pub(crate) fn release(&self) {
        self.shared.faults().stalled_page = None;
        self.shared.released.send_modify(|count| *count += 1);
    }

    /// Waits that long before each page of a list.
    pub(crate) fn delay_lists(&self, delay: Duration) {
        self.shared.faults().list_delay = delay;
    }

    /// Breaks the connection of the next streamed list after that many objects.
    pub(crate) fn break_streamed_list(&self, objects: usize) {
        self.shared.faults().break_streamed_list = Some(objects);
    }

    /// Breaks the connections of all watches of a resource.
    pub(crate) fn drop_watches(&self, resource: Resource) {
        self.command(resource, Command::Drop);
    }

    /// Ends all watches of a resource in the ordinary way.
    pub(crate) fn end_watches(&self, resource: Resource) {
        self.command(resource, Command::End);
    }

    /// Sends a 410 event to all watches of a resource and ends them.
    pub(crate) fn expire_watches(&self, resource: Resource) {
        self.command(resource, Command::Expire);
    }

    /// Sends a bookmark to all watches of a resource.
    pub(crate) fn bookmark(&self, resource: Resource) {
        self.command(resource, Command::Bookmark);
    }

    /// Sends bytes as they are to all watches of a resource.
    pub(crate) fn send_raw(&self, resource: Resource, bytes: &str) {
        self.command(resource, Command::Raw(bytes.to_owned()));
    }

    /// Sends bytes as they are to all watches of a resource, and nothing after them.
    pub(crate) fn send_raw_and_stall(&self, resource: Resource, bytes: &str) {
        self.command(resource, Command::RawThenStall(bytes.to_owned()));
    }

    /// Lets all watches of a resource go silent.
    pub(crate) fn stall_watches(&self, resource: Resource) {
        self.command(resource, Command::Stall);
    }

    fn command(&self, resource: Resource, command: Command) {
        // Nobody listening means that no watch is open.
        let _ = self.shared.commands.send((resource, command));
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.control.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves until nobody can tell it anything any more.
fn keep_serving(shared: &Arc<Shared>, first: TcpListener, mut told: UnboundedReceiver<Control>) {
    let address = first.local_addr().expect("the port");
    let mut listener = Some(first);
    while let Some(open) = listener.take() {
        open.set_nonblocking(true).expect("a non-blocking listener");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let next = runtime.block_on(async {
            let open = tokio::net::TcpListener::from_std(open).expect("a listener");
            tokio::select! {
                _ = axum::serve(open, http::router(shared.clone())) => None,
                next = told.recv() => next,
            }
        });
        // Ends all connections at once.
        runtime.shutdown_background();
        let mut next = next;
        while let Some(control) = next.take() {
            match control {
                Control::Close(done) => {
                    // Who waits may be gone.
                    let _ = done.send(());
                    next = told.blocking_recv();
                }
                Control::Open(done) => {
                    listener = Some(TcpListener::bind(address).expect("bind the same address again"));
                    let _ = done.send(());
                }
            }
        }
    }
}
