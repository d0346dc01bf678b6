//! The watch of one kind of object.
//!
//! A watch is at a position (a resourceVersion) or has none. Without one it lists: as a stream if the server can do
//! that, else page by page; the end of the list gives the position. With one it watches, and each event moves the
//! position. What interrupts it decides whether the position is kept:
//!
//! - the server ends the watch, the connection breaks or goes silent, the server is overloaded: kept;
//! - the server no longer knows the position (410), or an event cannot be read: dropped, since something may
//!   have been missed. The following list ends with a [`Change::Complete`](crate::model::Change::Complete), which
//!   says what vanished in the meantime.

use std::collections::HashSet;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use http::{HeaderValue, header};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::core::{Request, Status, WatchEvent};
use serde::Deserialize;
use tokio::time::timeout;

use crate::model::Change;
use crate::model::convert::{Interner, object_name};
use crate::source::Event;
use crate::source::kube::WatchOptions;
use crate::source::kube::backoff::{Backoff, asked_to_wait, random_fraction};
use crate::source::kube::kinds::Kind;

/// The annotation of the bookmark that ends a streamed list.
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// No event is longer: what etcd stores has at most a tenth of it. Garbage without line ends must not fill the memory.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// How often it is reported at least that the server was heard, while events follow each other.
const HEARD_EVERY: Duration = Duration::from_secs(1);

/// Why a list or watch ended.
enum End {
    /// Nobody listens to us any more.
    Closed,
    /// The server ended the watch in the ordinary way, or nothing was heard for long: go on from the position.
    Continue,
    /// The server does not stream lists.
    NoStreaming,
    /// Go on from the position, after a delay; the server may have said how long to wait.
    Retry(String, Option<Duration>),
    /// The position is of no use any more: list again, after a delay.
    Relist(String),
}

/// Events of a list, on the way to its end.
struct Listing<N> {
    names: HashSet<N>,
    noted: HashSet<String>,
}

/// The watch of one kind of object.
pub(super) struct Watch<'a, K: Kind> {
    client: &'a Client,
    kind: K,
    sender: &'a Sender<Event>,
    interner: &'a Mutex<Interner>,
    options: &'a WatchOptions,
    backoff: Backoff,
    /// Since when there is a watch from a position, and the server answers it; `None`: there is none.
    watching: Option<Instant>,
    position: Option<String>,
    /// When it was last reported that the server was heard.
    heard: Option<Instant>,
    /// Whether to try streamed lists.
    streaming: bool,
    /// Objects about which notes have been sent.
    noted: HashSet<String>,
    /// Present while a list is under way.
    listing: Option<Listing<K::Name>>,
    /// How many objects the last complete list had.
    listed: usize,
    /// Whether the last list was empty and not believed.
    doubted: bool,
}

#[derive(Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: PageMetadata,
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    continue_token: Option<String>,
}

