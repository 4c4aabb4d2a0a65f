//! What is multiplied: rows of the accumulator's type, borrowed or widened, and scales.

use crate::Cpu;
use crate::buffer::typed;
use crate::kernels::{Shared, e4m3_value, f16_value};
use moe_core::DType;
use moe_core::quant::ScaleShape;
use moe_core::raw::{RawRowScales, RawRows, RawWeightScales};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::LazyLock;

/// f32 or f64: what products are summed in.
pub(super) trait Acc: Copy + Default + Send + Sync + 'static {
    /// `out` itself, from element `at` on, where sums are results.
    fn f32_pointer(out: &Shared, at: usize) -> Option<*mut Self>;
    /// These elements as they lie, where they are of this type.
    fn borrow(dtype: DType, bytes: &[u8]) -> Option<&[Self]>;
    /// Widens elements.
    fn widen(dtype: DType, bytes: &[u8], out: &mut [Self]);
    /// The product with a scale.
    fn times(self, scale: f32) -> Self;
    /// A sum times both scales, rounded.
    fn scaled(self, row: f32, weight: f32) -> f32;
    /// Rows `rows` of `x` times the transpose of `w`, into rows `stride` apart at `out`.
    ///
    /// # Safety
    /// `out` can be written for `rows.len()` rows of `w.rows` elements, `stride` apart, and overlaps neither operand.
    unsafe fn gemm(
        out: *mut Self,
        stride: usize,
        x: &Operand<'_, Self>,
        rows: Range<usize>,
        w: &Operand<'_, Self>,
        k: usize,
    );
}

/// `out = x wᵀ` by the `gemm` crate, on this thread.
///
/// # Safety
/// See [`Acc::gemm`].
unsafe fn gemm<A: Acc>(
    out: *mut A,
    stride: usize,
    x: &Operand<'_, A>,
    rows: Range<usize>,
    w: &Operand<'_, A>,
    (k, zero, one): (usize, A, A),
) {
    let (m, n) = (rows.len(), w.rows);
    let x_rows = &x.values()[rows.start * x.stride..];
    assert!(m > 0 && n > 0 && k > 0 && x_rows.len() >= (m - 1) * x.stride + k, "rows of a product");
    assert!(w.values().len() >= (n - 1) * w.stride + k, "weights of a product");
    let (x_stride, w_stride, stride) = (x.stride as isize, w.stride as isize, stride as isize);
    // SAFETY: the operands have the lengths that their shapes and strides reach, as asserted; the caller promises `out`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            stride,
            false,
            x_rows.as_ptr(),
            1,
            x_stride,
            w.values().as_ptr(),
            w_stride,
            1,
            zero,
            one,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

impl Acc for f32 {
    fn f32_pointer(out: &Shared, at: usize) -> Option<*mut f32> {
        Some(out.ptr().cast::<f32>().wrapping_add(at))
    }
    fn borrow(dtype: DType, bytes: &[u8]) -> Option<&[f32]> {
        (dtype == DType::F32).then(|| typed(bytes))
    }
    fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) {
        let halves = bytes.as_chunks().0.iter().map(|b| u16::from_ne_bytes(*b)).zip(out);
        match dtype {
            DType::F16 => halves.for_each(|(bits, out)| *out = f16_value(bits)),
            _ => halves.for_each(|(bits, out)| *out = f32::from_bits(u32::from(bits) << 16)),
        }
    }
    fn times(self, scale: f32) -> f32 {
        self * scale
    }
    fn scaled(self, _: f32, _: f32) -> f32 {
        self // floats have no scales
    }
    unsafe fn gemm(
        out: *mut f32,
        stride: usize,
        x: &Operand<'_, f32>,
        rows: Range<usize>,
        w: &Operand<'_, f32>,
        k: usize,
    ) {
        // SAFETY: the caller's promises.
        unsafe { gemm(out, stride, x, rows, w, (k, 0.0, 1.0)) }
    }
}

/// All values of f8e4m3.
static E4M3: LazyLock<[f64; 256]> = LazyLock::new(|| std::array::from_fn(|code| f64::from(e4m3_value(code as u8))));

