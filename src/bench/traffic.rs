//! Clients and servers: real connections through the node's rules.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use crate::bench::BenchError;
use crate::bench::fleet::Fleet;
use crate::bench::world::World;
use crate::linux::usage;
use crate::sync::clock::{Clock, SystemClock};

/// How long a connection or an answer may take before the run counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// New connections before anything counts, so that neighbours are known and caches warm.
const WARM_UP: u32 = 50;
/// Requests on one connection with keep-alive, as in the published comparisons.
const REQUESTS_PER_CONNECTION: u32 = 100;
const REQUEST: [u8; 64] = [b'?'; 64];
const ANSWER: [u8; 256] = [b'!'; 256];
/// The most clients at once.
const MOST_CLIENTS: usize = 4;
/// Servers more than clients, so that one is always free to accept.
const SPARE_SERVERS: usize = 2;

/// Where connections are led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The Service that a new connection meets first.
    First,
    /// The one in the middle.
    Middle,
    /// The one that it meets last.
    Last,
    /// Another one each time, evenly over all.
    Any,
}

impl Target {
    /// All targets.
    pub const ALL: [Target; 4] = [Target::First, Target::Middle, Target::Last, Target::Any];

    /// As it is written in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Target::First => "first Service",
            Target::Middle => "middle Service",
            Target::Last => "last Service",
            Target::Any => "any Service",
        }
    }

    /// The address of the Service to take at this step.
    fn address(self, fleet: Fleet, places: Places, step: u32) -> SocketAddr {
        fleet.target(match self {
            Target::First => places.first,
            Target::Middle => places.middle,
            Target::Last => places.last,
            Target::Any => scattered(step) % fleet.services(),
        })
    }
}

/// The numbers of the Services that stand first, in the middle and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    first: u32,
    middle: u32,
    last: u32,
}

impl Places {
    /// From the numbers of Services in the order in which new connections meet them; `None` if not all of them are there, each once.
    pub fn of(order: &[u32], fleet: Fleet) -> Option<Places> {
        let complete = order.iter().collect::<HashSet<_>>().len() == fleet.services() as usize;
        let place = |at: usize| order.get(at).copied().filter(|_| complete && order.len() == fleet.services() as usize);
        let last = order.len().checked_sub(1)?;
        Some(Places { first: place(0)?, middle: place(last / 2)?, last: place(last)? })
    }

    /// Where connections meet all Services alike.
    pub fn by_number(fleet: Fleet) -> Places {
        let last = fleet.services() - 1;
        Places { first: 0, middle: last / 2, last }
    }
}

/// The same numbers in each run, without a pattern.
fn scattered(step: u32) -> u32 {
    let mut mixed = (u64::from(step) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 32) as u32
}

/// Seconds until a new connection was established, many times, for each target. The targets take turns.
pub fn first_packets(
    world: &World,
    fleet: Fleet,
    places: Places,
    duration: Duration,
) -> Result<Vec<(Target, Vec<f64>)>, BenchError> {
    with_servers(world, 1, || {
        let measure = || -> Result<_, BenchError> {
            for step in 0..WARM_UP {
                connect(Target::Any.address(fleet, places, step))?;
            }
            let mut taken = Target::ALL.map(|target| (target, Vec::new()));
            let until = SystemClock.now() + duration;
            let mut step = WARM_UP;
            while SystemClock.now() < until {
                for (target, taken) in &mut taken {
                    let address = target.address(fleet, places, step);
                    let began = SystemClock.now();
                    let stream = connect(address)?;
                    taken.push((SystemClock.now() - began).as_secs_f64());
                    drop(stream);
                }
                step = step.wrapping_add(1);
            }
            Ok(taken.to_vec())
        };
        world.client().within(measure)?
    })
}

/// Requests that passed, in which time, and the processor time of clients, servers and the kernel between them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throughput {
    /// Requests that were answered.
    pub requests: u64,
    /// How long that took.
    pub elapsed: Duration,
    /// Processor time of this process meanwhile.
    pub processor: Duration,
}

/// Whether a connection serves more than one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// A new connection for each request.
    Off,
    /// A new connection after a hundred requests.
    On,
}

