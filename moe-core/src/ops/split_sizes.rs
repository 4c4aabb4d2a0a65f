//! Rows for each rank of an all-to-all.

use crate::check::Check;
use crate::raw::SplitSizesArgs;
use crate::tag::{Tag, Untagged};
use crate::{Backend, Buf, Error, PermuteBackend, Queue, Result, RoutePlan, ViewMut};

/// Split sizes to be counted; made by [`RoutePlan::split_sizes`].
#[must_use = "split sizes are not counted until it is run"]
#[derive(Debug)]
pub struct SplitSizes<'a, B: Backend, G: Tag = Untagged> {
    plan: &'a RoutePlan<B, G>,
    ranks: usize,
}

impl<'a, B: PermuteBackend, G: Tag> SplitSizes<'a, B, G> {
    pub(crate) fn new(plan: &'a RoutePlan<B, G>, ranks: usize) -> Self {
        Self { plan, ranks }
    }

    /// Counts into new memory, `[ranks]`: differences of expert offsets, so padding is included.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run(self, queue: &mut Queue<'_, B, G>) -> Result<Buf<B, i32, G>> {
        self.check_ranks()?;
        let mut out = queue.zeros(self.ranks)?;
        self.run_into(queue, out.view_mut())?;
        Ok(out)
    }

    /// Counts into the caller's memory, `[ranks]`.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](Error::PlanNotBuilt), [`InvalidArgument`](Error::InvalidArgument) if the ranks do not divide the
    /// local experts, [`Shape`](Error::Shape), [`DeviceMismatch`](Error::DeviceMismatch),
    /// [`Unsupported`](Error::Unsupported), or what the driver says.
    pub fn run_into(self, queue: &mut Queue<'_, B, G>, out: ViewMut<'_, B, i32, G>) -> Result<()> {
        let check = Check { op: "split_sizes", device: queue.device_id() };
        self.check_ranks()?;
        let Self { plan, ranks } = self;
        check.device("plan", plan.device_id())?;
        check.device("out", out.device_id())?;
        check.len("out", ranks, out.len())?;
        let plan = plan.built(check.op)?;
        let args = SplitSizesArgs { plan, ranks, out: out.into_raw().shorten() };
        // SAFETY: checked above: devices, length and ranks; the plan owns its memory and lends it to nobody mutably.
        unsafe { B::split_sizes(queue.raw_mut(), args) }
    }

    fn check_ranks(&self) -> Result<()> {
        let experts = self.plan.shape().num_local_experts;
        if self.ranks > 0 && experts.is_multiple_of(self.ranks) {
            return Ok(());
        }
        let expected = format!("a divisor of {experts} (num_local_experts)");
        Err(Error::InvalidArgument { op: "split_sizes", arg: "ranks", expected, got: self.ranks.to_string() })
    }
}