impl Acc for f64 {
    fn f32_pointer(_: &Shared, _: usize) -> Option<*mut f64> {
        None
    }
    fn borrow(_: DType, _: &[u8]) -> Option<&[f64]> {
        None
    }
    fn widen(_: DType, bytes: &[u8], out: &mut [f64]) {
        let table = &*E4M3;
        bytes.iter().zip(out).for_each(|(code, out)| *out = table[usize::from(*code)]);
    }
    fn times(self, scale: f32) -> f64 {
        self * f64::from(scale)
    }
    fn scaled(self, row: f32, weight: f32) -> f32 {
        (self * (f64::from(row) * f64::from(weight))) as f32
    }
    unsafe fn gemm(
        out: *mut f64,
        stride: usize,
        x: &Operand<'_, f64>,
        rows: Range<usize>,
        w: &Operand<'_, f64>,
        k: usize,
    ) {
        // SAFETY: the caller's promises.
        unsafe { gemm(out, stride, x, rows, w, (k, 0.0, 1.0)) }
    }
}

/// Rows `stride` apart.
pub(super) struct Operand<'a, A> {
    memory: Memory<'a, A>,
    rows: usize,
    stride: usize,
}

enum Memory<'a, A> {
    Borrowed(&'a [A]),
    Owned(Vec<A>),
}

impl<'a, A: Acc> Operand<'a, A> {
    /// These rows of a matrix, as they lie or widened. `scale` then gets each row's number and its values.
    pub(super) fn new(matrix: &RawRows<'a, Cpu>, rows: Range<usize>, scale: impl Fn(usize, &mut [A]) + Sync) -> Self {
        let RawRows { region, dtype, cols, stride, .. } = matrix;
        let (cols, size) = (*cols, dtype.size());
        let count = rows.len();
        let bytes = if count == 0 {
            &[][..]
        } else {
            &region.0[rows.start * stride * size..][..((count - 1) * stride + cols) * size]
        };
        if let Some(values) = A::borrow(*dtype, bytes) {
            return Self { memory: Memory::Borrowed(values), rows: count, stride: *stride };
        }
        let mut values = vec![A::default(); count * cols];
        values.par_chunks_mut(cols).enumerate().with_min_len(16).for_each(|(i, values)| {
            A::widen(*dtype, &bytes[i * stride * size..][..cols * size], values);
            scale(rows.start + i, values);
        });
        Self { memory: Memory::Owned(values), rows: count, stride: cols }
    }

    fn values(&self) -> &[A] {
        match &self.memory {
            Memory::Borrowed(values) => values,
            Memory::Owned(values) => values,
        }
    }
}

/// Scales of rows.
pub(super) struct RowScales<'a> {
    scales: &'a [f32],
    pub(super) block: usize,
    shape: ScaleShape,
}

impl<'a> RowScales<'a> {
    pub(super) fn new(scales: RawRowScales<'a, Cpu>) -> Self {
        Self { scales: typed(scales.scales.region.0), block: scales.block, shape: scales.shape }
    }

    pub(super) fn get(&self, row: usize, block: usize) -> f32 {
        self.scales[self.shape.index(row, block)]
    }

    /// Multiplies a row.
    pub(super) fn apply<A: Acc>(&self, row: usize, values: &mut [A]) {
        for (block, values) in values.chunks_mut(self.block).enumerate() {
            let scale = self.get(row, block);
            values.iter_mut().for_each(|value| *value = value.times(scale));
        }
    }
}

/// Scales of weights.
pub(super) struct WeightScales<'a> {
    scales: &'a [f32],
    pub(super) block: [usize; 2],
}

impl<'a> WeightScales<'a> {
    pub(super) fn new(scales: RawWeightScales<'a, Cpu>) -> Self {
        Self { scales: typed(scales.scales.region.0), block: scales.block }
    }

    /// The scale of an expert's output and a block of inputs; `shape` is that of its weights, `[N, K]`.
    pub(super) fn get(&self, expert: usize, output: usize, block: usize, [n, k]: [usize; 2]) -> f32 {
        let (rows, cols) = (n.div_ceil(self.block[0]), k.div_ceil(self.block[1]));
        self.scales[(expert * rows + output / self.block[0]) * cols + block]
    }

    /// Multiplies the weights of one output.
    pub(super) fn apply<A: Acc>(&self, expert: usize, output: usize, values: &mut [A], shape: [usize; 2]) {
        for (block, values) in values.chunks_mut(self.block[1]).enumerate() {
            let scale = self.get(expert, output, block, shape);
            values.iter_mut().for_each(|value| *value = value.times(scale));
        }
    }
}
