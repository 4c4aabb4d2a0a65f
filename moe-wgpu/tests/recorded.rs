//! Recorded answers of other implementations, on the adapter to test; `moe_core::conformance` lists how their fields map
//! to ours. The files are part of the program, which may run on a machine without the sources.

mod common;

use moe_core::conformance::{recorded_te, recorded_vllm};
use moe_wgpu::Wgpu;

#[test]
fn all_cases_of_vllm_permute_and_unpermute() {
    let Some(spec) = common::spec() else { return };
    let file = include_bytes!("../../benches/data/vllm_permute.safetensors");
    assert_eq!(recorded_vllm::<Wgpu>(&spec.to_string(), file), Ok(7));
}

#[test]
fn all_cases_of_transformer_engine() {
    let Some(spec) = common::spec() else { return };
    let file = include_bytes!("../../benches/data/te_permutation.safetensors");
    match recorded_te::<Wgpu>(&spec.to_string(), file) {
        Err(reason) if reason.contains("not supported") => println!("skipped: {reason}"),
        cases => assert_eq!(cases, Ok(4)),
    }
}
