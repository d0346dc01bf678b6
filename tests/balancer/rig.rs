//! One node with a Service behind a load balancer, external traffic policy Local.

use std::net::SocketAddr;

use serde_json::Value;

use crate::api_server::ApiServer;
use crate::daemon::{Answer, get};
use crate::netns::probe::{Outcome, PATIENCE, Proto, probe};
use crate::netns::world::{FAMILIES, Family, Pod, World, cluster_ip, node_address, public};
use crate::objects::{Phase, balanced, endpoint, node, service, slice};

/// The world and the API server.
pub(crate) struct Rig {
    /// The world.
    pub(crate) world: World,
    /// The API server, on the loopback address of node1.
    pub(crate) server: ApiServer,
}

/// A Service: the number of its addresses and ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Balanced(pub(crate) u8);

impl Balanced {
    /// Its name.
    pub(crate) fn name(self) -> String {
        format!("web-{}", self.0)
    }

    /// Its address at the load balancer.
    pub(crate) fn vip(self, family: Family) -> SocketAddr {
        SocketAddr::new(public(family, self.0), 80)
    }

    /// Its health-check node port on node1.
    pub(crate) fn health(self, family: Family) -> SocketAddr {
        SocketAddr::new(node_address(family), 31000 + u16::from(self.0))
    }

    /// The object.
    pub(crate) fn object(self) -> Value {
        let number = u16::from(self.0);
        let vips = FAMILIES.map(|family| public(family, self.0));
        let service = service(&self.name(), &FAMILIES.map(|family| cluster_ip(family, self.0)));
        balanced(service, 30000 + number, 31000 + number, &vips)
    }
}

impl Rig {
    /// Pods serve, and the API server knows the node.
    pub(crate) fn start() -> Rig {
        let mut world = World::new();
        world.serve_pods(&[Pod::A, Pod::B, Pod::R1], &[8080]);
        let server = world.node1.run(ApiServer::start);
        server.apply(node("node1", &FAMILIES.map(node_address)));
        Rig { world, server }
    }

    /// States the endpoints of a Service.
    pub(crate) fn set(&self, of: Balanced, pods: &[(Pod, Phase)]) {
        for (family, name) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            let endpoint = |(pod, phase): &(Pod, Phase)| endpoint(pod.address(family), pod.node(), *phase);
            let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
            self.server.apply(slice(&of.name(), name, &endpoints));
        }
    }

    /// Asks the health-check node port as a load balancer does.
    pub(crate) fn check(&self, of: Balanced, family: Family) -> Answer {
        get(&self.world.client, of.health(family), "/")
    }

    /// Sends a request through the load balancer's address.
    pub(crate) fn request(&self, of: Balanced, family: Family) -> Outcome {
        self.world.client.run(|| probe(None, of.vip(family), Proto::Tcp, PATIENCE))
    }
}
