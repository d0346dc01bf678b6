//! Where a run happens: a client, a node and pods, each in a network namespace without a name.
//!
//! ```text
//!  client 10.255.0.2 ── 10.255.0.1 node 198.18.0.1 ── 198.18.0.2 pods (all of 10.0.0.0/9)
//! ```
//!
//! The client is a pod of this node, so that its packets are not masqueraded. All endpoints are one host, which takes every address
//! of their network as its own.

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};

use ipnet::{IpNet, Ipv4Net};

use crate::bench::fleet::{ENDPOINT_NETWORK, ENDPOINT_PORT, SERVICE_NETWORK};
use crate::kernel::{ErrorKind, KernelError};
use crate::linux::scratch::{End, Namespace, add_route, connect, own_network};
use crate::linux::sysctl;

/// The addresses of pods: of endpoints and of the client.
pub const POD_NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 0), 8);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);
const NODE_TO_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const NODE_TO_PODS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const PODS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The prefix of the two networks that connect the namespaces.
const CABLE: u8 = 24;

/// Seconds for which the node remembers a connection that was reset. The benchmark makes very many, and the room for them is
/// shared with the rest of the machine.
const FORGET_AFTER: &str = "1";

/// The namespaces of one run.
#[derive(Debug)]
pub struct World {
    client: Namespace,
    _node: Namespace,
    pods: Namespace,
    listener: TcpListener,
}

impl World {
    /// Makes the namespaces and moves the calling thread to the node's.
    pub fn enter() -> Result<World, KernelError> {
        let (client, pods) = (Namespace::fresh()?, Namespace::fresh()?);
        let node = Namespace::enter_fresh()?;
        let end = |namespace, link, address| End { namespace, link, address: net(address, CABLE) };
        connect(end(&node, "client", NODE_TO_CLIENT), end(&client, "eth0", CLIENT))?;
        connect(end(&node, "pods", NODE_TO_PODS), end(&pods, "eth0", PODS))?;
        add_route(&node, net(ENDPOINT_NETWORK.0, ENDPOINT_NETWORK.1), PODS.into())?;
        add_route(&client, net(SERVICE_NETWORK.0, SERVICE_NETWORK.1), NODE_TO_CLIENT.into())?;
        add_route(&pods, net(NODE_TO_CLIENT, CABLE), NODE_TO_PODS.into())?;
        own_network(&pods, net(ENDPOINT_NETWORK.0, ENDPOINT_NETWORK.1))?;
        sysctl::ensure("net/ipv4/ip_forward", "1")?;
        let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, ENDPOINT_PORT.get()));
        let listener = pods.within(listen)?.map_err(|error| {
            KernelError::new(ErrorKind::Rejected, format!("listening in the namespace of the pods: {error}"))
        })?;
        Ok(World { client, _node: node, pods, listener })
    }

    /// Makes the kernel forget connections that were reset soon. What tracks connections is there once rules want it.
    pub fn forget_soon(&self) -> Result<(), KernelError> {
        sysctl::ensure("net/netfilter/nf_conntrack_tcp_timeout_close", FORGET_AFTER).map(drop)
    }

    /// What all endpoints listen with.
    pub fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// Makes so many connections to the listener from its own side, and drops them.
    pub fn wake(&self, count: usize) -> std::io::Result<()> {
        let connect =
            || (0..count).try_for_each(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, ENDPOINT_PORT.get())).map(drop));
        self.pods.within(connect).map_err(std::io::Error::other)?
    }

    /// Where clients are.
    pub fn client(&self) -> &Namespace {
        &self.client
    }
}

/// An address with the length of its network's prefix; prefixes here are constants of at most 32.
fn net(address: Ipv4Addr, prefix: u8) -> IpNet {
    Ipv4Net::new(address, prefix).map_or_else(|_| IpNet::from(IpAddr::V4(address)), IpNet::V4)
}

/// The network of all pods.
pub fn pod_network() -> IpNet {
    net(POD_NETWORK.0, POD_NETWORK.1)
}
