//! Combine.

use crate::dispatch::Dispatch;
use crate::error::unsupported;
use crate::gather::{THREADS, at_once, code, word};
use crate::kernels::{COMBINE_VEC_1, COMBINE_VEC_4, COMBINE_WORDS_1, COMBINE_WORDS_4, Constants};
use crate::tuning::Tuning;
use crate::window::{Bound, Matrix};
use crate::{Wgpu, WgpuQueue};
use moe_core::raw::CombineArgs;
use moe_core::{DType, Result};

/// Windows of rows that a kernel can be shown, because each token may need a row of any of them, in order.
const MAX_WINDOWS: usize = 4;
/// Storage buffers beside those windows.
const OTHER_BUFFERS: u32 = 5;

pub(crate) fn combine(queue: &mut WgpuQueue<'_>, args: CombineArgs<'_, Wgpu>) -> Result<()> {
    let op = "combine";
    let device = queue.device().clone();
    let shape = &args.plan.arrays.shape;
    let (rows, out) = (Matrix::new(&args.rows), Matrix::new_mut(&args.out));
    let residual = args.residual.as_ref().map(Matrix::new);
    if out.rows == 0 {
        return Ok(());
    }
    let plan = Bound::plan(&device, op, args.plan)?;
    let weights = Bound::region_or(&device, op, "weights", args.weights.as_ref().map(|w| &w.region), plan)?;
    let weight_type = args.weights.as_ref().map_or(DType::F32, |w| w.dtype);
    let (scales, scales_stride, block) = match &args.scales {
        Some(s) => {
            let stride = if s.rows.rows > 1 { s.rows.stride } else { s.rows.cols };
            (Bound::new(&device, op, "scales", &s.rows.region)?, stride as u32, s.block.min(args.rows.cols))
        }
        None => (plan, 0, 1),
    };

    let (row_type, out_type) = (args.rows.dtype, args.out.dtype);
    let scale_fits = args.scales.is_none() || block % 16 == 0 || block == args.rows.cols;
    let aligned = rows.in_vectors() && out.in_vectors() && residual.as_ref().is_none_or(Matrix::in_vectors);
    let vectors = aligned && scale_fits;
    let unit = if vectors { 16 } else { 1 };

    let per_window = rows.rows_per_window(&device, op, "rows")?;
    let windows = rows.windows(&device, op, "rows", per_window)?;
    let room = device.storage_buffers().saturating_sub(OTHER_BUFFERS) as usize;
    if windows.len() > 1 && (windows.len() > MAX_WINDOWS || room < MAX_WINDOWS) {
        let (limit, bytes) = (device.max_binding(), rows.rows as u64 * rows.row_bytes);
        let most = if room < MAX_WINDOWS { 1 } else { MAX_WINDOWS };
        let reason = format!(
            "rows take {bytes} bytes, {most} times max_storage_buffer_binding_size ({limit}) can be read at once"
        );
        return Err(unsupported(op, reason));
    }
    let split = windows.len() > 1;
    let bound_window = |i: usize| windows[i.min(windows.len() - 1)].bound;
    let shown = if split { MAX_WINDOWS } else { 1 };
    let constants = Constants::default()
        .unit(vectors)
        .number("ROWS", code(op, "rows", row_type)?)
        .number("OUT", code(op, "out", out_type)?)
        .number("WEIGHTS", code(op, "weights", weight_type)?)
        .number("SIZE_OF_ROW", row_type.size() as u32)
        .number("SIZE_OF_OUT", out_type.size() as u32)
        .number("SIZE_OF_WEIGHT", weight_type.size() as u32)
        .flag("WEIGHTED", args.weights.is_some())
        .flag("SCALED", args.scales.is_some())
        .flag("RESIDUAL", residual.is_some());
    let tuning = device.tuning();
    let (constants, threads_of_group, units) = match vectors {
        true => {
            let Tuning { combine_threads: threads, combine_units: units, .. } = tuning;
            let all = out.rows as u64 * (rows.row_bytes / 16).div_ceil(u64::from(units));
            let routes = at_once(shape.top_k, tuning.combine_routes(all));
            (constants.number("THREADS", threads).number("UNITS", units).number("ROUTES", routes), threads, units)
        }
        false => (constants, THREADS as u32, 1),
    };

    let most = match &residual {
        Some(residual) => residual.rows_per_window(&device, op, "residual")?,
        None => usize::MAX,
    };
    let mut dispatches = Vec::new();
    for to in out.windows(&device, op, "out", most)? {
        let tokens = to.first as usize..(to.first + to.count) as usize;
        let start = match &residual {
            Some(residual) => Some(residual.window(&device, op, "residual", tokens)?),
            None => None,
        };
        let row_len = if vectors { (rows.row_bytes / 16) as u32 } else { args.rows.cols as u32 };
        let params = (0..MAX_WINDOWS).map(|i| bound_window(i).base / unit);
        let params = params.chain([word(args.plan.arrays.slot), shape.top_k as u32, shape.rows as u32]);
        let params = params.chain([per_window.min(u32::MAX as usize) as u32, to.first, to.count]);
        let cols = row_len.div_ceil(units);
        let params = params.chain([windows[0].stride / unit, row_len, cols]);
        let params = params.chain(start.map_or([0, 0], |s| [s.bound.base / unit, s.stride / unit]));
        let params = params.chain([to.bound.base / unit, to.stride / unit, weights.base]);
        let params = params.chain([scales.base / 4, scales_stride, block as u32, to.words()]);
        let params = params.chain([args.residual_scale.to_bits()]);
        let threads = if vectors { u64::from(to.count) * u64::from(cols) } else { u64::from(to.words()) };
        let mut buffers = vec![plan, weights, scales, start.map_or(plan, |s| s.bound), to.bound];
        buffers.extend((0..shown).map(bound_window));
        dispatches.push(Dispatch {
            kernel: match (vectors, split) {
                (true, false) => &COMBINE_VEC_1,
                (true, true) => &COMBINE_VEC_4,
                (false, false) => &COMBINE_WORDS_1,
                (false, true) => &COMBINE_WORDS_4,
            },
            constants: constants.clone(),
            buffers,
            params: params.collect(),
            groups: threads.div_ceil(u64::from(threads_of_group)),
        });
    }
    queue.record(op, &dispatches)
}
