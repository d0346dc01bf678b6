//! portolan on the real kernel, and the tools fed by hand, each in this process: call them in one of their own, as root.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portolan::backend::{Backend, Fragment, RuleComments};
use portolan::compile::compile_service;
use portolan::iptables::{IptablesBackend, Layout, restore_text};
use portolan::kernel::ChainName;
use portolan::linux::command::processes_started;
use portolan::linux::{self, LinuxKernel, Variant};
use portolan::model::{Change, Cluster};
use portolan::net::{IpFamily, PerFamily};
use portolan::sync::clock::SystemClock;
use portolan::sync::{Engine, Options};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::Outcome;
use crate::support;
use crate::support::fleet::{self, Fleet};

/// A cell of the table.
pub(crate) type Cell = (&'static str, String);

/// Each kind of change is made so often; the median counts.
const REPEATS: u32 = 5;
/// Chains in one restore by hand, where it is fed in pieces.
const PIECE: usize = 500;

/// As a table's column is handed over: a line for each cell.
pub(crate) fn print_cells(cells: &[Cell]) {
    cells.iter().for_each(|(label, value)| println!("{label}\t{value}"));
}

/// The column that this program hands over when it is started with these arguments.
pub(crate) fn run_self(arguments: &[&str]) -> Outcome<Vec<(String, String)>> {
    let output = Command::new(std::env::current_exe()?).args(arguments).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{arguments:?} failed").into());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| line.split_once('\t')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
}

// === portolan ===

/// What portolan costs there.
pub(crate) fn measure_portolan(variant: Variant, fleet: Fleet, limit: usize) -> Outcome<Vec<Cell>> {
    let directory = enter_namespace()?;
    let options = linux::Options {
        variant: Some(variant),
        families: PerFamily { v4: true, v6: false },
        environment: vec![("XTABLES_LOCKFILE".into(), directory.path().join("lock").into())],
        ..linux::Options::default()
    };
    let kernel = LinuxKernel::new(options)?;
    let backend = IptablesBackend { layout: layout()? };
    let options = Options { operations_per_transaction: limit, ..Options::default() };
    let start = || support::engine_with(Box::new(backend), kernel.clone(), options);
    let mut cells = Vec::new();

    let mut engine = start();
    let taken_in = timed(|| support::fill(&mut engine, fleet)).1;
    let (processes, [own, tools]) = (processes_started(), processor_time()?);
    let (report, first) = timed(|| support::sync(&mut engine));
    cells.push(("first sync", seconds(first)));
    let [own, tools] = [processor_time()?[0] - own, processor_time()?[1] - tools];
    cells.push(("— processor time of the tools", seconds(tools)));
    cells.push(("— own processor time", seconds(own)));
    cells.push(("— taking in the cluster before it", seconds(taken_in)));
    cells.push(("— of it computing", seconds(report.compute_duration)));
    cells.push(("— operations", support::operations(&report).to_string()));
    cells.push(("— restores", report.transactions.to_string()));
    cells.push(("— processes, dumps included", (processes_started() - processes).to_string()));
    let [resident, peak] = memory()?;
    cells.push(("memory after it (VmRSS)", resident));
    cells.push(("most memory until then (VmHWM)", peak));

    let numbers = || (1..=REPEATS).map(|repeat| repeat * (fleet.services / (REPEATS + 1)));
    let changes = |engine: &mut _, make: &dyn Fn(u32) -> Change| median(numbers().map(|at| change(engine, make(at))));
    cells.push(("one endpoint replaced", seconds(changes(&mut engine, &|at| fleet.endpoints(at, 1)))));
    cells.push(("one Service removed", seconds(changes(&mut engine, &|at| fleet.remove(at)))));
    cells.push(("one Service added", seconds(changes(&mut engine, &|at| fleet.add(at)))));
    // Back to how it began, for the restart.
    changes(&mut engine, &|at| fleet.endpoints(at, 0));

    engine.request_full();
    let (report, audit) = timed(|| support::sync(&mut engine));
    assert_eq!((support::operations(&report), report.inconsistent_services), (0, 0), "{:?}", report.operations);
    cells.push(("audit", seconds(audit)));
    cells.push(("— of it reading the tables", seconds(report.dump_duration)));

    drop(engine);
    let mut engine = start();
    support::fill(&mut engine, fleet);
    let (report, restart) = timed(|| support::sync(&mut engine));
    cells.push(("first sync after a restart", seconds(restart)));
    cells.push(("— its operations", support::operations(&report).to_string()));
    Ok(cells)
}

/// One change from its arrival to the kernel's answer. It costs one process.
fn change(engine: &mut Engine<LinuxKernel, SystemClock>, change: Change) -> Duration {
    let processes = processes_started();
    let took = timed(|| {
        engine.apply(change);
        support::sync(engine)
    });
    assert_eq!(processes_started() - processes, 1);
    took.1
}

// === by hand ===

/// What the tools cost when they are fed with the same text.
pub(crate) fn measure_by_hand(variant: Variant, fleet: Fleet, in_pieces: bool) -> Outcome<Vec<Cell>> {
    let directory = enter_namespace()?;
    let lock = directory.path().join("lock");
    let backend = IptablesBackend { layout: layout()? };
    let base = backend.base(&support::context());
    let mut cluster = Cluster::default();
    fleet.changes().for_each(|change| drop(cluster.apply(change)));
    let mut services = Fragment::default();
    (0..fleet.services).for_each(|at| lower(backend, &cluster, at, &mut services));
    let [_, tools] = processor_time()?;
    let texts = if in_pieces { pieces(&base, services) } else { vec![restore_text(IpFamily::V4, [&base, &services])] };
    let took = texts
        .iter()
        .try_fold(Duration::ZERO, |sum, text| Ok::<_, Box<dyn std::error::Error>>(sum + feed(variant, &lock, text)?))?;
    let cells = vec![
        ("first sync", seconds(took)),
        ("— processor time of the tools", seconds(processor_time()?[1] - tools)),
        ("— restores", texts.len().to_string()),
    ];
    let changes = single_changes(backend, variant, &lock, &mut cluster, fleet)?;
    let reading = read_tables(variant)?;
    Ok([cells, vec![changes, ("— of it reading the tables", seconds(reading))]].concat())
}

/// What a Service wants.
fn lower(backend: IptablesBackend, cluster: &Cluster, at: u32, out: &mut Fragment) {
    let name = fleet::name(at);
    let plans =
        cluster.entry(&name).map(|entry| compile_service(&name, entry, &support::context())).unwrap_or_default();
    for plan in plans {
        backend.lower(&plan, &support::context(), RuleComments::Omit, out);
    }
}

/// The base, the chains piece by piece, then the rules that lead to them.
fn pieces(base: &Fragment, services: Fragment) -> Vec<String> {
    let chains =
        services.chains.chunks(PIECE).map(|chains| Fragment { chains: chains.to_vec(), ..Fragment::default() });
    let rules = Fragment { rules: services.rules.clone(), ..Fragment::default() };
    let fragments = std::iter::once(base.clone()).chain(chains).chain(std::iter::once(rules));
    fragments.map(|fragment| restore_text(IpFamily::V4, [&fragment])).collect()
}

/// The least text that replaces an endpoint, as a person would write it.
fn single_changes(
    backend: IptablesBackend,
    variant: Variant,
    lock: &std::path::Path,
    cluster: &mut Cluster,
    fleet: Fleet,
) -> Outcome<Cell> {
    let mut took = Vec::new();
    for at in (1..=REPEATS).map(|repeat| repeat * (fleet.services / (REPEATS + 1))) {
        let mut before = Fragment::default();
        lower(backend, cluster, at, &mut before);
        cluster.apply(fleet.endpoints(at, 1));
        let mut after = Fragment::default();
        lower(backend, cluster, at, &mut after);
        let kept: BTreeSet<ChainName> = after.chains.iter().map(|(chain, _)| chain.name).collect();
        let gone = before.chains.iter().map(|(chain, _)| chain.name).filter(|name| !kept.contains(name));
        let removal: String = gone.map(|name| format!("-F {name}\n-X {name}\n")).collect();
        let chains = after.chains.into_iter().filter(|chain| !before.chains.contains(chain)).collect();
        let text = restore_text(IpFamily::V4, [&Fragment { chains, ..Fragment::default() }]);
        // The nat table comes last.
        let text = text.trim_end().trim_end_matches("COMMIT").to_owned() + &removal + "COMMIT\n";
        let text = text.split_once("*nat").map(|(_, rest)| format!("*nat{rest}")).unwrap_or_default();
        took.push(feed(variant, lock, &text)?);
    }
    Ok(("one endpoint replaced", seconds(median(took))))
}

fn feed(variant: Variant, lock: &std::path::Path, text: &str) -> Outcome<Duration> {
    let start = Instant::now();
    let mut child = Command::new(format!("iptables-{variant}-restore"))
        .args(["-w", "5", "--noflush"])
        .env("XTABLES_LOCKFILE", lock)
        .stdin(Stdio::piped())
        .spawn()?;
    child.stdin.take().ok_or("no standard input")?.write_all(text.as_bytes())?;
    let status = child.wait()?;
    if status.success() { Ok(start.elapsed()) } else { Err(format!("iptables-{variant}-restore: {status}").into()) }
}

/// What an audit reads, thrown away.
fn read_tables(variant: Variant) -> Outcome<Duration> {
    let start = Instant::now();
    for table in ["filter", "nat"] {
        let mut save = Command::new(format!("iptables-{variant}-save"));
        let status = save.args(["-t", table]).stdout(Stdio::null()).status()?;
        if !status.success() {
            return Err(format!("iptables-{variant}-save: {status}").into());
        }
    }
    Ok(start.elapsed())
}

// === help ===

/// The variant of this name.
pub(crate) fn variant_of(name: &str) -> Outcome<Variant> {
    match name {
        "nft" => Ok(Variant::Nft),
        "legacy" => Ok(Variant::Legacy),
        other => Err(format!("no variant of iptables is called {other}").into()),
    }
}

/// The layout that `PORTOLAN_BENCH_LAYOUT` names.
fn layout() -> Outcome<Layout> {
    match std::env::var("PORTOLAN_BENCH_LAYOUT").as_deref() {
        Err(_) | Ok("kube-proxy") => Ok(Layout::KubeProxy),
        Ok("compact") => Ok(Layout::Compact),
        Ok(other) => Err(format!("no layout is called {other}").into()),
    }
}

/// A network namespace for this process, and a directory for the lock of its tools.
fn enter_namespace() -> Outcome<tempfile::TempDir> {
    // SAFETY: only the network namespace of this thread changes; no file descriptors are shared differently.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(tempfile::tempdir()?)
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = run();
    (value, start.elapsed())
}

fn median(durations: impl IntoIterator<Item = Duration>) -> Duration {
    let mut durations: Vec<Duration> = durations.into_iter().collect();
    durations.sort_unstable();
    durations[durations.len() / 2]
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

/// Processor time that this process has used, and that its children which have ended have used. Unlike time on the
/// clock it hardly depends on what else the machine does.
fn processor_time() -> Outcome<[Duration; 2]> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // After the program's name in parentheses; user and system time of both are the fields 14 to 17, in 10 ms.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().skip(11)).ok_or("no times")?;
    let ticks: Vec<u64> = fields.take(4).filter_map(|field| field.parse().ok()).collect();
    let [user, system, children_user, children_system] = ticks[..] else { return Err("no times".into()) };
    Ok([user + system, children_user + children_system].map(|ticks| Duration::from_millis(ticks * 10)))
}

/// Memory of this process now, and the most so far.
fn memory() -> Outcome<[String; 2]> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let of = |name: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok())
    };
    let megabytes = |name| of(name).map(|kilobytes| format!("{} MiB", kilobytes / 1024)).ok_or("no memory figures");
    Ok([megabytes("VmRSS:")?, megabytes("VmHWM:")?])
}
