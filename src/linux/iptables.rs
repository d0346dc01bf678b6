//! The iptables tools: which ones to run, and reading tables.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use crate::kernel::{
    ChainClass, ChainName, Claims, DigestBuilder, ErrorKind, FoundChain, KernelError, Rule, TableDump, TableId,
};
use crate::linux::command::{self, CommandError, Finished, Input, Invocation};
use crate::net::IpFamily;

/// A restore is fed in pieces of about this many bytes: what a pipe holds.
const INPUT_PIECE: usize = 64 * 1024;

/// Which of the two programs named `iptables` is used. Rules of one are invisible to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// `iptables-nft`: rules live in nf_tables.
    Nft,
    /// `iptables-legacy`: rules live in ip_tables.
    Legacy,
}

impl Variant {
    /// The word in the programs' names.
    pub fn as_str(self) -> &'static str {
        match self {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        }
    }

    /// Finds out which one the rest of the node uses, by the chains that kubelet makes for this purpose in the mangle
    /// table; nft if there is no sign of either and its programs are installed. If there is none and tables cannot be read,
    /// as the legacy ones without `CAP_NET_RAW`, the log says so.
    pub fn detect(environment: &[(OsString, OsString)]) -> Variant {
        let mut unread = Vec::new();
        let mut hinted = |program: &str, arguments: &[&str]| {
            let mut found = false;
            let invocation = Invocation { program, arguments, environment, deadline: Duration::from_secs(60) };
            let outcome = command::run(&invocation, &mut command::nothing, |line| {
                let chain = line.strip_prefix(':').and_then(|rest| rest.split(' ').next());
                found |= matches!(chain, Some("KUBE-IPTABLES-HINT" | "KUBE-KUBELET-CANARY"));
            });
            unread.extend(unreadable(program, &outcome));
            found
        };
        if hinted("iptables-nft-save", &["-t", "mangle"]) || hinted("ip6tables-nft-save", &["-t", "mangle"]) {
            return Variant::Nft;
        }
        // Without a table, so that no module of the legacy variant is loaded by looking.
        if hinted("iptables-legacy-save", &[]) || hinted("ip6tables-legacy-save", &[]) {
            return Variant::Legacy;
        }
        for why in unread {
            tracing::warn!("it is a guess which iptables this node uses, --iptables-variant says it for sure: {why}");
        }
        let has = |program| command::installed(program, environment);
        if !has("iptables-nft-restore") && has("iptables-legacy-restore") { Variant::Legacy } else { Variant::Nft }
    }
}

