//! Network namespaces inside one test process, and a small world of them.
//!
//! A namespace exists only as a file descriptor of this process: nothing is mounted or named, so nothing is left behind
//! however the process ends. Interfaces live and die with their namespace. Child processes are killed by the kernel when
//! the thread that started them ends.
//!
//! Needs the right to make network namespaces and to administrate them: root, or `unshare --user --map-root-user`.
#![allow(dead_code, reason = "every test binary that includes this uses another part of it")]

pub(crate) mod arp;
pub(crate) mod flow;
pub(crate) mod ipvs;
pub(crate) mod ping;
pub(crate) mod probe;
mod process;
pub(crate) mod server;
pub(crate) mod world;

pub(crate) use process::Process;

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace. Cheap to clone; it ends with the last clone, process and socket in it.
#[derive(Clone)]
pub(crate) struct Netns {
    name: Arc<str>,
    file: Arc<File>,
    /// Stands in for `/run/xtables.lock`, so that namespaces of different tests do not wait for each other.
    xtables_lock: Arc<tempfile::TempPath>,
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "netns {}", self.name)
    }
}

impl Netns {
    /// Makes a namespace with the loopback interface up. The name is only for messages.
    pub(crate) fn new(name: &str) -> Netns {
        let file = thread::spawn(|| {
            // SAFETY: CLONE_NEWNET leaves memory and file descriptors as they are; only this thread moves.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .expect("making a network namespace needs root, or run under `unshare --user --map-root-user`");
            File::open("/proc/thread-self/ns/net").expect("open the new namespace")
        })
        .join()
        .expect("the thread that makes a namespace");
        let xtables_lock = tempfile::NamedTempFile::new().expect("lock file").into_temp_path();
        let netns = Netns { name: name.into(), file: Arc::new(file), xtables_lock: Arc::new(xtables_lock) };
        netns.exec(&["ip", "link", "set", "lo", "up"]);
        netns
    }

    /// The name given to [`Netns::new`].
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace, for the rest of its life.
    pub(crate) fn enter(&self) {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter namespace");
    }

    /// Runs a closure in a thread inside the namespace and waits for it.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let handle = scope.spawn(|| {
                self.enter();
                work()
            });
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes a value below `/proc/sys`.
    pub(crate) fn sysctl(&self, path: &str, value: &str) {
        let path = PathBuf::from("/proc/sys").join(path);
        self.run(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// A command that will run in this namespace when it is spawned by a thread inside it.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(args[0]);
        command.args(&args[1..]).env("XTABLES_LOCKFILE", &**self.xtables_lock).stdin(Stdio::null());
        die_with_parent(&mut command);
        command
    }

    /// Runs a command to its end and returns what happened, whatever it was.
    pub(crate) fn try_exec(&self, args: &[&str]) -> Output {
        self.run(|| self.command(args).output().unwrap_or_else(|error| panic!("{args:?}: {error}")))
    }

    /// Runs a command that must succeed; returns its standard output.
    pub(crate) fn exec(&self, args: &[&str]) -> String {
        let output = self.try_exec(args);
        assert!(output.status.success(), "{}: {args:?}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("output is text")
    }

    /// Runs a command that must succeed, with this text on its standard input.
    pub(crate) fn feed(&self, args: &[&str], input: &str) -> String {
        let output = self.run(|| {
            let mut command = self.command(args);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap_or_else(|error| panic!("{args:?}: {error}"));
            child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write to child");
            child.wait_with_output().expect("wait for child")
        });
        assert!(output.status.success(), "{}: {args:?}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("output is text")
    }

    /// Runs `ip -batch` on lines, each an `ip` command without the word `ip`.
    pub(crate) fn ip(&self, lines: &str) {
        self.feed(&["ip", "-batch", "-"], lines);
    }

    /// Starts a program that goes on running.
    pub(crate) fn spawn(&self, args: &[&str]) -> Process {
        Process::start(self.clone(), args)
    }

    /// Makes a veth pair: one end here, the other in another namespace.
    pub(crate) fn veth(&self, own: &str, peer: &Netns, peer_name: &str) {
        // The command runs here; the other namespace is named by our descriptor of it.
        use std::os::fd::AsRawFd;
        let target = format!("/proc/{}/fd/{}", std::process::id(), peer.file.as_raw_fd());
        self.exec(&["ip", "link", "add", own, "type", "veth", "peer", "name", peer_name, "netns", &target]);
    }
}

/// Lets the kernel kill the child when the thread that starts it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
}
