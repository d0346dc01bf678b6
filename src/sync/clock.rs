//! Time, as something that a test can hold still.

#![allow(clippy::disallowed_methods, reason = "the one place where the real clocks are read")]

use std::time::{Duration, Instant, SystemTime};

/// A source of time.
pub trait Clock: Send {
    /// Monotonic time.
    fn now(&self) -> Instant;
    /// Wall-clock time, for latencies that began on another machine.
    fn wall(&self) -> SystemTime;
}

/// The real clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that moves only when told to. Clones share the time.
#[derive(Clone, Debug)]
pub struct TestClock {
    start: Instant,
    wall: SystemTime,
    elapsed: std::sync::Arc<std::sync::Mutex<Duration>>,
}

impl Default for TestClock {
    fn default() -> Self {
        TestClock {
            start: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            elapsed: std::sync::Arc::default(),
        }
    }
}

impl TestClock {
    /// Moves the time on.
    pub fn advance(&self, by: Duration) {
        *self.elapsed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += by;
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.start + self.elapsed()
    }

    fn wall(&self) -> SystemTime {
        self.wall + self.elapsed()
    }
}
