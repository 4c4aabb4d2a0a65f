//! Recorded answers of vLLM 0.24.0 and TransformerEngine, every case and field; `moe_core::conformance` lists how their
//! fields map to ours.

use moe_core::conformance::{recorded_te, recorded_trace, recorded_vllm};
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
fn all_cases_of_transformer_engine() {
    assert_eq!(recorded_te::<Cpu>("cpu", &read("te_permutation.safetensors")), Ok(4));
}

#[test]
fn index_arrays_of_a_real_layer() {
    assert_eq!(recorded_trace::<Cpu>("cpu", &read("trace.safetensors"), 32), Ok(()));
}

#[test]
fn another_expert_count_is_noticed() {
    assert!(recorded_trace::<Cpu>("cpu", &read("trace.safetensors"), 33).is_err());
}

/// Where the first element of a tensor lies in a file.
fn first_element(file: &[u8], tensor: &str) -> usize {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let text = std::str::from_utf8(&file[8..8 + header]).unwrap();
    let entry = &text[text.find(&format!("\"{tensor}\"")).unwrap_or_else(|| panic!("{tensor} is not there"))..];
    let offsets = entry.split("\"data_offsets\"").nth(1).unwrap();
    let digits = offsets.trim_start_matches(|c: char| !c.is_ascii_digit());
    8 + header + digits[..digits.find(',').unwrap()].parse::<usize>().unwrap()
}

#[test]
fn a_changed_answer_is_noticed_in_every_field() {
    let te = read("te_permutation.safetensors");
    for field in ["permuted", "permuted_probs", "unpermuted", "grad_permuted", "grad_probs"] {
        let mut file = te.clone();
        file[first_element(&te, &format!("t40_e8/{field}")) + 3] ^= 0x40; // the exponent
        let error = recorded_te::<Cpu>("cpu", &file).unwrap_err();
        assert!(error.starts_with(&format!("t40_e8: {field}[")), "{error}");
    }
    for (field, byte) in [("sorted", 1), ("sorted_probs", 3)] {
        let mut file = te.clone();
        file[first_element(&te, &format!("chunk6/{field}")) + byte] ^= 0x40;
        let error = recorded_te::<Cpu>("cpu", &file).unwrap_err();
        assert!(error.starts_with(&format!("chunk6: {field}[")), "{error}");
    }
    let vllm = read("vllm_permute.safetensors");
    for (field, named, byte) in [
        ("expert_first_token_offset", "expert_offsets", 0),
        ("permuted_idx", "source", 0),
        ("inv_permuted_idx", "slot", 0),
        ("permuted", "permuted", 3),
        ("unpermuted", "unpermuted", 3),
    ] {
        let mut file = vllm.clone();
        file[first_element(&vllm, &format!("t257_e32_f32/{field}")) + byte] ^= 0x40;
        let error = recorded_vllm::<Cpu>("cpu", &file).unwrap_err();
        assert!(error.starts_with(&format!("t257_e32_f32: {named}[")), "{error}");
    }
}
