//! The benchmark as a whole: runs one after the other, each in a process of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::bench::cell::Message;
use crate::bench::facts::Facts;
use crate::bench::fleet::Fleet;
use crate::bench::plan::{Mode, Order, Plan, Tools};
use crate::bench::report::{Calibration, Reading, Report, Skipped, figures};
use crate::bench::stats::{quantile, sorted};
use crate::kernel::KernelError;
use crate::linux::command::{self, CommandError, Invocation};
use crate::linux::{Variant, scratch};
use crate::sync::clock::{Clock, SystemClock};

/// This program, whatever has become of its file.
const PROGRAM: &str = "/proc/self/exe";
/// No run takes longer than this, unless something hangs.
const RUN_DEADLINE: Duration = Duration::from_secs(2 * 3600);
/// Rounds of the calibration loop: some milliseconds.
const CALIBRATION_ROUNDS: u64 = 4_000_000;
/// The loop is timed so often, and the median counts.
const CALIBRATION_REPEATS: u32 = 5;

/// Why a benchmark cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The process of a run could not be started, or hung.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A process of the benchmark said something that cannot be understood.
    #[error("the processes of the benchmark do not understand each other: {0}")]
    Exchange(serde_json::Error),
    /// The process of a run failed.
    #[error("measuring {what} failed: {why}")]
    Run {
        /// The mode and the number of Services.
        what: String,
        /// What it said.
        why: String,
    },
    /// The kernel does not hold what it should.
    #[error("a sync failed: {0}")]
    Sync(String),
    /// A Service could not be reached through the rules.
    #[error("connecting to {address}: {error}")]
    Connection {
        /// Where it should be.
        address: SocketAddr,
        /// What happened.
        error: std::io::Error,
    },
    /// The servers for endpoints do not work.
    #[error("the servers for endpoints: {0}")]
    Server(std::io::Error),
    /// A thread panicked.
    #[error("a thread of the benchmark has panicked")]
    Thread,
    /// The plan cannot be carried out.
    #[error("there are no addresses for so many Services and endpoints, or there is nothing to measure")]
    TooMany,
    /// No mode works here.
    #[error("none of the modes can be measured here: {0}")]
    NoMode(String),
}

/// Measures. `progress` hears what is being done, in short lines.
pub fn run(plan: &Plan, mut progress: impl FnMut(&str)) -> Result<Report, BenchError> {
    if plan.services.iter().any(|services| Fleet::new(*services, plan.effort.endpoints).is_none()) {
        return Err(BenchError::TooMany);
    }
    let (started, began) = (SystemClock.wall(), SystemClock.now());
    let facts = Facts::read();
    let (able, skipped) = probe(plan, &mut progress)?;
    let modes: Vec<Mode> = plan.modes.iter().copied().filter(|mode| able.contains_key(mode)).collect();
    if modes.is_empty() {
        let whys: Vec<&str> = skipped.iter().map(|skipped| skipped.why.as_str()).collect();
        return Err(BenchError::NoMode(whys.join("; ")));
    }
    let runs = plan.runs(&modes);
    let (mut calibration, mut done) = (Vec::new(), Vec::new());
    for (at, run) in runs.iter().enumerate() {
        calibration.extend(calibrate());
        let Some((tools, _)) = able.get(&run.mode) else { continue };
        let order = order(plan, run.mode, *tools, Some(run.services));
        let title = format!("[{}/{}] {}", at + 1, runs.len(), title(&order));
        let readings = measure(&order, |what| progress(&format!("{title}: {what}")))?;
        done.push((*run, readings));
    }
    calibration.extend(calibrate());
    Ok(Report {
        portolan: env!("CARGO_PKG_VERSION").to_owned(),
        started: started.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        took: (SystemClock.now() - began).as_secs_f64(),
        plan: plan.clone(),
        facts,
        iptables: able
            .into_iter()
            .map(|(mode, (tools, version))| (mode, format!("{version} ({})", tools.as_str())))
            .collect(),
        skipped,
        calibration: Calibration::of(calibration),
        figures: figures(&done),
    })
}

