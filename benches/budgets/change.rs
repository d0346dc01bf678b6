//! One endpoint of one Service replaced, from the text of the watch event to the operations that the kernel is handed.

use std::fs;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portolan::model::Change;
use portolan::model::convert::{self, Interner, wire};
use portolan::sync::clock::SystemClock;
use portolan::sync::{Engine, Options};

use crate::Outcome;
use crate::support::fleet::Fleet;
use crate::support::null_kernel::NullKernel;
use crate::support::{self, Mode, objects};

/// So many changes are made, each of another Service; then nobody's hash table that happens to grow decides.
const CHANGES: u32 = 100;

/// What one change costs, on average.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// In user space, median.
    pub(crate) time: Duration,
    /// Operations for the kernel; in IPVS mode each is one netlink message.
    pub(crate) operations: f64,
    /// The most times that something was sent to the kernel for one change.
    pub(crate) sends: u64,
}

/// Makes the changes, in a cluster of this size, on a kernel that agrees to everything. Started below valgrind it counts their
/// instructions, and not those before.
pub(crate) fn run(mode: Mode, services: u32) -> Outcome<Cost> {
    let fleet = Fleet::of(services);
    let options = Options { operations_per_transaction: usize::MAX, ..Options::default() };
    let mut engine = support::engine_in(mode, NullKernel::default(), options);
    support::fill(&mut engine, fleet);
    support::sync(&mut engine);
    // Addresses of hosts that are not this node's: what a change costs there is what nearly all changes cost.
    let events: Vec<String> =
        (0..CHANGES).map(|at| objects::slice(fleet, at * (services / CHANGES), 6).to_string()).collect();
    let mut interner = Interner::default();
    let (mut times, mut operations, mut sends) = (Vec::new(), 0, 0);
    count_instructions(Counting::On);
    for event in &events {
        let start = Instant::now();
        let report = change(&mut engine, event, &mut interner)?;
        times.push(start.elapsed());
        operations += support::operations(&report);
        sends = sends.max(engine_sends(mode, report.transactions, support::operations(&report)));
    }
    count_instructions(Counting::Off);
    times.sort_unstable();
    Ok(Cost { time: times[times.len() / 2], operations: operations as f64 / f64::from(CHANGES), sends })
}

/// A transaction is one process; operations on items that follow each other go as one datagram.
fn engine_sends(mode: Mode, transactions: u64, operations: u64) -> u64 {
    match mode {
        Mode::Iptables => transactions,
        Mode::Ipvs => u64::from(operations > 0),
    }
}

fn change(
    engine: &mut Engine<NullKernel, SystemClock>,
    event: &str,
    interner: &mut Interner,
) -> Outcome<portolan::sync::SyncReport> {
    let object: wire::EndpointSlice = serde_json::from_str(black_box(event))?;
    let (converted, _) = convert::slice(&object, interner);
    let (name, slice) = converted.ok_or("a slice without name")?;
    engine.apply(Change::Slice(name, slice));
    Ok(support::sync(engine))
}

/// Instructions of one change in a cluster of this size, as valgrind counts them; `None`: there is no valgrind here.
pub(crate) fn instructions(mode: Mode, services: u32) -> Outcome<Option<u64>> {
    if !cfg!(target_arch = "x86_64") || Command::new("valgrind").arg("--version").output().is_err() {
        return Ok(None);
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("counted");
    let status = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind", "--instr-atstart=no"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(std::env::current_exe()?)
        .args(["change", &format!("{mode:?}"), &services.to_string()])
        .stdout(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("valgrind: {status}").into());
    }
    let text = fs::read_to_string(&file)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).ok_or("valgrind gave no total")?;
    Ok(Some(total.trim().parse::<u64>()? / u64::from(CHANGES)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Counting {
    On,
    Off,
}

/// Tells callgrind to count from now on, or no more; without valgrind this does nothing.
///
/// The request is the sequence of instructions that `valgrind/valgrind.h` documents, with the numbers of
/// `CALLGRIND_START_INSTRUMENTATION` and `CALLGRIND_STOP_INSTRUMENTATION` (`valgrind/callgrind.h`).
fn count_instructions(counting: Counting) {
    let tool = (u64::from(b'C') << 24) | (u64::from(b'T') << 16);
    let request = tool + if counting == Counting::On { 4 } else { 5 };
    let arguments: [u64; 6] = [request, 0, 0, 0, 0, 0];
    #[cfg(target_arch = "x86_64")]
    // SAFETY: on a processor the rotations add up to two whole turns and the exchange is with itself; valgrind reads the
    // arguments and writes rdx.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            in("rax") arguments.as_ptr(),
            inout("rdx") 0_u64 => _,
            in("rdi") 0_u64,
        );
    }
    black_box(arguments);
}
