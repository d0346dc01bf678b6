//! Connection-tracking entries.

use std::net::{IpAddr, SocketAddr};

use crate::net::{IpFamily, Protocol};

/// One conntrack entry, as far as it is needed to judge and delete it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// The protocol.
    pub protocol: Protocol,
    /// Who opened the flow.
    pub original_source: SocketAddr,
    /// To which address he sent: a Service address, if the flow was translated by us.
    pub original_destination: SocketAddr,
    /// Who answers: the endpoint, or the original destination itself for a flow that was not translated.
    pub reply_source: SocketAddr,
    /// To whom the answer goes: the client, or the node's address if the flow is masqueraded.
    pub reply_destination: SocketAddr,
    /// The conntrack zone; 0 for nearly all.
    pub zone: u16,
}

/// Which flows to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowQuery {
    /// The family.
    pub family: IpFamily,
    /// The protocol.
    pub protocol: Protocol,
    /// Only flows whose original destination has this address; `None`: any.
    pub destination: Option<IpAddr>,
    /// Only flows whose original destination has this port; `None`: any.
    pub port: Option<u16>,
}
