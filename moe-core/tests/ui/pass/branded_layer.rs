//! A whole layer under a brand; its result leaves.
use moe_core::{Dev, Limits, PlanSpec, Result, RoutePlan, Routing, Workspace};
use moe_cpu::Cpu;

fn main() -> Result<()> {
    let dev = Dev::<Cpu>::open(&"cpu".parse()?)?;
    let ids = dev.queue()?.upload(&[1i32, 0, 1])?;
    let out = dev.branded(|dev| {
        let mut queue = dev.queue()?;
        let ids = dev.adopt(ids)?;
        let mut workspace = Workspace::new(&mut queue, Limits::new(3, 1, 2))?;
        let spec = PlanSpec::new(3, 1, 2);
        let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(ids.view()))?;
        let x = queue.upload(&[1f32, 2.0, 3.0])?;
        let rows = plan.gather(x.rows(1)?).run(&mut queue)?;
        let out = plan.combine(rows.rows(1)?).run::<f32>(&mut queue)?;
        Ok::<_, moe_core::Error>((plan.unbrand(), out.unbrand()))
    })?;
    let mut queue = dev.queue()?;
    assert_eq!(queue.download(out.1.view())?, [1.0, 2.0, 3.0]);
    assert_eq!(queue.download(out.0.source())?, [1, 0, 2]);
    Ok(())
}
