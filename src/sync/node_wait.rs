//! What has to be known of the own Node before the first sync, and how long that is waited for. The times are kube-proxy's.

use std::time::{Duration, Instant};

use crate::model::Node;

/// How long the Node's addresses are waited for once it is known whether there is a Node.
pub const ADDRESSES_WITHIN: Duration = Duration::from_secs(30);
/// How long its pod CIDRs are waited for after that.
pub const POD_CIDRS_WITHIN: Duration = Duration::from_secs(300);

/// What has to be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeNeeds {
    /// Nothing: whatever the source says of the Node, and be it that there is none, is all that it will say.
    #[default]
    Nothing,
    /// Its addresses; without them it goes on after a while.
    Addresses,
    /// The same, and its pod CIDRs, without which it does not go on: `detectLocalMode: NodeCIDR`.
    PodCidrs,
}

/// How far the waiting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeWait {
    /// The source has not said yet whether there is a Node. That is waited for as long as it takes.
    Unlisted,
    /// For addresses, until then.
    Addresses(Instant),
    /// For pod CIDRs, until then.
    PodCidrs(Instant),
    /// Over: what is needed is known.
    Known,
    /// Over: the addresses are not known, and go on without them.
    Unaddressed,
    /// Over: without pod CIDRs there is nothing to go on with.
    Failed,
}

/// The waiting. What has ended does not begin again: of what changes later the rules are computed anew.
#[derive(Debug)]
pub(super) struct Awaited {
    now: NodeWait,
    /// When the addresses were there, or were not waited for any more; and whether they were there.
    addresses_over: Option<(Instant, NodeWait)>,
}

impl Awaited {
    pub(super) fn new() -> Awaited {
        Awaited { now: NodeWait::Unlisted, addresses_over: None }
    }

    /// How far it was at the last look.
    pub(super) fn last(&self) -> NodeWait {
        self.now
    }

    /// Looks at the Node; `None`: the source has not said whether there is one.
    pub(super) fn look(&mut self, needs: NodeNeeds, node: Option<&Node>, now: Instant) -> NodeWait {
        self.now = match (self.now, node) {
            (over @ (NodeWait::Known | NodeWait::Unaddressed | NodeWait::Failed), _) => over,
            (NodeWait::Unlisted, None) => NodeWait::Unlisted,
            (waiting, None) => waiting,
            (before, Some(node)) => self.next(before, needs, node, now),
        };
        self.now
    }

    fn next(&mut self, before: NodeWait, needs: NodeNeeds, node: &Node, now: Instant) -> NodeWait {
        if needs == NodeNeeds::Nothing {
            return NodeWait::Known;
        }
        let (since, result) = match self.addresses_over {
            Some(over) => over,
            None => {
                let until = if let NodeWait::Addresses(until) = before { until } else { now + ADDRESSES_WITHIN };
                let known = !node.addresses.is_empty();
                if !known && now < until {
                    return NodeWait::Addresses(until);
                }
                *self.addresses_over.insert((now, if known { NodeWait::Known } else { NodeWait::Unaddressed }))
            }
        };
        let until = since + POD_CIDRS_WITHIN;
        match needs {
            NodeNeeds::PodCidrs if node.pod_cidrs.is_empty() && now < until => NodeWait::PodCidrs(until),
            NodeNeeds::PodCidrs if node.pod_cidrs.is_empty() => NodeWait::Failed,
            NodeNeeds::PodCidrs | NodeNeeds::Addresses | NodeNeeds::Nothing => result,
        }
    }
}

impl NodeWait {
    /// When to look again although nothing was reported; `None`: then there is nothing to see.
    pub fn until(self) -> Option<Instant> {
        match self {
            NodeWait::Addresses(until) | NodeWait::PodCidrs(until) => Some(until),
            NodeWait::Unlisted | NodeWait::Known | NodeWait::Unaddressed | NodeWait::Failed => None,
        }
    }

