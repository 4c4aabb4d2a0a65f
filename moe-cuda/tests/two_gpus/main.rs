//! Two GPUs of one host. Each test skips itself with a message where fewer are seen; `MOE_REQUIRE_TWO_GPUS=1` makes that
//! a failure.

#[path = "../common/mod.rs"]
mod common;

mod halves;
mod identity;
mod streams;
mod throughput;

use moe_core::Dev;
use moe_cuda::{Cuda, CudaDevice};

/// Both devices, or `None` with the reason printed.
fn both() -> Option<[Dev<Cuda>; 2]> {
    let count = <CudaDevice as moe_core::Device>::count().unwrap_or(0);
    if count < 2 {
        let required = std::env::var_os("MOE_REQUIRE_TWO_GPUS").is_some_and(|value| value != "0");
        assert!(!required, "MOE_REQUIRE_TWO_GPUS is set, and there are {count}");
        println!("skipped: {count} GPU, two are needed");
        return None;
    }
    let open = |spec| common::device(spec).expect("it was counted");
    Some([open("cuda:0"), open("cuda:1")])
}
