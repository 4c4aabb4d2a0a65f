//! Two GPUs of one host. Skips itself with a message where fewer are seen.

mod common;

use common::{Batch, Rng, device, layer};
use half::bf16;
use moe_core::{Buf, Dev, Error, Queue, RoutePlan, Routing, Workspace};
use moe_cuda::{Cuda, CudaDevice};
use std::process::Command;
use std::thread;

fn both() -> Option<[Dev<Cuda>; 2]> {
    let first = device("cuda:0")?;
    let count = <CudaDevice as moe_core::Device>::count().unwrap();
    if count < 2 {
        println!("skipped: {count} GPU, two are needed");
        return None;
    }
    Some([first, device("cuda:1")?])
}

const BATCH: Batch = Batch { tokens: 257, top_k: 8, experts: 64, hidden: 256 };

fn inputs() -> (Vec<i32>, Vec<bf16>, Vec<f32>) {
    let mut rng = Rng(8);
    let n = BATCH.tokens * BATCH.top_k;
    (rng.ids(n, BATCH.experts), rng.floats(BATCH.tokens * BATCH.hidden), rng.floats(n))
}

#[test]
fn bug_16_work_runs_on_device_1_with_device_0_current_and_in_threads_that_switch() {
    let Some(devices) = both() else { return };
    let (ids, x, weights) = inputs();
    let run = |queue: &mut Queue<'_, Cuda>| layer(queue, BATCH, BATCH.spec(), &ids, &x, &weights);
    let expected = run(&mut devices[0].queue().unwrap());
    let mut second = devices[1].queue().unwrap();
    devices[0].raw().context().bind_to_thread().unwrap();
    assert!(run(&mut second) == expected);
    thread::scope(|scope| {
        for number in 0..4 {
            let (devices, expected, run) = (&devices, &expected, &run);
            scope.spawn(move || {
                let mut queues = [devices[0].queue().unwrap(), devices[1].queue().unwrap()];
                for round in 0..8 {
                    devices[(round + number) % 2].raw().context().bind_to_thread().unwrap();
                    assert!(run(&mut queues[(round / 2) % 2]) == *expected);
                }
            });
        }
    });
}

#[test]
fn one_plan_runs_on_both_devices_at_once() {
    let Some(devices) = both() else { return };
    let (ids, x, weights) = inputs();
    let results = thread::scope(|scope| {
        let run = |device: &Dev<Cuda>| layer(&mut device.queue().unwrap(), BATCH, BATCH.spec(), &ids, &x, &weights);
        let handles = devices.each_ref().map(|device| scope.spawn(move || run(device)));
        handles.map(|handle| handle.join().unwrap())
    });
    assert!(results[0] == results[1]);
}

#[test]
fn memory_of_the_other_device_is_refused_with_both_names_before_any_launch() {
    let Some(devices) = both() else { return };
    let [mut here, mut there] = devices.each_ref().map(|device| device.queue().unwrap());
    let mut workspace = Workspace::new(&mut here, BATCH.limits()).unwrap();
    let ids: Buf<Cuda, i32> = there.zeros(BATCH.tokens * BATCH.top_k).unwrap();
    let error = RoutePlan::new(&mut here, &mut workspace, BATCH.spec(), Routing::top_k(ids.view())).unwrap_err();
    assert!(matches!(error, Error::DeviceMismatch { arg: "ids", .. }), "{error}");
    assert!(error.to_string().contains("cuda:0") && error.to_string().contains("cuda:1"), "{error}");
    // A caller's slice of the peer, which the hardware could read.
    let slice = devices[1].raw().context().new_stream().unwrap().clone_htod(&[1i32]).unwrap();
    let error = devices[0].raw().lend(&slice).unwrap_err();
    assert!(matches!(error, Error::DeviceMismatch { arg: "memory", .. }), "{error}");
    let error = devices[0].raw().adopt_stream(slice.stream().clone()).unwrap_err();
    assert!(matches!(error, Error::DeviceMismatch { arg: "stream", .. }), "{error}");
}

/// What a child process of the next test does.
#[test]
#[ignore = "run by its parent with CUDA_VISIBLE_DEVICES"]
fn child_prints_its_device() {
    let device = device("cuda").expect("a device is visible");
    println!("DEVICE {} {:032x}", device.id(), device.id().key());
}

#[test]
fn cuda_under_visible_devices_1_is_the_device_that_cuda_1_is_without() {
    let Some(devices) = both() else { return };
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_prints_its_device", "--nocapture"])
        .env("CUDA_VISIBLE_DEVICES", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    let line = text.lines().find_map(|l| l.split_once("DEVICE ")).unwrap_or_else(|| panic!("{text}")).1;
    assert_eq!(line.trim(), format!("cuda:0 {:032x}", devices[1].id().key()));
}

/// Each GPU has half of the experts and combines what it has, in f32; the sum is what one GPU gives.
#[test]
fn expert_parallel_halves_add_up_to_the_whole() {
    let Some(devices) = both() else { return };
    let (ids, x, weights) = inputs();
    let half = BATCH.experts / 2;
    let part = |device: &Dev<Cuda>, map: Option<Vec<i32>>| -> Vec<f32> {
        let mut queue = device.queue().unwrap();
        let mut workspace = Workspace::new(&mut queue, BATCH.limits()).unwrap();
        let (ids, x, w) = (queue.upload(&ids).unwrap(), queue.upload(&x).unwrap(), queue.upload(&weights).unwrap());
        let map = map.map(|map| queue.upload(&map).unwrap());
        let spec = if map.is_some() { BATCH.spec().local_experts(half) } else { BATCH.spec() };
        let routing = Routing::top_k(ids.view());
        let routing = match &map {
            Some(map) => routing.expert_map(map.view()),
            None => routing,
        };
        let rows = x.rows(BATCH.hidden).unwrap();
        let (plan, rows) = RoutePlan::permute(&mut queue, &mut workspace, spec, routing, rows).unwrap();
        let rows = rows.rows(BATCH.hidden).unwrap();
        let out: Buf<Cuda, f32> = plan.combine(rows).weights(w.view()).run(&mut queue).unwrap();
        queue.download(out.view()).unwrap()
    };
    let map = |first: usize| {
        let local = |e: usize| if (first..first + half).contains(&e) { (e - first) as i32 } else { -1 };
        (0..BATCH.experts).map(local).collect()
    };
    let whole = part(&devices[0], None);
    let (a, b) = (part(&devices[0], Some(map(0))), part(&devices[1], Some(map(half))));
    for (i, whole) in whole.iter().enumerate() {
        let token = i / BATCH.hidden;
        let value = x[i].to_f32().abs();
        let terms = &weights[token * BATCH.top_k..(token + 1) * BATCH.top_k];
        let bound = terms.iter().map(|w| w.abs() * value).sum::<f32>() * BATCH.top_k as f32 * 2f32.powi(-23);
        let ulp = f32::from_bits(whole.abs().to_bits() + 1) - whole.abs();
        assert!((a[i] + b[i] - whole).abs() <= ulp + bound, "element {i}: {} + {} is not {whole}", a[i], b[i]);
    }
}
