//! When to sync: the first change at once, then never more often than the minimum period.

use std::time::{Duration, Instant};

/// Bounds the frequency of syncs.
#[derive(Clone, Debug)]
pub struct Schedule {
    min_period: Duration,
    last_completed: Option<Instant>,
}

impl Schedule {
    /// A schedule that keeps this distance between the end of one sync and the start of the next
    /// (`minSyncPeriod`); zero: no distance.
    pub fn new(min_period: Duration) -> Schedule {
        Schedule { min_period, last_completed: None }
    }

    /// Keeps another distance from now on.
    pub fn set_min_period(&mut self, min_period: Duration) {
        self.min_period = min_period;
    }

    /// When to sync, if there is work from `due` on.
    pub fn start(&self, due: Instant) -> Instant {
        match self.last_completed {
            Some(completed) => due.max(completed + self.min_period),
            None => due,
        }
    }

    /// A sync ended.
    pub fn completed(&mut self, now: Instant) {
        self.last_completed = Some(now);
    }
}

/// How long to wait before the next attempt: doubles from `first` with each failure in a row, up to `longest`.
pub(crate) fn backoff(first: Duration, longest: Duration, attempts: u32) -> Duration {
    first.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_change_goes_at_once() {
        let now = Instant::now();
        assert_eq!(Schedule::new(SECOND).start(now), now);
    }

    #[test]
    fn changes_within_the_minimum_period_wait_for_its_end() {
        let now = Instant::now();
        let mut schedule = Schedule::new(SECOND);
        schedule.completed(now);
        assert_eq!(schedule.start(now + SECOND / 4), now + SECOND);
        assert_eq!(schedule.start(now + SECOND / 2), now + SECOND);
    }

    #[test]
    fn a_change_after_the_minimum_period_goes_at_once() {
        let now = Instant::now();
        let mut schedule = Schedule::new(SECOND);
        schedule.completed(now);
        assert_eq!(schedule.start(now + 3 * SECOND), now + 3 * SECOND);
    }

    #[test]
    fn without_a_minimum_period_nothing_waits() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::ZERO);
        schedule.completed(now);
        assert_eq!(schedule.start(now), now);
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let waits: Vec<u64> = (1..=6).map(|attempts| backoff(SECOND, 10 * SECOND, attempts).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
        assert_eq!(backoff(SECOND, 10 * SECOND, u32::MAX), 10 * SECOND);
    }
}
