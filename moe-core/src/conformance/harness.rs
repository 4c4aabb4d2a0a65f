//! Runs the cases of a group and collects what failed.

use super::report::{Failure, GroupReport};
use super::rng::Rng;
use super::{Options, Tolerance};
use crate::{Dev, DeviceSpec, Error, Limits, PermuteBackend, Queue, Workspace};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Failures of a group that are kept with their text.
const MAX_FAILURES: usize = 5;

/// Why a case failed.
#[derive(Debug)]
pub(super) struct Fail(pub(super) String);

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Fail(format!("unexpected error: {error}"))
    }
}

pub(super) type Checked<T = ()> = Result<T, Fail>;

/// Fails with a message unless a condition holds.
pub(super) fn ensure(ok: bool, message: impl FnOnce() -> String) -> Checked {
    if ok { Ok(()) } else { Err(Fail(message())) }
}

/// What a group runs with.
pub(super) struct Ctx<'o, B: PermuteBackend> {
    pub(super) device: Dev<B>,
    pub(super) queue: Queue<'static, B>,
    pub(super) options: &'o Options,
    report: GroupReport,
}

impl<B: PermuteBackend> Ctx<'_, B> {
    /// Runs a case. Its random numbers follow from the seed, the group and the number of the case.
    pub(super) fn case(&mut self, name: impl Into<String>, body: impl FnOnce(&mut Self, &mut Rng) -> Checked) {
        let mut rng = Rng::new(self.options.seed, self.report.name, self.report.cases);
        self.report.cases += 1;
        let result = catch_unwind(AssertUnwindSafe(|| body(self, &mut rng)));
        let message = match result {
            Ok(Ok(())) => return,
            Ok(Err(Fail(message))) => message,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                format!("panic: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a message"))
            }
        };
        self.report.failed += 1;
        if self.report.failures.len() < MAX_FAILURES {
            self.report.failures.push(Failure { case: name.into(), message });
        }
    }

    /// Notes that a part of the group did not run.
    pub(super) fn skip(&mut self, reason: impl Into<String>) {
        self.report.skipped.push(reason.into());
    }

    /// A generator beside the cases'.
    pub(super) fn rng(&self) -> Rng {
        Rng::new(self.options.seed, self.report.name, usize::MAX)
    }

    pub(super) fn exact(&self) -> bool {
        self.options.tolerance == Tolerance::Exact
    }

    pub(super) fn workspace(&mut self, tokens: usize, top_k: usize, experts: usize) -> Checked<Workspace<B>> {
        Ok(Workspace::new(&mut self.queue, Limits::new(tokens, top_k, experts))?)
    }
}

pub(super) fn run_group<B: PermuteBackend>(
    name: &'static str,
    spec: &DeviceSpec,
    options: &Options,
    body: fn(&mut Ctx<'_, B>),
) -> GroupReport {
    if let Some((_, reason)) = options.skips.iter().find(|(skipped, _)| *skipped == name) {
        return GroupReport { name, skipped: vec![(*reason).to_owned()], ..GroupReport::default() };
    }
    let report = GroupReport { name, ..GroupReport::default() };
    let opened = Dev::open(spec).and_then(|device| Ok((device.queue()?, device)));
    let (queue, device) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let failure = Failure { case: format!("opening {spec}"), message: error.to_string() };
            return GroupReport { failed: 1, failures: vec![failure], ..report };
        }
    };
    let mut ctx = Ctx { device, queue, options, report };
    body(&mut ctx);
    if ctx.report.cases == 0 && ctx.report.skipped.is_empty() {
        ctx.report.failed = 1;
        ctx.report.failures.push(Failure { case: name.into(), message: "ran no case and gave no reason".into() });
    }
    ctx.report
}
