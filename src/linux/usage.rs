//! What this process and the tools that it has run have used.

use std::time::Duration;

/// Processor time of this process, user and kernel, all threads. Work that the kernel does for packets while a thread of the process
/// sends them is in it.
pub fn own_time() -> Duration {
    used_by(libc::RUSAGE_SELF)
}

/// Processor time of the children of this process that have ended.
pub fn tools_time() -> Duration {
    used_by(libc::RUSAGE_CHILDREN)
}

/// Memory of this process, from `/proc/self/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that are resident now.
    pub resident: u64,
    /// The most so far.
    pub peak: u64,
}

/// Memory of this process; `None` if the kernel does not say.
pub fn memory() -> Option<Memory> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let of = |name: &str| -> Option<u64> {
        let kilobytes = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"))?;
        kilobytes.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    };
    Some(Memory { resident: of("VmRSS:")?, peak: of("VmHWM:")? })
}

fn used_by(who: libc::c_int) -> Duration {
    // SAFETY: a structure of numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a structure of the right type that lives through the call.
    if unsafe { libc::getrusage(who, &raw mut usage) } != 0 {
        return Duration::ZERO;
    }
    let time = |value: libc::timeval| {
        Duration::from_secs(value.tv_sec.unsigned_abs()) + Duration::from_micros(value.tv_usec.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}
