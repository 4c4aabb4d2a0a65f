//! Only floats can be multiplied by a weight.
use moe_core::dtype::F4x2;
use moe_core::{RoutePlan, Rows, View};
use moe_cpu::Cpu;

fn gather(plan: &RoutePlan<Cpu>, rows: Rows<'_, Cpu, F4x2>, weights: View<'_, Cpu, f32>) {
    let _ = plan.gather(rows).weights(weights);
}

fn main() {}
