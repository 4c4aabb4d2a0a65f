//! `cargo xtask doctor`: the backends compiled in, the devices found, and why the others cannot be used.

use crate::Outcome;
use crate::args::Args;
use crate::backends::{COMPILED_IN, OnBackend, with_backend};
use moe_core::{Dev, Device, DeviceSpec, PermuteBackend};

/// Shows the devices of a backend.
struct Show;

pub(crate) fn main(args: Args) -> Outcome {
    args.finish()?;
    println!("compiled in: {}", COMPILED_IN.join(", "));
    for name in ["cpu", "cuda", "wgpu"] {
        if !COMPILED_IN.contains(&name) {
            println!("{name}: not compiled in (feature \"{name}\" of this program)");
            continue;
        }
        let spec = DeviceSpec::new(name, None).map_err(|e| e.to_string())?;
        with_backend(&spec, Show)?;
    }
    Ok(())
}

impl OnBackend for Show {
    fn run<B: PermuteBackend>(self, _: &DeviceSpec) -> Outcome {
        let found = match B::Device::count() {
            Ok(found) => found,
            Err(error) => {
                println!("{}: cannot be used: {error}", B::NAME);
                return Ok(());
            }
        };
        if found == 0 {
            println!("{}: no device", B::NAME);
        }
        for index in 0..found as u32 {
            let spec = DeviceSpec::new(B::NAME, Some(index)).map_err(|e| e.to_string())?;
            match Dev::<B>::open(&spec) {
                Ok(device) => show(&device),
                Err(error) => println!("{spec}: cannot be opened: {error}"),
            }
        }
        Ok(())
    }
}

fn show<B: PermuteBackend>(device: &Dev<B>) {
    let info = device.info();
    let memory = match info.memory_bytes {
        Some(bytes) => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        None => "memory unknown".into(),
    };
    println!("{}: {}, {memory}", device.id(), info.name);
    for (what, text) in info.details {
        println!("  {what}: {text}");
    }
}
