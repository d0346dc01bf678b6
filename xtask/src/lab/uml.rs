//! User-mode Linux: a kernel that runs as an ordinary program, with the host's files as its own.

use std::process::Command;

use super::job::Job;
use super::packages;

/// Runs on the host, in namespaces of its own.
const FIRST_PROCESS: &str = include_str!("uml-host.sh");
/// Run in the guest, one after the other.
const INIT: &str = include_str!("uml-init.sh");
const ROOT: &str = include_str!("uml-root.sh");

/// Ends the guest, in both scripts. By the kernel itself, since a container has no `halt`.
const OFF: &str = "lab_off() { echo o >/proc/sysrq-trigger; sleep 60; }";

const PROGRAMS: &[(&str, &str)] =
    &[("linux.uml", "user-mode-linux"), ("modprobe", "kmod"), ("ip", "iproute2"), ("unshare", "util-linux")];

/// The first process of the namespaces that the guest runs in. Installs what is missing.
pub(crate) fn command(job: &Job, memory_mb: u32) -> Result<Command, String> {
    packages::ensure(PROGRAMS)?;
    if !packages::is_root() {
        return Err("User-mode Linux with the host's files wants root".into());
    }
    let version = Command::new("linux.uml").arg("--version").output();
    let version = version.map_err(|error| format!("cannot run linux.uml: {error}"))?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    eprintln!("lab: User-mode Linux {version}, {memory_mb} MB, with ip_vs and dummy, other modules when they are used");

    let mut command = Command::new("unshare");
    let mut script = job.script();
    script.push(OFF);
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", FIRST_PROCESS])
        .env("LAB_JOB", script)
        .env("LAB_INIT", INIT)
        .env("LAB_ROOT", ROOT)
        .env("LAB_MEMORY", memory_mb.to_string());
    Ok(command)
}
