//! Sums of the experts' load.

use crate::abi::AddLoadParams;
use crate::launch::{Launch, Shape};
use crate::plan::{PlanAddress, plan_region};
use crate::ptx::Kernel;
use crate::{Cuda, CudaBuffer, CudaQueue};
use moe_core::raw::{PlanRef, Section};
use moe_core::{Buffer, Result};

const BLOCK: u32 = 256;

/// # Safety
/// The promises of `PermuteBackend::add_load`.
pub(crate) unsafe fn add_load(
    queue: &CudaQueue,
    plan: PlanRef<'_, Cuda>,
    sums: &mut CudaBuffer,
    at: Section,
) -> Result<()> {
    let Some(load) = plan.arrays.logical_load else { return Ok(()) };
    let region = plan_region(&plan);
    let mut sums = sums.region_mut();
    let mut launch = Launch::new(queue, "add_load")?;
    let params = AddLoadParams {
        load: PlanAddress::of(&plan, launch.read(&region)?).at(load),
        sums: launch.write(&mut sums)? + at.offset as u64,
        experts: at.len as u32,
        reserved: 0,
    };
    let shape = Shape { grid: params.experts.div_ceil(BLOCK), block: BLOCK, shared: 0, cooperative: false };
    // SAFETY: the kernel takes `AddLoadParams`; addresses are from this launch; the load and the part of the sums have
    // this many elements (the caller's promise).
    unsafe { launch.launch(Kernel::AddLoad, shape, params) }
}