fn order(plan: &Plan, mode: Mode, tools: Tools, services: Option<u32>) -> Order {
    Order { parent: scratch::own_process(), mode, tools, services, effort: plan.effort.clone() }
}

fn title(order: &Order) -> String {
    let mode = order.mode.as_str();
    order.services.map_or_else(|| mode.to_owned(), |services| format!("{mode}, {services} Services"))
}

/// The tools and their version with which each mode works.
type Able = BTreeMap<Mode, (Tools, String)>;

/// Which modes work here, and why the others do not.
fn probe(plan: &Plan, progress: &mut impl FnMut(&str)) -> Result<(Able, Vec<Skipped>), BenchError> {
    let node = match Variant::detect(&[]) {
        Variant::Nft => Tools::Nft,
        Variant::Legacy => Tools::Legacy,
    };
    let (mut able, mut skipped) = (BTreeMap::new(), Vec::new());
    for mode in plan.modes.iter().copied() {
        let mut why = None;
        for tools in mode.tools(node) {
            match carry_out(&order(plan, mode, tools, None), |_| {})?.pop() {
                Some(Message::Able(version)) => drop(able.insert(mode, (tools, version))),
                Some(Message::Unable(reason)) => drop(why.get_or_insert(reason)),
                _ => {}
            }
            if able.contains_key(&mode) {
                break;
            }
        }
        if !able.contains_key(&mode) {
            let why = why.unwrap_or_else(|| "its process said nothing".to_owned());
            progress(&format!("{} is left out: {why}", mode.as_str()));
            skipped.push(Skipped { mode, why });
        }
    }
    Ok((able, skipped))
}

fn measure(order: &Order, progress: impl FnMut(&str)) -> Result<Vec<Reading>, BenchError> {
    let failed = |why: String| BenchError::Run { what: title(order), why };
    let messages = carry_out(order, progress)?;
    let last = messages.into_iter().last().ok_or_else(|| failed("it said nothing".to_owned()))?;
    match last {
        Message::Readings(readings) => Ok(readings),
        Message::Unable(why) => Err(failed(why)),
        Message::Able(_) | Message::Progress(_) => Err(failed("it ended too early".to_owned())),
    }
}

/// Starts a process for an order; everything that it said but its progress.
fn carry_out(order: &Order, mut progress: impl FnMut(&str)) -> Result<Vec<Message>, BenchError> {
    let input = serde_json::to_vec(order).map_err(BenchError::Exchange)?;
    let invocation =
        Invocation { program: PROGRAM, arguments: &["bench-run"], environment: &[], deadline: RUN_DEADLINE };
    let (mut said, mut misunderstood) = (Vec::new(), None);
    let finished = command::run(&invocation, &mut command::once(input), |line| match serde_json::from_str(line) {
        Ok(Message::Progress(what)) => progress(&what),
        Ok(message) => said.push(message),
        Err(error) => misunderstood = Some(error),
    })?;
    if !finished.success() {
        let said = finished.stderr.trim();
        let why =
            if said.is_empty() { format!("its process ended with {:?}", finished.status) } else { said.to_owned() };
        return Err(BenchError::Run { what: title(order), why });
    }
    misunderstood.map_or(Ok(said), |error| Err(BenchError::Exchange(error)))
}

/// Seconds that a fixed calculation takes.
fn calibrate() -> Option<f64> {
    let once = |_| {
        let began = SystemClock.now();
        let sum = (0..CALIBRATION_ROUNDS).fold(1_u64, |sum, round| {
            std::hint::black_box(sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round))
        });
        std::hint::black_box(sum);
        (SystemClock.now() - began).as_secs_f64()
    };
    let times: Vec<f64> = (0..CALIBRATION_REPEATS).map(once).collect();
    quantile(&sorted(&times), 0.5)
}
