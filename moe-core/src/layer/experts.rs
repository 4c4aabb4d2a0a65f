//! Products, activation, products: what happens between a gather and a combine.

use super::weights::{Experts, RowFormat, Scaled, Scaling, Weights};
use crate::quant::{Block128, PerToken, ScaleLayout};
use crate::tag::Tag;
use crate::{
    Backend, Buf, Float, GroupedMatmul, MatmulInput, QuantBackend, QuantRows, Queue, Result, RoutePlan, Rows, RowsMut,
    View,
};

/// Memory between the stages of some experts, for the rows of one plan.
#[derive(Debug)]
pub(super) struct Between<B: Backend, T: Float, O: Float, G: Tag> {
    inputs: Inputs<B, T, G>,
    gate_up: Buf<B, O, G>,
}

/// Rows that enter the first product, and those that enter the second.
#[derive(Debug)]
enum Inputs<B: Backend, T: Float, G: Tag> {
    /// The activation writes over nothing that is still needed: both have memory of their own.
    Float(Buf<B, T, G>, Buf<B, T, G>),
    PerToken(QuantRows<B, PerToken, G>, QuantRows<B, PerToken, G>),
    Block128(QuantRows<B, Block128, G>, QuantRows<B, Block128, G>),
}

/// How the scales of 128-blocks lie.
const BLOCKS: Block128 = Block128(ScaleLayout::RowMajor);

impl<B: QuantBackend, T: Float + MatmulInput, O: Float, G: Tag> Between<B, T, O, G> {
    pub(super) fn alloc(
        queue: &mut Queue<'_, B, G>,
        experts: &Experts<B, T, G>,
        rows: usize,
        hidden: usize,
    ) -> Result<Self> {
        let inner = experts.intermediate_size;
        let inputs = match &experts.weights {
            Weights::Float { .. } => Inputs::Float(queue.zeros(rows * hidden)?, queue.zeros(rows * inner)?),
            Weights::Fp8 { scaling: Scaling::Channel, .. } => Inputs::PerToken(
                QuantRows::alloc(queue, PerToken, rows, hidden)?,
                QuantRows::alloc(queue, PerToken, rows, inner)?,
            ),
            Weights::Fp8 { scaling: Scaling::Block128, .. } => Inputs::Block128(
                QuantRows::alloc(queue, BLOCKS, rows, hidden)?,
                QuantRows::alloc(queue, BLOCKS, rows, inner)?,
            ),
        };
        Ok(Self { inputs, gate_up: queue.zeros(rows * 2 * inner)? })
    }

