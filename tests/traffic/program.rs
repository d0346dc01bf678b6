//! The program under test, in the namespace of node1.
#![allow(dead_code, reason = "every test binary that includes this uses another part of it")]

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::manifest::Manifests;
use crate::netns::{Netns, Process};

/// Which kind of iptables the program uses, and in which layout. Displays as the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// iptables-nft, kube-proxy's layout.
    Nft,
    /// iptables-legacy, kube-proxy's layout.
    Legacy,
    /// iptables-nft, compact layout.
    CompactNft,
    /// iptables-legacy, compact layout.
    CompactLegacy,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Variant::Nft | Variant::CompactNft => "nft",
            Variant::Legacy | Variant::CompactLegacy => "legacy",
        })
    }
}

/// How the program works on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Rules alone.
    Iptables,
    /// The kernel's load balancer, and a few rules.
    Ipvs,
}

/// A mode with a kind of iptables. A [`Variant`] alone means iptables mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    /// The mode.
    pub(crate) mode: Mode,
    /// The kind of iptables.
    pub(crate) variant: Variant,
}

impl From<Variant> for Setup {
    fn from(variant: Variant) -> Setup {
        Setup { mode: Mode::Iptables, variant }
    }
}

impl Setup {
    /// IPVS mode with the kind of iptables that works here: User-mode Linux has no nf_tables.
    pub(crate) fn ipvs() -> Setup {
        let uml = std::env::var_os("PORTOLAN_LAB").is_some_and(|kernel| kernel == "uml");
        Setup { mode: Mode::Ipvs, variant: if uml { Variant::Legacy } else { Variant::Nft } }
    }

    fn arguments(self) -> [String; 3] {
        let mode = match self.mode {
            Mode::Iptables => "iptables",
            Mode::Ipvs => "ipvs",
        };
        let layout = match self.variant {
            Variant::Nft | Variant::Legacy => "kube-proxy",
            Variant::CompactNft | Variant::CompactLegacy => "compact",
        };
        let variant = self.variant;
        [format!("--mode={mode}"), format!("--iptables-variant={variant}"), format!("--iptables-layout={layout}")]
    }
}

impl Variant {
    /// Runs one of this variant's iptables programs: `save` or `restore` with its arguments and input.
    pub(crate) fn feed(self, netns: &Netns, tool: &str, operation: &str, args: &[&str], input: &str) -> String {
        let program = format!("{tool}-{self}-{operation}");
        netns.feed(&[&[program.as_str()], args].concat(), input)
    }

    /// All rules of a family: `iptables` or `ip6tables`.
    pub(crate) fn save(self, netns: &Netns, tool: &str) -> String {
        self.feed(netns, tool, "save", &[], "")
    }
}

/// How long anything that is only waited for may take.
pub(crate) const AT_LAST: Duration = Duration::from_secs(30);

/// The settings of most tests.
pub(crate) const USUAL: &[&str] = &["--cluster-cidr=10.244.0.0/16,fd00:10:244::/48"];

const PROGRAM: &str = env!("CARGO_BIN_EXE_portolan");
const METRICS: &str = "127.0.0.1:10249";

fn arguments(setup: Setup, manifests: &Manifests, more: &[&str]) -> Vec<String> {
    let mut args = Vec::from(setup.arguments());
    args.push(format!("--manifests={}", manifests.path().display()));
    args.push("--hostname-override=node1".to_owned());
    args.extend(more.iter().map(ToString::to_string));
    args
}

/// Makes the rules once. Panics unless the program says that it succeeded.
pub(crate) fn sync_once(node: &Netns, setup: impl Into<Setup>, manifests: &Manifests, more: &[&str]) {
    let args = arguments(setup.into(), manifests, more);
    let args: Vec<&str> = [PROGRAM, "sync", "--once"].into_iter().chain(args.iter().map(String::as_str)).collect();
    let output = node.try_exec(&args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?} ended with {}:\n{text}", output.status);
}

/// The program running as it does on a node.
pub(crate) struct Program {
    process: Process,
    node: Netns,
}

impl Program {
    /// Starts it and waits until its first sync of both families is done.
    pub(crate) fn start(node: &Netns, setup: impl Into<Setup>, manifests: &Manifests, more: &[&str]) -> Program {
        let mut program = Program::launch(node, setup, manifests, more);
        program.wait_for_sync();
        program
    }

    /// Starts it.
    pub(crate) fn launch(node: &Netns, setup: impl Into<Setup>, manifests: &Manifests, more: &[&str]) -> Program {
        let mut args = arguments(setup.into(), manifests, more);
        args.push("--healthz-bind-address=0.0.0.0:10256".to_owned());
        args.push(format!("--metrics-bind-address={METRICS}"));
        let args: Vec<&str> = [PROGRAM].into_iter().chain(args.iter().map(String::as_str)).collect();
        Program { process: node.spawn(&args), node: node.clone() }
    }

    /// Starts it with a configuration file, which says everything but the kind of iptables.
    pub(crate) fn configured(node: &Netns, file: &Path, variant: Variant, manifests: &Manifests) -> Program {
        let (file, manifests) = (file.display(), manifests.path().display());
        let (file, manifests) = (format!("--config={file}"), format!("--manifests={manifests}"));
        let args = [PROGRAM, &file, &manifests, &format!("--iptables-variant={variant}")];
        Program { process: node.spawn(&args), node: node.clone() }
    }

    /// Waits until its first sync of both families is done.
    pub(crate) fn wait_for_sync(&mut self) {
        let deadline = Instant::now() + AT_LAST;
        while !self.has_synced() {
            if let Some(status) = self.process.wait(Duration::from_millis(20)) {
                panic!("the program ended with {status}:\n{}", self.process.log());
            }
            assert!(Instant::now() < deadline, "no sync after {AT_LAST:?}:\n{}", self.process.log());
        }
    }

    /// Sends a signal that ends it, and waits until it has.
    pub(crate) fn end(&mut self, signal: Signal) {
        self.process.signal(signal);
        self.process.wait(AT_LAST).unwrap_or_else(|| panic!("it goes on after {signal:?}"));
    }

    fn has_synced(&self) -> bool {
        ["IPv4", "IPv6"].iter().all(|family| {
            let label = format!("ip_family=\"{family}\"");
            self.metric("kubeproxy_sync_proxy_rules_last_timestamp_seconds", &label).is_some_and(|time| time > 0.0)
        })
    }

    /// The value of the first sample of a metric that has this label.
    pub(crate) fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let (_, text) = get(&self.node, METRICS.parse().expect("address"), "/metrics").ok()?;
        let line = text.lines().find(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        })?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// The process.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Asks an HTTP server from inside a namespace; returns status and body.
pub(crate) fn get(from: &Netns, server: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let text = from.run(|| {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    })?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.unwrap_or_default(), body.to_owned()))
}

/// Waits until something is so, and panics when it never is.
pub(crate) fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    eventually_within(AT_LAST, what, is_so);
}

/// The same for what may take longer.
pub(crate) fn eventually_within(at_last: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + at_last;
    while !is_so() {
        assert!(Instant::now() < deadline, "after {at_last:?} it is still not so that {what}");
        thread::sleep(at_last / 500);
    }
}
