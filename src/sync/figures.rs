//! Figures about one Service that are counted or reported, but program nothing.

use crate::compile::{ServicePortPlan, local_ready_addresses};
use crate::model::ServiceEntry;
use crate::net::{IpFamily, PerFamily};

/// Endpoints that a Service's slices list for its ports, by family.
pub(super) fn endpoint_counts(entry: &ServiceEntry) -> PerFamily<u32> {
    let mut counts = PerFamily::default();
    if entry.service.is_some() {
        for slice in &entry.slices {
            counts[slice.family()] += (slice.len() * slice.ports.len()) as u32;
        }
    }
    counts
}

/// Ports with policy Local that have endpoints, but none here: for the internal policy, and for the external one.
pub(super) fn no_local(plans: &[ServicePortPlan], family: IpFamily) -> (u32, u32) {
    let own = plans.iter().filter(|plan| plan.family == family);
    own.fold((0, 0), |(internal, external), plan| {
        (internal + u32::from(plan.internal_lacks_local()), external + u32::from(plan.external_lacks_local()))
    })
}

/// Distinct local addresses with a ready endpoint on any port, in each family in which the Service exists.
pub(super) fn local_ready_endpoints(plans: &[ServicePortPlan]) -> PerFamily<Option<usize>> {
    PerFamily::from_fn(|family| {
        let exists = plans.iter().any(|plan| plan.family == family);
        exists.then(|| local_ready_addresses(plans, family))
    })
}
