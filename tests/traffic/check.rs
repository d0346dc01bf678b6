//! Asking many questions at once and comparing the answers with what they should be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::thread;

use crate::netns::Netns;
use crate::netns::probe::{Outcome, PATIENCE, Proto, SILENCE, probe};

/// Where a packet goes, from where, and what should come of it.
pub(crate) struct Question {
    /// What is asked, for people.
    pub(crate) label: String,
    /// The Service it is about, to show its rules.
    pub(crate) service: String,
    /// The namespace that asks.
    pub(crate) from: Netns,
    /// The address from which it asks, if not the usual one.
    pub(crate) source: Option<IpAddr>,
    /// The address that is asked.
    pub(crate) to: SocketAddr,
    /// How.
    pub(crate) proto: Proto,
    /// What should come of it.
    pub(crate) expect: Expect,
}

/// What should come of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Each of these comes sooner or later, and nothing else.
    Answers(BTreeSet<Outcome>),
    /// It is refused at once.
    Refused,
    /// Nothing comes back.
    Silence,
}

impl Expect {
    /// Whether finding out is more waiting than work. Silence is; and a node's own TCP packet that is refused when it is sent
    /// is still being sent when the ICMP message arrives, so that only the second attempt after a second ends the connection.
    fn takes_time(&self) -> bool {
        matches!(self, Expect::Silence | Expect::Refused)
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Answers(answers) => {
                let answers: Vec<String> = answers.iter().map(Outcome::to_string).collect();
                f.write_str(&answers.join(", "))
            }
            Expect::Refused => f.write_str("refused"),
            Expect::Silence => f.write_str("silence"),
        }
    }
}

/// A question that was answered otherwise than expected.
pub(crate) struct Mismatch {
    /// What was asked.
    pub(crate) label: String,
    /// The Service it is about.
    pub(crate) service: String,
    expected: String,
    observed: String,
}

/// At least so often a question is asked whose answer is a server's.
const ENOUGH: usize = 6;
/// After so many answers one that should come among three others has come, but for a chance of one in a hundred million.
const AT_MOST: usize = 64;

/// Asks them all; returns those that went otherwise, in the order of the questions.
pub(crate) fn ask_all(questions: &[Question]) -> Vec<Mismatch> {
    let mut by_place: BTreeMap<(&str, bool), Vec<&Question>> = BTreeMap::new();
    for question in questions {
        by_place.entry((question.from.name(), question.expect.takes_time())).or_default().push(question);
    }
    let found: Mutex<Vec<(usize, Mismatch)>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for ((_, takes_time), questions_here) in by_place {
            let workers = if takes_time { 48 } else { 1 };
            let netns = questions_here[0].from.clone();
            let queue = std::sync::Arc::new(Mutex::new(VecDeque::from(questions_here)));
            for _ in 0..workers {
                let (queue, netns, found) = (queue.clone(), netns.clone(), &found);
                scope.spawn(move || {
                    netns.enter();
                    loop {
                        let Some(question) = queue.lock().expect("queue").pop_front() else { return };
                        if let Some(mismatch) = ask(question) {
                            // The place among the questions: they are one slice.
                            let position = questions.iter().position(|other| std::ptr::eq(other, question));
                            found.lock().expect("found").push((position.unwrap_or(usize::MAX), mismatch));
                        }
                    }
                });
            }
        }
    });
    let mut found = found.into_inner().expect("found");
    found.sort_by_key(|(position, _)| *position);
    found.into_iter().map(|(_, mismatch)| mismatch).collect()
}

fn ask(question: &Question) -> Option<Mismatch> {
    let source = question.source.map(|address| SocketAddr::new(address, 0));
    let once = |timeout| probe(source, question.to, question.proto, timeout);
    let mut seen: BTreeMap<Outcome, usize> = BTreeMap::new();
    let right = match &question.expect {
        Expect::Answers(expected) => {
            for asked in 1..=AT_MOST {
                let mut outcome = once(SILENCE);
                if outcome == Outcome::TimedOut {
                    // The machine may be busy.
                    outcome = once(PATIENCE);
                }
                let stop = !expected.contains(&outcome);
                *seen.entry(outcome).or_default() += 1;
                if stop || asked >= ENOUGH && seen.len() == expected.len() {
                    break;
                }
            }
            seen.keys().eq(expected)
        }
        Expect::Refused => {
            let outcome = once(PATIENCE);
            // What the node itself sends is already refused when it sends it.
            let right = matches!(outcome, Outcome::Refused | Outcome::NotPermitted);
            seen.insert(outcome, 1);
            right
        }
        Expect::Silence => {
            let outcome = once(SILENCE);
            let right = matches!(outcome, Outcome::TimedOut | Outcome::NotPermitted);
            seen.insert(outcome, 1);
            right
        }
    };
    if right {
        return None;
    }
    let observed: Vec<String> = seen.iter().map(|(outcome, times)| format!("{times}× {outcome}")).collect();
    Some(Mismatch {
        label: question.label.clone(),
        service: question.service.clone(),
        expected: question.expect.to_string(),
        observed: observed.join(", "),
    })
}

/// Fails with a table of what went otherwise, and the rules of the first Service concerned.
pub(crate) fn assert_none(mismatches: &[Mismatch], asked: usize, rules: impl Fn(&str) -> String) {
    if mismatches.is_empty() {
        return;
    }
    let mut report = format!("{} of {asked} questions were answered otherwise:\n", mismatches.len());
    for mismatch in mismatches.iter().take(60) {
        let Mismatch { label, expected, observed, .. } = mismatch;
        report.push_str(&format!("  {label}\n      should be: {expected}\n      is:        {observed}\n"));
    }
    if mismatches.len() > 60 {
        report.push_str("  …\n");
    }
    let service = &mismatches[0].service;
    report.push_str(&format!("rules that speak of {service}:\n{}", rules(service)));
    panic!("{report}");
}
