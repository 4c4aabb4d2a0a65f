//! The stages that quantise, computed again on the host from what entered them.

use super::layer::Layer;
use super::stages::to_f32;
use super::trace::Trace;
use moe_core::float8::F8E4M3;
use moe_core::half::bf16;
use moe_core::layer::LayerState;
use moe_core::math::silu;
use moe_core::quant::{MIN_SCALE, RECIPROCAL_448, e4m3};
use moe_core::{Float, MatmulInput, QuantBackend, QuantRows, Queue, Result, quant::PerToken};

/// How many values and scales of each stage differ; nothing where nothing is quantised.
pub(crate) fn differences<B: QuantBackend, T: Float + MatmulInput, O: Float>(
    queue: &mut Queue<'_, B>,
    state: &LayerState<B, T, O>,
    trace: &Trace,
    layer: &Layer,
) -> Result<Vec<(&'static str, usize)>> {
    let Some([gathered, activated]) = state.per_token_rows() else { return Ok(Vec::new()) };
    let (hidden, inner) = (layer.hidden_size, layer.intermediate_size);
    let source = queue.download(state.plan().source())?;
    let tokens: Vec<_> = trace.hidden_states.chunks_exact(hidden).map(quantise).collect();
    let rows = source.iter().map(|x| usize::try_from(*x).ok().map(|x| &tokens[x / layer.top_k]));
    let first = count(queue, gathered, rows)?;

    let gate_up = to_f32(queue.download(state.gate_up())?);
    let activate = |row: &[f32]| {
        let (gate, up) = row.split_at(inner);
        let y: Vec<f32> = gate.iter().zip(up).map(|(g, u)| bf16::from_f32(silu(*g) * u).to_f32()).collect();
        quantise(&y)
    };
    let rows: Vec<_> = gate_up.chunks_exact(2 * inner).map(activate).collect();
    let rows = source.iter().zip(&rows).map(|(x, row)| (*x >= 0).then_some(row));
    Ok(vec![("gather, quantised", first), ("swiglu, quantised", count(queue, activated, rows)?)])
}

/// Values and the scale of a row.
fn quantise(row: &[f32]) -> (Vec<u8>, f32) {
    let amax = row.iter().fold(0f32, |max, x| max.max(x.abs()));
    let scale = (amax * RECIPROCAL_448).max(MIN_SCALE);
    (row.iter().map(|x| e4m3(x / scale)).collect(), scale)
}

/// Values and scales that differ, of the rows that are there.
fn count<'a, B: QuantBackend>(
    queue: &mut Queue<'_, B>,
    got: &QuantRows<B, PerToken>,
    want: impl Iterator<Item = Option<&'a (Vec<u8>, f32)>>,
) -> Result<usize> {
    let values: Vec<F8E4M3> = queue.download(got.values.view())?;
    let scales = queue.download(got.scales.view())?;
    let rows = values.chunks_exact(got.value_cols).zip(&scales).zip(want);
    let differ = rows.map(|((values, scale), want)| {
        let Some((want, want_scale)) = want else { return 0 };
        let values = values.iter().zip(want).filter(|(got, want)| got.to_bits() != **want).count();
        values + usize::from(scale.to_bits() != want_scale.to_bits())
    });
    Ok(differ.sum())
}
