//! Measured thresholds: every setting gives the same bits, and what a table says is what the device runs with.

use moe_core::half::bf16;
use moe_core::oracle::{KnobKind, Sizes, TuningTable, Wish};
use moe_core::{DType, Dev, Device, DeviceSpec, Error, Limits, PlanSpec, RoutePlan, Routing, Workspace};
use moe_cpu::{Cpu, CpuDevice};

/// A pool of its own, so that tests that tune do not meet.
fn pool(ordinal: u32) -> Dev<Cpu> {
    Dev::open(&DeviceSpec::new("cpu", Some(ordinal)).unwrap()).unwrap()
}

fn set(device: &CpuDevice, key: &str, value: &str) -> Result<(), Error> {
    device.tune(&format!("[cpu: {}]\n{key} {value}  # a test", device.info().name).parse::<TuningTable>()?)
}

/// A layer's permute and unpermute, as bits. Rows of 777 elements end off any vector.
fn layer(device: &Dev<Cpu>) -> (Vec<u16>, Vec<u16>) {
    let (tokens, top_k, experts, hidden) = (700, 4, 13, 777);
    let mut queue = device.queue().unwrap();
    let mut workspace = Workspace::new(&mut queue, Limits::new(tokens, top_k, experts)).unwrap();
    let ids: Vec<i32> = (0..tokens * top_k).map(|x| (x * x / 3 % experts) as i32).collect();
    let x: Vec<bf16> = (0..tokens * hidden).map(|i| bf16::from_f32((i % 251) as f32 / 64.0 - 2.0)).collect();
    let w: Vec<f32> = (0..tokens * top_k).map(|i| 1.0 / (1.0 + i as f32)).collect();
    let (ids, x, w) = (queue.upload(&ids).unwrap(), queue.upload(&x).unwrap(), queue.upload(&w).unwrap());
    let spec = PlanSpec::new(tokens, top_k, experts);
    let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(ids.view())).unwrap();
    let rows = plan.gather(x.rows(hidden).unwrap()).weights(w.view()).run(&mut queue).unwrap();
    let combine = plan.combine(rows.rows(hidden).unwrap()).weights(w.view());
    let out = combine.run::<bf16>(&mut queue).unwrap();
    let mut bits = |view| queue.download(view).unwrap().into_iter().map(bf16::to_bits).collect();
    (bits(rows.view()), bits(out.view()))
}

#[test]
fn every_setting_that_is_worth_measuring_gives_the_same_bits() {
    let device = pool(40);
    let expected = layer(&device);
    assert!(expected.0.iter().any(|bits| *bits != 0));
    let mut settings = 0;
    for knob in device.raw().knobs() {
        for &value in knob.candidates {
            let text = knob.format(value);
            match set(device.raw(), knob.key, &text) {
                Ok(()) => assert_eq!(device.raw().tuned().get(knob), value, "{}", knob.key),
                Err(error) => {
                    assert!(matches!(knob.kind, KnobKind::Choice(_)), "{error}");
                    println!("skipped: {error}");
                    continue;
                }
            }
            assert!(layer(&device) == expected, "{} {text}", knob.key);
            settings += 1;
        }
    }
    assert!(settings >= 10);
}

#[test]
fn a_table_that_cannot_be_taken_changes_nothing_and_says_which_key() {
    let device = pool(41);
    set(device.raw(), "task_bytes", "4096").unwrap();
    let before = device.raw().tuned();
    for (key, value, named) in [
        ("stream_byte", "1", "stream_byte"),
        ("task_bytes", "0", "task_bytes is 0"),
        ("instructions", "mmx", "instructions is mmx"),
    ] {
        let error = set(device.raw(), key, value).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(device.raw().tuned(), before);
    }
    // A table without a section for this device is the built-in one again.
    device.raw().tune(&TuningTable::new()).unwrap();
    assert_ne!(device.raw().tuned(), before);
    assert!(device.raw().tuned().iter().all(|(knob, value)| value == knob.built_in));
}

#[test]
fn the_paths_of_a_wish_follow_the_table_and_name_the_number_that_decided() {
    let device = pool(42);
    let wish = Wish::new(Sizes::new(64, 8, 16, 1024), DType::F32).training();
    let path = |what: &str| device.raw().paths(&wish).into_iter().find(|path| path.what == what).unwrap();
    let gather = path("gather: stores");
    assert_eq!(gather.taken, "past the cache", "{gather:?}");
    assert!(gather.why.contains("2097152 bytes") && gather.why.contains("built in"), "{gather:?}");
    assert_eq!(path("combine: stores").taken, "through the cache");

    set(device.raw(), "stream_bytes", "2097153").unwrap();
    let gather = path("gather: stores");
    assert_eq!(gather.taken, "through the cache");
    assert!(gather.why.contains("stream_bytes 2097153, measured"), "{gather:?}");
}
