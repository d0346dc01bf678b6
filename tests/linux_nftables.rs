//! What kube-proxy's nftables mode leaves is removed, and nothing else, on a real kernel.

#[path = "support/api_server/mod.rs"]
mod api_server;
#[path = "support/config_mount.rs"]
mod config_mount;
mod linux_support;

use std::process::Command;
use std::time::Duration;

use api_server::{ApiServer, Resource};
use config_mount::{Daemon, METRICS, Mount, get, kubeconfig, wait_for};
use linux_support::{in_namespace, shell};
use portolan::kernel::ErrorKind;
use portolan::netlink::attribute::push_text;
use portolan::netlink::message::Request;
use portolan::netlink::nftables::transaction;
use portolan::netlink::socket::{Connection, NETFILTER};
use serde_json::json;

/// `NFNL_SUBSYS_NFTABLES << 8`, the number of NEWTABLE; then those of GETTABLE and NEWCHAIN.
const NEW_TABLE: u16 = 10 << 8;
const GET_TABLE: u16 = NEW_TABLE | 1;
const NEW_CHAIN: u16 = NEW_TABLE | 3;
/// `NLM_F_CREATE`.
const CREATE: u16 = 0x400;
/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const INET: u8 = 1;
const IP: u8 = 2;
const IP6: u8 = 10;

/// kube-proxy's own, and what is like them.
const OWN: [(u8, &str); 2] = [(IP, "kube-proxy"), (IP6, "kube-proxy")];
const FOREIGN: [(u8, &str); 3] = [(INET, "kube-proxy"), (IP, "kube-proxy2"), (IP6, "firewall")];

fn connection() -> Connection {
    Connection::open(NETFILTER, Duration::from_secs(10)).unwrap()
}

fn request(kind: u16, flags: u16, family: u8, texts: &[(u16, &str)]) -> Request {
    let mut payload = vec![family, 0, 0, 0];
    texts.iter().for_each(|(attribute, text)| push_text(&mut payload, *attribute, text));
    Request { kind, flags, payload }
}

/// Makes tables, with a chain in each.
fn make(tables: &[(u8, &str)]) {
    for (family, name) in tables {
        for change in [
            request(NEW_TABLE, CREATE, *family, &[(1, name)]),
            request(NEW_CHAIN, CREATE, *family, &[(1, name), (3, "services")]),
        ] {
            connection().transaction(transaction(change)).unwrap();
        }
    }
}

/// How many of these tables there are.
fn count(tables: &[(u8, &str)]) -> usize {
    let there = |(family, name): &&(u8, &str)| match connection()
        .request(&request(GET_TABLE, 0, *family, &[(1, name)]), |_| Ok(()))
    {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => panic!("{error}"),
    };
    tables.iter().filter(there).count()
}

#[test]
fn the_tables_of_the_nftables_mode_go_when_rules_stand_in_their_place() {
    in_namespace(|| {
        make(&OWN);
        make(&FOREIGN);
        assert_eq!((count(&OWN), count(&FOREIGN)), (2, 3));
        let server = ApiServer::start();
        server.apply(json!({"kind": "Node", "metadata": {"name": "node1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}));
        server.apply(json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
                     "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP"}]}}));
        server.fail(Resource::Slices, usize::MAX, 503, 0);
        let directory = tempfile::tempdir().unwrap();
        let path = kubeconfig(directory.path(), "kubeconfig", &server.url());
        let mount = Mount::new(&format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n\
             hostnameOverride: node1\nclientConnection: {{kubeconfig: {path}}}\n"
        ));
        let _daemon = Daemon::watching(&mount, "nft");
        wait_for("slices are asked for", || {
            get(METRICS, "/metrics").contains("portolan_watch_restarts_total{kind=\"EndpointSlice\"} 1")
        });
        assert_eq!(count(&OWN), 2, "nothing stands in their place yet");
        server.heal();
        wait_for("they go", || count(&OWN) == 0);
        assert!(shell("iptables-nft-save").contains("KUBE-SERVICES"));
        assert_eq!(count(&FOREIGN), 3);
    });
}

#[test]
fn cleanup_removes_the_tables_of_the_nftables_mode_and_no_others() {
    in_namespace(|| {
        make(&FOREIGN);
        // With them, and without.
        for tables in [&OWN[..], &OWN[..1], &[]] {
            make(tables);
            let cleanup = Command::new(env!("CARGO_BIN_EXE_portolan"))
                .args(["--cleanup", "--iptables-variant", "nft", "--hostname-override", "node1"])
                .output()
                .unwrap();
            assert!(cleanup.status.success(), "{}", String::from_utf8_lossy(&cleanup.stderr));
            assert_eq!((count(&OWN), count(&FOREIGN)), (0, 3));
        }
    });
}
