//! Quantisation fused with gather and with the activation, and the activation alone.

use crate::abi::{self, QuantParams};
use crate::gather::common_vec;
use crate::launch::{Launch, Shape};
use crate::plan::{PlanAddress, plan_region};
use crate::ptx::Kernel;
use crate::thresholds::{activation_threads, quant_cut, turns, with_padding};
use crate::{Cuda, CudaQueue};
use moe_core::quant::{ExponentRounding, QuantFormat, ScaleLayout};
use moe_core::raw::{GatherQuantArgs, RawQuantMut, RawRows, RawSwiglu, SwigluArgs, SwigluQuantArgs};
use moe_core::{Error, Result};

/// Whether there are kernels for a format.
pub(crate) fn supports(format: &QuantFormat) -> bool {
    kernels(format).is_some()
}

/// The kernels that write a format: gathering, and activating.
fn kernels(format: &QuantFormat) -> Option<(Kernel, Kernel)> {
    match format {
        QuantFormat::PerToken => Some((Kernel::GatherQuantPerToken, Kernel::SwigluQuantPerToken)),
        QuantFormat::Block128(_) => Some((Kernel::GatherQuantBlock128, Kernel::SwigluQuantBlock128)),
        QuantFormat::Mxfp8(..) => Some((Kernel::GatherQuantMxfp8, Kernel::SwigluQuantMxfp8)),
        QuantFormat::Nvfp4 { .. } => Some((Kernel::GatherQuantNvfp4, Kernel::SwigluQuantNvfp4)),
        _ => None,
    }
}

fn unknown(op: &'static str, format: &QuantFormat) -> Error {
    Error::Unsupported { op, backend: "cuda", reason: format!("there is no kernel for {format:?}") }
}

/// What the format says.
fn format_params(out: &RawQuantMut<'_, Cuda>) -> QuantParams {
    let shape = &out.scale_shape;
    let (ceil, global_scale) = match out.format {
        QuantFormat::Mxfp8(rounding, _) => ((rounding == ExponentRounding::Ceil).into(), 0),
        QuantFormat::Nvfp4 { global_scale, .. } => (0, global_scale.to_bits()),
        _ => (0, 0),
    };
    QuantParams {
        value_stride: out.values.stride as u64,
        out_rows: out.values.rows as u64,
        scale_rows: shape.rows.next_multiple_of(4) as u64,
        scale_layout: match shape.layout {
            ScaleLayout::RowMajor => abi::SCALES_BY_ROW,
            ScaleLayout::ColumnMajor => abi::SCALES_BY_COLUMN,
            ScaleLayout::Swizzled => abi::SCALES_SWIZZLED,
        },
        groups: shape.groups as u32,
        padded_groups: shape.padded_groups() as u32,
        ceil,
        global_scale,
        splits: 1,
        ..QuantParams::default()
    }
}

fn wide(params: &QuantParams) -> u32 {
    let QuantParams { input, up, values, input_stride, up_stride, value_stride, .. } = *params;
    (common_vec(&[input, up, values, input_stride, up_stride, value_stride]) == 16).into()
}

fn bytes(rows: &RawRows<'_, Cuda>) -> u64 {
    (rows.stride * rows.dtype.size()) as u64
}

