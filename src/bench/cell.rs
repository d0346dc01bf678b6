//! One run: one mode with one number of Services, in a process of its own.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::bench::BenchError;
use crate::bench::fleet::Fleet;
use crate::bench::plan::{Effort, Mode, Order, Scenario, Tools};
use crate::bench::report::{Reading, Unit, readings_of};
use crate::bench::traffic::{self, KeepAlive, Places};
use crate::bench::world::{World, pod_network};
use crate::compile::{Features, LocalDetector, NodeContext};
use crate::iptables::names;
use crate::iptables::{IptablesBackend, Layout};
use crate::ipvs::{IpvsBackend, IpvsSettings};
use crate::kernel::{ErrorKind, FoundChain, Kernel, KernelError, Table, TableId};
use crate::linux::{self, LinuxKernel, Variant, scratch, usage};
use crate::model::{Change, Objects};
use crate::net::{IpFamily, PerFamily};
use crate::sync::clock::{Clock, SystemClock};
use crate::sync::{Engine, Options, SyncReport};

/// Longer than any run: nothing happens because its time has come.
const NEVER: Duration = Duration::from_secs(86_400 * 365);
/// Fewer changes than this of one kind say nothing, however long they take.
const LEAST_CHANGES: usize = 5;

/// What a run says, one JSON object per line of its standard output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// What it is doing.
    Progress(String),
    /// The mode works here, with this version of iptables.
    Able(String),
    /// The mode does not work here: why.
    Unable(String),
    /// What was measured. The last message.
    Readings(Vec<Reading>),
}

/// Carries out an order. Moves the calling thread into a network namespace of its own: to be called by the main thread of a
/// process that does nothing else.
pub fn run(order: &str, say: impl FnMut(Message)) -> Result<(), BenchError> {
    let order: Order = serde_json::from_str(order).map_err(BenchError::Exchange)?;
    scratch::end_with(order.parent)?;
    let world = World::enter()?;
    let mut cell = match Cell::new(&order, world, say) {
        Ok(cell) => cell,
        Err((error, mut say)) => {
            say(Message::Unable(error.to_string()));
            return Ok(());
        }
    };
    let Some(services) = order.services else {
        if let Err(error) = cell.prove() {
            (cell.say)(Message::Unable(error.to_string()));
            return Ok(());
        }
        let version = cell.engine.kernel().tools().version(IpFamily::V4);
        let version =
            version.map_or_else(|| "unknown".to_owned(), |parts| parts.map(|part| part.to_string()).join("."));
        (cell.say)(Message::Able(version));
        return Ok(());
    };
    let fleet = Fleet::new(services, order.effort.endpoints).ok_or(BenchError::TooMany)?;
    cell.measure(fleet, &order)?;
    let Cell { mut say, readings, .. } = cell;
    say(Message::Readings(readings));
    Ok(())
}

struct Cell<S> {
    engine: Engine<LinuxKernel, SystemClock>,
    world: World,
    say: S,
    readings: Vec<Reading>,
    /// How often the endpoint of a Service was replaced.
    generations: HashMap<u32, u32>,
    _lock: OwnedFd,
}

impl<S: FnMut(Message)> Cell<S> {
    /// The error is the reason why the mode does not work here.
    fn new(order: &Order, world: World, say: S) -> Result<Cell<S>, (KernelError, S)> {
        match engine(order.mode, order.tools) {
            Ok((engine, lock)) => {
                Ok(Cell { engine, world, say, readings: Vec::new(), generations: HashMap::new(), _lock: lock })
            }
            Err(error) => Err((error, say)),
        }
    }

    /// Programs an empty cluster: what the kernel is asked for first does not show all that is missing.
    fn prove(&mut self) -> Result<(), BenchError> {
        let empty = [Objects::Services(HashSet::new()), Objects::Slices(HashSet::new()), Objects::Node];
        empty.into_iter().for_each(|objects| self.engine.apply(Change::Complete(objects)));
        self.sync().map(drop)
    }

    fn measure(&mut self, fleet: Fleet, order: &Order) -> Result<(), BenchError> {
        let effort = &order.effort;
        self.first_sync(fleet, effort)?;
        // Before anything changes: a Service that comes back may be programmed in another place.
        if effort.asks(Scenario::FirstPacket) {
            self.first_packet(fleet, order.mode, effort.duration())?;
        }
        if effort.asks(Scenario::Connections) {
            self.connections(fleet, effort.duration())?;
        }
        if effort.asks(Scenario::OneChange) {
            self.one_change(fleet, effort)?;
        }
        if effort.asks(Scenario::Churn) {
            self.churn(fleet, effort)?;
        }
        Ok(())
    }

