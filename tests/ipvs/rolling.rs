//! Rolling updates with the kernel's load balancer.

use crate::netns::ipvs::kernel_has_ipvs;
use crate::traffic::program::Setup;
use crate::traffic::rolling::every_endpoint_is_replaced;

#[test]
fn no_connection_fails_while_every_endpoint_is_replaced() {
    if kernel_has_ipvs() {
        every_endpoint_is_replaced(Setup::ipvs());
    }
}
