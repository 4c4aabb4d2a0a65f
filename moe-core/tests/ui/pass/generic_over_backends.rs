//! Code that runs on any backend, and two backends in one program.
#[path = "../../support/toy.rs"]
mod toy;

use moe_core::{Backend, Dev, DeviceSpec, Limits, PermuteBackend, PlanSpec, Result, RoutePlan, Routing, Workspace};

fn layer<B: PermuteBackend>(spec: &DeviceSpec) -> Result<String> {
    let dev = Dev::<B>::open(spec)?;
    let mut queue = dev.queue()?;
    let mut workspace = Workspace::new(&mut queue, Limits::new(1, 1, 1))?;
    let ids = queue.upload(&[0i64])?;
    RoutePlan::new(&mut queue, &mut workspace, PlanSpec::new(1, 1, 1), Routing::top_k(ids.view()))?;
    Ok(dev.id().to_string())
}

fn main() -> Result<()> {
    assert_eq!(layer::<moe_cpu::Cpu>(&DeviceSpec::new(moe_cpu::Cpu::NAME, None)?)?, "cpu:0");
    assert_eq!(layer::<toy::Toy>(&DeviceSpec::new(toy::Toy::NAME, Some(1))?)?, "toy:1");
    Ok(())
}
