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

/// An end of a flow's original direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowEnd {
    /// To where its first packet went.
    Destination,
    /// Where its first packet came from.
    Source,
}

impl FlowQuery {
    /// Whether a flow is one that is asked for.
    pub fn admits(&self, flow: &Flow) -> bool {
        let end = match self.end {
            FlowEnd::Destination => flow.original_destination,
            FlowEnd::Source => flow.original_source,
        };
        flow.protocol == self.protocol
            && IpFamily::of(end.ip()) == self.family
            && self.address.is_none_or(|wanted| wanted == end.ip())
            && self.port.is_none_or(|wanted| wanted == end.port())
    }
}

/// Which flows to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowQuery {
    /// The family.
    pub family: IpFamily,
    /// The protocol.
    pub protocol: Protocol,
    /// Which end of the original direction the address and the port are those of.
    pub end: FlowEnd,
    /// Only flows with this address there; `None`: any.
    pub address: Option<IpAddr>,
    /// Only flows with this port there; `None`: any.
    pub port: Option<u16>,
}
