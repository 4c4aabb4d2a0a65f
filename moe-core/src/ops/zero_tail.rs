//! Zeroing what a gather leaves alone.

use crate::check::Check;
use crate::raw::ZeroTailArgs;
use crate::tag::Tag;
use crate::{Element, PermuteBackend, Queue, Result, RoutePlan, RowsMut};

impl<B: PermuteBackend, G: Tag> RoutePlan<B, G> {
    /// Zeroes the rows of a `[R, H]` matrix from the plan's last expert offset on: those that the `_into` forms leave
    /// as they are. No primitive reads them; other programs may.
    ///
    /// # Errors
    /// [`PlanNotBuilt`](crate::Error::PlanNotBuilt), [`Shape`](crate::Error::Shape),
    /// [`DeviceMismatch`](crate::Error::DeviceMismatch), or what the driver says.
    pub fn zero_tail<T: Element>(&self, queue: &mut Queue<'_, B, G>, rows: RowsMut<'_, B, T, G>) -> Result<()> {
        let check = Check { op: "zero_tail", device: queue.device_id() };
        check.device("plan", self.device_id())?;
        check.device("rows", rows.device_id())?;
        check.shape("rows", [self.num_rows(), rows.cols()], [rows.num_rows(), rows.cols()])?;
        let plan = self.built(check.op)?;
        // SAFETY: checked above: devices and shape; the plan owns its memory and lends it to nobody mutably.
        unsafe { B::zero_tail(queue.raw_mut(), ZeroTailArgs { plan, rows: rows.into_raw().shorten() }) }
    }
}
