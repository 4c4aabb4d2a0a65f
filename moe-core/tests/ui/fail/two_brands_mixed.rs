//! Two scopes are two devices, as far as the compiler knows.
use moe_core::{Dev, Result};
use moe_cpu::Cpu;

fn mix(a: &Dev<Cpu>, b: &Dev<Cpu>) -> Result<()> {
    a.branded(|a| {
        b.branded(|b| {
            let on_a = a.queue()?.upload(&[1i32])?;
            b.queue()?.download(on_a.view()).map(drop)
        })
    })
}

fn main() {}
