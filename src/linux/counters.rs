//! nfacct counters: packets that some rules let through or dropped.

use std::time::Duration;

use crate::kernel::{ErrorKind, KernelError};
use crate::netlink::acct::{self, Counter};
use crate::netlink::socket::{Connection, NETFILTER};
use crate::netlink::{NetlinkError, errno};

/// Creates a counter if it is missing.
pub fn ensure(name: &str, timeout: Duration) -> Result<(), KernelError> {
    let attempted = || format!("creating the packet counter {name}");
    if name.is_empty() || name.len() > acct::MAX_NAME {
        let text = format!("{}: a name has 1 to {} bytes", attempted(), acct::MAX_NAME);
        return Err(KernelError::new(ErrorKind::Rejected, text));
    }
    let outcome = Connection::open(NETFILTER, timeout)
        .and_then(|mut connection| connection.request(&acct::create(name), |_| Ok(())));
    match outcome {
        // An old kernel says busy for one that exists.
        Ok(()) | Err(NetlinkError::Refused { errno: errno::EEXIST | errno::EBUSY, .. }) => Ok(()),
        Err(error) => Err(explain(&error, &attempted())),
    }
}

/// Reads a counter; `NotFound` if there is none of this name.
pub fn read(name: &str, timeout: Duration) -> Result<Counter, KernelError> {
    let attempted = || format!("reading the packet counter {name}");
    let mut found = None;
    Connection::open(NETFILTER, timeout)
        .and_then(|mut connection| {
            connection.request(&acct::get(name), |message| {
                found = acct::decode_counter(message)?.or(found.take());
                Ok(())
            })
        })
        .map_err(|error| explain(&error, &attempted()))?;
    found.ok_or_else(|| KernelError::new(ErrorKind::NotFound, format!("{}: no answer", attempted())))
}

/// Whether the kernel has such counters at all.
pub fn available(timeout: Duration) -> bool {
    match read("portolan_probe", timeout) {
        Ok(_) => true,
        Err(error) => error.kind == ErrorKind::NotFound,
    }
}

fn explain(error: &NetlinkError, attempted: &str) -> KernelError {
    match error {
        // nfnetlink has no subsystem of this number.
        NetlinkError::Refused { errno: errno::EINVAL | errno::EOPNOTSUPP, .. } => {
            KernelError::new(ErrorKind::Unsupported, format!("{attempted}: the kernel lacks nfnetlink_acct"))
        }
        _ => error.to_kernel_error(attempted),
    }
}