    /// Whether the kernel may be made to agree.
    pub(super) fn lets_go_on(self) -> bool {
        matches!(self, NodeWait::Known | NodeWait::Unaddressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look: after so many seconds, at what is known of the Node.
    #[derive(Clone, Copy)]
    enum Seen {
        /// The source has not said.
        Nothing,
        /// There is no Node, or it has neither.
        Neither,
        Addresses,
        PodCidrs,
        Both,
    }

    fn node(seen: Seen) -> Option<Node> {
        let (addresses, pod_cidrs) = match seen {
            Seen::Nothing => return None,
            Seen::Neither => (vec![], vec![]),
            Seen::Addresses => (vec!["192.0.2.1".parse().unwrap()], vec![]),
            Seen::PodCidrs => (vec![], vec!["10.1.0.0/24".parse().unwrap()]),
            Seen::Both => (vec!["fd00::1".parse().unwrap()], vec!["fd01::/64".parse().unwrap()]),
        };
        Some(Node { addresses, pod_cidrs, ..Node::default() })
    }

    #[test]
    fn addresses_are_waited_for_half_a_minute_and_pod_cidrs_five_minutes_after_that() {
        use NodeNeeds as Needs;
        use NodeWait::*;
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // What is needed; the looks, with the seconds at which they are made and what they lead to.
        for (needs, looks) in [
            // As long as nothing is listed, nobody gives up: the API server may be away.
            (Needs::PodCidrs, &[(0, Seen::Nothing, Unlisted), (9999, Seen::Nothing, Unlisted)][..]),
            (Needs::Nothing, &[(0, Seen::Nothing, Unlisted), (1, Seen::Neither, Known)]),
            // The usual case: all is there.
            (Needs::Addresses, &[(0, Seen::Addresses, Known)]),
            (Needs::PodCidrs, &[(0, Seen::Both, Known)]),
            // The time begins with the list, not with the process.
            (Needs::Addresses, &[(0, Seen::Nothing, Unlisted), (100, Seen::Neither, Addresses(at(130)))]),
            (Needs::Addresses, &[(0, Seen::Neither, Addresses(at(30))), (29, Seen::Addresses, Known)]),
            // No Node, or one without addresses: it goes on, and other modes than NodeCIDR do not care for pod CIDRs.
            (
                Needs::Addresses,
                &[
                    (0, Seen::Neither, Addresses(at(30))),
                    (29, Seen::PodCidrs, Addresses(at(30))),
                    (30, Seen::Neither, Unaddressed),
                    (31, Seen::Addresses, Unaddressed),
                ],
            ),
            // The five minutes begin when the addresses are there or given up.
            (
                Needs::PodCidrs,
                &[
                    (0, Seen::Neither, Addresses(at(30))),
                    (10, Seen::Addresses, PodCidrs(at(310))),
                    (309, Seen::Both, Known),
                ],
            ),
            (
                Needs::PodCidrs,
                &[
                    (0, Seen::Neither, Addresses(at(30))),
                    (30, Seen::Neither, PodCidrs(at(330))),
                    (329, Seen::PodCidrs, Unaddressed),
                ],
            ),
            (
                Needs::PodCidrs,
                &[
                    (0, Seen::Addresses, PodCidrs(at(300))),
                    (299, Seen::Addresses, PodCidrs(at(300))),
                    (300, Seen::Addresses, Failed),
                    (301, Seen::Both, Failed),
                ],
            ),
            // Pod CIDRs that go later are no reason to wait again.
            (Needs::PodCidrs, &[(0, Seen::Both, Known), (1, Seen::Neither, Known)]),
        ] {
            let mut awaited = Awaited::new();
            for (seconds, seen, expected) in looks {
                let found = awaited.look(needs, node(*seen).as_ref(), at(*seconds));
                assert_eq!(found, *expected, "{needs:?} at {seconds} s");
                assert_eq!(awaited.last(), found);
            }
        }
    }

    #[test]
    fn another_configuration_while_it_waits_may_end_the_wait() {
        let start = Instant::now();
        let mut awaited = Awaited::new();
        let without = node(Seen::Addresses);
        let waits = awaited.look(NodeNeeds::PodCidrs, without.as_ref(), start);
        assert_eq!(waits, NodeWait::PodCidrs(start + POD_CIDRS_WITHIN));
        assert_eq!(awaited.look(NodeNeeds::Addresses, without.as_ref(), start), NodeWait::Known);
    }
}
