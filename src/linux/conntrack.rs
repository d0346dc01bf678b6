//! Reading and deleting connection-tracking entries.

use std::time::Duration;

use crate::kernel::{Flow, FlowQuery, KernelError};
use crate::netlink::ctnetlink;
use crate::netlink::message::Request;
use crate::netlink::socket::{Connection, NETFILTER};
use crate::netlink::{NetlinkError, errno};

/// The flows that match a query. The kernel filters if it can (5.8 and newer); what it returns is checked.
pub(super) fn flows(query: &FlowQuery, timeout: Duration) -> Result<Vec<Flow>, KernelError> {
    let attempted = || format!("reading {} {} conntrack entries", query.family, query.protocol);
    let mut connection = Connection::open(NETFILTER, timeout).map_err(|error| error.to_kernel_error(&attempted()))?;
    let filtered = read(&mut connection, &ctnetlink::dump_filtered(query), query);
    let flows = match filtered {
        // A kernel that knows the attribute, but not this use of it.
        Err(NetlinkError::Refused { errno: errno::EINVAL | errno::EOPNOTSUPP, .. }) => {
            read(&mut connection, &ctnetlink::dump_all(query.family), query)
        }
        other => other,
    };
    flows.map_err(|error| error.to_kernel_error(&attempted()))
}

fn read(connection: &mut Connection, request: &Request, query: &FlowQuery) -> Result<Vec<Flow>, NetlinkError> {
    connection.dump(request, Vec::new, |flows, message| {
        if let Some(flow) = ctnetlink::decode_flow(message)?
            && query.admits(&flow)
        {
            flows.push(flow);
        }
        Ok(())
    })
}

/// Deletes flows; one result for each. One that has ended by itself is `NotFound`.
pub(super) fn delete(flows: &[&Flow], timeout: Duration) -> Vec<Result<(), KernelError>> {
    if flows.is_empty() {
        return Vec::new();
    }
    let requests: Vec<Request> = flows.iter().map(|flow| ctnetlink::delete(flow)).collect();
    let results = match Connection::open(NETFILTER, timeout) {
        Ok(mut connection) => connection.batch(&requests),
        Err(error) => vec![Err(error); flows.len()],
    };
    let named = |flow: &Flow| {
        format!("deleting the {} flow {} to {}", flow.protocol, flow.original_source, flow.original_destination)
    };
    let pairs = flows.iter().zip(results);
    pairs.map(|(flow, result)| result.map_err(|error| error.to_kernel_error(&named(flow)))).collect()
}
