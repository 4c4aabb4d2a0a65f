//! Quantising gather, and the activation.

use crate::buffer::CpuRegionMut;
use crate::kernels::{self, Activation, GatherQuant, Placement, QuantOut};
use crate::plan::{elem, placement, rows, rows_mut};
use crate::{Cpu, CpuQueue};
use moe_core::raw::{GatherQuantArgs, PlanRef, RawQuantMut, RawSwiglu, RawViewMut, SwigluArgs, SwigluQuantArgs};
use moe_core::{QuantBackend, Result};

// SAFETY: the kernels write through pointers into the outputs alone, which they assert to hold the rows in use, whatever
// the index arrays say.
unsafe impl QuantBackend for Cpu {
    unsafe fn gather_quant(queue: &mut CpuQueue, args: GatherQuantArgs<'_, Self>) -> Result<()> {
        let GatherQuantArgs { plan, rows: x, out } = args;
        let bytes = x.rows * x.cols * x.dtype.size() + plan.arrays.shape.rows * out.values.cols;
        let args = GatherQuant { plan: placement(plan), rows: rows(&x), elem: elem(x.dtype) };
        let out = quant_out(out, x.cols);
        queue.run(bytes, |tier| kernels::gather_quant(tier, &args, out));
        Ok(())
    }

    unsafe fn swiglu(queue: &mut CpuQueue, args: SwigluArgs<'_, Self>) -> Result<()> {
        let SwigluArgs { plan, input, out } = args;
        let (args, bytes) = activation(plan, &input);
        let out_elem = elem(out.dtype);
        let out = rows_mut(out);
        queue.run(bytes, |tier| kernels::swiglu(tier, &args, out, out_elem));
        Ok(())
    }

    unsafe fn swiglu_quant(queue: &mut CpuQueue, args: SwigluQuantArgs<'_, Self>) -> Result<()> {
        let SwigluQuantArgs { plan, input, round_to, out } = args;
        let (args, bytes) = activation(plan, &input);
        let out = quant_out(out, input.gate.cols);
        queue.run(bytes, |tier| kernels::swiglu_quant(tier, &args, elem(round_to), out));
        Ok(())
    }
}

fn quant_out(out: RawQuantMut<'_, Cpu>, len: usize) -> QuantOut<'_> {
    let RawQuantMut { format, values, scales, scale_shape } = out;
    let RawViewMut { region: CpuRegionMut(scales), .. } = scales;
    QuantOut { format, len, values: rows_mut(values), scales, shape: scale_shape }
}

fn activation<'a>(plan: PlanRef<'a, Cpu>, input: &RawSwiglu<'a, Cpu>) -> (Activation<'a>, usize) {
    let RawSwiglu { gate, up } = input;
    let placement: Placement<'a> = placement(plan);
    let (elem, len) = (elem(gate.dtype), gate.cols);
    let bytes = gate.rows * len * elem.size() * 3;
    (Activation { plan: placement, gate: rows(gate), up: rows(up), elem, len }, bytes)
}
