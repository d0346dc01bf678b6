//! Many items at once.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use ErrorKind::{Exists, NoSpace};
use portolan::kernel::{ErrorKind, ItemKey, ItemState, Kernel, Op, SetName};
use portolan::net::IpFamily;

use crate::linux_support::shell;
use crate::world::*;

/// Takes the time of a part.
fn timed<T>(what: &str, part: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = part();
    println!("{what}: {:?}", start.elapsed());
    result
}

#[test]
fn five_thousand_elements_are_added_among_those_that_exist() {
    natively(|kernel| {
        for family in IpFamily::ALL {
            let cluster = set(family, SetName::ClusterIp);
            done(kernel, &[add(cluster, ItemState::Capacity(4000))]);
            let ops: Vec<Op> = (0..5000).map(|n| add(cluster_ip(family, n), PRESENT)).collect();
            let results = timed("5,000 elements into 4,000 places", || kinds(kernel, &ops));
            assert!(results[..4000].iter().all(Option::is_none));
            // Above 1,024 buckets the kernel counts by parts of the table, and takes a few more than it was asked to.
            let refused = |result: &&Option<ErrorKind>| **result == Some(NoSpace);
            let over = results[4000..].iter().filter(refused).count();
            assert!(results[4000..].iter().all(|result| result.is_none_or(|kind| kind == NoSpace)));
            assert!(over > 900, "{over}");
            timed("growing", || done(kernel, &[change(cluster, CAPACITY)]));
            let again = timed("the same again, one in five missing", || kinds(kernel, &ops));
            for (before, now) in results.iter().zip(again) {
                assert_eq!(now, if before.is_none() { Some(Exists) } else { None });
            }
            let found = timed("dump", || kernel.items(family, &LEAVING).unwrap());
            assert_eq!(found.ours.len(), 5001);
            let ops: Vec<Op> = (0..5000).map(|n| delete(cluster_ip(family, n))).collect();
            timed("deleting", || done(kernel, &ops));
            done(kernel, &[delete(cluster)]);
        }
    });
}

#[test]
fn a_thousand_services_are_filled_in_and_read() {
    in_lab(|kernel| {
        for family in IpFamily::ALL {
            let mut ops = vec![add(set(family, SetName::ClusterIp), CAPACITY)];
            ops.extend((0..1000).map(|n| add(cluster_ip(family, n), PRESENT)));
            for n in 0..1000 {
                ops.push(add(virtual_server(family, n), plain()));
                ops.extend((0..5).map(|at| add(real_server(family, n, 5 * n + at + 1), ItemState::Weight(1))));
            }
            ops.extend((0..1000).map(|n| add(address(family, n), bound(family == IpFamily::V6))));
            timed(&format!("{family}: {} operations", ops.len()), || done(kernel, &ops));
            let changes: Vec<Op> = (0..1000).map(|n| change(address(family, n), bound(n % 2 == 0))).collect();
            timed("changing addresses", || done(kernel, &changes));
            let found = timed("dump", || kernel.items(family, &SERVING).unwrap());
            assert_eq!((found.ours.len(), found.foreign.len()), (2 + 1000 + 6000 + 1000, 0));
            let found = timed("addresses of the node", || kernel.addresses(family).unwrap());
            assert_eq!(found.len(), 1, "{found:?}");
        }
    });
}

#[test]
fn a_virtual_server_with_many_real_servers_is_read_whole() {
    in_lab(|kernel| {
        let family = IpFamily::V6;
        let mut ops = vec![add(virtual_server(family, 1), plain())];
        ops.extend((0..1000).map(|at| add(real_server(family, 1, at + 1), ItemState::Weight(1))));
        done(kernel, &ops);
        assert_eq!(dump(kernel, family).foreign.len(), 1001);
        assert_eq!(kernel.connections(&server(family, 1)).unwrap().len(), 1000);
    });
}

/// Expects nothing for a while.
fn quiet<T: std::fmt::Debug>(receiver: &mpsc::Receiver<T>) {
    assert_eq!(receiver.recv_timeout(Duration::from_millis(300)).map_err(|_| ()).err(), Some(()));
}

#[test]
fn addresses_of_services_wake_nobody() {
    in_lab(|kernel| {
        let (sender, receiver) = mpsc::channel();
        let watch = kernel.watch_addresses(move |addresses| drop(sender.send(addresses))).unwrap();
        let wait = || receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        let first = wait();
        assert_eq!((first.v4, first.v6), (vec![ip("127.0.0.1")], vec![ip("::1")]));
        let fill: Vec<Op> =
            IpFamily::ALL.iter().flat_map(|family| (0..500).map(|n| add(address(*family, n), bound(false)))).collect();
        done(kernel, &fill);
        quiet(&receiver);
        shell("ip addr add 192.0.2.1/32 dev lo");
        assert_eq!(wait().v4, [ip("127.0.0.1"), ip("192.0.2.1")]);
        done(kernel, &[delete(ItemKey::Link)]);
        quiet(&receiver);
        drop(watch);
    });
}
