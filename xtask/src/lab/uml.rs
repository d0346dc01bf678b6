//! User-mode Linux: a kernel that runs as an ordinary program, with the host's files as its own.

use std::process::Command;

use super::guest;
use super::job::Job;
use super::packages;

const START: &str = include_str!("uml-start.sh");
const INSIDE: &str = include_str!("uml-guest.sh");

const PROGRAMS: &[(&str, &str)] =
    &[("linux.uml", "user-mode-linux"), ("modprobe", "kmod"), ("ip", "iproute2"), ("unshare", "util-linux")];

/// Installs what is missing. Fails where this kernel cannot be had.
pub(crate) fn ensure() -> Result<(), String> {
    packages::ensure(PROGRAMS)?;
    if !packages::is_root() {
        return Err("User-mode Linux with the host's files wants root".into());
    }
    Ok(())
}

/// The first process of the namespaces that the guest runs in, on a machine where [`ensure`] was content.
pub(crate) fn command(job: &Job, memory_mb: u32) -> Result<Command, String> {
    let version = Command::new("linux.uml").arg("--version").output();
    let version = version.map_err(|error| format!("cannot run linux.uml: {error}"))?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    eprintln!("lab: User-mode Linux {version}, {memory_mb} MB, with ip_vs and dummy, other modules when they are used");
    Ok(guest::command(job, memory_mb, START, INSIDE))
}
