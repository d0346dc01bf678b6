//! The loop of the sync thread, on the real clock.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use portolan::iptables::IptablesBackend;
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::{Fault, FaultyKernel};
use portolan::kernel::{ErrorKind, TableId};
use portolan::sync::clock::SystemClock;
use portolan::sync::{Engine, HealthChecks, Message, Observer, Options, Reconfiguration, Runner, Schedule, SyncReport};

use crate::cluster::World;
use crate::rig::context;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Queued,
    Reconfigured,
    Synced { healthy: bool },
}

struct Listener(Sender<Heard>);

impl Observer for Listener {
    fn queued(&mut self) {
        self.0.send(Heard::Queued).expect("the test listens");
    }

    fn reconfigured(&mut self) {
        self.0.send(Heard::Reconfigured).expect("the test listens");
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

#[test]
fn another_configuration_is_announced_and_synced_without_another_change() {
    let (to_sync, heard) = run(usize::MAX);
    let next = || heard.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!([next(), next()], [Heard::Queued, Heard::Synced { healthy: true }]);
    let new = Reconfiguration {
        backend: Some(Box::new(portolan::ipvs::IpvsBackend::default())),
        context_of: Box::new(|_: &_, _: &_| context()),
        options: Options::default(),
        min_sync_period: Duration::ZERO,
    };
    to_sync.send(Message::Reconfigure(Box::new(new))).ok().unwrap();
    // An audit of the mode before may come in between.
    let heard: Vec<Heard> = std::iter::repeat_with(next).take_while(|heard| *heard != Heard::Reconfigured).collect();
    assert!(heard.len() < 1000);
    assert_eq!([next(), next()], [Heard::Queued, Heard::Synced { healthy: true }]);
    to_sync.send(Message::Stop).ok().unwrap();
}
