//! Noticing that foreign hands were in the rules, without reading them.
//!
//! After each sync the engine remembers the kernel's fingerprint, and looks at it from time to time. Another one means that
//! somebody changed something, though perhaps nothing of ours: on some nodes other programs change rules all the time. So an audit
//! that finds nothing makes the next one of this kind wait longer.

use std::time::Instant;

use crate::kernel::{Fingerprint, Kernel};
use crate::sync::SyncKind;
use crate::sync::clock::Clock;
use crate::sync::engine::{Engine, Run};
use crate::sync::schedule::backoff;

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Watch {
    known: Option<Fingerprint>,
    /// When to look again; `None`: nothing was programmed yet.
    pub(super) next: Option<Instant>,
    /// The audit that is under way was asked for because of a foreign change.
    asked: bool,
    /// Audits in a row that were asked for so and found nothing.
    fruitless: u32,
    /// No audit of this kind before.
    not_before: Option<Instant>,
}

impl<K: Kernel, C: Clock> Engine<K, C> {
    /// When to call [`Engine::check`]; `None`: not before the first sync.
    pub fn check_due(&self) -> Option<Instant> {
        self.watch.next
    }

    /// Looks whether anybody else has changed the rules since the last sync; if so, asks for a full one.
    pub fn check(&mut self) {
        let now = self.clock.now();
        self.watch.next = Some(now + self.options.check_interval);
        let changed = match (self.watch.known, self.kernel.fingerprint()) {
            (Some(known), Some(found)) => known != found,
            (None, _) | (_, None) => false,
        };
        if changed && self.watch.not_before.is_none_or(|at| at <= now) {
            self.watch.asked = true;
            self.request_full();
        }
    }

    /// Whether it is time to look at the items and they are other than known, as far as that can be told without reading them.
    pub(super) fn items_have_changed(&mut self, now: Instant) -> bool {
        if !self.serves_items || self.work.items_due.is_some_and(|due| due > now) {
            return false;
        }
        self.work.items_due = Some(now + self.options.check_interval);
        let census = self.kernel.census(self.context.families);
        census.is_none_or(|census| !self.ledger.items.agrees(&census))
    }

    /// After a sync: from now on, any other fingerprint is not our doing. A foreign change in the middle of a sync is left to
    /// the next audit.
    pub(super) fn remember_rules(&mut self, run: &Run) {
        let now = self.clock.now();
        self.watch.next.get_or_insert(now + self.options.check_interval);
        self.watch.known = self.kernel.fingerprint();
        if run.kind == SyncKind::Full && std::mem::take(&mut self.watch.asked) {
            self.watch.fruitless = if run.drift.is_empty() { self.watch.fruitless + 1 } else { 0 };
            let wait = backoff(self.options.check_interval, self.options.full_interval, self.watch.fruitless);
            self.watch.not_before = (self.watch.fruitless > 0).then(|| now + wait);
        }
    }
}
