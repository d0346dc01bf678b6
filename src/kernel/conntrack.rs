//! Limits and times of the connection tracking of a kernel.

use std::time::Duration;

/// What is wanted of connection tracking. 0 means: what the kernel has is left alone, as do all defaults here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Entries per processor.
    pub max_per_core: u32,
    /// The least number of entries; counts only if `max_per_core` does.
    pub min: u32,
    /// How long an idle established TCP connection is remembered.
    pub tcp_established_timeout: Duration,
    /// The same for one that the other side has closed.
    pub tcp_close_wait_timeout: Duration,
    /// Take TCP packets outside the window for valid.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow without answer is remembered.
    pub udp_timeout: Duration,
    /// The same for one with answers.
    pub udp_stream_timeout: Duration,
}
