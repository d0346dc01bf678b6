//! Reads a message of pprof's `profile.proto`, as far as the tests ask.

use std::collections::BTreeMap;

/// A profile, with its references resolved.
pub(crate) struct Profile {
    /// Kinds of values with their units.
    pub(crate) types: Vec<(String, String)>,
    pub(crate) samples: Vec<Sample>,
    /// Files that are mapped as code.
    pub(crate) files: Vec<String>,
    /// In nanoseconds: when it began, how long it took, what a sample stands for.
    pub(crate) times: [u64; 3],
}

pub(crate) struct Sample {
    /// Addresses, the innermost first, each with the file that it lies in; empty: in none.
    pub(crate) stack: Vec<(u64, String)>,
    pub(crate) values: Vec<u64>,
    /// Labels by name.
    pub(crate) labels: BTreeMap<String, String>,
}

/// One message: the numbers of each field, and the contents of those that have a length.
struct Message<'a>(Vec<(u64, u64, &'a [u8])>);

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().expect("a message that is whole");
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return value;
        }
    }
    panic!("a number that does not end");
}

impl<'a> Message<'a> {
    fn read(mut bytes: &'a [u8]) -> Message<'a> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = varint(&mut bytes);
            let mut content: &[u8] = &[];
            match key & 7 {
                0 => {}
                2 => (content, bytes) = bytes.split_at(usize::try_from(value).expect("a length")),
                kind => panic!("a field of kind {kind}"),
            }
            fields.push((key >> 3, value, content));
        }
        Message(fields)
    }

    fn numbers(&self, field: u64) -> Vec<u64> {
        self.0.iter().filter(|(number, ..)| *number == field).map(|(_, value, _)| *value).collect()
    }

    fn number(&self, field: u64) -> u64 {
        self.numbers(field).first().copied().unwrap_or_default()
    }

    fn messages(&self, field: u64) -> Vec<Message<'a>> {
        self.contents(field).map(Message::read).collect()
    }

    fn contents(&self, field: u64) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(number, ..)| *number == field).map(|(_, _, content)| *content)
    }
}

/// Reads a profile; panics if it is none, or refers to what is not there.
pub(crate) fn read(bytes: &[u8]) -> Profile {
    let message = Message::read(bytes);
    let strings: Vec<String> = message.contents(6).map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    assert_eq!(strings.first().map(String::as_str), Some(""), "the first string is empty");
    let text = |message: &Message<'_>, field| strings[usize::try_from(message.number(field)).unwrap()].clone();
    let mappings: BTreeMap<u64, _> = message
        .messages(3)
        .iter()
        .map(|mapping| (mapping.number(1), (mapping.number(2)..mapping.number(3), text(mapping, 5))))
        .collect();
    let file = |location: &Message<'_>| {
        let (mapping, address) = (location.number(2), location.number(3));
        let Some((range, file)) = mappings.get(&mapping) else {
            assert_eq!(mapping, 0, "there is no such mapping");
            return (address, String::new());
        };
        assert!(range.contains(&address), "{address:x} is not in {range:x?}");
        (address, file.clone())
    };
    let locations: BTreeMap<u64, _> =
        message.messages(4).iter().map(|location| (location.number(1), file(location))).collect();
    let sample = |sample: &Message<'_>| Sample {
        stack: sample.numbers(1).iter().map(|id| locations[id].clone()).collect(),
        values: sample.numbers(2),
        labels: sample.messages(3).iter().map(|label| (text(label, 1), text(label, 2))).collect(),
    };
    Profile {
        types: message.messages(1).iter().map(|kind| (text(kind, 1), text(kind, 2))).collect(),
        samples: message.messages(2).iter().map(sample).collect(),
        files: mappings.values().map(|(_, file)| file.clone()).collect(),
        times: [9, 10, 12].map(|field| message.number(field)),
    }
}
