//! Virtual servers and real servers.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::{all_failed, failed, nonsense, number, protocol};
use crate::kernel::item::Scheduler;
use crate::kernel::{Connections, ErrorKind, ItemKey, ItemState, KernelError, Op, RealKey, VirtualKey, VirtualServer};
use crate::net::IpFamily;
use crate::netlink::ipvs::{self, Destination, DestinationKey, Flags, Forwarding, Ipvs, Service, ServiceKey, Virtual};
use crate::netlink::message::Request;
use crate::netlink::socket::{Connection, GENERIC};
use crate::netlink::{NetlinkError, errno, genl};

/// So many entries of a dump surely arrive in one piece, which the kernel writes under its lock.
const ONE_PIECE: usize = 8;
/// How often a dump is repeated until it finds the same twice.
const ATTEMPTS: usize = 6;
/// The weight that is reported for a real server to which packets do not get by translation: never a wanted one, so that the
/// real server is written anew.
pub(super) const FOREIGN_WEIGHT: u32 = u32::MAX;

/// How the family was numbered when it was last asked for. The kernel gives it another number when the module is loaded again, and
/// refuses the old one with `ENOENT`.
static KNOWN: Mutex<Option<Ipvs>> = Mutex::new(None);

/// The kernel's load balancer, as it is reached.
pub(in crate::linux) struct Balancer {
    /// A socket.
    pub connection: Connection,
    /// Builds the requests.
    pub ipvs: Ipvs,
}

impl Balancer {
    /// Asks for the family, which loads the module `ip_vs` if the kernel can (5.12 and newer).
    pub(in crate::linux) fn open(timeout: Duration) -> Result<Balancer, NetlinkError> {
        let mut connection = Connection::open(GENERIC, timeout)?;
        let mut family = None;
        connection.request(&genl::get_family(ipvs::FAMILY), |message| {
            family = genl::decode_family(message)?.or(family.take());
            Ok(())
        })?;
        let missing = || NetlinkError::Refused { errno: errno::ENOENT, explanation: None, echo: Vec::new() };
        let ipvs = Ipvs::new(&family.ok_or_else(missing)?);
        if let Ok(mut known) = KNOWN.lock() {
            *known = Some(ipvs);
        }
        Ok(Balancer { connection, ipvs })
    }

    /// The same without asking, if the family is known.
    fn open_again(timeout: Duration) -> Result<Balancer, NetlinkError> {
        match KNOWN.lock().ok().and_then(|known| *known) {
            Some(ipvs) => Ok(Balancer { connection: Connection::open(GENERIC, timeout)?, ipvs }),
            None => Balancer::open(timeout),
        }
    }

    /// An error of [`Balancer::open`].
    pub(in crate::linux) fn missing(attempted: &str, error: &NetlinkError) -> KernelError {
        match error {
            NetlinkError::Refused { errno: errno::ENOENT, .. } => KernelError::new(
                ErrorKind::Unsupported,
                format!("{attempted}: the kernel has no IPVS: load the module ip_vs"),
            ),
            _ => error.to_kernel_error(attempted),
        }
    }

    /// All services, those of firewall marks included.
    pub(in crate::linux) fn services(&mut self) -> Result<Vec<Service>, NetlinkError> {
        let Balancer { connection, ipvs } = self;
        let read = || {
            connection.dump(&ipvs.dump_services(), Vec::new, |list, message| {
                list.extend(ipvs.decode_service(message)?);
                Ok(())
            })
        };
        agreed(read, |service| service.key)
    }

    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<Destination>, NetlinkError> {
        agreed(|| self.destinations_once(service), |destination| destination.key)
    }

    fn destinations_once(&mut self, service: &ServiceKey) -> Result<Vec<Destination>, NetlinkError> {
        let ipvs = self.ipvs;
        self.connection.dump(&ipvs.dump_destinations(service), Vec::new, |list, message| {
            list.extend(ipvs.decode_destination(message, service.family())?);
            Ok(())
        })
    }
}

/// Dumps until the same is found twice. The kernel goes on with a dump at the n-th entry and has no mark for changes in between:
/// entries may be missing or come twice.
fn agreed<T, K: Ord>(
    mut read: impl FnMut() -> Result<Vec<T>, NetlinkError>,
    key: impl Fn(&T) -> K,
) -> Result<Vec<T>, NetlinkError> {
    let mut before: Option<Vec<K>> = None;
    for _ in 0..ATTEMPTS {
        let mut found = read()?;
        found.sort_by_key(&key);
        let keys: Vec<K> = found.iter().map(&key).collect();
        found.dedup_by_key(|entry| key(entry));
        let repeated = found.len() < keys.len();
        if !repeated && (keys.len() <= ONE_PIECE || before.as_ref() == Some(&keys)) {
            return Ok(found);
        }
        before = Some(keys);
    }
    Err(NetlinkError::Interrupted)
}

