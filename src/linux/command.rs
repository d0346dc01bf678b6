//! Running a tool: input streamed in, output streamed out line by line, and never a hang.
//!
//! The child is started by the calling thread and so runs in that thread's network namespace.

use std::ffi::OsString;
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::kernel::{ErrorKind, KernelError};

/// How much of standard error is kept; the rest is read and dropped.
const STDERR_LIMIT: usize = 64 * 1024;
/// A line longer than this is handed out in pieces.
const LINE_LIMIT: usize = 1024 * 1024;
/// Without a process descriptor (before Linux 5.3), how often the end of the child is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long a killed child is waited for. One that sits in the kernel may take longer and is left behind.
const KILL_GRACE: Duration = Duration::from_secs(1);

static STARTED: AtomicU64 = AtomicU64::new(0);

/// How many processes this one has started so far.
pub fn processes_started() -> u64 {
    STARTED.load(Ordering::Relaxed)
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Invocation<'a> {
    /// The program, looked for in `PATH`.
    pub program: &'a str,
    /// Its arguments.
    pub arguments: &'a [&'a str],
    /// Variables set for it besides the inherited ones. A `PATH` here also decides where the program is looked for.
    pub environment: &'a [(OsString, OsString)],
    /// When it is killed.
    pub deadline: Duration,
}

/// Standard input, piece by piece: appends the next one; if it appends nothing, that was all.
pub type Input<'a> = &'a mut dyn FnMut(&mut Vec<u8>);

/// No standard input.
pub fn nothing(_: &mut Vec<u8>) {}

/// All of it in one piece.
pub fn once(mut input: Vec<u8>) -> impl FnMut(&mut Vec<u8>) {
    move |piece| piece.append(&mut input)
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// The first 64 KiB of its standard error.
    pub stderr: String,
}

impl Finished {
    /// Whether it ended with status 0.
    pub fn success(&self) -> bool {
        self.status == Some(0)
    }
}

/// Why a program did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed.
    #[error("{program} is not installed")]
    Missing {
        /// The program.
        program: String,
    },
    /// It could not be started, or talking to it failed.
    #[error("cannot run {program}: {error}")]
    Failed {
        /// The program.
        program: String,
        /// Why.
        error: std::io::Error,
    },
    /// It was killed at its deadline.
    #[error("{program} did not finish within {} s and was killed", deadline.as_secs_f64())]
    TimedOut {
        /// The program.
        program: String,
        /// The time it had.
        deadline: Duration,
    },
}

impl CommandError {
    /// As an error of the kernel layer, for calls that change nothing.
    pub fn to_kernel_error(&self) -> KernelError {
        let kind = match self {
            CommandError::Missing { .. } => ErrorKind::Unsupported,
            CommandError::Failed { error, .. } if error.kind() == IoErrorKind::PermissionDenied => ErrorKind::Denied,
            CommandError::Failed { error, .. } if error.kind() == IoErrorKind::OutOfMemory => ErrorKind::NoSpace,
            CommandError::Failed { .. } => ErrorKind::Transient,
            CommandError::TimedOut { .. } => ErrorKind::TimedOut,
        };
        KernelError::new(kind, self.to_string())
    }
}

/// Runs a program to its end, gives it `input` as fast as it reads, and hands each line of its output, without the newline, to
/// `on_line`.
pub fn run(
    invocation: &Invocation<'_>,
    input: Input<'_>,
    mut on_line: impl FnMut(&str),
) -> Result<Finished, CommandError> {
    let program = || invocation.program.to_owned();
    let failed = |error| CommandError::Failed { program: program(), error };
    let until = Instant::now() + invocation.deadline;
    let mut child = spawn(invocation)?;
    STARTED.fetch_add(1, Ordering::Relaxed);
    let exit = pidfd_open(pid_of(&child), PidfdFlags::empty()).ok();
    let pump = match Pump::new(&mut child, exit, input) {
        Ok(pump) => pump,
        Err(error) => {
            kill(&mut child);
            return Err(failed(error));
        }
    };
    match pump.run(&mut child, until, &mut on_line) {
        Ok(Some((status, stderr))) => Ok(Finished { status: status.code(), stderr }),
        Ok(None) => {
            kill(&mut child);
            Err(CommandError::TimedOut { program: program(), deadline: invocation.deadline })
        }
        Err(error) => {
            kill(&mut child);
            Err(failed(error))
        }
    }
}

