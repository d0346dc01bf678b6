//! The daemon, running in a namespace with a fake API server.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::api_server::ApiServer;
use crate::netns::{Netns, Process};

/// How long anything that is only waited for may take, also on a busy machine and with the delays after failures.
pub(crate) const AT_LAST: Duration = Duration::from_secs(90);

const HEALTH: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";

/// The running daemon; killed when dropped.
pub(crate) struct Daemon {
    process: Process,
    node: Netns,
}

/// An answer to a GET.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// The status; 0: nobody listened, or nobody answered.
    pub(crate) status: u16,
    /// The header, in small letters.
    pub(crate) head: String,
    /// The body.
    pub(crate) body: String,
}

impl Daemon {
    /// Starts it in iptables mode.
    pub(crate) fn start(node: &Netns, name: &str, server: &ApiServer, more: &[&str]) -> Daemon {
        Daemon::start_in(node, name, server, "PORTOLAN_TEST=1", more)
    }

    /// The same with one variable of the environment, `NAME=value`.
    pub(crate) fn start_in(node: &Netns, name: &str, server: &ApiServer, variable: &str, more: &[&str]) -> Daemon {
        let (url, name) = (format!("--master={}", server.url()), format!("--hostname-override={name}"));
        let usual = [
            "env",
            variable,
            env!("CARGO_BIN_EXE_portolan"),
            &url,
            &name,
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
            "--iptables-min-sync-period=100ms",
            "--healthz-bind-address=0.0.0.0:10256",
        ];
        Daemon { process: node.spawn(&[&usual, more].concat()), node: node.clone() }
    }

    /// Waits until it has programmed both families.
    pub(crate) fn wait_for_sync(&self) {
        eventually("both families are programmed", || {
            ["IPv4", "IPv6"].iter().all(|family| {
                let label = format!("ip_family=\"{family}\"");
                self.metric("kubeproxy_sync_proxy_rules_last_timestamp_seconds", &label) > 0.0
            })
        });
    }

    /// The status of `/healthz`.
    pub(crate) fn healthz(&self) -> u16 {
        get(&self.node, HEALTH.parse().expect("an address"), "/healthz").status
    }

    /// The status of `/livez`.
    pub(crate) fn livez(&self) -> u16 {
        get(&self.node, HEALTH.parse().expect("an address"), "/livez").status
    }

    /// The value of the first sample of a metric that has this label; 0 if there is none.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let page = get(&self.node, METRICS.parse().expect("an address"), "/metrics").body;
        let is_it = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        };
        let value = page.lines().find(is_it).and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_default()
    }

    /// All samples of a metric, added up.
    pub(crate) fn metric_sum(&self, name: &str) -> f64 {
        let page = get(&self.node, METRICS.parse().expect("an address"), "/metrics").body;
        let of_it =
            page.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        of_it.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Processor time of all its threads, in user space and in the kernel. Asking for it costs the daemon nothing.
    pub(crate) fn processor_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("its threads");
        // Nanoseconds on a processor come first. A thread may end meanwhile.
        let of = |task: std::io::Result<std::fs::DirEntry>| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
        };
        tasks.filter_map(of).sum()
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Ends it with a signal, and waits until it has ended.
    pub(crate) fn end(mut self, signal: Signal) {
        self.stop(signal);
    }

    /// The same for one that is kept, so that another can take its place.
    pub(crate) fn stop(&mut self, signal: Signal) {
        self.process.signal(signal);
        assert!(self.process.wait(Duration::from_secs(20)).is_some(), "it goes on after {signal:?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.process.log();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            println!("the last lines of the daemon:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Asks an HTTP server from inside a namespace.
pub(crate) fn get(from: &Netns, server: SocketAddr, path: &str) -> Answer {
    let text = from.run(|| {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    });
    let text = text.unwrap_or_default();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// Waits until something is so, and panics when it never is.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + AT_LAST;
    while !is_so() {
        assert!(Instant::now() < deadline, "after {AT_LAST:?} it is still not so that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
