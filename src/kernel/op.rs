//! Operations and their errors, as data.

use std::fmt;
use std::sync::Arc;

use crate::kernel::{ChainBody, ChainKey, Flow, ItemKey, ItemKind, ItemState, Placement, RuleKey};

/// One request to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make an empty chain that must not exist yet.
    CreateChain(ChainKey),
    /// Make the chain if it is missing and give it exactly these rules.
    ReplaceChain(ChainKey, Arc<ChainBody>),
    /// Make the chain if it is missing and give it exactly these rules: for a shared chain of which so much changes
    /// that single rules would cost more.
    RewriteChain(ChainKey, Vec<RuleKey>),
    /// Add a rule to an existing chain.
    InsertRule(RuleKey, Placement),
    /// Remove one rule with exactly this text from a chain.
    DeleteRule(RuleKey),
    /// Empty and remove a chain, which nothing may jump to any more once the transaction is done.
    DeleteChain(ChainKey),
    /// Forget a conntrack entry, so that its next packet is judged anew. Boxed: it is larger than all others, of which a first
    /// sync has tens of thousands.
    DeleteFlow(Box<Flow>),
    /// Make an item that must not exist yet.
    AddItem(ItemKey, ItemState),
    /// Give an existing item another state. A set keeps its elements.
    ChangeItem(ItemKey, ItemState),
    /// Remove an item. A virtual server takes its real servers with it, the link its addresses; a set must not be in use.
    DeleteItem(ItemKey),
}

impl Op {
    /// A short name of the kind of operation, for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Op::CreateChain(_) => "create_chain",
            Op::ReplaceChain(..) => "replace_chain",
            Op::RewriteChain(..) => "rewrite_chain",
            Op::InsertRule(..) => "insert_rule",
            Op::DeleteRule(_) => "delete_rule",
            Op::DeleteChain(_) => "delete_chain",
            Op::DeleteFlow(_) => "delete_flow",
            Op::AddItem(key, _) => match key.kind() {
                ItemKind::Set => "add_set",
                ItemKind::Element => "add_set_element",
                ItemKind::VirtualServer => "add_virtual_server",
                ItemKind::RealServer => "add_real_server",
                ItemKind::Address => "add_address",
                ItemKind::Route => "add_route",
                ItemKind::Link => "add_link",
            },
            Op::ChangeItem(key, _) => match key.kind() {
                ItemKind::Set => "change_set",
                ItemKind::Element => "change_set_element",
                ItemKind::VirtualServer => "change_virtual_server",
                ItemKind::RealServer => "change_real_server",
                ItemKind::Address => "change_address",
                ItemKind::Route => "change_route",
                ItemKind::Link => "change_link",
            },
            Op::DeleteItem(key) => match key.kind() {
                ItemKind::Set => "delete_set",
                ItemKind::Element => "delete_set_element",
                ItemKind::VirtualServer => "delete_virtual_server",
                ItemKind::RealServer => "delete_real_server",
                ItemKind::Address => "delete_address",
                ItemKind::Route => "delete_route",
                ItemKind::Link => "delete_link",
            },
        }
    }

    /// Whether it is about an item.
    pub fn is_item(&self) -> bool {
        matches!(self, Op::AddItem(..) | Op::ChangeItem(..) | Op::DeleteItem(_))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::CreateChain(chain) => write!(f, "create chain {chain}"),
            Op::ReplaceChain(chain, body) => write!(f, "write chain {chain} ({} rules)", body.digest.rules),
            Op::RewriteChain(chain, rules) => write!(f, "rewrite chain {chain} ({} rules)", rules.len()),
            Op::InsertRule(rule, _) => write!(f, "insert into {rule}"),
            Op::DeleteRule(rule) => write!(f, "delete from {rule}"),
            Op::DeleteChain(chain) => write!(f, "delete chain {chain}"),
            Op::DeleteFlow(flow) => {
                write!(f, "delete {} flow {} to {}", flow.protocol, flow.original_source, flow.original_destination)
            }
            Op::AddItem(key, state) => write!(f, "add {key}{state}"),
            Op::ChangeItem(key, state) => write!(f, "change {key}:{state}"),
            Op::DeleteItem(key) => write!(f, "delete {key}"),
        }
    }
}

/// What went wrong, as far as it matters for what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// The kernel or tool does not take this operation as it stands.
    Rejected,
    /// Not carried out, since another operation of the transaction failed.
    Aborted,
    /// What should be changed or removed is not there: our picture is wrong.
    NotFound,
    /// What should be added is there: our picture is wrong.
    Exists,
    /// It is in use and can't be removed.
    Busy,
    /// No room: memory, or a table is full.
    NoSpace,
    /// Not permitted.
    Denied,
    /// The kernel or a tool lacks this: a missing module or program.
    Unsupported,
    /// May well succeed when tried again: a held lock, an interrupted dump, a full buffer.
    Transient,
    /// No answer within the deadline.
    TimedOut,
    /// Failed in a way that leaves open what took effect.
    Unknown,
}

impl ErrorKind {
    /// The name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Rejected => "rejected",
            ErrorKind::Aborted => "aborted",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Exists => "exists",
            ErrorKind::Busy => "busy",
            ErrorKind::NoSpace => "no_space",
            ErrorKind::Denied => "denied",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Transient => "transient",
            ErrorKind::TimedOut => "timed_out",
            ErrorKind::Unknown => "unknown",
        }
    }

    /// All kinds, for tests that try each.
    pub const ALL: [ErrorKind; 11] = [
        ErrorKind::Rejected,
        ErrorKind::Aborted,
        ErrorKind::NotFound,
        ErrorKind::Exists,
        ErrorKind::Busy,
        ErrorKind::NoSpace,
        ErrorKind::Denied,
        ErrorKind::Unsupported,
        ErrorKind::Transient,
        ErrorKind::TimedOut,
        ErrorKind::Unknown,
    ];
}

/// An error of one operation or dump.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct KernelError {
    /// What to make of it.
    pub kind: ErrorKind,
    /// What was attempted and what the kernel or tool said, for people.
    pub message: Arc<str>,
}

impl KernelError {
    /// An error with a message.
    pub fn new(kind: ErrorKind, message: impl Into<Arc<str>>) -> KernelError {
        KernelError { kind, message: message.into() }
    }
}
