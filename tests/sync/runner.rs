//! The loop of the sync thread, on the real clock.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use portolan::iptables::IptablesBackend;
use portolan::kernel::fake::FakeKernel;
use portolan::kernel::fault::{Fault, FaultyKernel};
use portolan::kernel::{ErrorKind, TableId};
use portolan::model::{Change, Node};
use portolan::sync::clock::{Clock, SystemClock, TestClock};
use portolan::sync::{
    ADDRESSES_WITHIN, Engine, HealthChecks, Message, NodeNeeds, NodeWait, Observer, Options, POD_CIDRS_WITHIN,
    Reconfiguration, Runner, Schedule, SyncReport,
};

use crate::cluster::World;
use crate::rig::context;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Awaited(NodeWait),
    Queued,
    Reconfigured,
    Synced { healthy: bool },
}

struct Listener(Sender<Heard>);

impl Observer for Listener {
    fn awaited(&mut self, wait: NodeWait) {
        // That it is over at once is nothing to speak of.
        if wait != NodeWait::Known {
            self.0.send(Heard::Awaited(wait)).expect("the test listens");
        }
    }

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
    let engine = Engine::new(
        kernel,
        SystemClock,
        Box::<IptablesBackend>::default(),
        Box::new(|_: &_, _: &_| context()),
        options,
    );
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

/// A loop that needs the pod CIDRs of a Node, of which the source says that it is this; with its clock.
fn wait_for_pod_cidrs(node: Node) -> (Sender<Message>, Receiver<Heard>, TestClock) {
    let options = Options { node_needs: NodeNeeds::PodCidrs, ..Options::default() };
    let clock = TestClock::default();
    let context_of = Box::new(|_: &_, _: &_| context());
    let engine =
        Engine::new(FakeKernel::default(), clock.clone(), Box::<IptablesBackend>::default(), context_of, options);
    let (to_sync, inbox) = channel();
    let (heard, hears) = channel();
    let initial = World::default().service("web", 1, |_| {}).initial();
    let changes = std::iter::once(Change::Node(node)).chain(initial).collect();
    to_sync.send(Message::Changes(changes)).unwrap();
    let runner = Runner::new(engine, inbox, Schedule::new(Duration::ZERO), Box::new(Listener(heard)));
    std::thread::spawn(move || drop(runner.run()));
    (to_sync, hears, clock)
}

#[test]
fn nothing_is_programmed_before_the_pod_cidrs_are_known_where_they_are_needed() {
    let node = Node { addresses: vec!["192.0.2.1".parse().unwrap()], ..Node::default() };
    let (to_sync, heard, clock) = wait_for_pod_cidrs(node.clone());
    let next = || heard.recv_timeout(Duration::from_secs(60)).unwrap();
    let until = clock.now() + POD_CIDRS_WITHIN;
    assert_eq!(next(), Heard::Awaited(NodeWait::PodCidrs(until)));
    let known = Node { pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()], ..node };
    to_sync.send(Message::Change(Change::Node(known))).unwrap();
    let heard: Vec<Heard> = std::iter::repeat_with(next).take(2).collect();
    assert_eq!(heard, [Heard::Queued, Heard::Synced { healthy: true }]);
}

#[test]
fn without_pod_cidrs_the_loop_ends_and_has_programmed_nothing() {
    let (to_sync, heard, clock) = wait_for_pod_cidrs(Node::default());
    let next = || heard.recv_timeout(Duration::from_secs(60)).unwrap();
    let start = clock.now();
    assert_eq!(next(), Heard::Awaited(NodeWait::Addresses(start + ADDRESSES_WITHIN)));
    let wake = |by| {
        clock.advance(by);
        to_sync.send(Message::FullSync).unwrap();
    };
    wake(ADDRESSES_WITHIN);
    assert_eq!(next(), Heard::Awaited(NodeWait::PodCidrs(start + ADDRESSES_WITHIN + POD_CIDRS_WITHIN)));
    wake(POD_CIDRS_WITHIN);
    assert_eq!(next(), Heard::Awaited(NodeWait::Failed));
    heard.recv_timeout(Duration::from_secs(60)).expect_err("the loop has ended");
}
