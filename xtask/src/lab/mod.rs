//! `cargo xtask lab`: runs a command as root on a kernel that has `ip_vs`. docs/lab.md is its manual.
//!
//! The command runs in namespaces (or in a guest kernel inside namespaces) whose first process holds one end of a socket.
//! That process tells the command's status through it and ends everything when the other end is closed. So whatever
//! happens to this process, the lab goes with it, and since all mounts are in a mount namespace of their own, nothing is
//! left behind.

mod guest;
mod job;
mod native;
mod options;
mod packages;
mod qemu;
mod uml;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use job::Job;
use options::{KernelChoice, Options};

/// Exit code when the time is over, as `timeout` has it.
const TIMED_OUT: u8 = 124;
/// Exit code when the lab itself failed, as `env` and `timeout` have it.
const LAB_FAILED: u8 = 125;

/// How a lab ended.
enum Outcome {
    /// The command ended with this status (128 + n: by signal n).
    Status(u8),
    /// The time was over; everything in the lab was ended.
    TimedOut,
    /// The lab ended without a status, for a reason that it has told on standard error.
    NoStatus,
}

/// Runs the command in `arguments` (those after `lab`) and gives its exit code.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let result = Options::parse(arguments).and_then(|options| {
        let outcome = run_on_kernel(&options)?;
        Ok((outcome, options.timeout))
    });
    match result {
        Ok((Outcome::Status(status), _)) => ExitCode::from(status),
        Ok((Outcome::TimedOut, timeout)) => {
            eprintln!(
                "lab: the command took longer than {} s and was ended, with everything it had started",
                timeout.as_secs()
            );
            ExitCode::from(TIMED_OUT)
        }
        Ok((Outcome::NoStatus, _)) => ExitCode::from(LAB_FAILED),
        Err(message) => {
            eprintln!("lab: {message}");
            ExitCode::from(LAB_FAILED)
        }
    }
}

fn run_on_kernel(options: &Options) -> Result<Outcome, String> {
    let kernel = match options.kernel {
        Some(kernel) => kernel,
        None if native::has_ip_vs() => KernelChoice::Host,
        None => match uml::ensure() {
            Ok(()) => KernelChoice::Uml,
            Err(reason) => {
                eprintln!("lab: no User-mode Linux ({reason}), so QEMU");
                KernelChoice::Qemu
            }
        },
    };
    let job = Job::of_this_process(kernel.name(), &options.command)?;
    let command = match kernel {
        KernelChoice::Host => native::command(&job),
        KernelChoice::Uml => {
            uml::ensure()?;
            uml::command(&job, options.memory_mb)?
        }
        KernelChoice::Qemu => qemu::command(&job, options.memory_mb)?,
    };
    watch(command, options).map_err(|error| format!("cannot start unshare (of util-linux): {error}"))
}

/// Starts the namespaces' first process, passes its output on, and waits for the status.
fn watch(mut command: Command, options: &Options) -> io::Result<Outcome> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let started = Instant::now();
    // A process group of its own: Ctrl-C reaches this process only, and the lab ends because its socket does.
    let mut child = command
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    // `command` holds the other end of the socket as long as it lives.
    drop(command);
    let stdout = child.stdout.take().map(|pipe| thread::spawn(move || pass_on(pipe, io::stdout())));
    let stderr = child.stderr.take().map(|pipe| thread::spawn(move || pass_on(pipe, io::stderr())));

    let status = read_until(&mut ours, started, options.timeout);
    // Nothing in the lab outlives its first process, and that one does not outlive the socket.
    let _ = ours.shutdown(Shutdown::Both);
    drop(ours);
    child.wait()?;
    for thread in [stdout, stderr].into_iter().flatten() {
        let _ = thread.join();
    }
    Ok(match status {
        Some(text) => text.trim().parse().map_or(Outcome::NoStatus, Outcome::Status),
        None => Outcome::TimedOut,
    })
}

/// Everything that comes through `socket` until it is closed; `None` when the time is over before.
fn read_until(socket: &mut UnixStream, started: Instant, timeout: std::time::Duration) -> Option<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 64];
    loop {
        let left = timeout.checked_sub(started.elapsed()).filter(|left| !left.is_zero())?;
        // Fails for a duration of zero only.
        let _ = socket.set_read_timeout(Some(left));
        match socket.read(&mut buffer) {
            Ok(0) => return Some(String::from_utf8_lossy(&text).into_owned()),
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Some(String::new()),
        }
    }
}

/// Copies as it comes. When nobody reads `to` any more, `from` is read to its end all the same, so that the command does not
/// wait for ever.
fn pass_on(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 16 * 1024];
    let mut open = true;
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        open = open && to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_ok();
    }
}
