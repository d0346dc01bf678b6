//! A profile as a message of pprof's `profile.proto`. Numbers of fields are those of that file.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

/// Where a thread was met.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stack {
    /// The thread's number in the kernel.
    pub(super) thread: i32,
    /// Addresses, the innermost first.
    pub(super) frames: Vec<usize>,
}

/// A part of a file that is mapped as code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) offset: u64,
    pub(super) file: String,
}

/// All that is to be said.
pub(super) struct Profile {
    /// How often each stack was met.
    pub(super) samples: BTreeMap<Stack, u64>,
    /// Names of threads by their numbers.
    pub(super) names: BTreeMap<i32, String>,
    pub(super) mappings: Vec<Mapping>,
    /// Samples that found no room.
    pub(super) lost: u64,
    pub(super) start: SystemTime,
    pub(super) took: Duration,
    /// CPU time that one sample stands for.
    pub(super) period: Duration,
}

/// A line of `/proc/self/maps`; `None`: it is not code.
pub(super) fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let file = fields.nth(2)?.to_owned();
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = range.split_once('-')?;
    let mapping = Mapping { start: hexadecimal(start)?, end: hexadecimal(end)?, offset: hexadecimal(offset)?, file };
    permissions.contains('x').then_some(mapping)
}

pub(super) fn encode(profile: &Profile) -> Vec<u8> {
    let mut strings = Strings::default();
    let mut message = Message::default();
    let samples = value_type(&mut strings, "samples", "count");
    let cpu = value_type(&mut strings, "cpu", "nanoseconds");
    message.message(1, &samples);
    message.message(1, &cpu);
    let period = nanoseconds(profile.period);
    let mut locations: BTreeMap<u64, u64> = BTreeMap::new();
    for (stack, count) in &profile.samples {
        let mut sample = Message::default();
        for frame in &stack.frames {
            let next = locations.len() as u64 + 1;
            sample.number(1, *locations.entry(*frame as u64).or_insert(next));
        }
        sample.number(2, *count);
        sample.number(2, count.saturating_mul(period));
        let name = profile.names.get(&stack.thread).filter(|name| !name.is_empty());
        if let Some(name) = name {
            let mut label = Message::default();
            label.number(1, strings.index("thread"));
            label.number(2, strings.index(name));
            sample.message(3, &label);
        }
        message.message(2, &sample);
    }
    for (id, mapping) in (1..).zip(&profile.mappings) {
        let mut part = Message::default();
        let numbers = [id, mapping.start, mapping.end, mapping.offset, strings.index(&mapping.file)];
        (1..).zip(numbers).for_each(|(field, number)| part.number(field, number));
        message.message(3, &part);
    }
    for (address, id) in &locations {
        let mut location = Message::default();
        let covers = |mapping: &Mapping| (mapping.start..mapping.end).contains(address);
        let mapping = profile.mappings.iter().position(covers).map_or(0, |index| index as u64 + 1);
        (1..).zip([*id, mapping, *address]).for_each(|(field, number)| location.number(field, number));
        message.message(4, &location);
    }
    let since = profile.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    message.number(9, nanoseconds(since));
    message.number(10, nanoseconds(profile.took));
    message.message(11, &cpu);
    message.number(12, period);
    if profile.lost > 0 {
        message.number(13, strings.index(&format!("{} samples found no room", profile.lost)));
    }
    // Last, since by now all of them are known.
    strings.list.iter().for_each(|text| message.bytes(6, text.as_bytes()));
    message.0
}

fn value_type(strings: &mut Strings, name: &str, unit: &str) -> Message {
    let mut message = Message::default();
    message.number(1, strings.index(name));
    message.number(2, strings.index(unit));
    message
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Texts by their place in the list, the first of which is empty.
struct Strings {
    list: Vec<String>,
    index: HashMap<String, u64>,
}

impl Default for Strings {
    fn default() -> Strings {
        Strings { list: vec![String::new()], index: HashMap::new() }
    }
}

impl Strings {
    fn index(&mut self, text: &str) -> u64 {
        if let Some(index) = self.index.get(text) {
            return *index;
        }
        let index = self.list.len() as u64;
        self.list.push(text.to_owned());
        self.index.insert(text.to_owned(), index);
        index
    }
}

/// A message in the wire format of protocol buffers.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: &Message) {
        self.bytes(field, &message.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_a_mapping() {
        let line = "00400000-00452000 r-xp 00001000 08:02 173521      /usr/bin/portolan";
        let (start, end, offset) = (0x0040_0000, 0x0045_2000, 0x1000);
        assert_eq!(mapping(line), Some(Mapping { start, end, offset, file: "/usr/bin/portolan".to_owned() }));
        assert_eq!(mapping(&line.replace("r-xp", "r--p")), None);
        assert_eq!(mapping("7f00-7f01 rw-p 00000000 00:00 0"), None);
    }
}
