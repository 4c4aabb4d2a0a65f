//! A buffer of one tag with a plan and a queue of another.
use moe_core::{Queue, Result, RoutePlan, Rows};
use moe_cpu::Cpu;

moe_core::device_tag!(Gpu0);
moe_core::device_tag!(Gpu1);

fn gather(queue: &mut Queue<'_, Cpu, Gpu0>, plan: &RoutePlan<Cpu, Gpu0>, rows: Rows<'_, Cpu, f32, Gpu1>) -> Result<()> {
    plan.gather(rows).run(queue).map(drop)
}

fn main() {}