/// The virtual servers of a family with their real servers. Services of firewall marks, of all ports, and of other protocols are
/// left out. Unless the module is wanted, it is not loaded.
pub(super) fn read(
    family: IpFamily,
    serving: bool,
    timeout: Duration,
) -> Result<Vec<(ItemKey, ItemState)>, KernelError> {
    let mut items = Vec::new();
    if !serving && !Path::new("/proc/thread-self/net/ip_vs").exists() {
        return Ok(items);
    }
    let attempted = format!("reading the {family} virtual servers");
    let mut balancer = Balancer::open(timeout).map_err(|error| Balancer::missing(&attempted, &error))?;
    let error = |error: NetlinkError| error.to_kernel_error(&attempted);
    for service in balancer.services().map_err(error)? {
        let Some(key) = virtual_key(&service.key).filter(|key| key.family() == family) else { continue };
        items.push((ItemKey::VirtualServer(key), ItemState::Server(state_of(&service))));
        for destination in balancer.destinations(&service.key).map_err(error)? {
            let translated = matches!(destination.forwarding, Forwarding::Masquerade | Forwarding::Local);
            let weight = if translated { destination.weight } else { FOREIGN_WEIGHT };
            items.push((ItemKey::RealServer(real_key(key, &destination)), ItemState::Weight(weight)));
        }
    }
    Ok(items)
}

/// The real servers of a virtual server with their connections.
pub(super) fn connections(server: &VirtualKey, timeout: Duration) -> Result<Vec<(RealKey, Connections)>, KernelError> {
    let attempted = format!("reading the connections of {server}");
    let mut balancer = Balancer::open(timeout).map_err(|error| Balancer::missing(&attempted, &error))?;
    let destinations = balancer.destinations_once(&service_key(server));
    let found = destinations.map_err(|error| error.to_kernel_error(&attempted))?.into_iter().map(|destination| {
        let told = destination.connections.unwrap_or_default();
        (real_key(*server, &destination), Connections { active: told.active, inactive: told.inactive })
    });
    Ok(found.collect())
}

fn service_key(server: &VirtualKey) -> ServiceKey {
    ServiceKey::address(u16::from(number(server.protocol)), SocketAddr::new(server.address, server.port))
}

fn virtual_key(key: &ServiceKey) -> Option<VirtualKey> {
    match key.0 {
        Virtual::Address { protocol: number, address } if address.port() != 0 => {
            Some(VirtualKey { address: address.ip(), protocol: protocol(number)?, port: address.port() })
        }
        _ => None,
    }
}

fn real_key(server: VirtualKey, destination: &Destination) -> RealKey {
    let address = destination.key.0;
    RealKey { server, address: address.ip(), port: address.port() }
}

fn state_of(service: &Service) -> VirtualServer {
    // A name that ours cannot be is as good as any other.
    let odd = || Scheduler::new("none").unwrap_or(Scheduler::ROUND_ROBIN);
    let flags = service.flags.chosen();
    let persistent = flags & VirtualServer::PERSISTENT != 0;
    VirtualServer {
        scheduler: Scheduler::new(&service.scheduler).unwrap_or_else(odd),
        flags,
        persistence_seconds: if persistent { service.timeout } else { 0 },
    }
}

fn service(key: &VirtualKey, state: &VirtualServer) -> Service {
    Service {
        flags: Flags::exactly(state.flags),
        timeout: state.persistence_seconds,
        ..Service::new(service_key(key), state.scheduler.as_str())
    }
}

