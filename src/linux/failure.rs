//! What a failed `iptables-restore` did and why, from its words. Pure.
//!
//! Messages of 1.8.9, which the tests quote: legacy says `line 7 failed` without a reason, or a reason and `Error
//! occurred at line: 7`; nft gives a reason with both, numbers the `COMMIT` line for what it finds there, and lists
//! what the kernel refused as `line 7: RULE_APPEND failed (Invalid argument): rule in chain X`.

use crate::kernel::{ErrorKind, KernelError};
use crate::linux::iptables::{whole_failure, words_of};
use crate::linux::script::Script;

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    /// The program.
    pub program: &'a str,
    /// Its standard error.
    pub stderr: &'a str,
    /// Sections of which it said that they are committed.
    pub committed: usize,
    /// Whether it came to an end by itself, so that a section without a sign of its end was not committed.
    pub exited: bool,
}

/// The result of each operation of the script: its index and what became of it.
pub(super) fn results(script: &Script, run: &Run<'_>) -> Vec<(usize, Result<(), KernelError>)> {
    let words = words_of(run.stderr);
    let complaints = complaints(run.stderr);
    let failing = complaints
        .iter()
        .filter_map(|complaint| script.sections.iter().position(|section| section.holds(complaint.line)))
        .min();
    // A section whose end was reached took effect; so did all before one with a complaint.
    let committed = run.committed.max(failing.unwrap_or(0));
    let culprits = culprits(script, &complaints, run, &words);
    let rest = rest_of(script, run, &words, failing.is_some(), !culprits.is_empty());
    let mut results = Vec::new();
    for (number, section) in script.sections.iter().enumerate() {
        for index in &section.operations {
            let result = if number < committed {
                Ok(())
            } else if let Some((_, error)) = culprits.iter().find(|(culprit, _)| culprit == index) {
                Err(error.clone())
            } else {
                Err(rest.clone())
            };
            results.push((*index, result));
        }
    }
    results
}

/// The error of operations that are not to blame. `located`: the tool named a line; `blamed`: an operation is to blame.
fn rest_of(script: &Script, run: &Run<'_>, words: &str, located: bool, blamed: bool) -> KernelError {
    let program = run.program;
    if !run.exited {
        let text = format!("{program} was stopped before it was done: {words}");
        return KernelError::new(ErrorKind::Unknown, text);
    }
    match whole_failure(run.stderr).filter(|_| !blamed) {
        Some(kind) => KernelError::new(kind, format!("{program}: {words}")),
        None if located || script.sections.len() == 1 || run.committed > 0 => {
            KernelError::new(ErrorKind::Aborted, format!("not carried out, since {program} failed: {words}"))
        }
        // Not a word about where: the tool exited by itself, but a version that echoes no comments may have got
        // through the first section.
        None => KernelError::new(ErrorKind::Unknown, format!("{program}: {words}")),
    }
}

/// A line number that the tool named.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Complaint<'a> {
    line: usize,
    /// What it said about this line; empty if nothing.
    words: &'a str,
}

fn complaints(stderr: &str) -> Vec<Complaint<'_>> {
    let mut found = Vec::new();
    for line in stderr.lines() {
        if let Some((_, number)) = line.split_once("Error occurred at line: ") {
            found.extend(number.trim().parse().ok().map(|line| Complaint { line, words: "" }));
            continue;
        }
        let Some(at) = line.find("line ") else { continue };
        let rest = line.get(at + "line ".len()..).unwrap_or_default();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, words) = rest.split_at(digits);
        // `line 7 failed`, `line 7 failed: reason`, `line 7: RULE_APPEND failed (reason)`.
        if words.starts_with(" failed") || words.starts_with(": ") {
            let words = words.trim_start_matches(" failed").trim_start_matches(':').trim();
            found.extend(number.parse().ok().map(|line| Complaint { line, words }));
        }
    }
    found
}

