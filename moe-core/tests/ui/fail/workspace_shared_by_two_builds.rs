//! A workspace is taken mutably, so that no two builds use it at once.
use moe_core::{PlanSpec, Queue, Result, RoutePlan, Routing, Workspace};
use moe_cpu::Cpu;

fn build(queue: &mut Queue<'_, Cpu>, workspace: &Workspace<Cpu>, routing: Routing<'_, Cpu>) -> Result<RoutePlan<Cpu>> {
    RoutePlan::new(queue, workspace, PlanSpec::new(1, 1, 1), routing)
}

fn main() {}