    pub(super) fn gate_up(&self) -> View<'_, B, O, G> {
        self.gate_up.view()
    }

    pub(super) fn per_token_rows(&self) -> Option<[&QuantRows<B, PerToken, G>; 2]> {
        match &self.inputs {
            Inputs::PerToken(gathered, activated) => Some([gathered, activated]),
            _ => None,
        }
    }

    /// Brings rows by expert, quantised where the weights are.
    pub(super) fn gather(
        &mut self,
        queue: &mut Queue<'_, B, G>,
        plan: &RoutePlan<B, G>,
        x: Rows<'_, B, T, G>,
    ) -> Result<()> {
        let hidden = x.cols();
        match &mut self.inputs {
            Inputs::Float(rows, _) => plan.gather(x).run_into(queue, rows.rows_mut(hidden)?),
            Inputs::PerToken(rows, _) => gather_quant(queue, plan, x, PerToken, rows),
            Inputs::Block128(rows, _) => gather_quant(queue, plan, x, BLOCKS, rows),
        }
    }

    /// The gate's and up's products.
    pub(super) fn multiply_gate_up(
        &mut self,
        queue: &mut Queue<'_, B, G>,
        plan: &RoutePlan<B, G>,
        matmul: &mut impl GroupedMatmul<B>,
        experts: &Experts<B, T, G>,
        hidden: usize,
    ) -> Result<()> {
        let out = self.gate_up.rows_mut(2 * experts.intermediate_size)?;
        match (&self.inputs, &experts.weights) {
            (Inputs::Float(rows, _), Weights::Float { gate_up, .. }) => {
                plan.grouped_matmul(rows.rows(hidden)?, gate_up.rows(hidden)?).run_into(queue, matmul, out)
            }
            (Inputs::PerToken(rows, _), Weights::Fp8 { gate_up, .. }) => {
                scaled(queue, plan, matmul, PerToken, rows, gate_up, out)
            }
            (Inputs::Block128(rows, _), Weights::Fp8 { gate_up, .. }) => {
                scaled(queue, plan, matmul, BLOCKS, rows, gate_up, out)
            }
            _ => unreachable!("memory of another layer's experts: `LayerState::new` makes it for these"),
        }
    }

    /// The activation, quantised where the weights are.
    pub(super) fn activate(&mut self, queue: &mut Queue<'_, B, G>, plan: &RoutePlan<B, G>, inner: usize) -> Result<()> {
        let op = plan.swiglu(self.gate_up.rows(2 * inner)?)?;
        match &mut self.inputs {
            Inputs::Float(_, act) => op.run_into(queue, act.rows_mut(inner)?),
            Inputs::PerToken(_, act) => {
                let (values, scales) = act.views_mut()?;
                op.quantized(PerToken).run_into(queue, values, scales)
            }
            Inputs::Block128(_, act) => {
                let (values, scales) = act.views_mut()?;
                op.quantized(BLOCKS).run_into(queue, values, scales)
            }
        }
    }

    /// The last product.
    pub(super) fn down(
        &mut self,
        queue: &mut Queue<'_, B, G>,
        plan: &RoutePlan<B, G>,
        matmul: &mut impl GroupedMatmul<B>,
        experts: &Experts<B, T, G>,
        out: RowsMut<'_, B, O, G>,
    ) -> Result<()> {
        let inner = experts.intermediate_size;
        match (&self.inputs, &experts.weights) {
            (Inputs::Float(_, act), Weights::Float { down, .. }) => {
                plan.grouped_matmul(act.rows(inner)?, down.rows(inner)?).run_into(queue, matmul, out)
            }
            (Inputs::PerToken(_, act), Weights::Fp8 { down, .. }) => {
                scaled(queue, plan, matmul, PerToken, act, down, out)
            }
            (Inputs::Block128(_, act), Weights::Fp8 { down, .. }) => {
                scaled(queue, plan, matmul, BLOCKS, act, down, out)
            }
            _ => unreachable!("memory of another layer's experts: `LayerState::new` makes it for these"),
        }
    }
}

fn gather_quant<B: QuantBackend, T: Float, Q: RowFormat, G: Tag>(
    queue: &mut Queue<'_, B, G>,
    plan: &RoutePlan<B, G>,
    x: Rows<'_, B, T, G>,
    format: Q,
    out: &mut QuantRows<B, Q, G>,
) -> Result<()> {
    let (values, scales) = out.views_mut()?;
    plan.gather_quant(x, format).run_into(queue, values, scales)
}

/// Products of quantised rows and weights.
fn scaled<B: QuantBackend, Q: RowFormat, O: Float, G: Tag>(
    queue: &mut Queue<'_, B, G>,
    plan: &RoutePlan<B, G>,
    matmul: &mut impl GroupedMatmul<B>,
    format: Q,
    rows: &QuantRows<B, Q, G>,
    weights: &Scaled<B, G>,
    out: RowsMut<'_, B, O, G>,
) -> Result<()> {
    let k = rows.value_cols;
    plan.grouped_matmul(rows.values.rows(k)?, weights.values.rows(k)?)
        .row_scales(rows.scales.view(), format.row_block(k), format.layout())
        .weight_scales(weights.scales.view(), format.weight_block(k))
        .run_into(queue, matmul, out)
}