/// Why a program did not tell what is in its tables; `None`: it did, or it is not installed.
fn unreadable(program: &str, outcome: &Result<Finished, CommandError>) -> Option<String> {
    match outcome {
        Ok(finished) if finished.success() => None,
        Err(CommandError::Missing { .. }) => None,
        Ok(finished) => Some(format!("{program}: {}", finished.stderr.trim().lines().next().unwrap_or("failed"))),
        Err(error) => Some(error.to_string()),
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How to run the tools.
#[derive(Clone, Debug)]
pub struct Tools {
    variant: Variant,
    environment: Vec<(OsString, OsString)>,
    deadline: Duration,
    lock_wait: Duration,
}

impl Tools {
    /// The tools of one variant. `lock_wait` bounds the wait for the lock that other programs may hold; `deadline` the
    /// whole run.
    pub fn new(
        variant: Variant,
        environment: Vec<(OsString, OsString)>,
        deadline: Duration,
        lock_wait: Duration,
    ) -> Tools {
        Tools { variant, environment, deadline, lock_wait }
    }

    /// The variant.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The name of a program: `iptables-nft-save`, or `iptables-save` where only that is installed. `action` is
    /// empty for `iptables` itself, else `-save` or `-restore`.
    pub fn program(&self, family: IpFamily, action: &str) -> String {
        let base = match family {
            IpFamily::V4 => "iptables",
            IpFamily::V6 => "ip6tables",
        };
        let own = format!("{base}-{}{action}", self.variant);
        let plain = format!("{base}{action}");
        let has = |program: &str| command::installed(program, &self.environment);
        if !has(&own) && has(&plain) { plain } else { own }
    }

    /// Runs a program of a family.
    fn run(
        &self,
        program: &str,
        arguments: &[&str],
        input: Input<'_>,
        on_line: impl FnMut(&str),
    ) -> Result<Finished, CommandError> {
        let invocation = Invocation { program, arguments, environment: &self.environment, deadline: self.deadline };
        command::run(&invocation, input, on_line)
    }

    /// The version of the tools, such as `[1, 8, 9]`; `None` when it can't be told.
    pub fn version(&self, family: IpFamily) -> Option<[u32; 3]> {
        let mut version = None;
        let program = self.program(family, "");
        self.run(&program, &["--version"], &mut command::nothing, |line| {
            version = version.or_else(|| parse_version(line));
        })
        .ok()?;
        version
    }

    /// Whether the nat table of a family works.
    pub fn nat_works(&self, family: IpFamily) -> Result<(), KernelError> {
        let program = self.program(family, "");
        let seconds = self.lock_seconds();
        let arguments = ["-w", &seconds, "-t", "nat", "-S", "POSTROUTING"];
        let finished =
            self.run(&program, &arguments, &mut command::nothing, |_| {}).map_err(|error| error.to_kernel_error())?;
        if finished.success() {
            return Ok(());
        }
        let words = words_of(&finished.stderr);
        let kind = whole_failure(&finished.stderr).unwrap_or(ErrorKind::Unsupported);
        Err(KernelError::new(kind, format!("the {family} nat table does not work: {program}: {words}")))
    }

    /// Runs a restore, which is fed with these lines as it takes them; `on_line` sees its output.
    pub(super) fn restore(
        &self,
        family: IpFamily,
        mut lines: impl Iterator<Item = impl fmt::Display>,
        on_line: impl FnMut(&str),
    ) -> (String, Result<Finished, CommandError>) {
        let program = self.program(family, "-restore");
        let seconds = self.lock_seconds();
        // Verbose: comment lines of the input are echoed when they are reached, which tells how far it got.
        let arguments = ["-w", &seconds, "--noflush", "--counters", "--verbose"];
        let mut input = |piece: &mut Vec<u8>| {
            while piece.len() < INPUT_PIECE
                && let Some(line) = lines.next()
            {
                // Writing to memory cannot fail.
                let _ = writeln!(piece, "{line}");
            }
        };
        let outcome = self.run(&program, &arguments, &mut input, on_line);
        (program, outcome)
    }

    fn lock_seconds(&self) -> String {
        self.lock_wait.as_secs().max(1).to_string()
    }

    /// Reads what is ours in a table. A table that does not exist is empty.
    pub fn dump(&self, table: TableId, claims: &Claims) -> Result<TableDump, KernelError> {
        let program = self.program(table.family, "-save");
        let mut reader = TableReader::new(table, claims);
        let finished = self
            .run(&program, &["-t", table.table.as_str()], &mut command::nothing, |line| reader.line(line))
            .map_err(|error| error.to_kernel_error())?;
        let error =
            |kind, words: &str| KernelError::new(kind, format!("reading the {table} table: {program}: {words}"));
        if !finished.success() {
            let words = words_of(&finished.stderr);
            if words.contains("does not exist") {
                return Ok(TableDump::default());
            }
            return Err(error(whole_failure(&finished.stderr).unwrap_or(ErrorKind::Rejected), &words));
        }
        if reader.incompatible {
            return Err(error(ErrorKind::Unsupported, "the table holds rules that only nft can show"));
        }
        reader.finish().ok_or_else(|| error(ErrorKind::Transient, "the output ends in the middle of the table"))
    }
}

/// The version in the output of `--version`: `iptables v1.8.9 (nf_tables)`.
fn parse_version(text: &str) -> Option<[u32; 3]> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)])
}

/// What a tool said, on one line and without the hints to its help.
pub(super) fn words_of(stderr: &str) -> String {
    let lines = stderr.lines().map(str::trim);
    let useful: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with("Try `") && !line.starts_with("# Warning")).collect();
    if useful.is_empty() { "it failed without a word".to_owned() } else { useful.join(" ") }
}

