//! What kube-proxy sets on a node once at start: limits and times of connection tracking, and how willingly the kernel
//! ends this process when memory is short. What to write is a function of what was wanted and read; effects are apart.

use std::io::ErrorKind as IoErrorKind;
use std::path::{Path, PathBuf};

use crate::kernel::{Conntrack, ErrorKind, KernelError};

/// The most entries that are asked for by the number of processors; kube-proxy's.
const MOST_ENTRIES: u64 = 1_048_576;
/// Entries that share one bucket of the hash table; kube-proxy's.
const ENTRIES_PER_BUCKET: u64 = 4;

/// One file and what it should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// From the root directory, without a leading slash.
    file: &'static str,
    value: i64,
    rule: Rule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Any other value is replaced.
    Exactly,
    /// Only a smaller one is.
    AtLeast,
}

/// Sets up connection tracking. A file that is as it should be is not written.
///
/// Returns what could not be done and is not worth an end: a file that this process must not write, as in a container
/// with a read-only `/proc/sys` or in a network namespace that the limits do not belong to, and a file that is not there. kube-proxy
/// ends in these cases; but traffic is served with the kernel's own values too, and the rules load what is missing.
/// Anything else that goes wrong, as a value that the kernel refuses, is an error that names the file.
pub fn set_up_conntrack(wanted: &Conntrack) -> Result<Vec<String>, KernelError> {
    conntrack_below(Path::new("/"), wanted)
}

/// Sets how willingly the kernel ends this process when memory is short, -1000 to 1000. Returns what hindered it: that is no
/// error, as in kube-proxy.
pub fn set_oom_score(score: i32) -> Option<String> {
    oom_score_below(Path::new("/"), score)
}

fn conntrack_below(root: &Path, wanted: &Conntrack) -> Result<Vec<String>, KernelError> {
    let mut remarks = Vec::new();
    for wanted in wishes(wanted, processors(root)) {
        match establish(root, &wanted) {
            Ok(()) => {}
            Err(error) if error.kind == ErrorKind::Denied => remarks.push(format!(
                "{error}; it stays as it is: let a privileged container run with --init-only before this one, or set maxPerCore \
                 and the like to 0"
            )),
            Err(error) if error.kind == ErrorKind::NotFound => {
                remarks.push(format!("{error}; it stays as it is: is the module nf_conntrack loaded?"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(remarks)
}

fn oom_score_below(root: &Path, score: i32) -> Option<String> {
    let wanted = Wanted { file: "proc/self/oom_score_adj", value: i64::from(score), rule: Rule::Exactly };
    establish(root, &wanted).err().map(|error| error.to_string())
}

/// What should be in which file, in the order of writing.
fn wishes(wanted: &Conntrack, processors: u64) -> Vec<Wanted> {
    let mut wishes = Vec::new();
    if let Some(max) = max_entries(wanted, processors) {
        wishes.push(exactly("proc/sys/net/netfilter/nf_conntrack_max", max));
        // Buckets are never taken away: somebody may have chosen more of them.
        let buckets = i64::try_from(max / ENTRIES_PER_BUCKET).unwrap_or(i64::MAX);
        let file = "sys/module/nf_conntrack/parameters/hashsize";
        wishes.push(Wanted { file, value: buckets, rule: Rule::AtLeast });
    }
    for (file, time) in [
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", wanted.tcp_established_timeout),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", wanted.tcp_close_wait_timeout),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout", wanted.udp_timeout),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", wanted.udp_stream_timeout),
    ] {
        if !time.is_zero() {
            // Part of a second counts as one: with 0 the kernel would forget each flow at once.
            wishes.push(exactly(file, time.as_secs().max(1)));
        }
    }
    if wanted.tcp_be_liberal {
        wishes.push(exactly("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", 1));
    }
    wishes
}

fn exactly(file: &'static str, value: u64) -> Wanted {
    Wanted { file, value: i64::try_from(value).unwrap_or(i64::MAX), rule: Rule::Exactly }
}

/// The number of entries: by processors up to a cap, but never less than the minimum that somebody chose. (kube-proxy's cap
/// outweighs its minimum, against the words of its own documentation.)
fn max_entries(wanted: &Conntrack, processors: u64) -> Option<u64> {
    let scaled = u64::from(wanted.max_per_core).saturating_mul(processors).min(MOST_ENTRIES);
    (wanted.max_per_core > 0).then(|| scaled.max(u64::from(wanted.min)))
}

/// What is to be written to a file that holds `found`; `None`: nothing.
fn to_write(wanted: &Wanted, found: &str) -> Option<String> {
    let enough = match (found.trim().parse::<i64>(), wanted.rule) {
        (Ok(found), Rule::Exactly) => found == wanted.value,
        (Ok(found), Rule::AtLeast) => found >= wanted.value,
        (Err(_), _) => false,
    };
    (!enough).then(|| wanted.value.to_string())
}

fn establish(root: &Path, wanted: &Wanted) -> Result<(), KernelError> {
    let path = root.join(wanted.file);
    let found = std::fs::read_to_string(&path).map_err(|error| failed("reading", &path, &error))?;
    let Some(value) = to_write(wanted, &found) else { return Ok(()) };
    // The files exist or are not wanted: nothing is created.
    let written = std::fs::OpenOptions::new().write(true).truncate(true).open(&path);
    written
        .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|error| failed(&format!("writing {value} in place of {} to", found.trim()), &path, &error))
}

/// Processors that are switched on, by sysfs, or else as many as this process may use.
fn processors(root: &Path) -> u64 {
    let online = std::fs::read_to_string(root.join("sys/devices/system/cpu/online")).ok();
    let counted = online.and_then(|list| count(&list)).filter(|count| *count > 0);
    counted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get() as u64))
}

/// The length of a list such as `0-3,8`; `None`: it is no such list.
fn count(list: &str) -> Option<u64> {
    list.trim().split(',').try_fold(0, |sum: u64, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

fn failed(attempted: &str, path: &Path, error: &std::io::Error) -> KernelError {
    let kind = match error.kind() {
        IoErrorKind::NotFound => ErrorKind::NotFound,
        // The hash table's size answers "not supported" outside the namespace that it belongs to.
        IoErrorKind::PermissionDenied | IoErrorKind::ReadOnlyFilesystem | IoErrorKind::Unsupported => ErrorKind::Denied,
        _ => ErrorKind::Rejected,
    };
    let path: PathBuf = path.to_owned();
    KernelError::new(kind, format!("{attempted} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
