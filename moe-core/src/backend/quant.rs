//! Quantisation fused with gather and with the activation.

use super::PermuteBackend;
use crate::Result;
use crate::quant::QuantFormat;
use crate::raw::{
    BuildArgs, GatherArgs, GatherQuantArgs, PlanMut, RawRows, RawRowsMut, RowScales, SwigluArgs, SwigluQuantArgs,
};

/// The operations between an MoE layer's products that quantise, and the activation. Apart from [`PermuteBackend`], so that
/// a backend can begin without them.
///
/// # Safety
/// As for [`PermuteBackend`]: implementations write only to the outputs they are given, inside their bounds, whatever
/// the index arrays on the device say. What a caller promises to the `unsafe` methods stands there too; shapes and
/// dtypes are those of the argument structs' docs.
pub unsafe trait QuantBackend: PermuteBackend {
    /// Whether this backend writes a format. It is asked before anything is enqueued. By default it writes all.
    fn supports_quant(format: &QuantFormat) -> bool {
        let _ = format;
        true
    }

    /// Gathers rows and quantises them: the bits of quantising each token's row and gathering values and scales.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn gather_quant(queue: &mut Self::Queue<'_>, args: GatherQuantArgs<'_, Self>) -> Result<()>;

    /// `silu(gate) * up`.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn swiglu(queue: &mut Self::Queue<'_>, args: SwigluArgs<'_, Self>) -> Result<()>;

    /// `silu(gate) * up`, rounded, then quantised.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn swiglu_quant(queue: &mut Self::Queue<'_>, args: SwigluQuantArgs<'_, Self>) -> Result<()>;

    /// Builds a plan and gathers rows and their scales with it. `rows` and `out` are as in [`GatherArgs`]. The default
    /// is [`permute`](PermuteBackend::permute), then [`gather`](PermuteBackend::gather) of the scales; a backend
    /// overrides it where one launch for all pays. The bits are the same.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn permute_with_scales(
        queue: &mut Self::Queue<'_>,
        mut plan: PlanMut<'_, Self>,
        args: BuildArgs<'_, Self>,
        rows: RawRows<'_, Self>,
        out: RawRowsMut<'_, Self>,
        scales: RowScales<'_, Self>,
    ) -> Result<()> {
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { Self::permute(queue, plan.reborrow(), args, rows, out) }?;
        let RowScales { rows, out } = scales;
        let plan = plan.as_ref();
        // SAFETY: likewise; the plan is the one that was just built.
        unsafe { Self::gather(queue, GatherArgs { plan, rows: rows.shorten(), weights: None, out: out.shorten() }) }
    }
}
