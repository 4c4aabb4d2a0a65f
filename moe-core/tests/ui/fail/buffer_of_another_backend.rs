//! A CPU buffer in a toy's call.
#[path = "../../support/toy.rs"]
mod toy;

use moe_core::{Queue, Result, RoutePlan, Rows};
use moe_cpu::Cpu;
use toy::Toy;

fn gather(queue: &mut Queue<'_, Toy>, plan: &RoutePlan<Toy>, rows: Rows<'_, Cpu, f32>) -> Result<()> {
    plan.gather(rows).run(queue).map(drop)
}

fn main() {}
