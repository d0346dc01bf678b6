//! Delays between attempts, and chance.

use std::hash::BuildHasher;
use std::time::{Duration, Instant};

/// Growing delays with a random part.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    last_failure: Option<Instant>,
}

/// After this many times the longest delay without a failure, delays begin small again.
const CALM: u32 = 4;
/// What worked for less than this many times the shortest delay did not work.
const LIVED: u32 = 5;

impl Backoff {
    /// Delays from `min` to `max`.
    pub(super) fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max, failures: 0, last_failure: None }
    }

    /// The delay after one more failure at this time: between half of and all of min, 2 min, 4 min ... max.
    pub(super) fn after_failure(&mut self, now: Instant) -> Duration {
        if self.last_failure.is_some_and(|last| now.duration_since(last) > self.max * CALM) {
            self.failures = 0;
        }
        self.last_failure = Some(now);
        let whole = self.whole();
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(0.5 + random_fraction() / 2.0)
    }

    /// Something worked for so long. If that is longer than the next delay would be, delays begin small again: whoever
    /// waited less than it worked asks no server too often, and the next failure is the first of another trouble.
    pub(super) fn worked_for(&mut self, time: Duration) {
        if time >= self.whole().max(self.min * LIVED) {
            self.failures = 0;
        }
    }

    fn whole(&self) -> Duration {
        self.min.saturating_mul(1 << self.failures.min(20)).min(self.max)
    }
}
/// For how long to stay away because the server asks for it, after this error: as long as it says, at most a minute, since a bad
/// answer must not silence us for good, and up to a quarter more: it may have said the same to a thousand nodes at once.
pub(super) fn asked_to_wait(error: &kube::Error) -> Duration {
    let kube::Error::Api(status) = error else { return Duration::ZERO };
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    Duration::from_secs(u64::from(seconds)).min(Duration::from_secs(60)).mul_f64(1.0 + random_fraction() / 4.0)
}

/// A number from 0 to 1. Hashers are seeded at random, and that is random enough here.
pub(super) fn random_fraction() -> f64 {
    let bits = std::collections::hash_map::RandomState::new().hash_one(0) >> 32;
    bits as f64 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn delays_grow_to_the_longest_and_begin_small_after_a_calm_time() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(min, max);
        let start = Instant::now();
        for (attempt, whole) in [100, 200, 400, 800, 1000, 1000].into_iter().enumerate() {
            let delay = backoff.after_failure(start);
            let whole = Duration::from_millis(whole);
            assert!((whole / 2..=whole).contains(&delay), "attempt {attempt}: {delay:?}");
        }
        assert!(backoff.after_failure(start + Duration::from_secs(3)) > min);
        assert!(backoff.after_failure(start + Duration::from_secs(8)) <= min);
    }

    #[test]
    fn a_wish_to_wait_is_granted_with_up_to_a_quarter_more_and_up_to_a_minute() {
        let asked = |seconds: u32| {
            let status = json!({"code": 429, "details": {"retryAfterSeconds": seconds}});
            let status: kube::core::Status = serde_json::from_value(status).unwrap();
            asked_to_wait(&kube::Error::Api(status.into()))
        };
        let waits: Vec<_> = (0..50).map(|_| asked(8)).collect();
        assert!(waits.iter().all(|wait| (8.0..=10.0).contains(&wait.as_secs_f64())), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait != waits[0]), "nodes that were told the same come back one by one");
        assert_eq!(asked(0), Duration::ZERO);
        assert!((60.0..=75.0).contains(&asked(9000).as_secs_f64()));
    }

    #[test]
    fn delays_begin_small_after_something_worked_for_longer_than_the_next_delay() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(30));
        let after = |failures: usize, worked: u64| {
            let mut backoff = Backoff::new(min, max);
            for _ in 0..failures {
                backoff.after_failure(Instant::now());
            }
            backoff.worked_for(Duration::from_secs(worked));
            backoff.after_failure(Instant::now()) <= min
        };
        assert!(after(4, 16), "the next delay would be 16 s");
        assert!(!after(4, 15));
        assert!(after(20, 30), "no delay is longer than the longest");
        assert!(!after(1, 4), "what breaks every few seconds does not work");
        assert!(after(1, 5));
    }
}
