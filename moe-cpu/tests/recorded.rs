//! Recorded answers of vLLM 0.24.0, every case and field; `moe_core::conformance` lists how its fields map to ours.

use moe_core::conformance::{recorded_trace, recorded_vllm};
use moe_cpu::Cpu;

fn read(name: &str) -> Vec<u8> {
    let path = format!("{}/../benches/data/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn all_cases_of_vllm_permute_and_unpermute() {
    let cases = recorded_vllm::<Cpu>("cpu", &read("vllm_permute.safetensors"));
    assert_eq!(cases, Ok(7));
}

#[test]
fn index_arrays_of_a_real_layer() {
    assert_eq!(recorded_trace::<Cpu>("cpu", &read("trace.safetensors"), 32), Ok(()));
}

#[test]
fn another_expert_count_is_noticed() {
    assert!(recorded_trace::<Cpu>("cpu", &read("trace.safetensors"), 33).is_err());
}
