//! Netlink: messages as values, and one blocking socket.
//!
//! - [`attribute`] and [`message`]: framing that every family shares;
//! - [`ctnetlink`], [`ipset`], [`acct`], [`nftables`] (netfilter), [`rtnetlink`], [`link`], [`route`] (routing), [`genl`],
//!   [`ipvs`] (generic netlink): the families, as pure codecs;
//! - [`socket`]: the only effect.
//!
//! Layouts and numbers: `linux/netlink.h`, `linux/netfilter/nfnetlink_conntrack.h`, `linux/rtnetlink.h`,
//! `linux/netfilter/nfnetlink_acct.h`, `linux/netfilter/ipset/ip_set.h`, `linux/genetlink.h`, `linux/ip_vs.h`.

pub mod acct;
pub mod attribute;
pub mod ctnetlink;
pub mod genl;
pub mod ipset;
pub mod ipvs;
pub mod link;
pub mod message;
pub mod nftables;
pub mod route;
pub mod rtnetlink;
pub mod socket;

#[cfg(test)]
mod tests;

use crate::kernel::{ErrorKind, KernelError};
use crate::net::IpFamily;

/// Error numbers that callers tell apart (`asm-generic/errno-base.h`, `errno.h`).
pub mod errno {
    /// Not permitted.
    pub const EPERM: i32 = 1;
    /// No such entry.
    pub const ENOENT: i32 = 2;
    /// No such process; IPVS says so for services, routing for routes.
    pub const ESRCH: i32 = 3;
    /// Interrupted.
    pub const EINTR: i32 = 4;
    /// Try again.
    pub const EAGAIN: i32 = 11;
    /// No memory.
    pub const ENOMEM: i32 = 12;
    /// Permission denied.
    pub const EACCES: i32 = 13;
    /// In use.
    pub const EBUSY: i32 = 16;
    /// Exists.
    pub const EEXIST: i32 = 17;
    /// No such device.
    pub const ENODEV: i32 = 19;
    /// Invalid argument.
    pub const EINVAL: i32 = 22;
    /// No space, or a limit is reached.
    pub const ENOSPC: i32 = 28;
    /// A number out of its range.
    pub const ERANGE: i32 = 34;
    /// A protocol or family that the kernel was built without.
    pub const EPROTONOSUPPORT: i32 = 93;
    /// Not supported.
    pub const EOPNOTSUPP: i32 = 95;
    /// An address family that the kernel was built without.
    pub const EAFNOSUPPORT: i32 = 97;
    /// No such address.
    pub const EADDRNOTAVAIL: i32 = 99;
    /// The receive buffer was too small for all answers.
    pub const ENOBUFS: i32 = 105;
}

/// Bytes that are no message of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink data: {0}")]
pub struct DecodeError(pub &'static str);

/// Why a request got no answer, or a bad one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel answered with an error number.
    #[error("{}{}", errno_text(*errno), explanation.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The number, positive. Families have their own above 4096.
        errno: i32,
        /// The kernel's words (`NLMSGERR_ATTR_MSG`), if it had any.
        explanation: Option<String>,
        /// The refused request, header included, as the kernel gives it back; only the header where the rest was cut
        /// off, nothing at the end of a dump. [`ipset`] finds the failing element there.
        echo: Vec<u8>,
    },
    /// The socket failed.
    #[error("netlink socket: {}", errno_text(*errno))]
    Socket {
        /// The number of the error.
        errno: i32,
    },
    /// Answers were lost, since the receive buffer was full.
    ///
    /// Requests that end like this may have been carried out or not: read the state again before going on.
    #[error("netlink answers were lost, the state has to be read again: the receive buffer is too small")]
    Overrun,
    /// No answer in time.
    #[error("the kernel did not answer a netlink request in time")]
    TimedOut,
    /// A dump was interrupted by changes again and again.
    #[error("what was to be read kept changing")]
    Interrupted,
    /// The answer makes no sense.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
}

fn errno_text(errno: i32) -> String {
    if errno >= 4096 { format!("error {errno}") } else { std::io::Error::from_raw_os_error(errno).to_string() }
}

impl NetlinkError {
    /// What to make of it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            NetlinkError::Refused { errno, .. } | NetlinkError::Socket { errno } => match *errno {
                errno::EPERM | errno::EACCES => ErrorKind::Denied,
                errno::ENOENT | errno::ESRCH | errno::ENODEV | errno::EADDRNOTAVAIL => ErrorKind::NotFound,
                errno::EEXIST => ErrorKind::Exists,
                errno::EBUSY => ErrorKind::Busy,
                errno::ENOMEM | errno::ENOSPC => ErrorKind::NoSpace,
                errno::EINTR | errno::EAGAIN | errno::ENOBUFS => ErrorKind::Transient,
                errno::EPROTONOSUPPORT | errno::EOPNOTSUPP | errno::EAFNOSUPPORT => ErrorKind::Unsupported,
                _ => ErrorKind::Rejected,
            },
            NetlinkError::Overrun | NetlinkError::Interrupted => ErrorKind::Transient,
            NetlinkError::TimedOut => ErrorKind::TimedOut,
            NetlinkError::Malformed(_) => ErrorKind::Unknown,
        }
    }

    /// As an error of the kernel layer; `attempted` says what was to be done.
    pub fn to_kernel_error(&self, attempted: &str) -> KernelError {
        KernelError::new(self.kind(), format!("{attempted}: {self}"))
    }
}

/// `AF_INET` or `AF_INET6`.
pub fn address_family(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}
