//! Measured thresholds: every setting gives the same bits, and what a table says is what the device runs with.
//!
//! One test: the values in use are the device's, and a process has one device.

mod common;

use common::{Batch, Rng, device, layer, sanitized};
use half::bf16;
use moe_core::oracle::{KnobKind, Sizes, TuningTable, Wish};
use moe_core::{DType, Device, Error};
use moe_cuda::CudaDevice;

fn set(device: &CudaDevice, key: &str, value: &str) -> Result<(), Error> {
    device.tune(&format!("[cuda: {}]\n{key} {value}  # a test", device.info().name).parse::<TuningTable>()?)
}

/// Sizes on both sides of what is worth measuring.
fn batches() -> Vec<Batch> {
    let sizes: &[(usize, usize)] =
        if sanitized() { &[(7, 8)] } else { &[(3, 8), (150, 8), (600, 2), (1_100, 8), (9_000, 4)] };
    sizes.iter().map(|&(tokens, top_k)| Batch { tokens, top_k, experts: 60, hidden: 1_032 }).collect()
}

#[test]
fn every_setting_gives_the_same_bits_and_a_table_that_cannot_be_taken_changes_nothing() {
    let Some(device) = device("cuda") else { return };
    let raw = device.raw();
    let inputs: Vec<_> = batches()
        .into_iter()
        .map(|batch| {
            let mut rng = Rng(batch.tokens as u64);
            let n = batch.tokens * batch.top_k;
            (batch, rng.ids(n, batch.experts), rng.floats::<bf16>(batch.tokens * batch.hidden), rng.floats::<f32>(n))
        })
        .collect();
    let run = || {
        let mut queue = device.queue().unwrap();
        let one = |(batch, ids, x, w): &(Batch, Vec<i32>, Vec<bf16>, Vec<f32>)| {
            let done = layer(&mut queue, *batch, batch.spec(), ids, x, w);
            let bits = |rows: Vec<bf16>| rows.into_iter().map(bf16::to_bits).collect::<Vec<_>>();
            (done.arrays, done.status, bits(done.rows), bits(done.out))
        };
        inputs.iter().map(one).collect::<Vec<_>>()
    };
    let expected = run();
    let mut settings = 0;
    for knob in raw.knobs() {
        let KnobKind::Number { min, max } = knob.kind else { panic!("{knob:?}") };
        for &value in knob.candidates.iter().chain([&min, &max]) {
            set(raw, knob.key, &value.to_string()).unwrap();
            assert_eq!(raw.tuned().get(knob), value, "{}", knob.key);
            assert!(run() == expected, "{} {value}", knob.key);
            settings += 1;
        }
    }
    assert!(settings >= 30);

    let before = raw.tuned();
    for (key, value, named) in [("no_such_key", "1", "no_such_key"), ("combine_warps", "9", "combine_warps is 9")] {
        let error = set(raw, key, value).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(raw.tuned(), before);
    }
    set(raw, "small_plan_routes", "77").unwrap();
    let paths = raw.paths(&Wish::new(Sizes::new(64, 8, 16, 1_024), DType::F32));
    assert!(paths.iter().any(|path| path.why.contains("small_plan_routes 77, measured")), "{paths:?}");
    // A table without a section for this device is the built-in one again.
    raw.tune(&TuningTable::new()).unwrap();
    assert!(raw.tuned().iter().all(|(knob, value)| value == knob.built_in));
}