/// # Safety
/// The promises of `QuantBackend`.
pub(crate) unsafe fn gather_quant(queue: &CudaQueue, mut args: GatherQuantArgs<'_, Cuda>) -> Result<()> {
    let op = "gather_quant";
    let shape = args.plan.arrays.shape;
    let (kernel, _) = kernels(&args.out.format).ok_or_else(|| unknown(op, &args.out.format))?;
    let region = plan_region(&args.plan);
    let mut launch = Launch::new(queue, op)?;
    let plan = PlanAddress::of(&args.plan, launch.read(&region)?);
    let hidden = args.rows.cols;
    let one_scale = args.out.format.group().is_none();
    let (block, splits) = quant_cut(shape.num_tokens, hidden, one_scale, launch.multiprocessors());
    let format = format_params(&args.out);
    let mut params = QuantParams {
        input: launch.read(&args.rows.region)?,
        slot: plan.slot(),
        expert_offsets: plan.expert_offsets(),
        tokens_per_expert: plan.tokens_per_expert(),
        values: launch.write(&mut args.out.values.region)?,
        scales: launch.write(&mut args.out.scales.region)?,
        hidden: hidden as u64,
        input_stride: bytes(&args.rows),
        tokens: shape.num_tokens as u32,
        k: shape.top_k as u32,
        local_experts: shape.num_local_experts as u32,
        zero_padding: plan.has_padding().into(),
        dtype: abi::dtype(args.rows.dtype),
        splits,
        ..format
    };
    params.wide = wide(&params);
    let grid = with_padding(shape.num_tokens * splits as usize, plan.has_padding(), shape.num_local_experts);
    if grid == 0 {
        return Ok(());
    }
    // SAFETY: the kernels take `QuantParams`; addresses are from this launch; shapes, strides and the places of scales
    // are those that moe-core checked, and `wide` says whether vectors fit.
    unsafe { launch.launch(kernel, Shape { grid, block, shared: 0, cooperative: false }, params) }
}

/// Launches a kernel that makes rows of the two inputs.
///
/// # Safety
/// The promises of `QuantBackend`; `params` has what describes the outputs.
unsafe fn activate<'r>(
    mut launch: Launch<'r>,
    kernel: Kernel,
    plan: PlanAddress<'_>,
    input: &'r RawSwiglu<'_, Cuda>,
    params: QuantParams,
) -> Result<()> {
    let RawSwiglu { gate, up } = input;
    let shape = plan.arrays.shape;
    if shape.rows == 0 {
        return Ok(());
    }
    let mut params = QuantParams {
        input: launch.read(&gate.region)?,
        up: launch.read(&up.region)?,
        expert_offsets: plan.expert_offsets(),
        hidden: gate.cols as u64,
        input_stride: bytes(gate),
        up_stride: bytes(up),
        local_experts: shape.num_local_experts as u32,
        dtype: abi::dtype(gate.dtype),
        ..params
    };
    params.wide = wide(&params);
    let block = activation_threads(gate.cols);
    let grid = turns(shape.rows, block, launch.multiprocessors());
    // SAFETY: the kernels take `QuantParams`; addresses are from this launch; shapes, strides and the places of scales
    // are those that moe-core checked, and `wide` says whether vectors fit.
    unsafe { launch.launch(kernel, Shape { grid, block, shared: 0, cooperative: false }, params) }
}

/// # Safety
/// The promises of `QuantBackend`.
pub(crate) unsafe fn swiglu(queue: &CudaQueue, mut args: SwigluArgs<'_, Cuda>) -> Result<()> {
    let region = plan_region(&args.plan);
    let mut launch = Launch::new(queue, "swiglu")?;
    let plan = PlanAddress::of(&args.plan, launch.read(&region)?);
    let params = QuantParams {
        values: launch.write(&mut args.out.region)?,
        value_stride: (args.out.stride * args.out.dtype.size()) as u64,
        out_rows: args.out.rows as u64,
        out_dtype: abi::dtype(args.out.dtype),
        splits: 1,
        ..QuantParams::default()
    };
    // SAFETY: the caller's promises are passed on.
    unsafe { activate(launch, Kernel::Swiglu, plan, &args.input, params) }
}

/// # Safety
/// The promises of `QuantBackend`.
pub(crate) unsafe fn swiglu_quant(queue: &CudaQueue, mut args: SwigluQuantArgs<'_, Cuda>) -> Result<()> {
    let op = "swiglu_quant";
    let (_, kernel) = kernels(&args.out.format).ok_or_else(|| unknown(op, &args.out.format))?;
    let region = plan_region(&args.plan);
    let mut launch = Launch::new(queue, op)?;
    let plan = PlanAddress::of(&args.plan, launch.read(&region)?);
    let format = format_params(&args.out);
    let params = QuantParams {
        values: launch.write(&mut args.out.values.region)?,
        scales: launch.write(&mut args.out.scales.region)?,
        round_to: abi::dtype(args.round_to),
        ..format
    };
    // SAFETY: the caller's promises are passed on.
    unsafe { activate(launch, kernel, plan, &args.input, params) }
}
