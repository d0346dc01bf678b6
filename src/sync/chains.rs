//! Chains, wanted and known, under packed keys: a big node has tens of thousands.

use crate::kernel::{ChainKey, PackedChain};
use crate::sync::ledger::ChainState;
use crate::sync::owner::OwnerId;
use crate::sync::tracked::{Pending, Tracked};

/// [`Tracked`], for chains.
#[derive(Debug, Default)]
pub(crate) struct Chains(Tracked<PackedChain, ChainState>);

impl Chains {
    /// The owner wants the chain like this.
    pub(crate) fn want(&mut self, chain: &ChainKey, owner: OwnerId, value: ChainState) {
        self.0.want(&PackedChain::of(chain), owner, value);
    }

    /// The owner does not want the chain any more.
    pub(crate) fn unwant(&mut self, chain: &ChainKey, owner: OwnerId) {
        self.0.unwant(&PackedChain::of(chain), owner);
    }

    /// The kernel is now known to hold this. Returns what was known before.
    pub(crate) fn learn(&mut self, chain: &ChainKey, known: Option<ChainState>) -> Option<ChainState> {
        self.0.learn(&PackedChain::of(chain), known)
    }

    /// What is to be done about a chain.
    pub(crate) fn pending(&self, chain: &ChainKey) -> Option<Pending<ChainState>> {
        self.0.pending(&PackedChain::of(chain))
    }

    /// How the chain is wanted.
    pub(crate) fn wanted(&self, chain: &ChainKey) -> Option<ChainState> {
        self.0.wanted(&PackedChain::of(chain))
    }

    /// What the kernel is known to hold.
    pub(crate) fn known(&self, chain: &ChainKey) -> Option<ChainState> {
        self.0.known(&PackedChain::of(chain))
    }

    /// Whether there is anything to say about the chain.
    pub(crate) fn contains(&self, chain: &ChainKey) -> bool {
        self.0.contains(&PackedChain::of(chain))
    }

    /// Whether this owner wants the chain.
    pub(crate) fn wants(&self, chain: &ChainKey, owner: OwnerId) -> bool {
        self.0.wants(&PackedChain::of(chain), owner)
    }

    /// The owners of chains that are not as they should be. A pass over everything.
    pub(crate) fn unsettled_owners(&self) -> impl Iterator<Item = OwnerId> {
        let unsettled = self.0.iter().filter(|(chain, _, _)| self.0.pending(chain).is_some());
        unsettled.flat_map(|(chain, _, _)| self.0.owners(chain))
    }

    /// All chains.
    pub(crate) fn keys(&self) -> impl Iterator<Item = ChainKey> {
        self.0.iter().map(|(chain, _, _)| chain.key())
    }
}

/// Some chains, in order.
#[derive(Debug, Default)]
pub(crate) struct ChainList(Vec<PackedChain>);

impl ChainList {
    /// The chains.
    pub(crate) fn iter(&self) -> impl Iterator<Item = ChainKey> {
        self.0.iter().map(PackedChain::key)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends one.
    pub(crate) fn push(&mut self, chain: &ChainKey) {
        self.0.push(PackedChain::of(chain));
    }

    /// Keeps those that `keep` wants.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&ChainKey) -> bool) {
        self.0.retain(|chain| keep(&chain.key()));
    }

    /// Gives back room that is not used.
    pub(crate) fn shrink_to_fit(&mut self) {
        self.0.shrink_to_fit();
    }
}
