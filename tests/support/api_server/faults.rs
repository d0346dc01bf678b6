//! The ways to fail that concern the server as a whole.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{ApiServer, Control, Resource};

/// An answer instead of the proper one.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// For which resource; `None`: for everything.
    pub resource: Option<Resource>,
    /// How often still; `None`: until it is healed.
    pub times: Option<usize>,
    /// The HTTP status.
    pub status: u16,
    /// Seconds; 0: nothing is said.
    pub retry_after: u32,
    /// What is sent with the status.
    pub body: Body,
}

/// What comes with a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// A `Status` object, which repeats the time to wait.
    Status,
    /// A sentence, and the time to wait in the header alone, as a server does that is too busy to think.
    Sentence,
}

/// How to answer instead of the proper way.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// Refuse streamed lists with 422.
    pub refuse_streaming: bool,
    /// Take a streamed list for an ordinary watch, as servers before 1.27 do.
    pub ignore_streaming: bool,
    /// Answer 410 to a watch from an old position by an HTTP status instead of an event.
    pub expire_by_status: bool,
    /// Answers instead of the proper ones.
    pub failures: Vec<Failure>,
    /// Do not answer for this page (counted from 0) of any list.
    pub stalled_page: Option<usize>,
    /// Wait before answering lists.
    pub list_delay: Duration,
    /// Send this many objects of a streamed list and then break the connection, once.
    pub break_streamed_list: Option<usize>,
    /// Forget all history when this page (counted from 0) of a list is asked for, once.
    pub forget_at_page: Option<usize>,
    /// Answer no request at all.
    pub silent: bool,
    /// Say that there is nothing, so many times.
    pub empty_lists: Vec<(Resource, usize)>,
    /// Refuse what the role `system:node-proxier` does not allow.
    pub permissions: bool,
    /// Answer events with this status instead of keeping them.
    pub refuse_events: Option<u16>,
}

impl Faults {
    /// The failure that a request for this resource meets, used up by one.
    pub(super) fn failure(&mut self, resource: Option<Resource>) -> Option<Failure> {
        let concerns = |failure: &Failure| failure.resource.is_none() || failure.resource == resource;
        let at = self.failures.iter().position(concerns)?;
        let failure = self.failures[at].clone();
        match &mut self.failures[at].times {
            None => {}
            Some(times) if *times > 1 => *times -= 1,
            Some(_) => drop(self.failures.remove(at)),
        }
        Some(failure)
    }

    /// Whether to lie that there are no objects of this resource, used up by one.
    pub(super) fn lies_empty(&mut self, resource: Resource) -> bool {
        let Some(at) = self.empty_lists.iter().position(|(of, _)| *of == resource) else { return false };
        self.empty_lists[at].1 -= 1;
        if self.empty_lists[at].1 == 0 {
            self.empty_lists.remove(at);
        }
        true
    }
}

/// What a server that comes back still knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum History {
    /// Everything: watches go on where they were.
    Kept,
    /// Only the objects: positions from before get 410.
    Forgotten,
    /// Its data are an old backup: positions from before lie in the future.
    Rewound,
}

impl ApiServer {
    /// Answers each request with this status until [`ApiServer::heal`].
    pub(crate) fn refuse(&self, status: u16) {
        let failure = Failure { resource: None, times: None, status, retry_after: 0, body: Body::Status };
        self.shared.faults().failures.push(failure);
    }

    /// Answers each request with 429 and a `Retry-After` header of so many seconds until [`ApiServer::heal`], with a
    /// `Status` that repeats it.
    pub(crate) fn throttle(&self, seconds: u32) {
        self.throttle_with(seconds, Body::Status);
    }

    /// The same with the header alone, as a server does that sheds load.
    pub(crate) fn throttle_curtly(&self, seconds: u32) {
        self.throttle_with(seconds, Body::Sentence);
    }

    fn throttle_with(&self, retry_after: u32, body: Body) {
        let failure = Failure { resource: None, times: None, status: 429, retry_after, body };
        self.shared.faults().failures.push(failure);
    }

    /// Accepts connections and requests and says nothing until [`ApiServer::speak`].
    pub(crate) fn be_silent(&self) {
        self.shared.faults().silent = true;
    }

    /// Answers again; requests that waited are answered now.
    pub(crate) fn speak(&self) {
        self.shared.faults().silent = false;
        self.shared.released.send_modify(|count| *count += 1);
    }

    /// Forgets all history when this page (counted from 0) of a list is asked for, once.
    pub(crate) fn forget_at_page(&self, page: usize) {
        self.shared.faults().forget_at_page = Some(page);
    }

    /// Whether the history is still to be forgotten.
    pub(crate) fn will_forget(&self) -> bool {
        self.shared.faults().forget_at_page.is_some()
    }

    /// Says in the next lists of a resource that there is nothing.
    pub(crate) fn claim_empty(&self, resource: Resource, times: usize) {
        self.shared.faults().empty_lists.push((resource, times));
    }

    /// Refuses from now on what the role `system:node-proxier` does not allow.
    pub(crate) fn enforce_permissions(&self) {
        self.shared.faults().permissions = true;
    }

    /// Refuses events from now on.
    pub(crate) fn refuse_events(&self, status: u16) {
        self.shared.faults().refuse_events = Some(status);
    }

    /// The requests that were not allowed: verb, resource and group.
    pub(crate) fn denied(&self) -> Vec<String> {
        self.shared.denied.lock().unwrap().clone()
    }

    /// The events that were received, whether they were kept or refused.
    pub(crate) fn events(&self) -> Vec<serde_json::Value> {
        self.shared.events.lock().unwrap().clone()
    }

    /// Cuts all connections and refuses new ones.
    pub(crate) fn go_away(&self) {
        self.control(Control::Close);
    }

    /// Listens again, at the same address.
    pub(crate) fn come_back(&self, history: History) {
        match history {
            History::Kept => {}
            History::Forgotten => self.shared.store().compact(),
            History::Rewound => self.shared.store().rewind(),
        }
        self.control(Control::Open);
    }

    fn control(&self, control: impl FnOnce(oneshot::Sender<()>) -> Control) {
        let (done, is_done) = oneshot::channel();
        let to_thread = self.control.as_ref().expect("the server runs");
        to_thread.send(control(done)).expect("the server runs");
        is_done.blocking_recv().expect("the server does what it is told");
    }
}
