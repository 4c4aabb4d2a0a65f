//! Opaque rows can be gathered and nothing else.
use moe_core::dtype::F4x2;
use moe_core::{RoutePlan, Rows};
use moe_cpu::Cpu;

fn combine(plan: &RoutePlan<Cpu>, rows: Rows<'_, Cpu, F4x2>) {
    let _ = plan.combine(rows);
}

fn main() {}
