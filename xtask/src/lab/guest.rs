//! What the guest kernels have in common: the scripts around them.

use std::process::Command;

use super::job::Job;

/// Runs on the host, in namespaces of its own.
const FIRST_PROCESS: &str = include_str!("guest-host.sh");
/// Run in the guest, one after the other.
const INIT: &str = include_str!("guest-init.sh");
const ROOT: &str = include_str!("guest-root.sh");

/// The first process of the namespaces that a guest runs in. `start` becomes the guest; `inside` is what the scripts in it use.
pub(super) fn command(job: &Job, memory_mb: u32, start: &str, inside: &str) -> Command {
    let mut script = job.script();
    script.push(inside);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", FIRST_PROCESS])
        .env("LAB_JOB", script)
        .env("LAB_START", start)
        .env("LAB_INIT", INIT)
        .env("LAB_ROOT", ROOT)
        .env("LAB_MEMORY", memory_mb.to_string());
    command
}
