//! Rolling updates with the kernel's load balancer.

use crate::netns::ipvs::kernel_has_ipvs;
use crate::traffic::program::Setup;
use crate::traffic::rolling::{a_fast_client_sees_every_endpoint_replaced, every_endpoint_is_replaced};

#[test]
fn no_connection_fails_while_every_endpoint_is_replaced() {
    if kernel_has_ipvs() {
        every_endpoint_is_replaced(Setup::ipvs());
    }
}

#[test]
fn no_connection_of_a_fast_client_fails_while_every_endpoint_is_replaced() {
    if kernel_has_ipvs() {
        let rate = a_fast_client_sees_every_endpoint_replaced(Setup::ipvs());
        // A slow guest on a busy machine opens fewer than were asked for; with so few it would prove nothing.
        assert!(rate > 100.0, "only {rate:.0} connections a second");
    }
}
