//! The experts' matrix products on the CPU, with the `gemm` crate.

mod operand;
mod slices;

pub use slices::grouped_matmul;

use crate::kernels::{Shared, bf16_bits, f16_bits};
use crate::plan::placement;
use crate::{Cpu, CpuQueue};
use moe_core::raw::GroupedMatmulArgs;
use moe_core::{DType, GroupedMatmul, MatmulBackend, Result};
use operand::{Acc, Operand, RowScales, WeightScales};
use rayon::prelude::*;
use std::ops::Range;

/// Products by the `gemm` crate. The offsets are host memory here, and are read when the products run.
///
/// f32, f16 and bf16 are summed in f32. f8e4m3 is summed in f64: a product of two values has 8 bits and their sums
/// fit 53, so that with one scale for each row and each output channel the sum is exact whatever its order, and the
/// result is that sum times both scales, rounded from f64 once. With scales for blocks of K, the sum is of
/// dequantised values in f64. Types other than f32 are widened into memory that is allocated for the call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gemm;

impl MatmulBackend for Cpu {
    type Matmul = Gemm;

    fn matmul(_: &CpuQueue) -> Result<Gemm> {
        Ok(Gemm)
    }
}

// SAFETY: writes go through `Shared` to rows of disjoint groups and disjoint columns of `out`, inside its bounds: the
// offsets are clamped to its rows.
unsafe impl GroupedMatmul<Cpu> for Gemm {
    unsafe fn grouped_matmul(&mut self, queue: &mut CpuQueue, args: GroupedMatmulArgs<'_, Cpu>) -> Result<()> {
        queue.run(usize::MAX, |_| match args.rows.dtype {
            DType::F8E4M3 => products::<f64>(args),
            _ => products::<f32>(args),
        });
        Ok(())
    }
}

/// The rows of each expert: clamped to R, each beginning where the one before ends or later, so that they are disjoint
/// whatever the offsets say.
fn groups(offsets: &[i32], rows: usize) -> Vec<Range<usize>> {
    let clamped = |offset: i32| usize::try_from(offset).unwrap_or(0).min(rows);
    let mut end = 0;
    let group = |pair: &[i32]| {
        let start = clamped(pair[0]).max(end);
        end = clamped(pair[1]).max(start);
        start..end
    };
    offsets.windows(2).map(group).collect()
}

/// Rows of one expert times some of its outputs.
struct Tile {
    expert: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

/// Elements of the weights of a tile, about.
const TILE_WEIGHTS: usize = 1 << 18;

fn products<A: Acc>(args: GroupedMatmulArgs<'_, Cpu>) {
    let GroupedMatmulArgs { plan, rows, row_scales, weights, weight_scales, out } = args;
    let (inner, outputs, dtype) = (rows.cols, out.cols, out.dtype);
    let groups = groups(placement(plan).expert_offsets, out.rows);
    // Scales that do not change along K are taken out of the sum.
    let (row_scales, weight_scales) = (row_scales.map(RowScales::new), weight_scales.map(WeightScales::new));
    let along = row_scales.as_ref().is_some_and(|s| s.block < inner)
        || weight_scales.as_ref().is_some_and(|s| s.block[1] < inner);
    let grain = (TILE_WEIGHTS / inner).clamp(32, 512).min(outputs);
    let tiles: Vec<Tile> = groups
        .iter()
        .enumerate()
        .filter(|(_, rows)| !rows.is_empty())
        .flat_map(|(expert, rows)| {
            let starts = (0..outputs).step_by(grain);
            starts.map(move |col| Tile { expert, rows: rows.clone(), cols: col..outputs.min(col + grain) })
        })
        .collect();
    let used = groups.last().map_or(0, |group| group.end);
    let x = Operand::<A>::new(&rows, 0..used, |row, values| {
        if let (true, Some(scales)) = (along, &row_scales) {
            scales.apply(row, values);
        }
    });
    let stride = out.stride;
    let out = Shared::new(out.region.0);
    tiles.into_par_iter().for_each(|tile| {
        let Tile { expert, rows, cols } = tile;
        let first = expert * outputs;
        let w = Operand::<A>::new(&weights, first + cols.start..first + cols.end, |row, values| {
            if let (true, Some(scales)) = (along, &weight_scales) {
                scales.apply(expert, row - first, values, [outputs, inner]);
            }
        });
        let at = rows.start * stride + cols.start;
        if dtype == DType::F32
            && let Some(out) = A::f32_pointer(&out, at)
        {
            // SAFETY: the tile lies in `out`, whose rows are `stride` apart; no other tile has these rows and columns.
            unsafe { A::gemm(out, stride, &x, rows, &w, inner) };
            return;
        }
        let (m, n) = (rows.len(), cols.len());
        let mut sums = vec![A::default(); m * n];
        // SAFETY: `sums` is m rows of n elements.
        unsafe { A::gemm(sums.as_mut_ptr(), n, &x, rows.clone(), &w, inner) };
        let weight_scale = |col| match &weight_scales {
            Some(scales) if !along => scales.get(expert, col, 0, [outputs, inner]),
            _ => 1.0,
        };
        let weight_scales: Vec<f32> = cols.clone().map(weight_scale).collect();
        for (i, sums) in sums.chunks_exact(n).enumerate() {
            let row_scale = match &row_scales {
                Some(scales) if !along => scales.get(rows.start + i, 0),
                _ => 1.0,
            };
            for (j, (sum, scale)) in sums.iter().zip(&weight_scales).enumerate() {
                // SAFETY: as above.
                unsafe { write(&out, dtype, at + i * stride + j, sum.scaled(row_scale, *scale)) }
            }
        }
    });
}

/// Rounds to the type and writes element `at`.
///
/// # Safety
/// The element lies in `out`, and no other task writes it.
unsafe fn write(out: &Shared, dtype: DType, at: usize, y: f32) {
    // SAFETY: the caller's promise; the writes are unaligned.
    unsafe {
        match dtype {
            DType::F16 => out.ptr().cast::<u16>().add(at).write_unaligned(f16_bits(y)),
            DType::BF16 => out.ptr().cast::<u16>().add(at).write_unaligned(bf16_bits(y)),
            _ => out.ptr().cast::<f32>().add(at).write_unaligned(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::groups;

    #[test]
    fn groups_are_disjoint_and_inside_whatever_the_offsets_say() {
        assert_eq!(groups(&[0, 3, 3, 7], 8), [0..3, 3..3, 3..7]);
        for offsets in [[0, 10, 5, 20], [-4, i32::MAX, 0, 3], [9, 2, i32::MIN, 8], [0, 0, 0, 0]] {
            let groups = groups(&offsets, 8);
            let mut end = 0;
            for group in groups {
                assert!(group.start >= end && group.end >= group.start && group.end <= 8, "{offsets:?}");
                end = group.end;
            }
        }
    }
}
