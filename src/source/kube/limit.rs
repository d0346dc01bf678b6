//! How fast requests may be made: `clientConnection.qps` and `burst`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bucket of tokens, one for each request, as client-go has it. Clones share the bucket.
#[derive(Clone, Debug)]
pub struct Limiter {
    /// `None`: no limit.
    bucket: Option<Arc<Mutex<Bucket>>>,
}

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    size: f64,
    /// Below 0 while requests wait that have their token already.
    tokens: f64,
    filled: Option<Instant>,
}

impl Limiter {
    /// So many requests per second on average, and so many at once after a pause. Not above 0: no limit.
    pub fn new(qps: f32, burst: u32) -> Limiter {
        if qps <= 0.0 || !qps.is_finite() {
            return Limiter::unlimited();
        }
        let size = f64::from(burst.max(1));
        let bucket = Bucket { per_second: f64::from(qps), size, tokens: size, filled: None };
        Limiter { bucket: Some(Arc::new(Mutex::new(bucket))) }
    }

    /// No limit.
    pub fn unlimited() -> Limiter {
        Limiter { bucket: None }
    }

    /// Takes a token for a request that is wanted at this time, and says how long it has to wait.
    pub fn reserve(&self, now: Instant) -> Duration {
        let Some(bucket) = &self.bucket else { return Duration::ZERO };
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let since = bucket.filled.map_or(Duration::ZERO, |filled| now.saturating_duration_since(filled));
        bucket.filled = bucket.filled.max(Some(now));
        bucket.tokens = (bucket.tokens + since.as_secs_f64() * bucket.per_second).min(bucket.size) - 1.0;
        Duration::try_from_secs_f64(-bucket.tokens / bucket.per_second).unwrap_or(Duration::ZERO)
    }

    /// Waits until a request may be made, and says for how long it waited.
    pub(super) async fn wait(&self) -> Duration {
        let delay = self.reserve(Instant::now());
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests start within the first seconds, if there are always more.
    fn started(limiter: &Limiter, start: Instant, seconds: u64) -> usize {
        (0..1000).filter(|_| limiter.reserve(start) < Duration::from_secs(seconds)).count()
    }

    #[test]
    fn a_burst_starts_at_once_and_the_rest_at_the_rate() {
        let start = Instant::now();
        let limiter = Limiter::new(5.0, 10);
        let delays: Vec<_> = (0..12).map(|_| limiter.reserve(start).as_millis()).collect();
        assert_eq!(delays, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200, 400]);
        // 10 at once, and 5 in each second.
        assert_eq!(started(&Limiter::new(5.0, 10), start, 4), 29);
    }

    #[test]
    fn a_pause_gives_back_no_more_than_the_burst() {
        let start = Instant::now();
        let limiter = Limiter::new(5.0, 2);
        assert_eq!((limiter.reserve(start), limiter.reserve(start)), (Duration::ZERO, Duration::ZERO));
        let later = start + Duration::from_secs(3600);
        let delays: Vec<_> = (0..3).map(|_| limiter.reserve(later).as_millis()).collect();
        assert_eq!(delays, [0, 0, 200]);
    }

    #[test]
    fn clones_share_the_limit_and_a_negative_rate_is_none() {
        let start = Instant::now();
        let limiter = Limiter::new(1.0, 1);
        assert_eq!(limiter.clone().reserve(start), Duration::ZERO);
        assert_eq!(limiter.reserve(start), Duration::from_secs(1));
        assert_eq!(started(&Limiter::new(-1.0, 1), start, 1), 1000);
    }
}
