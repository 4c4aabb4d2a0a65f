//! Variants of kernels: every setting of every knob gives the same bits, and what a table says is what the device runs
//! with.

mod common;

use moe_core::half::bf16;
use moe_core::oracle::{Sizes, TuningTable, Wish};
use moe_core::{Capacity, DType, Dev, Device, Error, Layout, Limits, PlanSpec, RoutePlan, Routing, Workspace};
use moe_wgpu::{Wgpu, WgpuDevice, WgpuOptions};

/// A device that no other test has.
fn device(binding: u32) -> Option<Dev<Wgpu>> {
    common::device(WgpuOptions { max_binding_bytes: Some(binding), ..WgpuOptions::default() })
}

fn set(device: &WgpuDevice, key: &str, value: &str) -> Result<(), Error> {
    device.tune(&format!("[wgpu: {}]\n{key} {value}  # a test", device.info().name).parse::<TuningTable>()?)
}

/// All arrays of a plan and the rows of a permute and of an unpermute, as bits. 1,400 routes take several tiles; rows of
/// 776 elements are no multiple of any workgroup.
fn layer(device: &Dev<Wgpu>) -> Vec<Vec<u32>> {
    let (tokens, top_k, experts, hidden) = (350, 4, 77, 776);
    let mut queue = device.queue().unwrap();
    let mut workspace = Workspace::new(&mut queue, Limits::new(tokens, top_k, experts)).unwrap();
    let ids: Vec<i32> = (0..tokens * top_k).map(|x| (x * x / 3 % experts) as i32).collect();
    let x: Vec<bf16> = (0..tokens * hidden).map(|i| bf16::from_f32((i % 251) as f32 / 64.0 - 2.0)).collect();
    let w: Vec<f32> = (0..tokens * top_k).map(|i| 1.0 / (1.0 + i as f32)).collect();
    let (ids, x, w) = (queue.upload(&ids).unwrap(), queue.upload(&x).unwrap(), queue.upload(&w).unwrap());
    let spec = PlanSpec::new(tokens, top_k, experts).layout(Layout::Aligned(8)).capacity(Capacity::ByRoute(25));
    let spec = spec.with_m_indices().with_logical_load();
    let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(ids.view())).unwrap();
    let rows = plan.gather(x.rows(hidden).unwrap()).weights(w.view()).run(&mut queue).unwrap();
    let combine = plan.combine(rows.rows(hidden).unwrap()).weights(w.view());
    let out = combine.run::<bf16>(&mut queue).unwrap();
    let arrays = [plan.source(), plan.slot(), plan.expert_offsets(), plan.tokens_per_expert()];
    let optional = [plan.m_indices(), plan.logical_load()].map(Option::unwrap);
    let mut all: Vec<Vec<u32>> = Vec::new();
    for array in arrays.into_iter().chain(optional) {
        all.push(queue.download(array).unwrap().into_iter().map(|x| x as u32).collect());
    }
    all.push(queue.download(plan.status_counters()).unwrap());
    for rows in [rows.view(), out.view()] {
        all.push(queue.download(rows).unwrap().into_iter().map(|x| u32::from(x.to_bits())).collect());
    }
    all
}

#[test]
fn every_setting_that_is_worth_measuring_gives_the_same_bits() {
    let Some(device) = device(1 << 22) else { return };
    let expected = layer(&device);
    assert!(expected.iter().all(|array| array.iter().any(|bits| *bits != 0)), "nothing is all zero");
    let mut settings = 0;
    for knob in device.raw().knobs() {
        for &value in knob.candidates {
            let text = knob.format(value);
            match set(device.raw(), knob.key, &text) {
                Ok(()) => assert_eq!(device.raw().tuned().get(knob), value, "{}", knob.key),
                Err(error) => {
                    println!("skipped: {error}");
                    continue;
                }
            }
            assert!(layer(&device) == expected, "{} {text}", knob.key);
            settings += 1;
        }
    }
    assert!(settings >= 20, "{settings}");
}

#[test]
fn a_table_that_cannot_be_taken_changes_nothing_and_says_which_key() {
    let Some(device) = device(1 << 22 | 4) else { return };
    set(device.raw(), "gather_units", "2").unwrap();
    let before = device.raw().tuned();
    for (key, value, named) in [
        ("gather_unit", "1", "gather_unit"),
        ("gather_units", "0", "gather_units is 0"),
        ("plan_ranks", "guesses", "plan_ranks is guesses"),
    ] {
        let error = set(device.raw(), key, value).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(device.raw().tuned(), before);
    }
    device.raw().tune(&TuningTable::new()).unwrap();
    assert_ne!(device.raw().tuned(), before);
}

#[test]
fn subgroups_that_are_switched_off_cannot_be_asked_for() {
    let Some(device) = common::device(WgpuOptions::PLAIN) else { return };
    let error = set(device.raw(), "plan_ranks", "subgroups").unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { arg: "plan_ranks", .. }), "{error}");
    set(device.raw(), "plan_ranks", "comparisons").unwrap();
}

#[test]
fn the_paths_of_a_wish_follow_the_table_and_name_the_number_that_decided() {
    let Some(device) = device(1 << 22 | 8) else { return };
    let wish = Wish::new(Sizes::new(64, 8, 16, 1024), DType::BF16);
    let path = |what: &str| device.raw().paths(&wish).into_iter().find(|path| path.what == what).unwrap();
    assert!(path("plan").taken.starts_with("one workgroup"), "{:?}", path("plan"));
    assert!(path("plan").why.contains("512 routes") && path("plan").why.contains("built in"), "{:?}", path("plan"));
    set(device.raw(), "plan_tiles", "0").unwrap();
    assert!(path("plan").taken.starts_with("two dispatches"), "{:?}", path("plan"));
    assert!(path("plan").why.contains("plan_tiles 0, measured"), "{:?}", path("plan"));
    assert_eq!(path("gather").taken, "tokens");
    let odd = Wish::new(Sizes::new(64, 8, 16, 1023), DType::BF16);
    let gather = device.raw().paths(&odd).into_iter().find(|path| path.what == "gather").unwrap();
    assert_eq!(gather.taken, "words", "{gather:?}");
}
