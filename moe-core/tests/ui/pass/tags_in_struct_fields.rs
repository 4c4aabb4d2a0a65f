//! Static tags for what lives in structs, one device each.
use moe_core::{Buf, Dev, Limits, Queue, Result, Workspace};
use moe_cpu::Cpu;

moe_core::device_tag!(Gpu0);
moe_core::device_tag!(pub Gpu1);

struct Half<G: moe_core::Tag> {
    queue: Queue<'static, Cpu, G>,
    workspace: Workspace<Cpu, G>,
    weights: Buf<Cpu, f32, G>,
}

fn half<G: moe_core::StaticTag>(device: &str) -> Result<Half<G>> {
    let dev = Dev::<Cpu>::open(&device.parse()?)?.claim::<G>()?;
    let mut queue = dev.queue()?;
    let workspace = Workspace::new(&mut queue, Limits::new(4, 2, 4))?;
    let weights = queue.upload(&[1.0; 4])?;
    Ok(Half { queue, workspace, weights })
}

fn main() -> Result<()> {
    let mut first = half::<Gpu0>("cpu:0")?;
    let second = half::<Gpu1>("cpu:1")?;
    assert_eq!(first.queue.download(first.weights.view())?.len(), 4);
    assert_ne!(first.workspace.device_id(), second.weights.device_id());
    drop(second.queue);
    Ok(())
}
