//! What IPVS mode costs on a real kernel: messages counted at the socket, and times of one run beside each other. Counts are
//! asserted, times are printed: `PORTOLAN_LAB_SHOW=1 scripts/lab-tests.sh the_costs_of` shows them.

mod linux_support;
#[path = "../benches/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use linux_support::{in_namespace, kernel};
use portolan::kernel::fault::RecordingKernel;
use portolan::kernel::item::Scheduler;
use portolan::kernel::{ItemKind, Kernel, Op};
use portolan::linux::ipvs::Needs;
use portolan::linux::{LinuxKernel, Variant};
use portolan::net::PerFamily;
use portolan::netlink::socket::sent;
use portolan::sync::clock::SystemClock;
use portolan::sync::{Engine, Options};
use support::Mode;
use support::fleet::Fleet;

/// As many as the lab's kernel takes in within seconds.
const FLEET: Fleet = Fleet { services: 400, endpoints: 5 };

/// Runs a part in a namespace of its own, if the kernel has what IPVS mode needs.
fn in_lab<T: Send>(part: impl FnOnce(LinuxKernel) -> T + Send) -> Option<T> {
    let mut result = None;
    in_namespace(|| {
        let (kernel, _directory) = kernel(Variant::Legacy);
        let families = PerFamily { v4: true, v6: false };
        let needs = Needs { families, scheduler: Scheduler::ROUND_ROBIN, dummy_link: true };
        // Whether they are met is seen below.
        let _ = kernel.ipvs_requirements(&needs);
        if std::path::Path::new("/proc/net/ip_vs").exists() {
            result = Some(part(kernel));
        } else {
            assert!(std::env::var_os("PORTOLAN_LAB").is_none(), "the lab's kernel has no ip_vs");
            println!("not run: this kernel has no ip_vs; use `cargo xtask lab`");
        }
    });
    result
}

fn engine<K: Kernel>(kernel: K) -> Engine<K, SystemClock> {
    let options = Options { operations_per_transaction: usize::MAX, ..Options::default() };
    let mut engine = support::engine_in(Mode::Ipvs, kernel, options);
    support::fill(&mut engine, FLEET);
    engine
}

fn filled(kernel: LinuxKernel) -> Engine<LinuxKernel, SystemClock> {
    let mut engine = engine(kernel);
    let report = engine.sync().expect("the lists are complete");
    assert!(report.success(), "{:?}", report.failed);
    engine
}

/// Processor time of this thread in user space.
fn user_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/stat").expect("stat");
    let after_name = text.rsplit_once(") ").expect("a name").1;
    // `utime` is the 14th field, in hundredths of a second; the first two are the number and the name.
    let ticks: u64 = after_name.split(' ').nth(11).expect("utime").parse().expect("a number");
    Duration::from_millis(ticks * 10)
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

#[test]
fn the_costs_of_one_endpoint_change_are_two_messages_in_one_datagram() {
    in_lab(|kernel| {
        let mut engine = filled(kernel);
        let (mut times, mut counted, first) = (Vec::new(), 0, Instant::now());
        for at in 0..50 {
            let ([datagrams, messages], begun) = (sent(), Instant::now());
            engine.apply(FLEET.endpoints(at, 1));
            let report = engine.sync().expect("the lists are complete");
            times.push(begun.elapsed());
            assert!(report.success(), "{:?}", report.failed);
            let [datagrams, messages] = [sent()[0] - datagrams, sent()[1] - messages];
            // From then on connections of leaving endpoints are looked at.
            if first.elapsed() > Duration::from_millis(900) {
                continue;
            }
            let of = |kind: &str| {
                report.operations.iter().filter(|((name, _), _)| name.ends_with(kind)).map(|(_, n)| n).sum::<u64>()
            };
            let (servers, elements) = (of("_real_server"), of("_set_element"));
            assert_eq!(servers, 2, "{:?}", report.operations);
            // A set tells of pods on this node, and is reached by another socket.
            assert_eq!((datagrams, messages), (1 + elements.min(1), servers + elements), "change {at}");
            counted += 1;
        }
        assert!(counted > 0, "the first change took {:?}", times[0]);
        let [half, most] = [50, 99].map(|percent| percentile(&mut times, percent));
        println!("one endpoint replaced: 1 datagram with 2 messages; p50 {half:.2?}, p99 {most:.2?}");
    });
}

#[test]
fn the_costs_of_a_first_fill_are_those_of_the_operations_alone() {
    // What a first fill does, one time recorded, one time carried out, and one time handed to the kernel without an engine.
    let recorded = in_lab(|kernel| {
        let mut engine = engine(RecordingKernel::new(kernel));
        engine.sync().expect("the lists are complete");
        engine.kernel().transactions.clone()
    });
    let Some(transactions) = recorded else { return };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        without.extend(in_lab(|mut kernel| {
            let (before, begun) = (sent()[1], Instant::now());
            for transaction in &transactions {
                let results = kernel.apply(transaction);
                assert!(results.iter().all(Result::is_ok), "{results:?}");
            }
            (begun.elapsed(), sent()[1] - before)
        }));
        with.extend(in_lab(|kernel| {
            let mut engine = engine(kernel);
            let (before, begun) = (sent()[1], Instant::now());
            assert!(engine.sync().expect("the lists are complete").success());
            (begun.elapsed(), sent()[1] - before)
        }));
    }
    let is_server = |op: &&Op| matches!(op, Op::AddItem(key, _) if matches!(key.kind(), ItemKind::VirtualServer | ItemKind::RealServer));
    let servers = transactions.iter().flatten().filter(is_server).count() as u64;
    with.sort();
    without.sort();
    let ((with, messages), (without, bare)) = (with[1], without[1]);
    let ratio = with.as_secs_f64() / without.as_secs_f64();
    println!(
        "first fill of {} x {}: {with:.2?} with {messages} messages ({servers} servers); the same operations alone {without:.2?} \
         with {bare}; ratio {ratio:.2}",
        FLEET.services, FLEET.endpoints
    );
    assert_eq!(servers, u64::from(FLEET.services * (1 + FLEET.endpoints)));
    // What is read at the start is a few messages, and a change by each is none.
    assert!(messages < bare + 100, "{messages} messages instead of {bare}");
}

#[test]
fn the_costs_of_a_hundred_changes_a_second_are_shown() {
    in_lab(|kernel| {
        let mut engine = filled(kernel);
        let (seconds, per_second) = (5, 100);
        let (begun, user) = (Instant::now(), user_time());
        let mut times = Vec::new();
        for number in 0..seconds * per_second {
            let due = begun + Duration::from_secs(1) * number / per_second;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            engine.apply(FLEET.endpoints(number % FLEET.services, 1 + number / FLEET.services));
            assert!(engine.sync().expect("the lists are complete").success());
            times.push(due.elapsed());
        }
        let (took, user) = (begun.elapsed(), user_time() - user);
        let [half, most] = [50, 99].map(|percent| percentile(&mut times, percent));
        let part = 100.0 * user.as_secs_f64() / f64::from(seconds);
        println!(
            "{} endpoint changes in {took:.1?}: {part:.1} % of a core in user space, from due to done p50 {half:.2?}, p99 {most:.2?}",
            times.len()
        );
    });
}
