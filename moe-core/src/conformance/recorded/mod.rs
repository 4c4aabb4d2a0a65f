//! Recorded answers of other implementations. Index arrays, copied rows and kept slots are compared bit for bit; sums
//! within one unit in the last place of their type, or 1e-6 of their size in f32: others round in another order.

mod te;
mod vllm;

pub use te::recorded_te;
pub use vllm::{recorded_trace, recorded_vllm};

use super::compare::ulp;
use super::harness::{Checked, Fail, ensure};
use super::naive::Widen;
use crate::dtype::as_bytes_mut;
use crate::{DType, Element};
use safetensors::SafeTensors;

/// A tensor's elements and shape; empty of shape `[]` where it is not there.
fn read<T: Element>(file: &SafeTensors<'_>, name: &str) -> Checked<(Vec<T>, Vec<usize>)> {
    let tensor = file.tensor(name).map_err(|e| Fail(format!("{name}: {e}")))?;
    let mut data = vec![T::default(); tensor.shape().iter().product()];
    let bytes = as_bytes_mut(&mut data);
    ensure(bytes.len() == tensor.data().len(), || format!("{name} is {:?}", tensor.dtype()))?;
    bytes.copy_from_slice(tensor.data());
    Ok((data, tensor.shape().to_vec()))
}

/// Sums within one unit in the last place of their type or, in f32, 1e-6 of their size, which is the result's own or,
/// where terms cancel, what `size` says of the sum of their sizes.
fn near<T: Widen>(what: &str, got: &[T], want: &[T], cols: usize, size: impl Fn(usize) -> f64) -> Checked {
    ensure(got.len() == want.len(), || format!("{what}: {} elements, expected {}", got.len(), want.len()))?;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let (g, w) = (f64::from(got.widen()), f64::from(want.widen()));
        let relative = if T::DTYPE == DType::F32 { w.abs().max(size(i)) * 1e-6 } else { 0.0 };
        if g.is_nan() != w.is_nan() || (g - w).abs() > ulp(T::DTYPE, w).max(relative) {
            let (row, col) = (i / cols, i % cols);
            return Err(Fail(format!("{what}[{row}, {col}] is {g}, recorded {w}, {:e} apart", (g - w).abs())));
        }
    }
    Ok(())
}

/// Where terms do not cancel.
fn own_size(_: usize) -> f64 {
    0.0
}
