//! A brand ends with its scope; `unbrand` is the way out.
use moe_core::{Dev, Result};
use moe_cpu::Cpu;

fn leak(dev: &Dev<Cpu>) -> Result<()> {
    let buf = dev.branded(|dev| dev.queue()?.upload(&[1i32]))?;
    drop(buf);
    Ok(())
}

fn main() {}
