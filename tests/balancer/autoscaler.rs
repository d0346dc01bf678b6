//! What an autoscaler does to a Node before it removes it.

use serde_json::{Value, json};

use super::rig::{Balanced, Rig};
use crate::daemon::{Daemon, eventually};
use crate::netns::world::{FAMILIES, Pod, node_address};
use crate::objects::{Phase, node};

#[test]
fn a_node_that_is_tainted_by_the_autoscaler_or_deleted_leaves_rotation_and_lives() {
    const WEB: Balanced = Balanced(10);
    let rig = Rig::start();
    rig.server.apply(WEB.object());
    rig.set(WEB, &[(Pod::A, Phase::Ready)]);
    let daemon = Daemon::start(&rig.world.node1, "node1", &rig.server, &[]);
    for family in FAMILIES {
        eventually("the Service is served", || rig.check(WEB, family).status == 200);
    }
    let healthy = || node("node1", &FAMILIES.map(node_address));
    let with = |pointer: &str, value: Value| {
        let mut object = healthy();
        object[pointer.split('/').next().expect("a field")][pointer.split('/').nth(1).expect("a field")] = value;
        object
    };
    let taint = |key: &str, effect: &str| with("spec/taints", json!([{"key": key, "effect": effect}]));
    let leaving = [
        ("tainted", taint("ToBeDeletedByClusterAutoscaler", "NoSchedule")),
        ("tainted otherwise", taint("ToBeDeletedByClusterAutoscaler", "NoExecute")),
        ("deleted", with("metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"))),
    ];
    for (what, object) in leaving {
        eventually("in rotation", || daemon.healthz() == 200);
        assert_eq!(daemon.livez(), 200);
        rig.server.apply(object);
        eventually(&format!("out of rotation: {what}"), || daemon.healthz() == 503);
        assert_eq!(daemon.livez(), 200, "{what}: nobody should restart it");
        for family in FAMILIES {
            assert_eq!(rig.check(WEB, family).status, 200, "{what}: the pods decide about the health-check port");
            assert_eq!(rig.request(WEB, family).by(), Some("pod-a"), "{what}: traffic goes on");
        }
        rig.server.apply(healthy());
    }
    eventually("in rotation again", || daemon.healthz() == 200);
    rig.server.apply(taint("node.kubernetes.io/unschedulable", "NoSchedule"));
    // When a later change of the Service is programmed, the Node has been heard of as well.
    rig.set(WEB, &[(Pod::A, Phase::Ready), (Pod::B, Phase::Ready)]);
    eventually("a later change", || rig.check(WEB, FAMILIES[0]).body.contains("\"localEndpoints\": 2"));
    assert_eq!(daemon.healthz(), 200, "other taints are none of the proxy's business");
}