impl<'a, K: Kind> Watch<'a, K> {
    /// A watch that has not begun.
    pub(super) fn new(
        client: &'a Client,
        kind: K,
        sender: &'a Sender<Event>,
        interner: &'a Mutex<Interner>,
        options: &'a WatchOptions,
    ) -> Watch<'a, K> {
        Watch {
            client,
            kind,
            sender,
            interner,
            options,
            backoff: Backoff::new(options.min_backoff, options.max_backoff),
            watching: None,
            position: None,
            heard: None,
            streaming: true,
            noted: HashSet::new(),
            listing: None,
            listed: 0,
            doubted: false,
        }
    }

    /// Lists and watches until nobody listens.
    pub(super) async fn run(&mut self) {
        loop {
            let started = Instant::now();
            let end = match (&self.position, self.streaming) {
                (None, false) => self.list().await,
                _ => self.watch().await,
            };
            self.listing = None;
            let watched = self.watching.take().map_or(Duration::ZERO, |since| since.elapsed());
            match end {
                Ok(()) => {}
                Err(End::Closed) => return,
                // A server, or something before it, that ends each watch at once must not make us spin.
                Err(End::Continue) => {
                    tokio::time::sleep(self.options.min_backoff.saturating_sub(started.elapsed())).await;
                }
                Err(End::NoStreaming) => {
                    tracing::info!(kind = %K::KIND, "the API server does not stream lists; listing in pages");
                    self.streaming = false;
                }
                Err(End::Retry(reason, after)) => {
                    self.backoff.worked_for(watched);
                    if self.failed(reason, after).await.is_err() {
                        return;
                    }
                }
                // However long it worked: a list costs the server far more than a watch, and must not be had every minute.
                Err(End::Relist(reason)) => {
                    self.position = None;
                    if self.failed(reason, None).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Reports a failure and waits.
    async fn failed(&mut self, reason: String, after: Option<Duration>) -> Result<(), End> {
        let delay = self.backoff.after_failure(Instant::now()).max(after.unwrap_or_default());
        self.send(Event::WatchRestarted { kind: K::KIND, reason })?;
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// A list in pages. Never asks for resourceVersion 0 together with a limit: servers then ignore the limit.
    async fn list(&mut self) -> Result<(), End> {
        self.begin_list();
        let mut params = ListParams {
            label_selector: self.kind.labels(),
            field_selector: self.kind.fields(),
            limit: Some(self.options.page_size),
            ..ListParams::default()
        };
        loop {
            let request = Request::new(K::PATH).list(&params).map_err(|error| End::Retry(error.to_string(), None))?;
            let text = match timeout(self.options.list_timeout, self.client.request_text(request)).await {
                Ok(Ok(text)) => text,
                Ok(Err(error)) => return Err(failure(error)),
                Err(_) => return Err(End::Retry("no answer to a list request".to_owned(), None)),
            };
            let page: Page<K::Object> =
                serde_json::from_str(&text).map_err(|error| End::Relist(format!("unreadable list: {error}")))?;
            drop(text);
            for object in page.items.unwrap_or_default() {
                self.apply(&object)?;
            }
            match page.metadata.continue_token.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                    let version = version.ok_or_else(|| End::Relist("a list without resourceVersion".to_owned()))?;
                    return self.end_list(version);
                }
            }
        }
    }

    /// A watch from the position; without one, a streamed list and then a watch.
    async fn watch(&mut self) -> Result<(), End> {
        let params = WatchParams {
            label_selector: self.kind.labels(),
            field_selector: self.kind.fields(),
            timeout: Some(self.watch_seconds()),
            bookmarks: true,
            send_initial_events: self.position.is_none(),
        };
        // Without a position the list is the newest state, not what some server happens to have cached: what it
        // brings must never be older than what we know.
        let from = self.position.as_deref().unwrap_or_default();
        let mut request =
            Request::new(K::PATH).watch(&params, from).map_err(|error| End::Retry(error.to_string(), None))?;
        // Servers up to 1.36 compress no watch. Later ones make each event a gzip member of its own, and what decompresses for
        // us ends after the first.
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if self.position.is_none() {
            self.begin_list();
        }
        let mut stream = match timeout(self.options.list_timeout, self.client.request_stream(request)).await {
            Ok(Ok(stream)) => Box::pin(stream),
            Ok(Err(error)) => return Err(self.not_started(error)),
            Err(_) => return Err(End::Retry("no answer to a watch request".to_owned(), None)),
        };
        self.watching = self.position.is_some().then(Instant::now);
        let mut line = Vec::new();
        loop {
            self.next_line(&mut stream, &mut line).await?;
            let event: WatchEvent<K::Object> = serde_json::from_slice(&line)
                .map_err(|error| End::Relist(format!("unreadable watch event: {error}")))?;
            self.handle(event)?;
        }
    }

    /// Some time between three quarters of and the whole time that watches last, so that the watches of a cluster
    /// whose nodes started together do not end together for ever.
    fn watch_seconds(&self) -> u32 {
        let seconds = self.options.watch_timeout.mul_f64(0.75 + random_fraction() / 4.0).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// Reads one line. A last line without line end is a broken connection, whatever it contains.
    async fn next_line(&mut self, stream: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> Result<(), End> {
        line.clear();
        let limit = if self.listing.is_some() { self.options.list_timeout } else { self.options.idle_timeout };
        let mut bounded = stream.take(MAX_LINE_BYTES);
        match timeout(limit, bounded.read_until(b'\n', line)).await {
            Ok(Ok(_)) if line.ends_with(b"\n") => Ok(()),
            Ok(Ok(_)) if bounded.limit() == 0 => Err(End::Retry("an event without end".to_owned(), None)),
            Ok(Ok(0)) if self.listing.is_some() => Err(End::Retry("a streamed list ended early".to_owned(), None)),
            Ok(Ok(0)) => Err(End::Continue),
            Ok(Ok(_)) => Err(End::Retry("the connection ended in the middle of an event".to_owned(), None)),
            Ok(Err(error)) => Err(End::Retry(format!("the connection broke: {error}"), None)),
            // Servers before 1.27 take the request for an ordinary watch, and the end of the list never comes.
            Err(_) if self.listing.is_some() => {
                self.streaming = false;
                Err(End::Retry("a streamed list made no progress".to_owned(), None))
            }
            Err(_) => Err(End::Continue),
        }
    }

    /// What the refusal of a watch means.
    fn not_started(&self, error: kube::Error) -> End {
        match &error {
            kube::Error::Api(status) if matches!(status.code, 400 | 422) && self.position.is_none() => End::NoStreaming,
            // The server may refuse a position in more ways than the proper one.
            kube::Error::Api(status) if matches!(status.code, 400 | 422) => End::Relist(describe(status)),
            _ => failure(error),
        }
    }

    fn handle(&mut self, event: WatchEvent<K::Object>) -> Result<(), End> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.apply(&object)?;
                self.advance(&object)
            }
            WatchEvent::Deleted(object) => {
                self.delete(&object)?;
                self.heard_of(None)?;
                self.advance(&object)
            }
            WatchEvent::Bookmark(bookmark) => {
                let version = bookmark.metadata.resource_version;
                if self.listing.is_none() {
                    self.position = Some(version);
                    self.heard(None)?;
                } else if bookmark.metadata.annotations.contains_key(END_OF_LIST) {
                    self.end_list(version)?;
                }
                Ok(())
            }
            WatchEvent::Error(status) => Err(failure(kube::Error::Api(status))),
        }
    }

    /// Moves the position to an object's version. While a list is under way there is no position to move.
    fn advance(&mut self, object: &K::Object) -> Result<(), End> {
        if self.listing.is_some() {
            return Ok(());
        }
        match K::metadata(object).get().and_then(|metadata| metadata.resource_version.get()) {
            Some(version) if !version.is_empty() => self.position = Some(version.clone()),
            _ => return Err(End::Relist("a watch event without resourceVersion".to_owned())),
        }
        Ok(())
    }

    fn begin_list(&mut self) {
        self.listing = Some(Listing { names: HashSet::new(), noted: HashSet::new() });
    }

    fn end_list(&mut self, version: String) -> Result<(), End> {
        let Some(listing) = self.listing.take() else { return Ok(()) };
        // A server that has lost its data, or does not have them yet, says that there is nothing. To believe it at once
        // would take all Services of the node away; a second list tells it from a cluster that is really empty.
        self.doubted = listing.names.is_empty() && self.listed > 0 && !self.doubted;
        if self.doubted {
            return Err(End::Relist(format!("an empty list, after one of {} objects", self.listed)));
        }
        self.listed = listing.names.len();
        if let Some(change) = K::complete(listing.names) {
            self.send(Event::Change(change))?;
        }
        let gone: Vec<_> = self.noted.difference(&listing.noted).cloned().collect();
        for object in gone {
            self.clear_notes(object)?;
        }
        self.position = Some(version);
        self.watching = Some(Instant::now());
        self.heard(None)
    }

    /// Reports that the server was heard.
    fn heard(&mut self, triggered_at: Option<SystemTime>) -> Result<(), End> {
        self.heard = Some(Instant::now());
        self.send(Event::Heard { kind: K::KIND, triggered_at })
    }

    /// The same for an event, of which there may be thousands in a second. What a list brings is old.
    fn heard_of(&mut self, change: Option<&Change>) -> Result<(), End> {
        let triggered_at = match change {
            Some(Change::Slice(_, Some(slice))) => slice.triggered_at,
            _ => None,
        };
        let lately = self.heard.is_some_and(|heard| heard.elapsed() < HEARD_EVERY);
        if self.listing.is_some() || lately && triggered_at.is_none() {
            return Ok(());
        }
        self.heard(triggered_at)
    }

    fn apply(&mut self, object: &K::Object) -> Result<(), End> {
        let (converted, notes) = {
            let mut interner = self.interner.lock().unwrap_or_else(PoisonError::into_inner);
            K::convert(object, &mut interner)
        };
        self.report(object, notes)?;
        let Some((name, change)) = converted else { return Ok(()) };
        if let Some(listing) = &mut self.listing {
            listing.names.insert(name);
        }
        self.heard_of(Some(&change))?;
        self.send(Event::Change(change))
    }

    fn delete(&mut self, object: &K::Object) -> Result<(), End> {
        let (converted, _) = {
            let mut interner = self.interner.lock().unwrap_or_else(PoisonError::into_inner);
            K::convert(object, &mut interner)
        };
        self.report(object, Vec::new())?;
        let Some((name, _)) = converted else { return Ok(()) };
        if let Some(listing) = &mut self.listing {
            listing.names.remove(&name);
        }
        K::deleted(name).map_or(Ok(()), |change| self.send(Event::Change(change)))
    }

    /// Sends the notes about an object if there are any, or if there were.
    fn report(&mut self, object: &K::Object, notes: Vec<crate::model::Note>) -> Result<(), End> {
        if notes.is_empty() && self.noted.is_empty() {
            return Ok(());
        }
        let object = object_name(K::metadata(object));
        if notes.is_empty() {
            return if self.noted.contains(&object) { self.clear_notes(object) } else { Ok(()) };
        }
        self.noted.insert(object.clone());
        if let Some(listing) = &mut self.listing {
            listing.noted.insert(object.clone());
        }
        self.send(Event::Notes { kind: K::KIND, object, notes })
    }

    fn clear_notes(&mut self, object: String) -> Result<(), End> {
        self.noted.remove(&object);
        self.send(Event::Notes { kind: K::KIND, object, notes: Vec::new() })
    }

    fn send(&self, event: Event) -> Result<(), End> {
        self.sender.send(event).map_err(|_| End::Closed)
    }
}

/// What an error from the server or the connection means.
fn failure(error: kube::Error) -> End {
    let after = asked_to_wait(&error);
    let kube::Error::Api(status) = error else { return End::Retry(chain(&error), None) };
    let details = status.details.as_ref();
    // A position of before the server's data were restored lies in its future.
    let from_the_future =
        details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "ResourceVersionTooLarge"));
    if status.code == 410 || from_the_future {
        return End::Relist(describe(&status));
    }
    End::Retry(describe(&status), Some(after))
}

fn describe(status: &Status) -> String {
    format!("{} {}: {}", status.code, status.reason, status.message)
}

/// An error with its causes: kube's own text often says no more than that something failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
