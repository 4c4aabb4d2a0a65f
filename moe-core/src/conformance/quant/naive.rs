//! Quantisation, the activation and grouped products, computed plainly: values are looked for in a table of all of
//! them, by distance.

use super::super::naive::{Plan, Widen, round};
use crate::quant::{ExponentRounding, QuantFormat, ScaleShape};
use crate::{DType, Float};
use float8::F8E4M3;
use half::{bf16, f16};

/// All values of a small float from 0 up, by code.
struct Table(Vec<f64>);

impl Table {
    fn e4m3() -> Self {
        Self((0..0x7f).map(|code| f64::from(F8E4M3::from_bits(code).widen())).collect())
    }

    fn e2m1() -> Self {
        Self(vec![0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    }

    /// The code of the nearest value, of two the even one; the last beyond all. `x` is no NaN.
    fn nearest(&self, x: f32) -> u8 {
        let size = f64::from(x.abs());
        let above = self.0.partition_point(|value| *value < size);
        if above == self.0.len() {
            return above as u8 - 1;
        }
        let below = above.saturating_sub(1);
        let (down, up) = (size - self.0[below], self.0[above] - size);
        (if down < up || down == up && below % 2 == 0 { below } else { above }) as u8
    }
}

/// A quantised row: a code for each element (not packed), and a scale's bits for each group.
pub(super) struct Row {
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<u32>,
}

/// Quantises rows.
pub(super) struct Quantiser {
    format: QuantFormat,
    e4m3: Table,
    e2m1: Table,
}

impl Quantiser {
    pub(super) fn new(format: QuantFormat) -> Self {
        Self { format, e4m3: Table::e4m3(), e2m1: Table::e2m1() }
    }

    pub(super) fn row(&self, x: &[f32]) -> Row {
        let groups = x.chunks(self.format.group().unwrap_or(x.len()));
        let groups: Vec<_> = groups.map(|group| self.group(group)).collect();
        Row {
            codes: groups.iter().flat_map(|(codes, _)| codes.iter().copied()).collect(),
            scales: groups.iter().map(|(_, scale)| *scale).collect(),
        }
    }

    fn group(&self, x: &[f32]) -> (Vec<u8>, u32) {
        let nan = x.iter().any(|x| x.is_nan());
        let amax = x.iter().fold(0f32, |max, x| max.max(x.abs()));
        let odd = nan || amax.is_infinite();
        match self.format {
            QuantFormat::Mxfp8(rounding, _) => {
                if odd {
                    return (vec![0x7f; x.len()], 255);
                }
                // The smallest byte whose power of two is large enough.
                let fits = |s: &u32| {
                    let scale = 2f64.powi(*s as i32 - 127);
                    match rounding {
                        ExponentRounding::Floor => f64::from(amax) < 512.0 * scale,
                        ExponentRounding::Ceil => f64::from(amax) <= 448.0 * scale,
                    }
                };
                let scale = (0..255).find(fits).expect("2^127 * 448 is above all numbers");
                let factor = 2f64.powi(127 - scale as i32);
                (x.iter().map(|x| self.code8((f64::from(*x) * factor) as f32)).collect(), scale)
            }
            QuantFormat::Nvfp4 { global_scale, .. } => {
                if odd {
                    return (vec![0; x.len()], 0x7f);
                }
                let scale = self.e4m3.nearest((amax * (1.0f64 / 6.0) as f32) * global_scale);
                let value = F8E4M3::from_bits(scale).widen();
                let factor = if scale == 0 { 0.0 } else { global_scale / value };
                (x.iter().map(|x| self.code4(x * factor)).collect(), scale.into())
            }
            _ => {
                let scale = if nan { f32::NAN } else { (amax * (1.0f64 / 448.0) as f32).max(1e-12) };
                let bits = if nan { 0x7fc0_0000 } else { scale.to_bits() };
                (x.iter().map(|x| self.code8(x / scale)).collect(), bits)
            }
        }
    }

    fn code8(&self, x: f32) -> u8 {
        if x.is_nan() { 0x7f } else { self.e4m3.nearest(x) | if x.is_sign_negative() { 0x80 } else { 0 } }
    }

    fn code4(&self, x: f32) -> u8 {
        self.e2m1.nearest(x) | if x.is_sign_negative() { 8 } else { 0 }
    }

    /// Writes a row of a `[R, C]` matrix of values and its scales.
    pub(super) fn put(&self, row: &Row, at: usize, shape: &ScaleShape, values: &mut [u8], scales: &mut [u32]) {
        let bytes: Vec<u8> = match self.format {
            QuantFormat::Nvfp4 { .. } => row.codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect(),
            _ => row.codes.clone(),
        };
        values[at * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
        for group in 0..shape.padded_groups() {
            scales[shape.index(at, group)] = row.scales.get(group).copied().unwrap_or(0);
        }
    }
}

/// Quantises each token's row and gathers; `values` and `scales` keep what they have past the last offset.
pub(super) fn gather_quant(
    plan: &Plan,
    rows: &[f32],
    hidden: usize,
    format: QuantFormat,
    shape: &ScaleShape,
    values: &mut [u8],
    scales: &mut [u32],
) {
    let quantiser = Quantiser::new(format);
    let tokens: Vec<Row> = rows.chunks_exact(hidden).map(|row| quantiser.row(row)).collect();
    let padding = quantiser.row(&vec![0.0; hidden]);
    for (at, x) in plan.source.iter().enumerate().take(plan.used()) {
        let row = if *x < 0 { &padding } else { &tokens[*x as usize / plan.top_k] };
        quantiser.put(row, at, shape, values, scales);
    }
}

/// `silu(gate) * up` in f32, of one element. The exponential is the library's own: other ones differ in the last bit.
pub(super) fn swiglu(gate: f32, up: f32) -> f32 {
    let silu = gate / (1.0 + crate::math::exp(-gate));
    silu * up
}

/// Rounds to a type and widens again.
pub(super) fn rounded(x: f32, dtype: DType) -> f32 {
    fn through<T: Float + Widen>(x: f32) -> f32 {
        round::<T>(x).widen()
    }
    match dtype {
        DType::F16 => through::<f16>(x),
        DType::BF16 => through::<bf16>(x),
        _ => x,
    }
}
