//! Clients that stay: connections that are kept open, clients that connect again and again, and flows of datagrams.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Netns;
use super::probe::{self, Outcome, PATIENCE, Proto};
use super::server::GOODBYE;

/// A TCP connection that is kept open while things change.
pub(crate) struct Conversation {
    stream: TcpStream,
    first: Outcome,
}

impl Conversation {
    /// Opens it; panics when nobody answers. `source`: the address to come from (port 0: any).
    pub(crate) fn open(from: &Netns, source: Option<SocketAddr>, to: SocketAddr) -> Conversation {
        let (stream, first) = from
            .run(|| probe::connect(source, to, PATIENCE))
            .unwrap_or_else(|error| panic!("connection from {} to {to}: {error}", from.name()));
        assert!(first.by().is_some(), "connection from {} to {to}: {first}", from.name());
        Conversation { stream, first }
    }

    /// The first answer: who it is with.
    pub(crate) fn first(&self) -> &Outcome {
        &self.first
    }

    /// Says something and waits for the answer. [`Outcome::Reset`]: the connection is over.
    pub(crate) fn ask(&mut self, timeout: Duration) -> Outcome {
        let answer = self.stream.write_all(b"still there?\n");
        let answer = answer.and_then(|()| probe::read_line(&mut self.stream, timeout));
        answer.unwrap_or_else(|error| Outcome::from_error(&error))
    }

    /// Whether the one who answered first still answers.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.ask(PATIENCE) == self.first
    }

    /// Our own address of the connection.
    pub(crate) fn source(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket")
    }
}

/// How a short connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By a reset of the client's.
    Reset,
    /// By the server, as after a request of HTTP/1.0. The client may use its port again at once; load balancers and
    /// connection tracking still know the old connection (state TIME_WAIT) when it does.
    ByServer,
}

/// What came of many short connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// How often each server answered.
    pub(crate) answers: BTreeMap<String, usize>,
    /// How often anything else came: the first few with the time since the start and the source port, and how many in all.
    pub(crate) failures: Vec<(Duration, u16, Outcome)>,
    /// How many failures there were.
    pub(crate) failed: usize,
    /// From start to end.
    pub(crate) time: Duration,
    /// The longest time from the beginning of a connection to its answer.
    pub(crate) slowest: Duration,
}

/// So many failures are remembered in full.
const REMEMBERED: usize = 20;

impl Tally {
    /// How many connections there were.
    pub(crate) fn total(&self) -> usize {
        self.answers.values().sum::<usize>() + self.failed
    }

    /// Connections a second.
    pub(crate) fn rate(&self) -> f64 {
        self.total() as f64 / self.time.as_secs_f64()
    }

