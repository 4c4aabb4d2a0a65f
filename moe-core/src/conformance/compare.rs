//! Comparing what a backend gave with what is right.

use super::harness::{Checked, Fail};
use super::naive::{Plan, Widen};
use crate::dtype::as_bytes;
use crate::{DType, Element};

/// Bit for bit.
pub(super) fn same<T: Element>(what: &str, got: &[T], want: &[T], cols: usize) -> Checked {
    if as_bytes(got) == as_bytes(want) {
        return Ok(());
    }
    if got.len() != want.len() {
        return Err(Fail(format!("{what}: {} elements, expected {}", got.len(), want.len())));
    }
    let differ = |i: &usize| as_bytes(&got[*i..=*i]) != as_bytes(&want[*i..=*i]);
    let all = (0..got.len()).filter(differ).count();
    let i = (0..got.len()).find(differ).unwrap_or(0);
    let (row, col) = (i / cols.max(1), i % cols.max(1));
    let bits = |x: &T| as_bytes(std::slice::from_ref(x)).iter().rev().map(|b| format!("{b:02x}")).collect::<String>();
    let (g, w) = (&got[i], &want[i]);
    Err(Fail(format!(
        "{what}[{row}, {col}] is {g:?} (0x{}), expected {w:?} (0x{}); {all} of {} elements differ",
        bits(g),
        bits(w),
        got.len()
    )))
}

/// What an inexact result may differ by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slack {
    /// The result, summed in f64.
    pub(super) value: f64,
    /// Σ of the terms' sizes.
    pub(super) size: f64,
    /// Σ of the sizes of terms that vanish where subnormals are flushed.
    pub(super) flushed: f64,
    /// Terms.
    pub(super) terms: usize,
}

impl Slack {
    /// Adds a product of two factors.
    pub(super) fn add<X: Widen, Y: Widen>(&mut self, x: X, y: Y) {
        let term = f64::from(x.widen()) * f64::from(y.widen());
        self.value += term;
        self.size += term.abs();
        self.terms += 1;
        if subnormal(x) || subnormal(y) || term.abs() < f64::from(f32::MIN_POSITIVE) {
            self.flushed += term.abs();
        }
    }
}

fn subnormal<T: Widen>(x: T) -> bool {
    x != T::default() && f64::from(x.widen()).abs() < smallest(T::DTYPE)
}

/// The smallest normal number.
fn smallest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 | DType::F8E5M2 => 2f64.powi(-14),
        DType::F8E4M3 => 2f64.powi(-6),
        _ => f64::from(f32::MIN_POSITIVE),
    }
}

/// The distance of neighbouring numbers of the type around `x`.
pub(super) fn ulp(dtype: DType, x: f64) -> f64 {
    let digits = match dtype {
        DType::F16 => 10,
        DType::BF16 => 7,
        _ => 23,
    };
    2f64.powi((x.abs().max(smallest(dtype)).log2().floor() as i32) - digits)
}

/// Within the error that a backend without a fused multiply-add may make.
pub(super) fn close<T: Widen>(
    what: &str,
    got: &[T],
    want: &[T],
    cols: usize,
    slack: impl Fn(usize) -> Slack,
) -> Checked {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let (g, w) = (f64::from(got.widen()), f64::from(want.widen()));
        if as_bytes(std::slice::from_ref(got)) == as_bytes(std::slice::from_ref(want))
            || g == w
            || g.is_nan() && w.is_nan()
        {
            continue;
        }
        let slack = slack(i);
        let bound = ulp(T::DTYPE, slack.value) + slack.flushed + slack.terms as f64 * 2f64.powi(-23) * slack.size;
        let flushed = g == 0.0 && slack.value.abs() <= smallest(T::DTYPE) + bound;
        if !flushed && (g - slack.value).abs() > bound || !g.is_finite() {
            let (row, col) = (i / cols.max(1), i % cols.max(1));
            return Err(Fail(format!("{what}[{row}, {col}] is {g}, expected {w} within {bound:e}")));
        }
    }
    Ok(())
}

/// Compares all arrays of a plan.
pub(super) fn same_plan(got: &Plan, want: &Plan) -> Checked {
    same("status", &got.status, &want.status, 0)?;
    same("tokens_per_expert", &got.tokens_per_expert, &want.tokens_per_expert, 0)?;
    same("expert_offsets", &got.expert_offsets, &want.expert_offsets, 0)?;
    same("slot", &got.slot, &want.slot, want.top_k)?;
    same("source", &got.source, &want.source, 0)?;
    same("m_indices", &got.m_indices, &want.m_indices, 0)?;
    same("logical_load", &got.logical_load, &want.logical_load, 0)
}
