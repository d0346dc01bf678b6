//! Carrying out a transaction: at most one restore process per family, then items, then flows.

use std::time::Duration;

use crate::kernel::{ErrorKind, KernelError, Op};
use crate::linux::command::CommandError;
use crate::linux::failure::{self, Run};
use crate::linux::iptables::Tools;
use crate::linux::script::{self, Draft};
use crate::linux::{conntrack, items};
use crate::net::IpFamily;

/// Carries out a transaction; one result for each operation, in their order.
pub(super) fn apply(tools: &Tools, transaction: &[Op], netlink_timeout: Duration) -> Vec<Result<(), KernelError>> {
    let mut results: Vec<Result<(), KernelError>> = vec![Ok(()); transaction.len()];
    let mut failed = [false; 2];
    for (family, failed) in IpFamily::ALL.into_iter().zip(&mut failed) {
        let draft = Draft::of(transaction, family);
        if draft.is_empty() {
            continue;
        }
        for (index, result) in restore(tools, family, &draft) {
            *failed |= result.is_err();
            if let Some(slot) = results.get_mut(index) {
                *slot = result;
            }
        }
    }
    let items: Vec<(&Op, &mut Result<(), KernelError>)> =
        transaction.iter().zip(&mut results).filter(|(op, _)| op.is_item()).collect();
    if !items.is_empty() {
        let operations: Vec<&Op> = items.iter().map(|(op, _)| *op).collect();
        for ((_, slot), result) in items.into_iter().zip(items::apply(&operations, netlink_timeout)) {
            *slot = result;
        }
    }
    let mut flows = Vec::new();
    for (op, slot) in transaction.iter().zip(&mut results) {
        let Op::DeleteFlow(flow) = op else { continue };
        let family = IpFamily::of(flow.original_destination.ip());
        if IpFamily::ALL.into_iter().zip(failed).any(|(of, failed)| of == family && failed) {
            // Its next packet would be judged by rules that were to be replaced.
            *slot = Err(KernelError::new(ErrorKind::Aborted, "not carried out, since the rules could not be changed"));
        } else {
            flows.push((flow, slot));
        }
    }
    let wanted: Vec<_> = flows.iter().map(|(flow, _)| &***flow).collect();
    for ((_, slot), result) in flows.into_iter().zip(conntrack::delete(&wanted, netlink_timeout)) {
        *slot = result;
    }
    results
}

fn restore(tools: &Tools, family: IpFamily, draft: &Draft<'_>) -> Vec<(usize, Result<(), KernelError>)> {
    let mut committed = 0;
    let (program, outcome) = tools.restore(family, draft.lines(), |line| {
        if line == script::marker(committed) {
            committed += 1;
        }
    });
    let run = |stderr, exited| Run { program: &program, stderr, committed, exited };
    match outcome {
        Ok(finished) if finished.success() => draft.operations().map(|index| (index, Ok(()))).collect(),
        Ok(finished) => failure::results(&draft.script(), &run(&finished.stderr, finished.status.is_some())),
        Err(error @ CommandError::Missing { .. }) => {
            draft.operations().map(|index| (index, Err(error.to_kernel_error()))).collect()
        }
        // It may have got anywhere.
        Err(error) => failure::results(&draft.script(), &run(&error.to_string(), false)),
    }
}
