//! The host's own kernel, in fresh network, mount and process namespaces.

use std::path::Path;
use std::process::{Command, Stdio};

use super::job::Job;

const FIRST_PROCESS: &str = include_str!("native.sh");
const IP_VS: &str = "/proc/net/ip_vs";

/// Whether this machine's kernel has all that the IPVS mode needs: `ip_vs` (loaded if it is a module) and dummy links.
pub(crate) fn has_ip_vs() -> bool {
    let loaded = Path::new(IP_VS).exists() || (succeeds("modprobe", &["-q", "ip_vs"]) && Path::new(IP_VS).exists());
    loaded && succeeds("unshare", &["--net", "ip", "link", "add", "lab0", "type", "dummy"])
}

/// The first process of the namespaces.
pub(crate) fn command(job: &Job) -> Command {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let ip_vs = if Path::new(IP_VS).exists() { "modules as the host has them" } else { "which has no ip_vs" };
    eprintln!("lab: the host's Linux {}, {ip_vs}", release.trim());
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", FIRST_PROCESS])
        .env("LAB_JOB", job.script());
    command
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
