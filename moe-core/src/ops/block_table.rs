//! The placed routes in blocks of one expert each.

use crate::check::Check;
use crate::plan::MAX_INDEX;
use crate::raw::BlockTableArgs;
use crate::tag::{Tag, Untagged};
use crate::{Backend, Buf, Error, PermuteBackend, Queue, Region, Result, RoutePlan, ViewMut};

/// A block table to be made; made by [`RoutePlan::block_table`].
#[must_use = "a block table is not made until it is run"]
#[derive(Debug)]
pub struct BlockTable<'a, B: Backend, G: Tag = Untagged> {
    plan: &'a RoutePlan<B, G>,
    block: usize,
}

/// The arrays of a block table. L is [`BlockTable::len`].
#[derive(Debug)]
pub struct Blocks<B: Backend, G: Tag = Untagged> {
    /// `[L]`: route numbers by local expert, then by route; each expert's padded to a multiple of the block. N on
    /// padding and past the end.
    pub sorted_token_ids: Buf<B, i32, G>,
    /// `[L / block]`: the local expert of each block; -1 past the end.
    pub expert_ids: Buf<B, i32, G>,
    /// `[1]`: entries of `sorted_token_ids` in use, padding included.
    pub num_tokens_post_padded: Buf<B, i32, G>,
}

impl<'a, B: PermuteBackend, G: Tag> BlockTable<'a, B, G> {
    pub(crate) fn new(plan: &'a RoutePlan<B, G>, block: usize) -> Self {
        Self { plan, block }
    }

    /// L, entries of `sorted_token_ids`: `round_up(N + min(E_local, N) * (block - 1), block)`, known without looking at
    /// the plan's contents. `expert_ids` has L / block.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the block is 0 or L does not fit an i32.
    #[allow(clippy::len_without_is_empty)] // a plan of no routes has a table of no entries
    pub fn len(&self) -> Result<usize> {
        let (op, block, shape) = ("block_table", self.block, self.plan.shape());
        let expected = |text: &str, got| Error::InvalidArgument { op, arg: "block", expected: text.into(), got };
        if block == 0 {
            return Err(expected("at least 1", "0".into()));
        }
        let routes = shape.num_routes();
        let padding = shape.num_local_experts.min(routes).checked_mul(block - 1);
        let len = padding.and_then(|p| p.checked_add(routes)?.checked_next_multiple_of(block));
        len.filter(|len| *len <= MAX_INDEX).ok_or_else(|| {
            expected(&format!("so small that the table has at most {MAX_INDEX} entries"), block.to_string())
        })
    }

    /// Makes the table in new memory.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into), and those of allocation.
    pub fn run(self, queue: &mut Queue<'_, B, G>) -> Result<Blocks<B, G>> {
        let len = self.len()?;
        let (mut sorted_token_ids, mut expert_ids) = (queue.zeros(len)?, queue.zeros(len / self.block)?);
        let mut num_tokens_post_padded = queue.zeros(1)?;
        self.run_into(queue, sorted_token_ids.view_mut(), expert_ids.view_mut(), num_tokens_post_padded.view_mut())?;
        Ok(Blocks { sorted_token_ids, expert_ids, num_tokens_post_padded })
    }

    /// Makes the table in the caller's memory: `[L]`, `[L / block]` and `[1]`, each written to its full length.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](Error::PlanNotBuilt), [`InvalidArgument`](Error::InvalidArgument), [`Shape`](Error::Shape),
    /// [`DeviceMismatch`](Error::DeviceMismatch), [`Overlap`](Error::Overlap), [`Unsupported`](Error::Unsupported), or
    /// what the driver says.
    pub fn run_into(
        self,
        queue: &mut Queue<'_, B, G>,
        sorted_token_ids: ViewMut<'_, B, i32, G>,
        expert_ids: ViewMut<'_, B, i32, G>,
        num_tokens_post_padded: ViewMut<'_, B, i32, G>,
    ) -> Result<()> {
        let check = Check { op: "block_table", device: queue.device_id() };
        let Self { plan, block } = self;
        let len = self.len()?;
        check.device("plan", plan.device_id())?;
        let outputs = [
            ("sorted_token_ids", sorted_token_ids.device_id(), sorted_token_ids.len(), len),
            ("expert_ids", expert_ids.device_id(), expert_ids.len(), len / block),
            ("num_tokens_post_padded", num_tokens_post_padded.device_id(), num_tokens_post_padded.len(), 1),
        ];
        for (arg, device, got, expected) in outputs {
            check.device(arg, device)?;
            check.len(arg, expected, got)?;
        }
        let plan = plan.built(check.op)?;
        let sorted_token_ids = sorted_token_ids.into_raw().shorten();
        let expert_ids = expert_ids.into_raw().shorten();
        let num_tokens_post_padded = num_tokens_post_padded.into_raw().shorten();
        let sorted = ("sorted_token_ids", sorted_token_ids.region.span());
        let experts = ("expert_ids", expert_ids.region.span());
        let number = ("num_tokens_post_padded", num_tokens_post_padded.region.span());
        check.apart(experts, sorted)?;
        check.apart(number, sorted)?;
        check.apart(number, experts)?;
        // SAFETY: checked above: devices and lengths; the outputs overlap neither each other nor the plan, which owns
        // its memory and lends it to nobody mutably.
        unsafe {
            B::block_table(
                queue.raw_mut(),
                BlockTableArgs { plan, block, sorted_token_ids, expert_ids, num_tokens_post_padded },
            )
        }
    }
}
