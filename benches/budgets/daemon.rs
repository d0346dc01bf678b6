//! The program as it is shipped, in a network namespace of its own with a fake API server.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::Outcome;
use crate::api_server::ApiServer;
use crate::netns::{Netns, Process};
use crate::support::fleet::Fleet;
use crate::support::objects;

/// How long the first sync may take; nothing is concluded from it.
const PATIENCE: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(100);

/// A running daemon.
pub(crate) struct Daemon {
    server: ApiServer,
    process: Process,
    node: Netns,
    started: SystemTime,
}

/// What a daemon has used from its start until its first sync was complete.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// Resident memory in bytes, and the most until then.
    pub(crate) resident: u64,
    pub(crate) peak: u64,
    /// From the start of the process to the end of the first sync.
    pub(crate) took: Duration,
    /// Of it reading the kernel, computing, and waiting for the tools.
    pub(crate) dump: Duration,
    pub(crate) compute: Duration,
    pub(crate) apply: Duration,
    /// Programs started.
    pub(crate) processes: u64,
    /// Requests to the API server.
    pub(crate) requests: usize,
    /// Bytes that went over the loopback interface, to and from the API server.
    pub(crate) api_bytes: u64,
    /// Bytes written to the tools.
    pub(crate) tool_bytes: u64,
}

impl Start {
    /// The time that is portolan's own.
    pub(crate) fn without_programming(&self) -> Duration {
        self.took.saturating_sub(self.apply)
    }
}

impl Daemon {
    /// Fills an API server with a cluster and starts the program with this argument.
    pub(crate) fn start(program: &str, mode: &str, fleet: Fleet) -> Outcome<Daemon> {
        let node = Netns::new("node");
        let server = node.run(ApiServer::start);
        server.apply(objects::node());
        for at in 0..fleet.services {
            server.apply(objects::service(at));
            server.apply(objects::slice(fleet, at, 0));
        }
        let master = format!("--master={}", server.url());
        let arguments = [program, &master, mode, "--hostname-override=node-0", "--cluster-cidr=10.244.0.0/16"];
        let started = SystemTime::now();
        let process = node.spawn(&arguments);
        Ok(Daemon { server, process, node, started })
    }

    /// Waits for the first complete sync, and until its memory stays the same.
    pub(crate) fn first_sync(&mut self) -> Outcome<Start> {
        let deadline = Instant::now() + PATIENCE;
        let synced = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        let mut before = 0;
        loop {
            std::thread::sleep(PAUSE);
            if Instant::now() > deadline || self.process.wait(Duration::ZERO).is_some() {
                return Err(format!("no first sync:\n{}", self.process.log()).into());
            }
            // Asked for only when it may be there: an answer costs the daemon something.
            if self.sample(synced, "IPv4") == 0.0 {
                continue;
            }
            let resident = self.status("VmRSS:")?;
            if resident == before {
                break;
            }
            before = resident;
        }
        let ended = UNIX_EPOCH + Duration::from_secs_f64(self.sample(synced, "IPv4"));
        let stage = |name| {
            let label = format!("stage=\"{name}\"");
            Duration::from_secs_f64(self.sample("portolan_sync_stage_duration_seconds_sum", &label))
        };
        Ok(Start {
            resident: before,
            peak: self.status("VmHWM:")?,
            took: ended.duration_since(self.started)?,
            dump: stage("dump"),
            compute: stage("compute"),
            apply: stage("apply"),
            processes: self.processes(),
            requests: self.server.requests().len(),
            api_bytes: self.loopback_bytes()?,
            tool_bytes: self.written()?,
        })
    }

    /// Programs started so far.
    pub(crate) fn processes(&self) -> u64 {
        self.sample("portolan_processes_started_total", "") as u64
    }

    /// Processor time of its threads so far, in user space and in the kernel.
    pub(crate) fn processor_time(&self) -> Outcome<Duration> {
        let mut sum = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(Duration::from_nanos(sum))
    }

    /// A sample of the metrics; 0 if there is none.
    fn sample(&self, name: &str, label: &str) -> f64 {
        let address = "127.0.0.1:10249".parse().expect("an address");
        let page = crate::daemon_support::get(&self.node, address, "/metrics").body;
        let is_it = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        };
        page.lines().find(is_it).and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }

    /// A figure of `/proc/PID/status`, in bytes.
    fn status(&self, name: &str) -> Outcome<u64> {
        memory(&self.process.id().to_string(), name)
    }

    fn loopback_bytes(&self) -> Outcome<u64> {
        let devices = self.node.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        let line = devices.lines().find_map(|line| line.trim().strip_prefix("lo:")).ok_or("no loopback interface")?;
        Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
    }

    /// Bytes written by `write`: to the tools, and a few lines of log. Sockets are written to in another way.
    fn written(&self) -> Outcome<u64> {
        let text = fs::read_to_string(format!("/proc/{}/io", self.process.id()))?;
        let figure = text.lines().find_map(|line| line.strip_prefix("wchar: ")).ok_or("no wchar")?;
        Ok(figure.parse()?)
    }
}

/// A figure of the memory of a process (`self`: this one), in bytes.
pub(crate) fn memory(process: &str, name: &str) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let figure = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
    Ok(figure.ok_or("no figures of memory")?.parse::<u64>()? * 1024)
}