    fn add(&mut self, started: Instant, port: u16, outcome: Outcome, took: Duration) {
        self.slowest = self.slowest.max(took);
        if let Some(by) = outcome.by() {
            *self.answers.entry(by.to_owned()).or_default() += 1;
            return;
        }
        self.failed += 1;
        if self.failures.len() < REMEMBERED {
            self.failures.push((started.elapsed(), port, outcome));
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { answers, failures, failed, time, slowest } = self;
        let (total, rate) = (self.total(), self.rate());
        write!(
            f,
            "{total} connections in {time:.1?} ({rate:.0}/s, slowest {slowest:.1?}): {answers:?}, {failed} failed"
        )?;
        failures.iter().try_for_each(|(at, port, outcome)| write!(f, "\n  after {at:.1?} from port {port}: {outcome}"))
    }
}

/// Something that goes on in a thread of its own until it is told to end. Ends when dropped, too.
struct Background<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Background<T> {
    fn start(from: &Netns, work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Background<T> {
        let stop = Arc::new(AtomicBool::new(false));
        let (from, flag) = (from.clone(), stop.clone());
        let thread = thread::spawn(move || {
            from.enter();
            work(&flag)
        });
        Background { stop, thread: Some(thread) }
    }

    fn finish(mut self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("not finished before");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Short TCP connections, one after the other, from a few source ports in turn: what a load balancer remembers of the last
/// connection from a port meets the next one.
pub(crate) struct ShortConnections(Background<Tally>);

impl ShortConnections {
    /// Starts them. `per_second`: at most so many; where the machine is too slow for that, as many as it can.
    pub(crate) fn start(
        from: &Netns,
        to: SocketAddr,
        ports: Range<u16>,
        per_second: u32,
        ending: Ending,
    ) -> ShortConnections {
        assert!(!ports.is_empty() && per_second > 0);
        ShortConnections(Background::start(from, move |stop| {
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let started = Instant::now();
            let mut tally = Tally::default();
            for (number, port) in (0..).zip(ports.cycle()) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let due = Duration::from_secs(1) * number / per_second;
                if let Some(early) = due.checked_sub(started.elapsed()) {
                    thread::sleep(early);
                }
                let begun = Instant::now();
                let outcome = short_connection(SocketAddr::new(any, port), to, ending);
                tally.add(started, port, outcome, begun.elapsed());
            }
            tally.time = started.elapsed();
            tally
        }))
    }

    /// Ends them and tells what came of them.
    pub(crate) fn finish(self) -> Tally {
        self.0.finish()
    }
}

fn short_connection(source: SocketAddr, to: SocketAddr, ending: Ending) -> Outcome {
    let begun = Instant::now();
    let (mut stream, outcome) = loop {
        match probe::connect(Some(source), to, PATIENCE) {
            Ok(answer) => break answer,
            // A child of this process that has not become another program yet still has the port's last connection.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && begun.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Outcome::from_error(&error),
        }
    };
    if ending == Ending::ByServer {
        // The greeting is what counts; a connection that does not end well ends with a reset.
        let end = stream.write_all(GOODBYE).and_then(|()| stream.read(&mut [0; 64]));
        if !matches!(end, Ok(0)) {
            return Outcome::Failed(format!("{outcome}, but then the connection ended with {end:?}"));
        }
    }
    outcome
}

/// Datagrams from one port to one address: to load balancers and connection tracking all of them are one flow.
pub(crate) struct UdpFlow {
    socket: UdpSocket,
}

impl UdpFlow {
    /// `source`: the address to come from (port 0: any).
    pub(crate) fn open(from: &Netns, source: Option<SocketAddr>, to: SocketAddr) -> UdpFlow {
        let socket = from.run(|| probe::udp_socket(source, to));
        UdpFlow { socket: socket.unwrap_or_else(|error| panic!("flow from {} to {to}: {error}", from.name())) }
    }

    /// Sends one datagram and waits for the answer.
    pub(crate) fn ask(&self, timeout: Duration) -> Outcome {
        probe::ask(&self.socket, timeout)
    }

    /// Asks without pausing longer than a flow lives, until this server answers. The last answer, if it never does.
    pub(crate) fn ask_until(&self, name: &str, at_last: Duration) -> Result<(), Outcome> {
        let deadline = Instant::now() + at_last;
        loop {
            let last = self.ask(Duration::from_millis(100));
            if last.by() == Some(name) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(last);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Questions, one after the other, while things change.
pub(crate) struct Questions(Background<Tally>);

impl Questions {
    /// Starts them, each from a fresh port; `pause` lies between an answer and the next question.
    pub(crate) fn start(from: &Netns, to: SocketAddr, proto: Proto, pause: Duration) -> Questions {
        Questions::start_patient(from, to, proto, pause, PATIENCE)
    }

    /// The same where the machine may stand still for longer than [`PATIENCE`].
    pub(crate) fn start_patient(
        from: &Netns,
        to: SocketAddr,
        proto: Proto,
        pause: Duration,
        patience: Duration,
    ) -> Questions {
        Questions::repeat(from, pause, move || probe::probe(None, to, proto, patience))
    }

    /// Starts them as datagrams of one flow. Of one that has no answer after [`PATIENCE`] it or the answer is lost.
    pub(crate) fn start_flow(from: &Netns, to: SocketAddr, pause: Duration) -> Questions {
        let flow = UdpFlow::open(from, None, to);
        Questions::repeat(from, pause, move || flow.ask(PATIENCE))
    }

    fn repeat(from: &Netns, pause: Duration, ask: impl Fn() -> Outcome + Send + 'static) -> Questions {
        Questions(Background::start(from, move |stop| {
            let started = Instant::now();
            let mut tally = Tally::default();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                tally.add(started, 0, ask(), begun.elapsed());
                thread::sleep(pause);
            }
            tally.time = started.elapsed();
            tally
        }))
    }

    /// Ends them and tells what came of them.
    pub(crate) fn finish(self) -> Tally {
        self.0.finish()
    }
}
