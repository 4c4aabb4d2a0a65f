//! Only a builder makes a plan.
use moe_core::RoutePlan;
use moe_core::raw::PlanArrays;
use moe_cpu::{Cpu, CpuBuffer};
use std::marker::PhantomData;

fn forge(buffer: CpuBuffer, arrays: PlanArrays) -> RoutePlan<Cpu> {
    RoutePlan { buffer, arrays, built: true, tag: PhantomData }
}

fn main() {}
