//! Gather, and zeroing what it leaves alone.

use crate::dispatch::Dispatch;
use crate::kernels::{Constants, GATHER_TOKENS, GATHER_WORDS, ZERO_ROWS_ALL, ZERO_ROWS_VEC, ZERO_ROWS_WORDS};
use crate::window::{Bound, Matrix, Window};
use crate::{Wgpu, WgpuQueue};
use moe_core::raw::{GatherArgs, PlanArrays, ZeroTailArgs};
use moe_core::{DType, Error, Layout, Result};

/// Threads of a workgroup.
pub(crate) const THREADS: u64 = 256;

/// A dtype as the kernels know it.
pub(crate) fn code(op: &'static str, arg: &'static str, dtype: DType) -> Result<u32> {
    Ok(match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
        DType::F8E4M3 => 3,
        DType::F8E5M2 => 4,
        got => {
            let expected = "f32, f16, bf16, f8e4m3 or f8e5m2";
            return Err(Error::UnsupportedDType { op, arg, expected, got });
        }
    })
}

/// How many routes of a token a thread treats at once: one of few numbers, as each is a kernel of its own.
pub(crate) fn at_once(top_k: usize, most: u32) -> u32 {
    most.min(if top_k <= 2 { 2 } else { 8 })
}

/// The word of the plan where an array begins.
pub(crate) fn word(section: moe_core::raw::Section) -> u32 {
    (section.offset / 4) as u32
}

/// The word of the plan that holds the number of rows in use.
fn used(arrays: &PlanArrays) -> u32 {
    word(arrays.expert_offsets) + arrays.shape.num_local_experts as u32
}

pub(crate) fn gather(queue: &mut WgpuQueue<'_>, op: &'static str, args: GatherArgs<'_, Wgpu>) -> Result<()> {
    let device = queue.device().clone();
    let arrays = args.plan.arrays;
    let shape = &arrays.shape;
    let (rows, out) = (Matrix::new(&args.rows), Matrix::new_mut(&args.out));
    if out.rows == 0 {
        return Ok(());
    }
    let plan = Bound::plan(&device, op, args.plan)?;
    let weights = Bound::region_or(&device, op, "weights", args.weights.as_ref().map(|w| &w.region), plan)?;
    let weight_type = args.weights.as_ref().map_or(DType::F32, |w| w.dtype);
    let vectors = rows.in_vectors() && out.in_vectors();
    let unit = if vectors { 16 } else { 1 };
    let size = args.rows.dtype.size().min(4);
    // Bits are copied whatever they are.
    let element = if args.weights.is_some() { code(op, "rows", args.rows.dtype)? } else { 0 };
    let mut constants = Constants::default()
        .unit(vectors)
        .flag("WEIGHTED", args.weights.is_some())
        .number("WEIGHTS", code(op, "weights", weight_type)?)
        .number("SIZE_OF_WEIGHT", weight_type.size() as u32)
        .number("ELEMENT", element);
    let tuning = device.tuning();
    let all = rows.rows as u64 * rows.row_bytes / 16;
    let (threads_of_group, units) = if vectors { (tuning.gather_threads, tuning.gather_units(all)) } else { (256, 1) };
    constants = match vectors {
        true => constants
            .number("THREADS", threads_of_group)
            .number("UNITS", units)
            .number("ROUTES", at_once(shape.top_k, 8)),
        false => constants.number("SIZE", size as u32),
    };
    let cols = (rows.row_bytes as u32 / unit).div_ceil(units);

    let out_windows = out.windows(&device, op, "out", usize::MAX)?;
    let row_windows = rows.windows(&device, op, "rows", usize::MAX)?;
    let mut dispatches = Vec::new();
    for to in &out_windows {
        let none = row_windows.is_empty() && !vectors;
        let froms = row_windows.iter().map(Some).chain(none.then_some(None));
        for (i, from) in froms.enumerate() {
            let (bound, first, count, stride) = match from {
                Some(w) => (w.bound, w.first, w.count, w.stride),
                None => (plan, 0, 0, 0), // no tokens at all: only padding rows are written
            };
            let params = [word(arrays.slot), word(arrays.source), used(arrays)];
            let params = params.into_iter().chain([shape.num_routes() as u32, shape.top_k as u32]);
            let params = params.chain([to.first, to.count, first, count]);
            let params = params.chain([bound.base, stride, to.bound.base, to.stride].map(|bytes| bytes / unit));
            let row_len = rows.row_bytes as u32 / unit;
            let params = params.chain([row_len, cols, weights.base, to.words(), u32::from(i == 0)]);
            let threads = if vectors { u64::from(count) * u64::from(cols) } else { u64::from(to.words()) };
            dispatches.push(Dispatch {
                kernel: if vectors { &GATHER_TOKENS } else { &GATHER_WORDS },
                constants: constants.clone(),
                buffers: vec![plan, bound, weights, to.bound],
                params: params.collect(),
                groups: threads.div_ceil(u64::from(threads_of_group)),
            });
        }
    }
    if vectors && !matches!(shape.layout, Layout::Packed | Layout::Aligned(1)) {
        zero_rows(&mut dispatches, arrays, plan, &out_windows, &out, false);
    }
    queue.record(op, &dispatches)
}

pub(crate) fn zero_tail(queue: &mut WgpuQueue<'_>, args: ZeroTailArgs<'_, Wgpu>) -> Result<()> {
    let op = "zero_tail";
    let device = queue.device().clone();
    let rows = Matrix::new_mut(&args.rows);
    if rows.rows == 0 {
        return Ok(());
    }
    let plan = Bound::plan(&device, op, args.plan)?;
    let windows = rows.windows(&device, op, "rows", usize::MAX)?;
    let mut dispatches = Vec::new();
    zero_rows(&mut dispatches, args.plan.arrays, plan, &windows, &rows, true);
    queue.record(op, &dispatches)
}

/// Zeroes padding rows, or with `tail` those from the last expert offset on.
fn zero_rows<'a>(
    dispatches: &mut Vec<Dispatch<'a>>,
    arrays: &PlanArrays,
    plan: Bound<'a>,
    windows: &[Window<'a>],
    out: &Matrix<'a>,
    tail: bool,
) {
    let vectors = out.in_vectors();
    let unit = if vectors { 16 } else { 1 };
    for to in windows {
        let params = [word(arrays.source), used(arrays), arrays.shape.num_routes() as u32, to.first, to.count];
        let bytes = [to.bound.base, to.stride, out.row_bytes as u32].map(|bytes| bytes / unit);
        dispatches.push(Dispatch {
            kernel: if vectors { &ZERO_ROWS_VEC } else { &ZERO_ROWS_WORDS },
            constants: Constants::default().unit(vectors).flag("TAIL", tail),
            buffers: vec![to.bound, plan],
            params: params.into_iter().chain(bytes).chain([to.words()]).collect(),
            groups: if vectors { u64::from(to.count) } else { u64::from(to.words()).div_ceil(THREADS) },
        });
    }
}

/// Zeroes all of a window.
pub(crate) fn zero_all<'a>(to: &Window<'a>, out: &Matrix<'a>) -> Dispatch<'a> {
    let params = [0, 0, 0, to.first, to.count, to.bound.base, to.stride, out.row_bytes as u32, to.words()];
    Dispatch {
        kernel: &ZERO_ROWS_ALL,
        constants: Constants::default().unit(false),
        buffers: vec![to.bound],
        params: params.to_vec(),
        groups: u64::from(to.words()).div_ceil(THREADS),
    }
}