    fn first_sync(&mut self, fleet: Fleet, effort: &Effort) -> Result<(), BenchError> {
        self.progress("first sync");
        let addresses = self.engine.kernel_mut().addresses(IpFamily::V4)?;
        self.engine.set_addresses(PerFamily { v4: addresses, v6: Vec::new() });
        fleet.changes().for_each(|change| self.engine.apply(change));
        let (own, tools) = (usage::own_time(), usage::tools_time());
        let began = SystemClock.now();
        let report = self.sync()?;
        let took = SystemClock.now() - began;
        if effort.asks(Scenario::FirstSync) {
            let scenario = Scenario::FirstSync;
            let operations: u64 = report.operations.values().sum();
            self.read(scenario, "all Services", "time", Unit::Seconds, took.as_secs_f64());
            let own = usage::own_time().saturating_sub(own);
            self.read(scenario, "all Services", "own processor time", Unit::Seconds, own.as_secs_f64());
            let tools = usage::tools_time().saturating_sub(tools);
            self.read(scenario, "all Services", "processor time of tools", Unit::Seconds, tools.as_secs_f64());
            self.read(scenario, "all Services", "operations", Unit::Count, operations as f64);
        }
        if effort.asks(Scenario::Memory)
            && let Some(memory) = usage::memory()
        {
            self.read(Scenario::Memory, "after the first sync", "resident", Unit::Bytes, memory.resident as f64);
            self.read(Scenario::Memory, "until then", "peak", Unit::Bytes, memory.peak as f64);
        }
        self.world.forget_soon().or_else(|error| match error.kind {
            // Nothing tracks connections here.
            ErrorKind::NotFound => Ok(()),
            _ => Err(error.into()),
        })
    }

    fn first_packet(&mut self, fleet: Fleet, mode: Mode, duration: Duration) -> Result<(), BenchError> {
        self.progress("first packet");
        // Elsewhere there is no list that is walked from one end to the other.
        let places = match mode.layout() {
            Some(Layout::KubeProxy) => self.places(fleet)?,
            Some(Layout::Compact) | None => None,
        };
        let places = places.unwrap_or_else(|| Places::by_number(fleet));
        for (target, taken) in traffic::first_packets(&self.world, fleet, places, duration)? {
            let readings = readings_of(Scenario::FirstPacket, target.as_str(), &[1, 10, 50, 90, 99], &taken);
            self.readings.extend(readings);
        }
        Ok(())
    }

    /// The Services whose rules stand first, in the middle and last in the chain that new connections walk; `None` if it does not
    /// have a rule for each Service.
    fn places(&mut self, fleet: Fleet) -> Result<Option<Places>, BenchError> {
        let table = TableId { family: IpFamily::V4, table: Table::Nat };
        let dump = self.engine.kernel_mut().dump(table, &IptablesBackend::default().claims())?;
        let rules = dump.chains.iter().find_map(|(name, chain)| match chain {
            FoundChain::Shared(rules) if *name == names::SERVICES => Some(rules),
            _ => None,
        });
        let numbers = rules.into_iter().flatten().filter_map(|rule| fleet.at(destination(rule)?));
        Ok(Places::of(&numbers.collect::<Vec<u32>>(), fleet))
    }

    fn connections(&mut self, fleet: Fleet, duration: Duration) -> Result<(), BenchError> {
        for (what, keep_alive) in [("without keep-alive", KeepAlive::Off), ("with keep-alive", KeepAlive::On)] {
            self.progress(&format!("connections {what}"));
            let found = traffic::requests(&self.world, fleet, keep_alive, duration)?;
            let requests = found.requests.max(1) as f64;
            let rate = found.requests as f64 / found.elapsed.as_secs_f64();
            self.read(Scenario::Connections, what, "requests per second", Unit::PerSecond, rate);
            let each = found.processor.as_secs_f64() / requests;
            self.read(Scenario::Connections, what, "processor time per request", Unit::Seconds, each);
        }
        Ok(())
    }

    fn one_change(&mut self, fleet: Fleet, effort: &Effort) -> Result<(), BenchError> {
        self.progress("one change");
        let mut taken: [(&str, Vec<f64>); 3] =
            [("endpoint replaced", Vec::new()), ("Service removed", Vec::new()), ("Service added", Vec::new())];
        let until = SystemClock.now() + effort.duration() * 3;
        for at in fleet.spread(effort.changes) {
            let enough = taken.iter().all(|(_, taken)| taken.len() >= LEAST_CHANGES);
            if enough && SystemClock.now() >= until {
                break;
            }
            let changes = [self.replacement(fleet, at), fleet.remove(at), fleet.create(at)];
            for (change, (_, taken)) in changes.into_iter().zip(&mut taken) {
                let began = SystemClock.now();
                self.engine.apply(change);
                self.sync()?;
                taken.push((SystemClock.now() - began).as_secs_f64());
            }
        }
        for (what, taken) in &taken {
            self.readings.extend(readings_of(Scenario::OneChange, what, &[50, 90, 99], taken));
        }
        Ok(())
    }

