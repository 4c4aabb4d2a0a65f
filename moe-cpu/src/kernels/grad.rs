//! moe_combine_grad: dY = diag(w) P dX, and dw = rowdot(Y, P dX).
//!
//! Shapes: y and dy [R, H], dx [T, H], all of one type; weights and dw [T, K]. A row of dY is round(w * dX[t]), zero on
//! padding rows; rows past the last expert offset are not touched. dw is 0 for routes that are not placed. Its sum has
//! a fixed order: 1,024 f32 lanes, lane h mod 1,024 in ascending h by fused multiply-add from 0, then a halving tree.
//! Either output may be left out.

use super::elem::{Elem, Output, bf16_bits, canonical, f16_bits, with_output};
use super::gather::{scale_row, zero_padding};
use super::parallel::{Shared, for_ranges};
use super::rows::{Placement, Rows, RowsMut, Weights, WeightsMut};
use super::simd::Simd;
use super::tier::{Op, Tier};
use std::marker::PhantomData;
use std::ops::Range;

/// Arguments of [`combine_grad`].
pub(crate) struct CombineGrad<'a> {
    /// The index arrays.
    pub(crate) plan: Placement<'a>,
    /// The gradient of combine's output, [T, H].
    pub(crate) dx: Rows<'a>,
    /// Combine's rows, [R, H]; needed for `dw`.
    pub(crate) y: Option<Rows<'a>>,
    /// The type of all rows.
    pub(crate) elem: Elem,
    /// Columns, H.
    pub(crate) hidden: usize,
    /// Combine's weights; 1 where absent.
    pub(crate) weights: Option<Weights<'a>>,
}

/// The lanes of a dot product.
const LANES: usize = 1024;

/// Computes the gradients that are asked for.
///
/// # Panics
/// Where the lengths do not fit the shapes, the rows are 8-bit floats, or `dw` comes without `y`.
pub(crate) fn combine_grad(tier: Tier, args: &CombineGrad<'_>, dy: Option<RowsMut<'_>>, dw: Option<WeightsMut<'_>>) {
    let (tokens, used) = (args.plan.tokens(), args.plan.used());
    let row_bytes = args.hidden * args.elem.size();
    assert!(args.dx.count(row_bytes) >= tokens, "too few rows of dx");
    assert!(args.weights.is_none_or(|w| w.len() == args.plan.slot.len()), "weights must be [T, K]");
    let stride = dy.as_ref().map_or(0, |dy| {
        assert!(dy.count(row_bytes) >= used, "too few rows of dy");
        dy.stride
    });
    let dy = dy.map(|dy| Shared::new(dy.bytes));
    let dw = dw.map(|dw| {
        assert!(args.y.is_some_and(|y| y.count(row_bytes) >= used), "dw needs the rows of y");
        let (len, elem, ptr) = match dw {
            WeightsMut::F32(w) => (w.len(), Elem::F32, w.as_mut_ptr().cast()),
            WeightsMut::F16(w) => (w.len(), Elem::F16, w.as_mut_ptr().cast()),
            WeightsMut::Bf16(w) => (w.len(), Elem::Bf16, w.as_mut_ptr().cast()),
        };
        assert!(len == args.plan.slot.len(), "dw must be [T, K]");
        (Shared::from_ptr(ptr), elem)
    });
    let stream = tier.thresholds().streams(used * row_bytes, row_bytes);
    let grain = tier.thresholds().grain_for(row_bytes * args.plan.top_k);
    with_output!(args.elem, E => for_ranges(0..tokens, grain, &|tokens| {
        let (dy, dw) = (dy.as_ref(), dw.as_ref());
        tier.run(Tokens::<E> { args, dy, dw, stride, used, stream, tokens, elem: PhantomData });
    }));
    if let Some(dy) = &dy {
        zero_padding(tier, &args.plan, used, dy, stride, row_bytes, stream);
    }
}

/// Some tokens.
struct Tokens<'a, E> {
    args: &'a CombineGrad<'a>,
    dy: Option<&'a Shared>,
    dw: Option<&'a (Shared, Elem)>,
    stride: usize,
    used: usize,
    stream: bool,
    tokens: Range<usize>,
    elem: PhantomData<E>,
}

impl<E: Output> Op for Tokens<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let CombineGrad { plan, dx, y, hidden, weights, .. } = self.args;
        for token in self.tokens {
            for route in token * plan.top_k..(token + 1) * plan.top_k {
                let row = plan.row_of(route, self.used);
                // SAFETY: `combine_grad` asserted that T rows of dx, `used` rows of y and dy, and [T, K] weights lie
                // in their memory; `row_of` gives a row below `used` to one route only, and a route is in one task.
                // The outputs are borrowed mutably, so nothing overlaps.
                unsafe {
                    let dx = dx.bytes.as_ptr().add(token * dx.stride);
                    if let (Some(dy), Some(row)) = (self.dy, row) {
                        let dy = dy.ptr().add(row * self.stride);
                        match weights {
                            None => std::ptr::copy_nonoverlapping(dx, dy, *hidden * E::SIZE), // bits, NaN and all
                            Some(w) => scale_row::<S, E>(dy, dx, *hidden, w.get(route), self.stream),
                        }
                    }
                    if let (Some((dw, elem)), Some(y)) = (self.dw, y) {
                        let value =
                            row.map_or(0.0, |row| dot::<S, E>(y.bytes.as_ptr().add(row * y.stride), dx, *hidden));
                        let dw = dw.ptr().add(route * elem.size());
                        match elem {
                            Elem::F32 => dw.cast::<f32>().write(canonical(value)),
                            Elem::F16 => dw.cast::<u16>().write(f16_bits(value)),
                            _ => dw.cast::<u16>().write(bf16_bits(value)),
                        }
                    }
                }
            }
        }
        // SAFETY: the caller promises the instruction set.
        unsafe { S::fence() }
    }
}

/// The dot product of two rows in the fixed order.
///
/// # Safety
/// The processor has `S`; both rows can be read for `len` elements.
#[inline(always)]
unsafe fn dot<S: Simd, E: Output>(a: *const u8, b: *const u8, len: usize) -> f32 {
    let mut lanes = [0f32; LANES];
    let sums = lanes.as_mut_ptr().cast::<u8>();
    // SAFETY: elements read are below `len`; sums are below `LANES`, which is a multiple of every vector's length.
    unsafe {
        let mut at = 0;
        while at < len {
            let n = LANES.min(len - at);
            let mut i = 0;
            while i + S::LANES <= n {
                let h = (at + i) * E::SIZE;
                let acc = S::fma(E::load::<S>(a.add(h)), E::load::<S>(b.add(h)), S::load_f32(sums.add(i * 4)));
                S::store_raw(sums.add(i * 4), acc);
                i += S::LANES;
            }
            while i < n {
                let h = (at + i) * E::SIZE;
                let acc = sums.cast::<f32>().add(i);
                *acc = E::read(a.add(h)).mul_add(E::read(b.add(h)), *acc);
                i += 1;
            }
            at += n;
        }
        let mut half = LANES / 2;
        while half >= S::LANES {
            let mut i = 0;
            while i < half {
                let acc = S::add(S::load_f32(sums.add(i * 4)), S::load_f32(sums.add((i + half) * 4)));
                S::store_raw(sums.add(i * 4), acc);
                i += S::LANES;
            }
            half /= 2;
        }
        while half > 0 {
            for i in 0..half {
                *sums.cast::<f32>().add(i) += *sums.cast::<f32>().add(i + half);
            }
            half /= 2;
        }
    }
    lanes[0]
}