fn culprits(script: &Script, complaints: &[Complaint<'_>], run: &Run<'_>, words: &str) -> Vec<(usize, KernelError)> {
    let mut culprits: Vec<(usize, KernelError)> = Vec::new();
    if run.stderr.contains("Message too long") {
        // Without the right to enlarge its socket buffer (in a user namespace), nft can't send a large transaction. The line
        // that it names is the last one: nobody is to blame, and halves of it may well go through.
        return culprits;
    }
    for complaint in complaints {
        let found = match script.origin(complaint.line) {
            Some(_) => vec![complaint.line],
            None => at_commit(script, complaint.line, run.stderr),
        };
        for line in found {
            let Some(index) = script.origin(line).filter(|index| culprits.iter().all(|(known, _)| known != index))
            else {
                continue;
            };
            let text = script.line_text(line);
            let command = script.line_text(complaint.line);
            let said = if complaint.words.is_empty() { run.stderr } else { complaint.words };
            let kind = kind_of(command, said);
            let said = if complaint.words.is_empty() { words } else { complaint.words };
            culprits.push((index, KernelError::new(kind, format!("{}: {said} [{text}]", run.program))));
        }
    }
    culprits
}

/// The lines to blame for what failed at the end of a section. nft looks for targets there and names only the missing
/// chain: the lines that jump to it. Legacy says nothing at all: clear only if there is a single operation.
fn at_commit(script: &Script, commit: usize, stderr: &str) -> Vec<usize> {
    let Some(section) = script.sections.iter().find(|section| section.commit == commit) else { return Vec::new() };
    let missing = stderr.lines().find_map(|line| {
        let (_, rest) = line.split_once("Chain '")?;
        let (name, rest) = rest.split_once('\'')?;
        rest.contains("does not exist").then_some(name)
    });
    let lines = script.text.lines().zip(1..).skip(section.first).take(commit - section.first - 1);
    match missing {
        Some(missing) => {
            let jump = format!(" -j {missing}");
            lines.filter(|(text, _)| text.ends_with(&jump)).map(|(_, number)| number).collect()
        }
        // Its last line; which one it was cannot be told.
        None if section.operations.len() == 1 => vec![commit - 1],
        None => Vec::new(),
    }
}

/// What to make of a complaint about a line.
fn kind_of(line: &str, words: &str) -> ErrorKind {
    let has = |text: &str| words.contains(text);
    let missing_file = has("(No such file or directory)");
    if has("does a matching rule exist") || has("No chain/target/match by that name") {
        ErrorKind::NotFound
    } else if has("Chain already exists") || has("File exists") {
        ErrorKind::Exists
    } else if has("Device or resource busy") || has("Directory not empty") || has("Too many links") {
        ErrorKind::Busy
    } else if (has("Chain '") && has("does not exist")) || (missing_file && (has("RULE_DELETE") || has("CHAIN_DEL"))) {
        ErrorKind::NotFound
    } else if let Some((_, target)) = words.split_once("Couldn't load target `") {
        // Legacy takes the name of a missing chain for that of an extension.
        let extension = ["MARK'", "DNAT'", "MASQUERADE'", "REJECT'"].iter().any(|name| target.starts_with(name));
        if extension { ErrorKind::Unsupported } else { ErrorKind::NotFound }
    } else if has("Couldn't load match") || has("missing kernel module") {
        ErrorKind::Unsupported
    } else if has("Cannot allocate memory") || has("No space left") {
        ErrorKind::NoSpace
    } else if words.trim().ends_with(" failed") || words.is_empty() {
        silent_kind(line)
    } else {
        ErrorKind::Rejected
    }
}

/// Legacy gives no reason for these; there is only one for each command.
fn silent_kind(line: &str) -> ErrorKind {
    match line.split(' ').next() {
        Some("-N") => ErrorKind::Exists,
        Some("-X") => ErrorKind::Busy,
        // The rule, or the whole chain.
        Some("-D" | "-I" | "-F") => ErrorKind::NotFound,
        // The chain: that of a written chain was declared above, so this is an appended rule.
        Some("-A") => ErrorKind::NotFound,
        _ => ErrorKind::Rejected,
    }
}

impl crate::linux::script::Section {
    fn holds(&self, line: usize) -> bool {
        (self.first..=self.commit).contains(&line)
    }
}
