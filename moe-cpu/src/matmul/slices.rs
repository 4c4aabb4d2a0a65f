//! The experts' matrix products on the CPU.

use crate::CpuQueue;
use rayon::prelude::*;

/// Products by expert: for each expert e, rows `offsets[e]..offsets[e + 1]` of `x` `[R, in_features]` times the
/// transpose of `weights[e]` `[out_features, in_features]`, into the same rows of `out` `[R, out_features]`. All f32.
/// Rows past the last offset are not touched.
///
/// # Panics
/// If the offsets do not ascend inside R, or the lengths do not fit.
pub fn grouped_matmul(
    queue: &CpuQueue,
    x: &[f32],
    weights: &[&[f32]],
    offsets: &[i32],
    in_features: usize,
    out: &mut [f32],
    out_features: usize,
) {
    assert_eq!(offsets.len(), weights.len() + 1, "one offset more than experts");
    let mut groups = Vec::with_capacity(weights.len());
    let mut rest = &mut out[offsets[0] as usize * out_features..];
    for (weight, range) in weights.iter().zip(offsets.windows(2)) {
        let rows = range[0] as usize..range[1] as usize;
        let (group, tail) = rest.split_at_mut(rows.len() * out_features);
        rest = tail;
        groups.push((*weight, &x[rows.start * in_features..rows.end * in_features], group));
    }
    queue.run(usize::MAX, |_| {
        groups.into_par_iter().for_each(|(w, x, out)| matmul(x, w, in_features, out, out_features))
    });
}

/// `out [m, n] = x [m, k] * w [n, k]ᵀ`.
fn matmul(x: &[f32], w: &[f32], k: usize, out: &mut [f32], n: usize) {
    let m = x.len() / k.max(1);
    assert!(x.len() == m * k && w.len() == n * k && out.len() == m * n, "shapes of a product");
    if m == 0 {
        return;
    }
    let (k_stride, n_stride) = (k as isize, n as isize);
    // SAFETY: the three matrices have the lengths that their shapes and strides reach, as asserted; `out` is borrowed
    // mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n_stride,
            false,
            x.as_ptr(),
            1,
            k_stride,
            w.as_ptr(),
            k_stride,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, CpuDevice};
    use moe_core::{Backend, Device};

    #[test]
    fn each_expert_multiplies_its_own_rows_and_no_others() {
        let queue = CpuDevice::open(&Cpu::NAME.parse().unwrap()).unwrap().queue().unwrap();
        let (k, n, offsets) = (3, 2, [0, 2, 2, 3]);
        let x: Vec<f32> = (0..12).map(|i| i as f32 - 4.0).collect();
        let w: Vec<Vec<f32>> = (0..3).map(|e| (0..n * k).map(|i| (i * 3 + e * 7 % 5) as f32).collect()).collect();
        let mut out = vec![f32::NAN; 4 * n];
        let weights: Vec<&[f32]> = w.iter().map(|w| w.as_slice()).collect();
        grouped_matmul(&queue, &x, &weights, &offsets, k, &mut out, n);
        for (row, expert) in [(0, 0), (1, 0), (2, 2)] {
            for col in 0..n {
                let expected: f32 = (0..k).map(|i| x[row * k + i] * w[expert][col * k + i]).sum();
                assert_eq!(out[row * n + col], expected, "row {row}, column {col}");
            }
        }
        assert!(out[3 * n..].iter().all(|x| x.is_nan()), "rows past the last offset are not touched");
    }
}
