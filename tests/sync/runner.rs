//! The loop of the sync thread, on the real clock.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use portolan::iptables::IptablesBackend;
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::{Fault, FaultyKernel};
use portolan::kernel::{ErrorKind, TableId};
use portolan::sync::clock::SystemClock;
use portolan::sync::{Engine, HealthChecks, Message, Observer, Options, Runner, Schedule, SyncReport};

use crate::cluster::World;
use crate::rig::context;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Queued,
    Synced { healthy: bool },
}

struct Listener(Sender<Heard>);

impl Observer for Listener {
    fn queued(&mut self) {
        self.0.send(Heard::Queued).expect("the test listens");
    }

    fn pending(&mut self, _pending: portolan::sync::Pending) {}

    fn synced(
        &mut self,
        report: &SyncReport,
        _context: &portolan::compile::NodeContext,
        _health_checks: &HealthChecks,
    ) {
        self.0.send(Heard::Synced { healthy: report.healthy() }).expect("the test listens");
    }
}

/// Runs a loop over a kernel that fails at one dump; returns what keeps it running and what it says.
fn run(failing_dump: usize) -> (Sender<Message>, Receiver<Heard>) {
    let kernel = FaultyKernel::new(FakeKernel::default(), Fault::Dump(failing_dump, ErrorKind::Transient));
    let options = Options { full_interval: Duration::from_millis(20), ..Options::default() };
    let engine =
        Engine::new(kernel, SystemClock, Box::new(IptablesBackend), Box::new(|_: &_, _: &_| context()), options);
    let (to_sync, inbox) = channel();
    let (heard, hears) = channel();
    let web = World::default().service("web", 1, |_| {});
    web.initial().into_iter().for_each(|change| to_sync.send(Message::Change(change)).unwrap());
    let runner = Runner::new(engine, inbox, Schedule::new(Duration::ZERO), Box::new(Listener(heard)));
    std::thread::spawn(move || drop(runner.run()));
    (to_sync, hears)
}

#[test]
fn an_audit_that_fails_is_announced_although_no_change_waited() {
    // The tables, and what another mode may have left behind in each family.
    let dumps_per_audit = TableId::serving().count() + 2;
    let (to_sync, heard) = run(dumps_per_audit);
    let next = || heard.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!([next(), next()], [Heard::Queued, Heard::Synced { healthy: true }]);
    assert_eq!([next(), next()], [Heard::Queued, Heard::Synced { healthy: false }], "the audit");
    // The failure still waits: that it is tried again is nothing new.
    assert_eq!([next(), next()], [Heard::Synced { healthy: true }, Heard::Queued]);
    to_sync.send(Message::Stop).unwrap();
}
