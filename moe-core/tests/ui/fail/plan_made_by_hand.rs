//! Only a builder makes a plan, or says that one is built.
use moe_core::RoutePlan;
use moe_cpu::Cpu;

fn forge(allocated: RoutePlan<Cpu>) -> RoutePlan<Cpu> {
    RoutePlan { built: true, ..allocated }
}

fn main() {}
