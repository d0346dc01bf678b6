//! Programs that a kernel of the lab needs, and the Debian packages that they come in.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes sure that each `(program, package)` is there: by apt as root, and otherwise fails with what to install.
pub(crate) fn ensure(wanted: &[(&str, &str)]) -> Result<(), String> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() || !is_program("apt-get") {
        return Err(format!("these packages are missing, install them (apt-get install {list}) and try again: {list}"));
    }
    eprintln!("lab: installing {list}");
    // Package lists may be there and current; only when they are not are they fetched.
    if !(install(&missing) || apt(&["update"]) && install(&missing)) {
        return Err(format!("apt-get could not install {list}"));
    }
    Ok(())
}

/// Whether the processes started here may do everything on this machine.
pub(crate) fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&match std::fs::metadata("/proc/self") {
        Ok(metadata) => metadata,
        Err(_) => return false,
    }) == 0
}

fn missing<'a>(wanted: &[(&str, &'a str)]) -> Vec<&'a str> {
    wanted.iter().filter(|(program, _)| !is_program(program)).map(|(_, package)| *package).collect()
}

fn is_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin"].map(Into::into);
    env::split_paths(&path).chain(system).any(|directory| Path::new(&directory).join(name).is_file())
}

fn install(packages: &[&str]) -> bool {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

/// Several labs may install at the same time: apt waits for its lock.
fn apt(arguments: &[&str]) -> bool {
    Command::new("apt-get")
        .args(["--quiet=2", "--option", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
