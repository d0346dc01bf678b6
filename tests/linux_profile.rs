//! CPU profiles: of this process, and of a daemon over HTTP, read back.

mod linux_support;
#[path = "support/pprof.rs"]
mod pprof;
#[path = "support/running.rs"]
mod running;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use linux_support::in_namespace;
use portolan::linux::profile::{COLLECT_EVERY, CpuProfile, ProfileError};
use running::{METRICS, Running, ask, ask_within, get, wait_for};

const PROGRAM: &str = env!("CARGO_BIN_EXE_portolan");

/// Uses the CPU, where a profile is to see it.
#[inline(never)]
fn burn(rounds: u64) -> u64 {
    (0..rounds).fold(1, |sum: u64, round| std::hint::black_box(sum.wrapping_mul(31) ^ round))
}

/// A profile of half a second.
fn take() -> pprof::Profile {
    let mut profile = CpuProfile::start().expect("nobody else takes one");
    assert!(matches!(CpuProfile::start(), Err(ProfileError::InUse)), "one at a time");
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(COLLECT_EVERY);
        profile.collect();
    }
    pprof::read(&profile.finish(SystemTime::UNIX_EPOCH + Duration::from_secs(5), Duration::from_secs(1)))
}

#[test]
fn a_profile_says_in_which_thread_and_under_which_calls_the_time_went() {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = || {
            while !done.load(Ordering::Relaxed) {
                burn(100_000);
            }
        };
        std::thread::Builder::new().name("busy".to_owned()).spawn_scoped(scope, busy).unwrap();
        let here = burn as fn(u64) -> u64 as usize as u64;
        let program = std::env::current_exe().unwrap();
        let in_burn = |(address, file): &(u64, String)| {
            (here..here + 1024).contains(address) && file.as_str() == program.to_str().unwrap()
        };
        // However little time the machine has for it.
        wait_for("a stack of the busy thread, in the function", || {
            let profile = take();
            assert_eq!(profile.times, [5_000_000_000, 1_000_000_000, 10_000_000]);
            let types = [("samples", "count"), ("cpu", "nanoseconds")];
            assert_eq!(profile.types, types.map(|(name, unit)| (name.to_owned(), unit.to_owned())));
            assert!(profile.samples.iter().all(|sample| sample.values[1] == sample.values[0] * 10_000_000));
            profile.samples.iter().any(|sample| {
                sample.labels["thread"] == "busy" && sample.stack.len() > 3 && sample.stack.iter().any(in_burn)
            })
        });
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_daemon_gives_a_profile_over_http_where_profiling_is_enabled() {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/every-kind/cluster.yaml");
    let arguments = ["--manifests", manifests, "--hostname-override", "node1", "--iptables-variant", "nft"];
    in_namespace(|| {
        let mut command = Command::new(PROGRAM);
        let _daemon = Running::start(command.args(arguments).arg("--profiling").stderr(Stdio::null()));
        wait_for("the metrics server", || get(METRICS, "/healthz").status == 200);
        let profile = std::thread::scope(|scope| {
            let answer = scope.spawn(|| in_this_namespace("/debug/pprof/profile?seconds=2"));
            // The pages give it something to do; a second profile is refused while the first is taken.
            wait_for("it says that one is being taken", || {
                get(METRICS, "/metrics");
                let second = get(METRICS, "/debug/pprof/profile?seconds=1");
                second.status == 500 && second.body.contains("another CPU profile")
            });
            while !answer.is_finished() {
                get(METRICS, "/metrics");
            }
            answer.join().unwrap()
        });
        assert_eq!(profile.status, 200);
        assert!(profile.head.contains("content-type: application/octet-stream"), "{}", profile.head);
        let profile = pprof::read(&profile.bytes);
        assert!(profile.times[1] >= 2_000_000_000, "{:?}", profile.times);
        assert!(profile.files.iter().any(|file| file == PROGRAM), "{:?}", profile.files);
        let of_http = profile.samples.iter().filter(|sample| sample.labels["thread"] == "http");
        assert!(of_http.clone().count() > 0, "the thread that was busy is not there");
        assert!(of_http.clone().any(|sample| sample.stack.iter().filter(|(_, file)| file == PROGRAM).count() > 3));
        assert_eq!(ask(METRICS, "GET /debug/pprof/cmdline", "").body.split('\0').nth(1), Some("--manifests"));
    });
}

fn in_this_namespace(path: &str) -> running::Answer {
    ask_within(Duration::from_secs(60), METRICS, &format!("GET {path}"), "")
}
