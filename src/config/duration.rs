//! Durations as Go writes them (`1h30m`, `1.5s`, `250ms`), since that is what kube-proxy's flags and files hold.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Empty, or no number where one is needed.
    #[error("{0:?} is not a duration: write a number with a unit, such as 30s or 1h15m")]
    Syntax(String),
    /// A number without a unit.
    #[error("{0:?} is not a duration: a number has no unit (ns, us, ms, s, m, h)")]
    MissingUnit(String),
    /// A unit that Go does not know; days are not one.
    #[error("{0:?} is not a duration: {1:?} is not a unit (ns, us, ms, s, m, h)")]
    UnknownUnit(String, String),
    /// Beyond the range of 64 bits of nanoseconds, about 292 years.
    #[error("{0:?} is too long for a duration")]
    Overflow(String),
}

/// A duration that may be negative, in nanoseconds: Go's `time.Duration`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub i64);

impl GoDuration {
    /// As a duration of ours; `None` when negative.
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

impl From<Duration> for GoDuration {
    /// The longest Go duration for what does not fit.
    fn from(duration: Duration) -> GoDuration {
        GoDuration(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl std::fmt::Display for GoDuration {
    /// As Go prints it, except that fractions below a second are always in seconds: `1h0m30s`, `0s`, `0.25s`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let nanos = self.0.unsigned_abs();
        let (seconds, fraction) = (nanos / SECOND, nanos % SECOND);
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if fraction == 0 {
            return write!(f, "{seconds}s");
        }
        let digits = format!("{fraction:09}");
        write!(f, "{seconds}.{}s", digits.trim_end_matches('0'))
    }
}

const SECOND: u64 = 1_000_000_000;

/// The units of Go, with their nanoseconds. Both code points for micro are allowed.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", 3600 * SECOND),
];

/// Reads a duration by the rules of Go's `time.ParseDuration`: an optional sign, then numbers with optional fraction,
/// each with a unit, without spaces; a bare `0` needs no unit.
pub fn parse_duration(text: &str) -> Result<GoDuration, DurationError> {
    let overflow = || DurationError::Overflow(text.to_owned());
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if unsigned == "0" {
        return Ok(GoDuration(0));
    }
    if unsigned.is_empty() {
        return Err(DurationError::Syntax(text.to_owned()));
    }
    let mut total: u64 = 0;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let (nanos, after) = parse_part(text, rest)?;
        total = total.checked_add(nanos).filter(|total| *total <= 1 << 63).ok_or_else(overflow)?;
        rest = after;
    }
    let signed = if negative { -i128::from(total) } else { i128::from(total) };
    i64::try_from(signed).map(GoDuration).map_err(|_| overflow())
}

/// One number with its unit, in nanoseconds, and what follows it.
fn parse_part<'a>(text: &str, rest: &'a str) -> Result<(u64, &'a str), DurationError> {
    let overflow = || DurationError::Overflow(text.to_owned());
    let (whole, rest) = split_digits(rest);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(DurationError::Syntax(text.to_owned()));
    }
    let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(end);
    if unit.is_empty() {
        return Err(DurationError::MissingUnit(text.to_owned()));
    }
    let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(DurationError::UnknownUnit(text.to_owned(), unit.to_owned()));
    };
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| overflow())? };
    let nanos = whole.checked_mul(*scale).filter(|nanos| *nanos <= 1 << 63).ok_or_else(overflow)?;
    Ok((nanos.checked_add(fraction_of(fraction, *scale)).ok_or_else(overflow)?, rest))
}

/// The nanoseconds of a decimal fraction of a unit, cut, not rounded. Digits past the eighteenth are below a nanosecond
/// of the longest unit.
fn fraction_of(digits: &str, scale: u64) -> u64 {
    let mut nanos: u128 = 0;
    let mut divisor: u128 = 1;
    for digit in digits.bytes().take(18) {
        nanos = nanos * 10 + u128::from(digit - b'0');
        divisor *= 10;
    }
    u64::try_from(nanos * u128::from(scale) / divisor).unwrap_or(u64::MAX)
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("0s", Some(0)),
            ("30s", Some(30_000_000_000)),
            ("1h0m0s", Some(3_600_000_000_000)),
            ("1h15m30.918s", Some(4_530_918_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            (".5s", Some(500_000_000)),
            ("1.s", Some(1_000_000_000)),
            ("+5s", Some(5_000_000_000)),
            ("-1.5s", Some(-1_500_000_000)),
            ("100ns", Some(100)),
            ("2us", Some(2_000)),
            ("2\u{b5}s", Some(2_000)),
            ("2\u{3bc}s", Some(2_000)),
            ("5m5m", Some(600_000_000_000)),
            ("0.3333333333333333333h", Some(1_199_999_999_999)),
            ("9223372036854775807ns", Some(i64::MAX)),
            ("-9223372036854775808ns", Some(i64::MIN)),
            ("9223372036854775808ns", None),
            ("99999999999999999999s", None),
            ("3000000h", None),
            ("", None),
            ("-", None),
            ("5", None),
            ("1d", None),
            ("1h 30m", None),
            ("s", None),
            (".s", None),
            ("1hour", None),
            ("1S", None),
            ("--1s", None),
            ("one second", None),
        ] {
            assert_eq!(parse_duration(text).ok().map(|duration| duration.0), expected, "{text:?}");
        }
    }

    #[test]
    fn the_error_says_what_is_missing() {
        assert!(matches!(parse_duration("5"), Err(DurationError::MissingUnit(_))));
        assert!(matches!(parse_duration("1d"), Err(DurationError::UnknownUnit(_, unit)) if unit == "d"));
        assert!(matches!(parse_duration("x"), Err(DurationError::Syntax(_))));
        assert!(matches!(parse_duration("300000000h"), Err(DurationError::Overflow(_))));
    }

    #[test]
    fn what_is_printed_is_read_back_the_same() {
        for text in ["0s", "30s", "1h0m0s", "15m0s", "0.25s", "-1m1.000000001s"] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration.to_string(), text);
        }
        assert_eq!(GoDuration(-1).to_std(), None);
        assert_eq!(GoDuration::from(Duration::from_secs(2)).to_std(), Some(Duration::from_secs(2)));
    }
}
