//! How the daemon ends: by a signal, or since a thread without which there is no work has ended.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::cli::config_watch::Reload;
use crate::health::Server;
use crate::sync::clock::{Clock, SystemClock};

/// How long the end may take. Rules are in the kernel and stay there; a restore that is cut short has no effect.
pub(super) const STOP_WITHIN: Duration = Duration::from_millis(800);

/// How long the event of a failure may take on its way to the API server.
pub(super) const TELL_WITHIN: Duration = Duration::from_secs(3);

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A signal of this name arrived.
    Signal(&'static str),
    /// The thread of this name, without which there is no work, ended or panicked.
    Thread(&'static str),
    /// The Node has no pod CIDRs, and without them there is nothing to go on with.
    Node,
    /// A server cannot listen, and the settings say that this is the end.
    Server(Server),
}

/// What the main thread waits for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wake {
    /// The daemon ends.
    End(End),
    /// The file of `--config` has changed.
    Configuration(Reload),
}

/// Held by a thread without which the daemon would be a zombie that says that it is healthy.
pub(super) struct Vital {
    thread: &'static str,
    waker: Option<Waker>,
}

impl Vital {
    /// The thread ends since it was told to.
    pub(super) fn not_needed_any_more(mut self) {
        self.waker = None;
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if let Some(waker) = &self.waker {
            waker.wake(Wake::End(End::Thread(self.thread)));
        }
    }
}

/// Wakes the main thread. Cheap to clone.
#[derive(Clone)]
pub(super) struct Waker(UnboundedSender<Wake>);

impl Waker {
    /// Nobody waits any more when the daemon ends as a whole.
    pub(super) fn wake(&self, wake: Wake) {
        let _ended = self.0.send(wake);
    }

    /// What the thread of this name has to hold.
    pub(super) fn vital(&self, thread: &'static str) -> Vital {
        Vital { thread, waker: Some(self.clone()) }
    }
}

/// The main thread's ear. Signals that arrive while nobody listens are kept.
pub(super) struct Ear {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    wakes: UnboundedReceiver<Wake>,
}

impl Ear {
    /// From now on signals no longer end the process by themselves.
    pub(super) fn new() -> std::io::Result<(Ear, Waker)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (terminate, interrupt) =
            runtime.block_on(async { (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) });
        let (waker, wakes) = unbounded_channel();
        Ok((Ear { runtime, terminate: terminate?, interrupt: interrupt?, wakes }, Waker(waker)))
    }

    /// Blocks until there is something to do. Signals go first.
    pub(super) fn listen(&mut self) -> Wake {
        let Ear { runtime, terminate, interrupt, wakes } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                _ = terminate.recv() => Wake::End(End::Signal("SIGTERM")),
                _ = interrupt.recv() => Wake::End(End::Signal("SIGINT")),
                Some(wake) = wakes.recv() => wake,
            }
        })
    }
}

/// Waits for a condition, but not for longer than until the deadline.
#[allow(clippy::disallowed_methods, reason = "what is waited for has no time-out of its own")]
pub(super) fn wait_until(condition: impl Fn() -> bool, deadline: Instant) {
    while !condition() && SystemClock.now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Joins a thread, but does not wait for longer than until the deadline: the process ends anyway.
pub(super) fn join_until<T>(thread: JoinHandle<T>, deadline: Instant) {
    wait_until(|| thread.is_finished(), deadline);
    if thread.is_finished() && thread.join().is_err() {
        tracing::error!("a thread panicked");
    }
}

/// Drops a value that waits for a thread of its own, but does not wait for longer than until the deadline.
pub(super) fn drop_until(value: impl Send + 'static, deadline: Instant) {
    // Without a thread the value is dropped here.
    if let Ok(thread) = std::thread::Builder::new().name("end".into()).spawn(move || drop(value)) {
        join_until(thread, deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vital_thread_that_panics_ends_the_daemon() {
        let (mut ear, waker) = Ear::new().unwrap();
        let vital = waker.vital("sync");
        let thread = std::thread::spawn(move || {
            let _vital = vital;
            panic!("on purpose");
        });
        assert_eq!(ear.listen(), Wake::End(End::Thread("sync")));
        assert!(thread.join().is_err());
    }

    #[test]
    fn what_takes_long_to_end_is_left_behind() {
        struct Slow;
        impl Drop for Slow {
            fn drop(&mut self) {
                std::thread::sleep(Duration::from_secs(10));
            }
        }
        let began = SystemClock.now();
        drop_until(Slow, began + Duration::from_millis(50));
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
