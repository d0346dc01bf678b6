//! What a source reports, passed on to where it belongs: changes to the sync thread, complaints to the log and metrics.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use crate::health::HealthState;
use crate::metrics::Metrics;
use crate::model::{Change, Note, ObjectKind};
use crate::source::Event;
use crate::sync::Message;

/// The intake's state: what is wrong with which object now.
pub(super) struct Intake {
    to_sync: Sender<Message>,
    metrics: Arc<Metrics>,
    health: Arc<HealthState>,
    problems: HashMap<(ObjectKind, String), Vec<Note>>,
}

impl Intake {
    pub(super) fn new(to_sync: Sender<Message>, metrics: Arc<Metrics>, health: Arc<HealthState>) -> Intake {
        Intake { to_sync, metrics, health, problems: HashMap::new() }
    }

    /// Runs until the source or the sync thread is gone.
    pub(super) fn run(mut self, events: Receiver<Event>) {
        for event in events {
            match event {
                Event::Change(change) => {
                    self.count(&change);
                    if self.to_sync.send(Message::Change(change)).is_err() {
                        return;
                    }
                }
                Event::Notes { kind, object, notes } => self.note(kind, object, notes),
                Event::WatchRestarted { kind, reason } => {
                    tracing::warn!(%kind, reason, "watch begins again");
                    self.metrics.watch_restarted(kind);
                }
            }
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
