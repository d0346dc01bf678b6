//! The loop of the sync thread: take in what comes, sync when it is time.

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use crate::compile::NodeContext;
use crate::kernel::Kernel;
use crate::model::Change;
use crate::net::PerFamily;
use crate::sync::clock::Clock;
use crate::sync::{Engine, HealthChecks, NodeWait, Pending, Reconfiguration, Schedule, SyncReport};

/// How long to wait for a message when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// What the sync thread is told.
#[derive(Debug)]
pub enum Message {
    /// The cluster changed.
    Change(Change),
    /// The cluster changed in all of these, with no sync between.
    Changes(Vec<Change>),
    /// The node's addresses are now these, sorted.
    Addresses(PerFamily<Vec<IpAddr>>),
    /// Compare everything with the kernel as soon as possible.
    FullSync,
    /// Another configuration holds from now on.
    Reconfigure(Box<Reconfiguration>),
    /// End, and leave everything in the kernel as it is.
    Stop,
}

/// Who hears about syncs: metrics, health, the log.
pub trait Observer: Send {
    /// The wait for the Node is that far now; [`NodeWait::Failed`]: the runner ends.
    fn awaited(&mut self, wait: NodeWait);
    /// There is something to sync (changes, a retry or an audit), and there was nothing before.
    fn queued(&mut self);
    /// Another configuration was taken over; the next sync goes by it.
    fn reconfigured(&mut self);
    /// So many changes wait for the next sync now.
    fn pending(&mut self, pending: Pending);
    /// A sync for this node ended.
    fn synced(&mut self, report: &SyncReport, node: &NodeContext, health_checks: &HealthChecks);
}

/// The sync thread's state.
pub struct Runner<K, C> {
    engine: Engine<K, C>,
    inbox: Receiver<Message>,
    schedule: Schedule,
    observer: Box<dyn Observer>,
    queued: bool,
    /// As the observer knows it.
    pending: Pending,
    awaited: NodeWait,
}

impl<K: Kernel, C: Clock> Runner<K, C> {
    /// A runner over an engine. It ends when it is told to, or when nobody is left to tell it anything.
    pub fn new(
        engine: Engine<K, C>,
        inbox: Receiver<Message>,
        schedule: Schedule,
        observer: Box<dyn Observer>,
    ) -> Runner<K, C> {
        Runner {
            engine,
            inbox,
            schedule,
            observer,
            queued: false,
            pending: Pending::default(),
            awaited: NodeWait::Unlisted,
        }
    }

    /// Runs until told to stop, or until the wait for the Node has failed; gives the engine back.
    pub fn run(mut self) -> Engine<K, C> {
        loop {
            let wait = self.wait();
            if !wait.is_zero() {
                match self.inbox.recv_timeout(wait) {
                    Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return self.engine,
                    Ok(message) => self.take(message),
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
            // What has come meanwhile belongs to the same sync.
            loop {
                match self.inbox.try_recv() {
                    Ok(Message::Stop) | Err(TryRecvError::Disconnected) => return self.engine,
                    Ok(message) => self.take(message),
                    Err(TryRecvError::Empty) => break,
                }
            }
            if self.await_node() == NodeWait::Failed {
                return self.engine;
            }
            let now = self.engine.clock.now();
            if self.engine.check_due().is_some_and(|due| due <= now) {
                self.engine.check();
            }
            if self.until_sync().is_zero() {
                self.sync();
            }
        }
    }

    /// How long until there is something to do.
    fn wait(&self) -> Duration {
        let check = self.engine.check_due().map(|due| due.saturating_duration_since(self.engine.clock.now()));
        let node = self.awaited.until().map(|until| until.saturating_duration_since(self.engine.clock.now()));
        check.unwrap_or(IDLE).min(node.unwrap_or(IDLE)).min(self.until_sync())
    }

    fn await_node(&mut self) -> NodeWait {
        let wait = self.engine.await_node();
        if std::mem::replace(&mut self.awaited, wait) != wait {
            self.observer.awaited(wait);
        }
        wait
    }

    /// How long until the next sync.
    fn until_sync(&self) -> Duration {
        match self.engine.due() {
            Some(due) => self.schedule.start(due).saturating_duration_since(self.engine.clock.now()),
            None => IDLE,
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Change(change) => self.engine.apply(change),
            Message::Changes(changes) => changes.into_iter().for_each(|change| self.engine.apply(change)),
            Message::Addresses(addresses) => self.engine.set_addresses(addresses),
            Message::FullSync => self.engine.request_full(),
            Message::Reconfigure(new) => {
                self.schedule.set_min_period(new.min_sync_period);
                self.engine.reconfigure(*new);
                self.observer.reconfigured();
            }
            Message::Stop => {}
        }
        if self.engine.has_work() {
            self.queue();
        }
    }

    fn queue(&mut self) {
        if !std::mem::replace(&mut self.queued, true) {
            self.observer.queued();
        }
        self.tell_pending();
    }

    fn tell_pending(&mut self) {
        let pending = self.engine.pending();
        if pending != self.pending {
            self.pending = pending;
            self.observer.pending(pending);
        }
    }

    fn sync(&mut self) {
        // An audit or a retry is something to sync, too: if it fails or hangs, health must come to know.
        self.queue();
        let report = self.engine.sync();
        self.schedule.completed(self.engine.clock.now());
        if let Some(report) = report {
            self.queued = !report.healthy();
            self.observer.synced(&report, self.engine.context(), self.engine.health_checks());
        }
        self.tell_pending();
    }
}
