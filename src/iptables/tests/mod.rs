//! What the backend writes, chain by chain. The numbers in comments are those of the checklist of kube-proxy's behaviours.

mod base;
mod external;
mod packets;
mod restore;
mod service;
pub(crate) mod setup;