/// Carries out operations on virtual and real servers.
pub(super) fn apply(operations: &[&Op], timeout: Duration) -> Vec<Result<(), KernelError>> {
    let mut balancer = match Balancer::open_again(timeout) {
        Ok(balancer) => balancer,
        Err(error) => return operations.iter().map(|op| Err(Balancer::missing(&op.to_string(), &error))).collect(),
    };
    let requests: Option<Vec<Request>> = operations.iter().map(|op| request(balancer.ipvs, op)).collect();
    let Some(requests) = requests else {
        // Somebody is mistaken about one of them; the others are not to suffer from it.
        return match operations {
            [op] => vec![Err(nonsense(op))],
            _ => operations.iter().flat_map(|op| apply(&[op], timeout)).collect(),
        };
    };
    let outcomes = balancer.connection.batch(&requests);
    if outcomes.len() != operations.len() {
        return all_failed(operations, &NetlinkError::Overrun);
    }
    let unknown =
        |outcome: &Result<(), NetlinkError>| matches!(outcome, Err(NetlinkError::Refused { errno: errno::ENOENT, .. }));
    if outcomes.iter().any(unknown)
        && let Ok(mut known) = KNOWN.lock()
    {
        *known = None;
    }
    let pairs = operations.iter().zip(outcomes);
    pairs.map(|(op, outcome)| outcome.map_err(|error| op_error(op, &error))).collect()
}

fn request(ipvs: Ipvs, op: &Op) -> Option<Request> {
    let destination = |real: &RealKey, weight| Destination::new(SocketAddr::new(real.address, real.port), weight);
    Some(match op {
        Op::AddItem(ItemKey::VirtualServer(key), ItemState::Server(state)) => ipvs.new_service(&service(key, state)),
        Op::ChangeItem(ItemKey::VirtualServer(key), ItemState::Server(state)) => ipvs.set_service(&service(key, state)),
        Op::DeleteItem(ItemKey::VirtualServer(key)) => ipvs.delete_service(&service_key(key)),
        Op::AddItem(ItemKey::RealServer(key), ItemState::Weight(weight)) => {
            ipvs.new_destination(&service_key(&key.server), &destination(key, *weight))
        }
        Op::ChangeItem(ItemKey::RealServer(key), ItemState::Weight(weight)) => {
            ipvs.set_destination(&service_key(&key.server), &destination(key, *weight))
        }
        Op::DeleteItem(ItemKey::RealServer(key)) => {
            let address = SocketAddr::new(key.address, key.port);
            ipvs.delete_destination(&service_key(&key.server), &DestinationKey(address))
        }
        _ => return None,
    })
}

fn op_error(op: &Op, error: &NetlinkError) -> KernelError {
    match (op, error) {
        // Of a service, this is what the kernel says when it knows no such scheduler; a missing service is `ESRCH`.
        (
            Op::AddItem(ItemKey::VirtualServer(_), ItemState::Server(state))
            | Op::ChangeItem(ItemKey::VirtualServer(_), ItemState::Server(state)),
            NetlinkError::Refused { errno: errno::ENOENT, .. },
        ) => KernelError::new(ErrorKind::Unsupported, format!("{op}: {}", missing_scheduler(state.scheduler.as_str()))),
        _ => failed(op, error),
    }
}

/// What to do about a scheduler that the kernel does not have.
pub(in crate::linux) fn missing_scheduler(name: &str) -> String {
    format!("the kernel has no scheduler {name}: load the module ip_vs_{name}, or choose another scheduler")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a series of dumps comes to, and how many were looked at.
    fn read(dumps: &[&[u32]]) -> (Result<Vec<u32>, NetlinkError>, usize) {
        let mut taken = 0;
        let next = || {
            taken += 1;
            Ok(dumps[taken - 1].to_vec())
        };
        (agreed(next, |entry| *entry), taken)
    }

    #[test]
    fn a_dump_counts_when_it_is_in_one_piece_or_found_twice() {
        let all: Vec<u32> = (0..100).collect();
        let backwards: Vec<u32> = (0..100).rev().collect();
        let missing: Vec<u32> = (1..100).collect();
        let mut repeated = all.clone();
        repeated.push(7);
        assert_eq!(read(&[&[3, 1, 2]]), (Ok(vec![1, 2, 3]), 1));
        assert_eq!(read(&[&[]]), (Ok(vec![]), 1));
        assert_eq!(read(&[&[1, 1], &[1]]), (Ok(vec![1]), 2));
        assert_eq!(read(&[&all, &backwards]), (Ok(all.clone()), 2));
        assert_eq!(read(&[&missing, &all, &all]), (Ok(all.clone()), 3));
        assert_eq!(read(&[&repeated, &repeated, &all, &all]), (Ok(all.clone()), 4));
        let changing = [all.as_slice(), &missing, &all, &missing, &all, &missing];
        assert_eq!(read(&changing), (Err(NetlinkError::Interrupted), ATTEMPTS));
    }
}
