//! What comes into a scope is adopted first, which checks it once.
use moe_core::{Buf, Dev, Result};
use moe_cpu::Cpu;

fn mix(dev: &Dev<Cpu>, buf: Buf<Cpu, i32>) -> Result<()> {
    dev.branded(|dev| dev.queue()?.download(buf.view()).map(drop))
}

fn main() {}