    /// Changes arrive at a steady rate; each sync takes all that have arrived by then.
    fn churn(&mut self, fleet: Fleet, effort: &Effort) -> Result<(), BenchError> {
        self.progress("churn");
        let total = (effort.rate * effort.seconds).ceil().max(1.0) as u32;
        let (own, tools) = (usage::own_time(), usage::tools_time());
        let began = SystemClock.now();
        let arrival = |number: u32| began + Duration::from_secs_f64(f64::from(number) / effort.rate);
        let (_idle, wait) = mpsc::channel::<()>();
        let (mut next, mut syncs) = (0, 0_u32);
        let mut lags = Vec::new();
        while next < total {
            // Nobody sends: this waits for the time alone.
            let _over = wait.recv_timeout(arrival(next).saturating_duration_since(SystemClock.now()));
            let first = next;
            while next < total && arrival(next) <= SystemClock.now() {
                let change = self.replacement(fleet, scattered(next, fleet));
                self.engine.apply(change);
                next += 1;
            }
            if first < next {
                self.sync()?;
                syncs += 1;
                let now = SystemClock.now();
                lags.extend((first..next).map(|number| (now - arrival(number)).as_secs_f64()));
            }
        }
        let elapsed = (SystemClock.now() - began).as_secs_f64();
        let scenario = Scenario::Churn;
        let own = usage::own_time().saturating_sub(own).as_secs_f64();
        let tools = usage::tools_time().saturating_sub(tools).as_secs_f64();
        self.readings.extend(readings_of(scenario, "lag", &[50, 90, 99], &lags));
        self.read(scenario, "processors", "own", Unit::Cores, own / elapsed);
        self.read(scenario, "processors", "with tools", Unit::Cores, (own + tools) / elapsed);
        self.read(scenario, "changes", "per second", Unit::PerSecond, f64::from(total) / elapsed);
        self.read(scenario, "syncs", "per second", Unit::PerSecond, f64::from(syncs) / elapsed);
        Ok(())
    }

    /// The endpoint of this Service is replaced once more.
    fn replacement(&mut self, fleet: Fleet, at: u32) -> Change {
        let generation = self.generations.entry(at).or_default();
        *generation += 1;
        fleet.replace_endpoint(at, *generation)
    }

    fn sync(&mut self) -> Result<SyncReport, BenchError> {
        let report = self.engine.sync().ok_or_else(|| BenchError::Sync("the cluster is not complete".to_owned()))?;
        if let Some(failed) = report.failed.first() {
            return Err(BenchError::Sync(failed.error.to_string()));
        }
        match report.failed_dumps.first() {
            Some((area, error)) => Err(BenchError::Sync(format!("{area}: {error}"))),
            None => Ok(report),
        }
    }

    fn read(&mut self, scenario: Scenario, what: &str, stat: &str, unit: Unit, value: f64) {
        self.readings.push(Reading { scenario, what: what.to_owned(), stat: stat.to_owned(), unit, value });
    }

    fn progress(&mut self, what: &str) {
        (self.say)(Message::Progress(what.to_owned()));
    }
}

/// The one address that a rule is for.
fn destination(rule: &str) -> Option<Ipv4Addr> {
    rule.split_once("-d ")?.1.split_once("/32")?.0.parse().ok()
}

/// Changes meet all Services, in no order.
fn scattered(number: u32, fleet: Fleet) -> u32 {
    number.wrapping_mul(2_654_435_761) % fleet.services()
}

/// An engine over the kernel of the calling thread's namespace, and the lock of its tools.
fn engine(mode: Mode, tools: Tools) -> Result<(Engine<LinuxKernel, SystemClock>, OwnedFd), KernelError> {
    let (lock, environment) = scratch::private_lock()?;
    let families = PerFamily { v4: true, v6: false };
    let variant = Some(match tools {
        Tools::Nft => Variant::Nft,
        Tools::Legacy => Variant::Legacy,
    });
    let environment = vec![environment];
    let kernel = LinuxKernel::new(linux::Options { variant, families, environment, ..linux::Options::default() })?;
    let backend: Box<dyn Backend> = match mode.layout() {
        Some(layout) => Box::new(IptablesBackend { layout }),
        None => {
            let scheduler = IpvsSettings::default().scheduler;
            kernel.ipvs_requirements(&linux::ipvs::Needs { families, scheduler, dummy_link: true })?;
            let _remarks = kernel.prepare_ipvs(&linux::ipvs::Preparation::default())?;
            Box::new(IpvsBackend::default())
        }
    };
    let options = Options {
        operations_per_transaction: match kernel.tools().variant() {
            Variant::Nft => Options::default().operations_per_transaction,
            Variant::Legacy => usize::MAX,
        },
        full_interval: NEVER,
        check_interval: NEVER,
        ..Options::default()
    };
    let mut context = NodeContext { node_name: "node-0".into(), families, ..NodeContext::default() };
    context.local_detector.v4 = Some(LocalDetector::SourceCidr(pod_network()));
    // Counters of packets need a module that not every machine has.
    context.features =
        Features { packet_counters: false, random_fully: kernel.probe(families).random_fully, ..Features::CURRENT };
    Ok((Engine::new(kernel, SystemClock, backend, Box::new(move |_, _| context.clone()), options), lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_of_a_rule_is_one_address() {
        let rule = "-d 172.16.0.100/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA";
        assert_eq!(destination(rule), Some(Ipv4Addr::new(172, 16, 0, 100)));
        for other in ["-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS", "-d 10.0.0.0/8 -j RETURN", ""] {
            assert_eq!(destination(other), None, "{other}");
        }
    }
}
