//! The keys of chains.

use crate::kernel::{ChainKey, ChainName, TableId};

const START: &str = "KUBE-";
/// At most so many letters follow, then a dash and the hash.
const LETTERS: usize = 3;
const HASH: usize = 16;
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// A [`ChainKey`] of 16 bytes, of which a big node keeps each twice: once for its state, once for its owner. Equal keys have
/// equal packed forms.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PackedChain {
    /// `KUBE-` with one to three letters (zero: none), a dash and 16 characters of base32, which are 80 bits.
    Hashed(TableId, [u8; LETTERS], [u8; 10]),
    /// Any other name: few.
    Other(Box<ChainKey>),
}

impl PackedChain {
    /// Packs a key.
    pub fn of(key: &ChainKey) -> PackedChain {
        match hashed(key.name.as_str()) {
            Some((letters, hash)) => PackedChain::Hashed(key.table, letters, hash),
            None => PackedChain::Other(Box::new(*key)),
        }
    }

    /// The key.
    pub fn key(&self) -> ChainKey {
        match self {
            PackedChain::Hashed(table, letters, hash) => {
                let bits = hash.iter().fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
                let mut name = String::with_capacity(ChainName::MAX);
                name.push_str(START);
                name.extend(letters.iter().take_while(|letter| **letter != 0).map(|letter| char::from(*letter)));
                name.push('-');
                name.extend((0..HASH).map(|at| char::from(BASE32[(bits >> (75 - 5 * at)) as usize & 31])));
                // At most 25 printable bytes.
                ChainKey { table: *table, name: ChainName::fixed(&name) }
            }
            PackedChain::Other(key) => **key,
        }
    }
}

/// The letters and the bits of a name that ends in a hash.
fn hashed(name: &str) -> Option<([u8; LETTERS], [u8; 10])> {
    let (before, hash) = name.strip_prefix(START)?.split_once('-')?;
    if before.is_empty() || before.len() > LETTERS || hash.len() != HASH {
        return None;
    }
    let mut letters = [0; LETTERS];
    letters.get_mut(..before.len())?.copy_from_slice(before.as_bytes());
    let mut bits = 0_u128;
    for character in hash.bytes() {
        let digit = match character {
            b'A'..=b'Z' => character - b'A',
            b'2'..=b'7' => character - b'2' + 26,
            _ => return None,
        };
        bits = bits << 5 | u128::from(digit);
    }
    Some((letters, std::array::from_fn(|at| (bits >> (72 - 8 * at)) as u8)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Table;
    use crate::net::IpFamily;

    #[test]
    fn a_packed_key_is_small_and_becomes_the_same_again() {
        assert_eq!(size_of::<PackedChain>(), 16);
        let names = ["KUBE-SVC-XPGD46QRK7WJZT7O", "KUBE-FW-AAAAAAAAAAAAAAA7", "KUBE-SEP-7777777777777777"];
        let others = [
            "KUBE-SVC-XPGD46QRK7WJZT7",
            "KUBE-SVC-XPGD46QRK7WJZT71",
            "KUBE--XPGD46QRK7WJZT7O",
            "INPUT",
            "KUBE-SERVICES",
        ];
        for name in names.iter().chain(&others) {
            let key = ChainKey::new(IpFamily::V6, Table::Nat, ChainName::new(name).unwrap());
            let packed = PackedChain::of(&key);
            assert_eq!(packed.key(), key);
            assert_eq!(matches!(packed, PackedChain::Hashed(..)), names.contains(name), "{name}");
        }
    }
}
