//! The weights of experts on a device.

use super::config::{LayerConfig, WeightFormat};
use super::invalid;
use super::tensors::{Fp8Matrix, Tensors};
use crate::quant::{Block128, PerToken, Quantization, ScaleLayout};
use crate::tag::Tag;
use crate::{Backend, Buf, Float, Queue, Result};
use float8::F8E4M3;

/// Gate, up and down of some experts: `gate_up` `[E, 2 I, H]` (gate first), `down` `[E, H, I]`.
#[derive(Debug)]
pub(super) struct Experts<B: Backend, T: Float, G: Tag> {
    pub(super) weights: Weights<B, T, G>,
    pub(super) intermediate_size: usize,
}

/// Both matrices of the experts.
#[derive(Debug)]
pub(super) enum Weights<B: Backend, T: Float, G: Tag> {
    Float { gate_up: Buf<B, T, G>, down: Buf<B, T, G> },
    Fp8 { gate_up: Scaled<B, G>, down: Scaled<B, G>, scaling: Scaling },
}

/// f8e4m3 weights and their scales.
#[derive(Debug)]
pub(super) struct Scaled<B: Backend, G: Tag> {
    pub(super) values: Buf<B, F8E4M3, G>,
    pub(super) scales: Buf<B, f32, G>,
}

/// How f8e4m3 weights and the rows that meet them are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scaling {
    /// A scale for each output channel; rows per token.
    Channel,
    /// A scale for 128 x 128 weights; rows per 128 elements.
    Block128,
}

/// A quantisation of rows that products take.
pub(super) trait RowFormat: Quantization<Value = F8E4M3, Scale = f32> {
    /// The layout of the scales.
    fn layout(self) -> ScaleLayout {
        self.format().layout()
    }
    /// Elements of a row that share a scale, of K.
    fn row_block(self, k: usize) -> usize {
        self.format().group().unwrap_or(k)
    }
    /// Outputs and inputs that share a scale of the weights.
    fn weight_block(self, k: usize) -> [usize; 2] {
        self.format().group().map_or([1, k], |group| [group, group])
    }
}
impl RowFormat for PerToken {}
impl RowFormat for Block128 {}

/// How a layer's experts are loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loading {
    /// How the file has them.
    pub(super) stored: WeightFormat,
    /// Whether floats are quantised per output channel.
    pub(super) quantise: bool,
}

impl<B: Backend, T: Float, G: Tag> Experts<B, T, G> {
    /// Loads experts by their names, up to the name of the projection.
    pub(super) fn load(
        queue: &mut Queue<'_, B, G>,
        tensors: &Tensors<'_>,
        config: &LayerConfig,
        names: &[String],
        intermediate_size: usize,
        loading: Loading,
    ) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, intermediate_size);
        let projections = config.projections();
        let shapes = [([inner, hidden], &projections[..2]), ([hidden, inner], &projections[2..])];
        let each = |projections: &[&str]| -> Vec<String> {
            names.iter().flat_map(|name| projections.iter().map(move |p| format!("{name}{p}"))).collect()
        };
        let scaling = match (loading.stored, loading.quantise) {
            (WeightFormat::Float, false) => None,
            (WeightFormat::Fp8Block128, _) => Some(Scaling::Block128),
            _ => Some(Scaling::Channel),
        };
        let weights = match scaling {
            None => {
                let mut load = |(shape, projections): ([usize; 2], &[&str])| -> Result<Buf<B, T, G>> {
                    let mut all = Vec::with_capacity(names.len() * projections.len() * shape[0] * shape[1]);
                    for name in each(projections) {
                        let floats = tensors.floats(&format!("{name}.weight"), &shape)?;
                        all.extend(floats.into_iter().map(T::from_f32));
                    }
                    queue.upload(&all)
                };
                let [gate_up, down] = shapes;
                Weights::Float { gate_up: load(gate_up)?, down: load(down)? }
            }
            Some(scaling) => {
                if scaling == Scaling::Block128 && !inner.is_multiple_of(128) {
                    let expected = "a multiple of 128 where weights have 128 x 128 blocks";
                    return Err(invalid("the intermediate size", expected, inner));
                }
                let mut load = |(shape, projections): ([usize; 2], &[&str])| -> Result<Scaled<B, G>> {
                    let (mut values, mut scales) = (Vec::new(), Vec::new());
                    for name in each(projections) {
                        let Fp8Matrix { values: v, scales: s } = match loading.stored {
                            WeightFormat::Float => tensors.quantised(&name, shape)?,
                            WeightFormat::Fp8PerChannel => tensors.fp8_per_channel(&name, shape)?,
                            WeightFormat::Fp8Block128 => tensors.fp8_block128(&name, shape)?,
                        };
                        values.extend(v);
                        scales.extend(s);
                    }
                    Ok(Scaled { values: queue.upload(&values)?, scales: queue.upload(&scales)? })
                };
                let [gate_up, down] = shapes;
                Weights::Fp8 { gate_up: load(gate_up)?, down: load(down)?, scaling }
            }
        };
        Ok(Self { weights, intermediate_size })
    }
}
