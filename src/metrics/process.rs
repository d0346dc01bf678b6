//! `process_*`: what the kernel says of this process. The collector that comes with the prometheus crate reports CPU
//! time in whole seconds, which makes rates useless; this one reads the same files and keeps the fractions.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Opts};

use super::float;

/// The unit of times in `/proc/self/stat`: `USER_HZ`, which is 100 on every architecture that Kubernetes runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What is read of `/proc`. A file that cannot be read leaves its values `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Readings {
    cpu_seconds: Option<f64>,
    virtual_bytes: Option<u64>,
    resident_bytes: Option<u64>,
    threads: Option<u64>,
    /// Seconds from boot to the start of the process.
    started_after_boot: Option<f64>,
    open_files: Option<u64>,
    max_files: Option<u64>,
}

pub(super) struct ProcessCollector {
    desc: Vec<Desc>,
    /// Unix time of the boot, which does not change.
    boot_time: Option<u64>,
}

const METRICS: [(&str, &str); 7] = [
    ("process_cpu_seconds_total", "CPU time spent in user and system mode, in seconds."),
    ("process_virtual_memory_bytes", "Virtual memory, in bytes."),
    ("process_resident_memory_bytes", "Resident memory, in bytes."),
    ("process_threads", "Threads."),
    ("process_start_time_seconds", "When the process was started, in Unix time."),
    ("process_open_fds", "Open file descriptors."),
    ("process_max_fds", "The most file descriptors that may be open."),
];

impl ProcessCollector {
    pub(super) fn new() -> Result<ProcessCollector, prometheus::Error> {
        let desc = METRICS
            .iter()
            .map(|(name, help)| Desc::new((*name).to_owned(), (*help).to_owned(), Vec::new(), Default::default()))
            .collect::<Result<_, _>>()?;
        let boot_time = fs::read_to_string("/proc/stat").ok().and_then(|stat| boot_time(&stat));
        Ok(ProcessCollector { desc, boot_time })
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.desc.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let read = readings();
        let started = self.boot_time.zip(read.started_after_boot).map(|(boot, after)| float(boot) + after);
        let values = [
            read.cpu_seconds,
            read.virtual_bytes.map(float),
            read.resident_bytes.map(float),
            read.threads.map(float),
            started,
            read.open_files.map(float),
            read.max_files.map(float),
        ];
        METRICS.iter().zip(values).filter_map(|((name, help), value)| family(name, help, value?)).flatten().collect()
    }
}

fn family(name: &str, help: &str, value: f64) -> Option<Vec<MetricFamily>> {
    let opts = Opts::new(name, help);
    if name.ends_with("_total") {
        let counter = Counter::with_opts(opts).ok()?;
        counter.inc_by(value.max(0.0));
        Some(counter.collect())
    } else {
        let gauge = Gauge::with_opts(opts).ok()?;
        gauge.set(value);
        Some(gauge.collect())
    }
}

fn readings() -> Readings {
    let mut readings = fs::read_to_string("/proc/self/stat").map(|stat| parse_stat(&stat)).unwrap_or_default();
    readings.resident_bytes = fs::read_to_string("/proc/self/status").ok().and_then(|status| resident_bytes(&status));
    readings.open_files = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64);
    readings.max_files = fs::read_to_string("/proc/self/limits").ok().and_then(|limits| max_files(&limits));
    readings
}

/// Reads `/proc/self/stat` (proc(5)). The command in the second field may hold anything, so counting begins after its
/// closing parenthesis.
fn parse_stat(stat: &str) -> Readings {
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    // The first field here is number 3 of proc(5).
    let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
    let ticks = |count: u64| float(count) / TICKS_PER_SECOND;
    Readings {
        cpu_seconds: field(14).zip(field(15)).map(|(user, system)| ticks(user + system)),
        virtual_bytes: field(23),
        threads: field(20),
        started_after_boot: field(22).map(ticks),
        ..Readings::default()
    }
}

/// The resident memory in `/proc/self/status`, which is in kB and so spares us the size of a page.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The soft limit of open files in `/proc/self/limits`; `None` when unlimited.
fn max_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_after_the_command_whatever_it_holds() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 150 25 0 0 20 0 3 0 4200 1000000 12 18446744073709551615 1";
        let read = parse_stat(stat);
        assert_eq!(read.cpu_seconds, Some(1.75));
        assert_eq!(read.virtual_bytes, Some(1_000_000));
        assert_eq!(resident_bytes("VmSize:\t  9 kB\nVmRSS:\t    2 kB\n"), Some(2048));
        assert_eq!(read.threads, Some(3));
        assert_eq!(read.started_after_boot, Some(42.0));
        assert_eq!(parse_stat("nonsense"), Readings::default());
    }

    #[test]
    fn limits_and_boot_time_are_read() {
        assert_eq!(
            max_files("Max processes  1 2 processes\nMax open files            1024  4096  files\n"),
            Some(1024)
        );
        assert_eq!(max_files("Max open files            unlimited  unlimited  files\n"), None);
        assert_eq!(boot_time("cpu 1\nbtime 1700000000\nx 1\n"), Some(1_700_000_000));
    }

    #[test]
    fn this_process_has_sensible_values() {
        let read = readings();
        assert!(read.resident_bytes.unwrap() > 100_000);
        assert!(read.open_files.unwrap() >= 3);
        assert!(read.threads.unwrap() >= 1);
    }
}
