//! Kernel settings below `/proc/sys`, as the calling thread sees them: those of `net` belong to its network namespace.

use std::io::ErrorKind as IoErrorKind;
use std::path::PathBuf;

use crate::kernel::{ErrorKind, KernelError};

/// Reads a setting, for example `net/ipv4/conf/all/route_localnet`, without surrounding white space.
pub fn read(name: &str) -> Result<String, KernelError> {
    let text = std::fs::read_to_string(path(name)).map_err(|error| failed("reading", name, &error))?;
    Ok(text.trim().to_owned())
}

/// Reads a setting that is a whole number.
pub fn read_number(name: &str) -> Result<i64, KernelError> {
    let text = read(name)?;
    text.parse().map_err(|_| {
        KernelError::new(ErrorKind::Rejected, format!("reading sysctl {name}: {text:?} is not a whole number"))
    })
}

/// Sets a setting if it has another value. Returns whether it had: a read-only `/proc/sys` is no problem where
/// everything is as it should be.
pub fn ensure(name: &str, value: &str) -> Result<bool, KernelError> {
    if read(name)? == value {
        return Ok(false);
    }
    match std::fs::write(path(name), value) {
        Ok(()) => Ok(true),
        Err(error) => Err(failed(&format!("writing {value} to"), name, &error)),
    }
}

/// Both `/` and `.` may separate the parts of a name; `.` only if there is no `/`, as an interface's name may hold one.
fn path(name: &str) -> PathBuf {
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    PathBuf::from("/proc/sys").join(relative.trim_start_matches('/'))
}

fn failed(attempted: &str, name: &str, error: &std::io::Error) -> KernelError {
    let kind = match error.kind() {
        IoErrorKind::NotFound => ErrorKind::NotFound,
        IoErrorKind::PermissionDenied | IoErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        _ => ErrorKind::Rejected,
    };
    KernelError::new(kind, format!("{attempted} sysctl {name}: {error}"))
}
