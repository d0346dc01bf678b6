//! QEMU without acceleration: Debian's stock kernel on two processors that are emulated.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::guest;
use super::job::Job;
use super::packages;

const KERNEL: &str = include_str!("qemu-kernel.sh");
const START: &str = include_str!("qemu-start.sh");
const INSIDE: &str = include_str!("qemu-guest.sh");

const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
];

/// The first process of the namespaces that the guest runs in. Installs what is missing, and fetches the kernel once.
pub(crate) fn command(job: &Job, memory_mb: u32) -> Result<Command, String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the lab's kernel for QEMU is one for x86-64, as this machine is not".into());
    }
    packages::ensure(PROGRAMS)?;
    if !packages::is_root() {
        return Err("QEMU with the host's files wants root".into());
    }
    let kernel = kernel()?;
    let release = fs::read_dir(kernel.join("lib/modules")).ok().and_then(|mut names| names.next()?.ok());
    let release = release.map(|name| name.file_name().to_string_lossy().into_owned()).unwrap_or_default();
    eprintln!(
        "lab: QEMU without acceleration, Linux {release}, 2 processors, {memory_mb} MB, with ip_vs and dummy, other modules \
         when they are used"
    );
    let inside = format!("{INSIDE}\nlab_modules={}\n", super::job::shell_word(kernel.join("lib/modules").as_os_str()));
    let mut command = guest::command(job, memory_mb, START, &inside);
    command.env("LAB_KERNEL", kernel);
    Ok(command)
}

/// The directory of the unpacked kernel, under the target directory.
fn kernel() -> Result<PathBuf, String> {
    let target = match env::var_os("CARGO_TARGET_DIR") {
        Some(target) => env::current_dir().map_err(|error| error.to_string())?.join(target),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(|root| root.join("target")).unwrap_or_default(),
    };
    let place = target.join("lab-kernel");
    if place.is_dir() {
        return Ok(place);
    }
    eprintln!("lab: fetching Debian's kernel (package linux-image-amd64, 70 MB) to {}", place.display());
    fs::create_dir_all(&target).map_err(|error| format!("cannot make {}: {error}", target.display()))?;
    let fetched = Command::new("sh")
        .args(["-c", KERNEL, "sh"])
        .arg(&place)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    // Another lab may have been quicker.
    if fetched || place.join("boot").is_dir() {
        return Ok(place);
    }
    Err("cannot fetch Debian's kernel: apt-get has no linux-image-amd64 (QEMU's guest needs it)".into())
}
