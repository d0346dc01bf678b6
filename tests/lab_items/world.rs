//! What the tests share: where they run, and short names for items and operations.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use portolan::kernel::item::Scheduler;
use portolan::kernel::{
    Element, ErrorKind, ItemClaims, ItemDump, ItemKey, ItemState, Kernel, Op, RealKey, SetKey, SetName, VirtualKey,
    VirtualServer,
};
use portolan::linux::ipvs::Needs;
use portolan::linux::{LinuxKernel, Variant};
use portolan::net::{IpFamily, PerFamily, Protocol};
use portolan::netlink;
use portolan::netlink::genl;
use portolan::netlink::ipvs::Ipvs;
use portolan::netlink::socket::{Connection, GENERIC};

use crate::linux_support::{in_namespace, kernel};

pub(crate) const SERVING: ItemClaims = ItemClaims { serving: true, excluded: Vec::new() };
pub(crate) const LEAVING: ItemClaims = ItemClaims { serving: false, excluded: Vec::new() };

/// Whether this kernel has `ip_vs` and dummy links, after it was asked for them.
pub(crate) fn has_lab() -> bool {
    in_namespace(|| {
        let (kernel, _directory) = kernel(Variant::Legacy);
        let _ = kernel.ipvs_requirements(&needs("rr"));
    });
    let found = Path::new("/proc/net/ip_vs").exists();
    assert!(found || std::env::var_os("PORTOLAN_LAB").is_none(), "the lab's kernel has no ip_vs");
    if !found {
        println!("not run: this kernel has no ip_vs; use `cargo xtask lab`");
    }
    found
}

/// Runs a test in a namespace of its own.
pub(crate) fn natively(test: impl FnOnce(&mut LinuxKernel) + Send) {
    in_namespace(|| {
        let (mut kernel, _directory) = kernel(Variant::Legacy);
        test(&mut kernel);
    });
}

/// The same, if the kernel has what IPVS mode needs.
pub(crate) fn in_lab(test: impl FnOnce(&mut LinuxKernel) + Send) {
    if has_lab() {
        natively(test);
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One of two, by family.
pub(crate) fn pick<'a>(family: IpFamily, v4: &'a str, v6: &'a str) -> &'a str {
    match family {
        IpFamily::V4 => v4,
        IpFamily::V6 => v6,
    }
}

pub(crate) fn vip(family: IpFamily, n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    match family {
        IpFamily::V4 => [10, 96, high, low].into(),
        IpFamily::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 0, n].into(),
    }
}

pub(crate) fn endpoint(family: IpFamily, n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    match family {
        IpFamily::V4 => [10, 0, high, low].into(),
        IpFamily::V6 => [0xfd00, 0, 0, 0, 0, 0, 0, n].into(),
    }
}

pub(crate) fn key(family: IpFamily, name: SetName) -> SetKey {
    SetKey { family, name }
}

pub(crate) fn set(family: IpFamily, name: SetName) -> ItemKey {
    ItemKey::Set(key(family, name))
}

pub(crate) fn element(family: IpFamily, name: SetName, element: Element) -> ItemKey {
    ItemKey::Element(key(family, name), element)
}

/// A cluster IP of a service with TCP port 80.
pub(crate) fn cluster_ip(family: IpFamily, n: u16) -> ItemKey {
    element(family, SetName::ClusterIp, Element::IpPort(vip(family, n), Protocol::Tcp, 80))
}

pub(crate) fn server(family: IpFamily, n: u16) -> VirtualKey {
    VirtualKey { address: vip(family, n), protocol: Protocol::Tcp, port: 80 }
}

pub(crate) fn virtual_server(family: IpFamily, n: u16) -> ItemKey {
    ItemKey::VirtualServer(server(family, n))
}

pub(crate) fn real_server(family: IpFamily, n: u16, at: u16) -> ItemKey {
    ItemKey::RealServer(RealKey { server: server(family, n), address: endpoint(family, at), port: 8080 })
}

pub(crate) fn scheduled(scheduler: &str, flags: u32, persistence_seconds: u32) -> ItemState {
    ItemState::Server(VirtualServer { scheduler: Scheduler::new(scheduler).unwrap(), flags, persistence_seconds })
}

pub(crate) fn plain() -> ItemState {
    scheduled("rr", 0, 0)
}

pub(crate) const CAPACITY: ItemState = ItemState::Capacity(65536);
pub(crate) const PRESENT: ItemState = ItemState::Present;

pub(crate) fn address(family: IpFamily, n: u16) -> ItemKey {
    ItemKey::Address(vip(family, n))
}

pub(crate) fn bound(deprecated: bool) -> ItemState {
    ItemState::Address { deprecated }
}

pub(crate) fn route(net: &str) -> ItemKey {
    ItemKey::Route(net.parse().unwrap())
}

pub(crate) fn add(key: ItemKey, state: ItemState) -> Op {
    Op::AddItem(key, state)
}

pub(crate) fn change(key: ItemKey, state: ItemState) -> Op {
    Op::ChangeItem(key, state)
}

pub(crate) fn delete(key: ItemKey) -> Op {
    Op::DeleteItem(key)
}

/// Applies operations that have to succeed.
pub(crate) fn done(kernel: &mut LinuxKernel, ops: &[Op]) {
    for (op, result) in ops.iter().zip(kernel.apply(ops)) {
        assert_eq!(result, Ok(()), "{op}");
    }
}

/// What each operation returned; `None`: done.
pub(crate) fn kinds(kernel: &mut dyn Kernel, ops: &[Op]) -> Vec<Option<ErrorKind>> {
    kernel.apply(ops).into_iter().map(|result| result.err().map(|error| error.kind)).collect()
}

pub(crate) fn sorted(mut dump: ItemDump) -> ItemDump {
    dump.ours.sort_by_key(|(key, _)| *key);
    dump.foreign.sort_by_key(|(key, _)| *key);
    dump
}

pub(crate) fn dump(kernel: &mut dyn Kernel, family: IpFamily) -> ItemDump {
    sorted(kernel.items(family, &SERVING).unwrap())
}

/// A socket of the family of IPVS, for what the kernel layer does not do.
pub(crate) fn balancer() -> (Connection, Ipvs) {
    let mut genl = Connection::open(GENERIC, Duration::from_secs(30)).unwrap();
    let mut family = None;
    genl.request(&genl::get_family(netlink::ipvs::FAMILY), |message| {
        family = genl::decode_family(message)?;
        Ok(())
    })
    .unwrap();
    (genl, Ipvs::new(&family.unwrap()))
}

/// Both families with addresses on the dummy link.
pub(crate) fn needs(scheduler: &str) -> Needs {
    let scheduler = Scheduler::new(scheduler).unwrap();
    Needs { families: PerFamily { v4: true, v6: true }, scheduler, dummy_link: true }
}
