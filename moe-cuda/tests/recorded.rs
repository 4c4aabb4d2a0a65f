//! Recorded answers of other implementations, on CUDA; `moe_core::conformance` lists how their fields map to ours. The
//! files are part of the program, which may run on a machine without the sources.

mod common;

use moe_core::conformance::{recorded_te, recorded_vllm};
use moe_cuda::Cuda;

#[test]
fn all_cases_of_vllm_permute_and_unpermute() {
    let wanted = common::wanted();
    let Some(_device) = common::device(&wanted) else { return };
    let file = include_bytes!("../../benches/data/vllm_permute.safetensors");
    assert_eq!(recorded_vllm::<Cuda>(&wanted, file), Ok(7));
}

#[test]
fn all_cases_of_transformer_engine() {
    let wanted = common::wanted();
    let Some(_device) = common::device(&wanted) else { return };
    let file = include_bytes!("../../benches/data/te_permutation.safetensors");
    assert_eq!(recorded_te::<Cuda>(&wanted, file), Ok(4));
}
