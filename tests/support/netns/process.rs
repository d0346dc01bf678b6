//! A program that runs inside a namespace for a while.

use std::io::{BufRead, BufReader};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::Netns;

/// A running program. Killed when dropped.
pub(crate) struct Process {
    pid: Pid,
    exit: Receiver<ExitStatus>,
    exited: Option<ExitStatus>,
    log: Arc<Mutex<Vec<String>>>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts it in a thread that lives as long as the program, since the program dies with its thread.
    pub(super) fn start(netns: Netns, args: &[&str]) -> Process {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let (send_pid, pid) = channel();
        let (send_exit, exit) = channel();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        let keeper = thread::spawn(move || {
            netns.enter();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let mut command = netns.command(&args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap_or_else(|error| panic!("{args:?}: {error}"));
            let stdout = child.stdout.take().expect("piped");
            let stderr = child.stderr.take().expect("piped");
            send_pid.send(Pid::from_child(&child)).expect("the starter waits");
            thread::scope(|scope| {
                scope.spawn(|| collect(stdout, &lines));
                scope.spawn(|| collect(stderr, &lines));
            });
            let status = child.wait().expect("wait for the program");
            // Nobody may be interested any more.
            let _ = send_exit.send(status);
        });
        let pid = pid.recv().expect("the program did not start");
        Process { pid, exit, exited: None, log, keeper: Some(keeper) }
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.exited.is_none() {
            kill_process(self.pid, signal).expect("send signal");
        }
    }

    /// Waits for its end; `None`: still running after this time.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = match self.exit.recv_timeout(timeout) {
                Ok(status) => Some(status),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => panic!("the program's keeper ended without an exit status"),
            };
        }
        self.exited
    }

    /// Everything it has written so far, to either stream.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("log").join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.wait(Duration::ZERO).is_none() {
            // It may end by itself just now.
            let _ = kill_process(self.pid, Signal::KILL);
        }
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

fn collect(stream: impl std::io::Read, lines: &Mutex<Vec<String>>) {
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        lines.lock().expect("log").push(line);
    }
}
