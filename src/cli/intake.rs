//! What a source reports, passed on to where it belongs: changes to the sync thread, complaints to the log and metrics.

mod held;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use crate::cli::intake::held::Holding;
use crate::health::HealthState;
use crate::metrics::Metrics;
use crate::model::{Change, Note, ObjectKind};
use crate::source::Event;
use crate::sync::Message;
use crate::sync::clock::{Clock, SystemClock};

pub(super) use held::{Held, SameNode};

/// The intake's state: what is wrong with which object now.
pub(super) struct Intake {
    to_sync: Sender<Message>,
    metrics: Arc<Metrics>,
    health: Arc<HealthState>,
    problems: HashMap<(ObjectKind, String), Vec<Note>>,
    /// What waits for complete lists; `None`: nothing has to.
    held: Option<Held>,
}

impl Intake {
    /// For a stream that begins. Nothing is wrong with any object until it says so. With `held` changes are passed on when
    /// all lists are complete, together.
    pub(super) fn new(
        to_sync: Sender<Message>,
        metrics: Arc<Metrics>,
        health: Arc<HealthState>,
        held: Option<Held>,
    ) -> Intake {
        for kind in [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node, ObjectKind::Document] {
            metrics.set_objects_with_problems(kind, 0);
        }
        Intake { to_sync, metrics, health, problems: HashMap::new(), held }
    }

    /// Runs until the source or the sync thread is gone.
    pub(super) fn run(mut self, events: Receiver<Event>) {
        for event in events {
            match event {
                Event::Change(change) => {
                    if self.pass_on(change).is_break() {
                        return;
                    }
                }
                Event::Notes { kind, object, notes } => self.note(kind, object, notes),
                Event::WatchRestarted { kind, reason } => {
                    tracing::warn!(%kind, reason, "watch begins again");
                    self.metrics.watch_restarted(kind);
                }
                Event::Heard { kind, triggered_at } => {
                    self.metrics.watch_heard(kind, triggered_at, SystemClock.wall());
                }
            }
        }
    }

    /// Breaks: the sync thread is gone.
    fn pass_on(&mut self, change: Change) -> ControlFlow<()> {
        let Some(held) = self.held.take() else {
            self.count(&change);
            return self.send(Message::Change(change));
        };
        match held.with(change) {
            Holding::Incomplete(held) => {
                self.held = Some(held);
                ControlFlow::Continue(())
            }
            Holding::Complete(changes) => {
                tracing::info!(changes = changes.len(), "the lists of the new connection are complete");
                changes.iter().for_each(|change| self.count(change));
                self.send(Message::Changes(changes))
            }
        }
    }

    fn send(&self, message: Message) -> ControlFlow<()> {
        match self.to_sync.send(message) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    fn count(&self, change: &Change) {
        match change {
            Change::Service(..) => self.metrics.service_changed(),
            Change::Slice(..) => self.metrics.endpoints_changed(),
            Change::Node(node) => self.health.set_node_eligible(node.eligible),
            Change::Complete(_) => {}
        }
    }

    /// Logs what is new, and keeps count.
    fn note(&mut self, kind: ObjectKind, object: String, notes: Vec<Note>) {
        let key = (kind, object);
        let known = self.problems.get(&key).map(Vec::as_slice).unwrap_or_default();
        for note in notes.iter().filter(|note| !known.contains(note)) {
            tracing::warn!("{note}");
            self.metrics.object_rejected(kind);
        }
        if notes.is_empty() {
            self.problems.remove(&key);
        } else {
            self.problems.insert(key, notes);
        }
        let count = self.problems.keys().filter(|(of, _)| *of == kind).count();
        self.metrics.set_objects_with_problems(kind, count);
    }
}
