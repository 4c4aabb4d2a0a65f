//! Reading weights from safetensors.

use super::invalid;
use crate::Result;
use crate::quant::{MIN_SCALE, RECIPROCAL_448, e4m3};
use float8::F8E4M3;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// The tensors of a model, in one file or several.
pub(super) struct Tensors<'a> {
    pub(super) files: &'a [SafeTensors<'a>],
    /// What the names of the layer's tensors begin with, up to and including the last dot.
    pub(super) prefix: String,
}

/// A matrix of f8e4m3 `[n, k]` and its scales.
pub(super) struct Fp8Matrix {
    pub(super) values: Vec<F8E4M3>,
    /// `[n]`, or `[ceil(n / 128), ceil(k / 128)]`.
    pub(super) scales: Vec<f32>,
}

impl<'a> Tensors<'a> {
    fn find(&self, name: &str) -> Option<TensorView<'a>> {
        let full = format!("{}{name}", self.prefix);
        self.files.iter().find_map(|file| file.tensor(&full).ok())
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<TensorView<'a>> {
        let full = || format!("{}{name}", self.prefix);
        let tensor = self.find(name).ok_or_else(|| invalid(full(), "a tensor of the files", "nothing"))?;
        if tensor.shape() != shape {
            return Err(invalid(full(), format!("of shape {shape:?}"), format!("of shape {:?}", tensor.shape())));
        }
        Ok(tensor)
    }

    /// A tensor of floats, widened.
    pub(super) fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.get(name, shape)?;
        self.widen(name, &tensor)
    }

    fn widen(&self, name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>> {
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => Ok(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::BF16 => Ok(data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::F16 => Ok(data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            other => {
                let got = format!("{other:?}");
                Err(invalid(format!("{}{name}", self.prefix), "F32, F16 or BF16", got))
            }
        }
    }

    fn fp8_values(&self, name: &str, shape: [usize; 2]) -> Result<Vec<F8E4M3>> {
        let tensor = self.get(&format!("{name}.weight"), &shape)?;
        if tensor.dtype() != Dtype::F8_E4M3 {
            let got = format!("{:?}", tensor.dtype());
            return Err(invalid(format!("{}{name}.weight", self.prefix), "F8_E4M3", got));
        }
        Ok(tensor.data().iter().map(|bits| F8E4M3::from_bits(*bits)).collect())
    }

    /// f8e4m3 with a `weight_scale` for each output channel, `[n]` or `[n, 1]`, or one for all.
    pub(super) fn fp8_per_channel(&self, name: &str, [n, k]: [usize; 2]) -> Result<Fp8Matrix> {
        let values = self.fp8_values(name, [n, k])?;
        let scale_name = format!("{name}.weight_scale");
        let scales = match self.find(&scale_name).filter(|scales| scales.shape().iter().product::<usize>() == 1) {
            Some(scales) => vec![self.widen(&scale_name, &scales)?[0]; n],
            None if self.find(&scale_name).is_some_and(|scales| scales.shape() == [n]) => {
                self.floats(&scale_name, &[n])?
            }
            None => self.floats(&scale_name, &[n, 1])?,
        };
        Ok(Fp8Matrix { values, scales })
    }

    /// f8e4m3 with a scale for 128 x 128 weights: `weight_scale_inv` (DeepSeek; what a value is multiplied with all the
    /// same) or `weight_scale`.
    pub(super) fn fp8_block128(&self, name: &str, [n, k]: [usize; 2]) -> Result<Fp8Matrix> {
        let values = self.fp8_values(name, [n, k])?;
        let inverse = format!("{name}.weight_scale_inv");
        let scale_name = if self.find(&inverse).is_some() { inverse } else { format!("{name}.weight_scale") };
        Ok(Fp8Matrix { values, scales: self.floats(&scale_name, &[n.div_ceil(128), k.div_ceil(128)])? })
    }

    /// Floats, quantised per output channel as [`PerToken`](crate::quant::PerToken) does with rows.
    pub(super) fn quantised(&self, name: &str, [n, k]: [usize; 2]) -> Result<Fp8Matrix> {
        let weights = self.floats(&format!("{name}.weight"), &[n, k])?;
        let (mut values, mut scales) = (Vec::with_capacity(n * k), Vec::with_capacity(n));
        for row in weights.chunks_exact(k) {
            let amax = row.iter().fold(0f32, |max, x| max.max(x.abs()));
            let scale = (amax * RECIPROCAL_448).max(MIN_SCALE);
            if row.iter().any(|x| !x.is_finite()) {
                return Err(invalid(format!("{}{name}.weight", self.prefix), "finite", "not, somewhere"));
            }
            values.extend(row.iter().map(|x| F8E4M3::from_bits(e4m3(x / scale))));
            scales.push(scale);
        }
        Ok(Fp8Matrix { values, scales })
    }
}