/// What is wrong when no single rule is to blame.
pub(super) fn whole_failure(stderr: &str) -> Option<ErrorKind> {
    let has = |text: &str| stderr.contains(text);
    if has("holding the xtables lock") || has("Resource temporarily unavailable") {
        Some(ErrorKind::Transient)
    } else if has("you must be root") || has("can't open lock file") || has("Operation not permitted") {
        Some(ErrorKind::Denied)
    } else if has("unable to initialize table") || has("do you need to insmod") || has("Failed to initialize nft") {
        Some(ErrorKind::Unsupported)
    } else if has("Cannot allocate memory") || has("Memory allocation problem") || has("No space left") {
        Some(ErrorKind::NoSpace)
    } else {
        None
    }
}

/// Reads the output of `iptables-save` for one table.
struct TableReader<'a> {
    table: TableId,
    claims: &'a Claims,
    chains: Vec<(ChainName, Reading)>,
    index: HashMap<ChainName, usize>,
    begun: bool,
    complete: bool,
    incompatible: bool,
    text: String,
}

/// A chain while it is read.
enum Reading {
    Private(DigestBuilder),
    Shared(Vec<Arc<str>>),
    Host(Vec<Arc<str>>),
}

impl<'a> TableReader<'a> {
    fn new(table: TableId, claims: &'a Claims) -> TableReader<'a> {
        TableReader {
            table,
            claims,
            chains: Vec::new(),
            index: HashMap::new(),
            begun: false,
            complete: false,
            incompatible: false,
            text: String::new(),
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("-A ") {
            let (chain, spec) = rest.split_once(' ').unwrap_or((rest, ""));
            self.rule(chain, spec.trim());
        } else if let Some(rest) = line.strip_prefix(':') {
            self.chain(rest.split(' ').next().unwrap_or_default());
        } else if line.starts_with('*') {
            self.begun = true;
        } else if line == "COMMIT" {
            self.complete = true;
        } else if line.starts_with('#') && line.contains("is incompatible") {
            self.incompatible = true;
        }
    }

    fn chain(&mut self, name: &str) {
        // A chain with a name that none of ours can have is foreign.
        let Ok(name) = ChainName::new(name) else { return };
        let reading = match self.claims.class(self.table, &name) {
            ChainClass::Private => Reading::Private(DigestBuilder::default()),
            ChainClass::Shared => Reading::Shared(Vec::new()),
            ChainClass::Host => Reading::Host(Vec::new()),
            ChainClass::Foreign => return,
        };
        self.index.insert(name, self.chains.len());
        self.chains.push((name, reading));
    }

    fn rule(&mut self, chain: &str, spec: &str) {
        let Ok(name) = ChainName::new(chain) else { return };
        let Some((_, reading)) = self.index.get(&name).and_then(|at| self.chains.get_mut(*at)) else { return };
        self.text.clear();
        let parsed = Rule::parse_with_order(spec);
        match reading {
            Reading::Private(digest) => {
                match parsed {
                    Ok(parsed) => parsed.rule.render_without_comment(&mut self.text),
                    Err(_) => self.text.push_str(spec),
                }
                digest.rule(&self.text);
            }
            Reading::Shared(rules) | Reading::Host(rules) => {
                match parsed {
                    Ok(parsed) if parsed.canonical => parsed.rule.render(&mut self.text),
                    // Only the printed text finds this rule when it has to be removed.
                    _ => self.text.push_str(spec),
                }
                let wanted = self.claims.class(self.table, &name) == ChainClass::Shared
                    || self.claims.is_jump(self.table, &name, &self.text);
                if wanted {
                    rules.push(self.text.as_str().into());
                }
            }
        }
    }

    /// `None` when the output was cut off.
    fn finish(self) -> Option<TableDump> {
        if self.begun && !self.complete {
            return None;
        }
        let chains = self.chains.into_iter().map(|(name, reading)| match reading {
            Reading::Private(digest) => (name, FoundChain::Private(digest.finish())),
            Reading::Shared(rules) => (name, FoundChain::Shared(rules)),
            Reading::Host(rules) => (name, FoundChain::Host(rules)),
        });
        Some(TableDump { chains: chains.collect() })
    }
}
