//! Keys of kernel objects in a fraction of the room: a big node keeps tens or hundreds of thousands of them, each twice.

mod chain;
mod item;

pub use chain::PackedChain;
pub use item::PackedItem;
