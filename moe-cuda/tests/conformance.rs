//! The conformance suite of moe-core on CUDA. Without a device every group says why it is skipped. `MOE_CUDA_DEVICE`
//! names another device than the first.

mod common;

use moe_core::conformance::{GROUPS, Options, expect_pass, quant, router};
use moe_core::{Dev, Device};
use moe_cuda::{Cuda, CudaDevice};

fn options(device: &Dev<Cuda>) -> Options {
    let second_device = CudaDevice::count().ok().filter(|n| *n > 1);
    let second_device = second_device.map(|_| if device.id().ordinal() == 1 { "cuda:0" } else { "cuda:1" }.to_owned());
    let mut options = Options { second_device, ..Options::from_env() };
    if options.max_bytes == 0 {
        // Bugs of large offsets need more than 8 GiB; half of the card leaves room for other programs.
        options.max_bytes = device.info().memory_bytes.unwrap_or(0) / 2;
    }
    if common::sanitized() {
        options.max_elements = Some(64 * 1024);
        options.max_bytes = 0;
    }
    options
}

/// One test for all groups, so that a machine without a GPU says so once.
#[test]
fn cuda_passes_the_conformance_suite() {
    passes(GROUPS, expect_pass::<Cuda>);
}

#[test]
fn cuda_passes_the_routers_suite() {
    passes(router::GROUPS, router::expect_pass::<Cuda>);
}

#[test]
fn cuda_passes_the_quantisation_suite() {
    passes(quant::GROUPS, quant::expect_pass::<Cuda>);
}

fn passes(groups: &[&str], expect_pass: fn(&str, &str, &Options)) {
    let wanted = common::wanted();
    let Some(device) = common::device(&wanted) else { return };
    let options = options(&device);
    println!("{}: {}", device.id(), device.info().name);
    let fails = |group: &&str| std::panic::catch_unwind(|| expect_pass(&wanted, group, &options)).is_err();
    let failed: Vec<&str> = groups.iter().copied().filter(fails).collect();
    assert!(failed.is_empty(), "{} of {} groups failed: {failed:?}", failed.len(), groups.len());
}