/// Sends requests to all Services as fast as answers come.
pub fn requests(
    world: &World,
    fleet: Fleet,
    keep_alive: KeepAlive,
    duration: Duration,
) -> Result<Throughput, BenchError> {
    let clients = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_CLIENTS);
    let per_connection = match keep_alive {
        KeepAlive::Off => 1,
        KeepAlive::On => REQUESTS_PER_CONNECTION,
    };
    with_servers(world, clients + SPARE_SERVERS, || {
        let answered = AtomicU64::new(0);
        let (began, processor) = (SystemClock.now(), usage::own_time());
        let until = began + duration;
        let client = |number: usize| -> Result<(), BenchError> {
            world.client().enter()?;
            // Clients begin far from each other.
            let places = Places::by_number(fleet);
            let mut step = (number as u32).wrapping_mul(0x0100_0000);
            while SystemClock.now() < until {
                ask(Target::Any.address(fleet, places, step), per_connection)?;
                answered.fetch_add(u64::from(per_connection), Ordering::Relaxed);
                step = step.wrapping_add(1);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..clients).map(|number| scope.spawn(move || client(number))).collect();
            running.into_iter().try_for_each(|client| client.join().map_err(|_| BenchError::Thread)?)
        })?;
        let elapsed = SystemClock.now() - began;
        Ok(Throughput {
            requests: answered.load(Ordering::Relaxed),
            elapsed,
            processor: usage::own_time().saturating_sub(processor),
        })
    })
}

/// Runs something while servers answer for all endpoints.
fn with_servers<T>(world: &World, count: usize, run: impl FnOnce() -> Result<T, BenchError>) -> Result<T, BenchError> {
    let over = AtomicBool::new(false);
    let listener = world.listener();
    listener.set_nonblocking(false).map_err(BenchError::Server)?;
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| serve(listener, &over));
        }
        let result = run();
        over.store(true, Ordering::Relaxed);
        // `accept` of a listener that was shut down returns at once, but then it cannot be used again: each server is woken by
        // a connection of its own.
        let woken = world.wake(count).map_err(BenchError::Server);
        result.and_then(|result| woken.map(|()| result))
    })
}

/// Answers one connection after the other.
fn serve(listener: &TcpListener, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        let mut request = [0; REQUEST.len()];
        // A client that has had enough resets the connection.
        while stream.read_exact(&mut request).is_ok() && stream.write_all(&ANSWER).is_ok() {}
    }
}

/// A new connection, which is reset when it is dropped: its ports are free again at once.
fn connect(address: SocketAddr) -> Result<TcpStream, BenchError> {
    let failed = |error| BenchError::Connection { address, error };
    let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(failed)?;
    set_socket_linger(&stream, Some(Duration::ZERO)).map_err(|error| failed(error.into()))?;
    Ok(stream)
}

/// One connection with so many requests.
fn ask(address: SocketAddr, requests: u32) -> Result<(), BenchError> {
    let failed = |error| BenchError::Connection { address, error };
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let mut answer = [0; ANSWER.len()];
    for _ in 0..requests {
        stream.write_all(&REQUEST).map_err(failed)?;
        stream.read_exact(&mut answer).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_a_complete_list() {
        let fleet = Fleet::new(5, 1).unwrap();
        assert_eq!(Places::of(&[4, 3, 2, 1, 0], fleet), Some(Places { first: 4, middle: 2, last: 0 }));
        assert_eq!(Places::by_number(fleet), Places { first: 0, middle: 2, last: 4 });
        for incomplete in [&[4, 3, 2, 1][..], &[4, 3, 2, 1, 1], &[4, 3, 2, 1, 0, 0], &[]] {
            assert_eq!(Places::of(incomplete, fleet), None, "{incomplete:?}");
        }
    }

    #[test]
    fn any_service_means_nearly_all_of_them_in_time() {
        let fleet = Fleet::new(100, 1).unwrap();
        let places = Places::by_number(fleet);
        let met: HashSet<_> = (0..1000).map(|step| Target::Any.address(fleet, places, step)).collect();
        assert!(met.len() > 95, "{}", met.len());
        assert_eq!(Target::Last.address(fleet, places, 7), fleet.target(99));
    }
}
