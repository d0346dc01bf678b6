//! Memory of IPVS mode where there is no ip_vs: everything but the kernel and the API client, in a process of its own.

use portolan::linux::memory::release_unused;
use portolan::model::Change;
use portolan::model::convert::{self, Interner, wire};
use portolan::sync::Options;

use crate::Outcome;
use crate::daemon::memory;
use crate::measure::Cell;
use crate::support::fleet::Fleet;
use crate::support::null_kernel::NullKernel;
use crate::support::{self, Mode, objects};

/// Takes in a cluster object by object, as the watches do, and syncs with a kernel that agrees to everything.
pub(crate) fn ipvs_without_kernel(fleet: Fleet) -> Outcome<Vec<Cell>> {
    let mut engine = support::engine_in(Mode::Ipvs, NullKernel::default(), Options::default());
    let mut interner = Interner::default();
    for at in 0..fleet.services {
        let service: wire::Service = serde_json::from_str(&objects::service(at).to_string())?;
        if let (Some((name, service)), _) = convert::service(&service, &mut interner) {
            engine.apply(Change::Service(name, service));
        }
        let slice: wire::EndpointSlice = serde_json::from_str(&objects::slice(fleet, at, 0).to_string())?;
        if let (Some((name, slice)), _) = convert::slice(&slice, &mut interner) {
            engine.apply(Change::Slice(name, slice));
        }
    }
    fleet.complete().for_each(|change| engine.apply(change));
    support::sync(&mut engine);
    release_unused();
    Ok(vec![("resident", memory("self", "VmRSS:")?.to_string()), ("peak", memory("self", "VmHWM:")?.to_string())])
}