/// Whether a program is installed.
pub fn installed(program: &str, environment: &[(OsString, OsString)]) -> bool {
    let own = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    let path = own.or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn spawn(invocation: &Invocation<'_>) -> Result<Child, CommandError> {
    let environment = invocation.environment.iter().map(|(name, value)| (name, value));
    Command::new(invocation.program)
        .args(invocation.arguments)
        .envs(environment)
        // The messages are read by us.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that whatever it starts is killed with it.
        .process_group(0)
        .spawn()
        .map_err(|error| match error.kind() {
            IoErrorKind::NotFound => CommandError::Missing { program: invocation.program.to_owned() },
            _ => CommandError::Failed { program: invocation.program.to_owned(), error },
        })
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn kill(child: &mut Child) {
    // It may be gone already.
    let _ = kill_process_group(pid_of(child), Signal::KILL);
    let until = Instant::now() + KILL_GRACE;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Moves bytes between us and a child.
struct Pump<'a> {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    exit: Option<OwnedFd>,
    input: Input<'a>,
    /// A piece of it, of which so many bytes are written.
    piece: Vec<u8>,
    written: usize,
    line: Vec<u8>,
    errors: Vec<u8>,
}

/// Which descriptors are ready.
#[derive(Default)]
struct Ready {
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl<'a> Pump<'a> {
    fn new(child: &mut Child, exit: Option<OwnedFd>, input: Input<'a>) -> std::io::Result<Pump<'a>> {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        for end in [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)]
            .into_iter()
            .flatten()
        {
            fcntl_setfl(end, fcntl_getfl(end)? | OFlags::NONBLOCK)?;
        }
        let (piece, line, errors) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Pump { stdin, stdout, stderr, exit, input, piece, written: 0, line, errors })
    }

    /// Until the child has ended; `None` if that takes too long.
    fn run(
        mut self,
        child: &mut Child,
        until: Instant,
        on_line: &mut impl FnMut(&str),
    ) -> std::io::Result<Option<(std::process::ExitStatus, String)>> {
        loop {
            let now = Instant::now();
            if now >= until {
                return Ok(None);
            }
            let ended = child.try_wait()?;
            let ready = self.wait(until - now, ended.is_some())?;
            if ready.stdin {
                self.write()?;
            }
            if ready.stdout {
                self.read_output(on_line)?;
            }
            if ready.stderr {
                self.read_errors()?;
            }
            // When the child has ended, what it wrote is in the pipes. Somebody it started may hold them open for
            // ever; that is not waited for.
            if let Some(status) = ended
                && !ready.stdout
                && !ready.stderr
            {
                if !self.line.is_empty() {
                    on_line(&String::from_utf8_lossy(&self.line));
                }
                return Ok(Some((status, String::from_utf8_lossy(&self.errors).into_owned())));
            }
        }
    }

    /// Waits until something can be moved or the child has ended.
    fn wait(&self, at_most: Duration, ended: bool) -> std::io::Result<Ready> {
        let mut watched = Vec::with_capacity(4);
        let mut indices = [None; 3];
        let ends = [
            self.stdin.as_ref().map(|end| (end.as_fd(), PollFlags::OUT)),
            self.stdout.as_ref().map(|end| (end.as_fd(), PollFlags::IN)),
            self.stderr.as_ref().map(|end| (end.as_fd(), PollFlags::IN)),
        ];
        for (index, end) in indices.iter_mut().zip(ends) {
            if let Some((end, flags)) = end {
                *index = Some(watched.len());
                watched.push(PollFd::from_borrowed_fd(end, flags));
            }
        }
        let at_most = match (&self.exit, ended) {
            (_, true) => Duration::ZERO,
            (Some(exit), false) => {
                watched.push(PollFd::from_borrowed_fd(exit.as_fd(), PollFlags::IN));
                at_most
            }
            (None, false) => at_most.min(POLL_INTERVAL),
        };
        let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: i64::from(at_most.subsec_nanos()) };
        match poll(&mut watched, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: Option<usize>| {
            index.and_then(|index| watched.get(index)).is_some_and(|end| !end.revents().is_empty())
        };
        let [stdin, stdout, stderr] = indices.map(ready);
        Ok(Ready { stdin, stdout, stderr })
    }

    fn write(&mut self) -> std::io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        if self.written == self.piece.len() {
            self.piece.clear();
            self.written = 0;
            (self.input)(&mut self.piece);
        }
        match stdin.write(self.piece.get(self.written..).unwrap_or_default()) {
            // All is written, if there was something to write at all.
            Ok(0) => self.stdin = None,
            Ok(written) => self.written += written,
            Err(error) if is_retry(&error) => {}
            // The child has seen enough; why, it says by its status.
            Err(error) if error.kind() == IoErrorKind::BrokenPipe => self.stdin = None,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn read_output(&mut self, on_line: &mut impl FnMut(&str)) -> std::io::Result<()> {
        let Some(stdout) = &mut self.stdout else { return Ok(()) };
        let mut buffer = [0; 64 * 1024];
        match stdout.read(&mut buffer) {
            Ok(0) => self.stdout = None,
            Ok(length) => {
                let mut parts = buffer.get(..length).unwrap_or_default().split(|byte| *byte == b'\n').peekable();
                while let Some(part) = parts.next() {
                    self.line.extend_from_slice(part);
                    if parts.peek().is_some() || self.line.len() > LINE_LIMIT {
                        on_line(&String::from_utf8_lossy(&self.line));
                        self.line.clear();
                    }
                }
            }
            Err(error) if is_retry(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn read_errors(&mut self) -> std::io::Result<()> {
        let Some(stderr) = &mut self.stderr else { return Ok(()) };
        let mut buffer = [0; 4096];
        match stderr.read(&mut buffer) {
            Ok(0) => self.stderr = None,
            Ok(length) => {
                let room = STDERR_LIMIT.saturating_sub(self.errors.len()).min(length);
                self.errors.extend_from_slice(buffer.get(..room).unwrap_or_default());
            }
            Err(error) if is_retry(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn is_retry(error: &std::io::Error) -> bool {
    matches!(error.kind(), IoErrorKind::WouldBlock | IoErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell<'a>(arguments: &'a [&'a str]) -> Invocation<'a> {
        Invocation { program: "sh", arguments, environment: &[], deadline: Duration::from_secs(10) }
    }

    /// The same piece so many times.
    fn pieces(piece: &[u8], mut times: usize) -> impl FnMut(&mut Vec<u8>) {
        move |input| {
            if times > 0 {
                times -= 1;
                input.extend_from_slice(piece);
            }
        }
    }

    #[test]
    fn input_and_output_larger_than_any_pipe_go_through_at_once() {
        let text = "a line of text\n".repeat(1000);
        let mut input = pieces(text.as_bytes(), 100);
        let mut lines = 0;
        let finished = run(&shell(&["-c", "cat; echo done >&2; exit 3"]), &mut input, |line| {
            assert_eq!(line, "a line of text");
            lines += 1;
        });
        assert_eq!(lines, 100_000);
        assert_eq!(finished.unwrap(), Finished { status: Some(3), stderr: "done\n".to_owned() });
    }

    #[test]
    fn a_child_that_does_not_read_its_input_is_no_failure() {
        let mut input = pieces(&[b'x'; 1000], 1000);
        assert!(run(&shell(&["-c", "exit 0"]), &mut input, |_| {}).unwrap().success());
    }

    #[test]
    fn a_hung_child_is_killed_together_with_what_it_started() {
        let began = Instant::now();
        let hung = Invocation { deadline: Duration::from_millis(300), ..shell(&["-c", "sleep 60 & sleep 60"]) };
        let error = run(&hung, &mut nothing, |_| {}).unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }));
        assert_eq!(error.to_kernel_error().kind, ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_grandchild_that_keeps_the_output_open_is_not_waited_for() {
        let began = Instant::now();
        let mut lines = Vec::new();
        let script = ["-c", "sleep 3 & printf 'one\\ntwo'"];
        let finished = run(&shell(&script), &mut nothing, |line| lines.push(line.to_owned()));
        assert!(finished.unwrap().success());
        assert_eq!(lines, ["one", "two"]);
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_missing_program_is_unsupported_and_noisy_errors_are_cut() {
        let missing = Invocation { program: "no-such-program-here", ..shell(&[]) };
        assert_eq!(run(&missing, &mut nothing, |_| {}).unwrap_err().to_kernel_error().kind, ErrorKind::Unsupported);
        let noisy = run(&shell(&["-c", "head -c 1000000 /dev/zero >&2"]), &mut nothing, |_| {}).unwrap();
        assert_eq!(noisy.stderr.len(), STDERR_LIMIT);
    }

    #[test]
    fn started_processes_are_counted() {
        let before = processes_started();
        let reads = ["-c", "read it; test \"$it\" = once"];
        assert!(run(&shell(&reads), &mut once(b"once\n".to_vec()), |_| {}).unwrap().success());
        assert!(processes_started() > before);
    }
}
