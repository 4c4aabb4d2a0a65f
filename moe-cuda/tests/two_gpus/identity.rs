//! Which device is which, and that what lives on one is refused by the other.

use crate::both;
use crate::common::{Batch, device};
use moe_core::{Buf, Device, Error, PlanSpec, Result, RoutePlan, Routing, Workspace};
use moe_cuda::Cuda;
use std::process::Command;

const BATCH: Batch = Batch { tokens: 33, top_k: 4, experts: 16, hidden: 64 };
const ROUTES: usize = BATCH.tokens * BATCH.top_k;

/// A refusal that names the argument and both devices.
#[track_caller]
fn refused<T>(result: Result<T>, arg: &str) {
    let error = result.err().unwrap_or_else(|| panic!("{arg} of the other device was accepted"));
    assert!(matches!(&error, Error::DeviceMismatch { arg: named, .. } if *named == arg), "{arg}: {error}");
    let text = error.to_string();
    assert!(text.contains("cuda:0") && text.contains("cuda:1"), "{text}");
}

#[test]
fn memory_of_the_other_device_is_refused_with_both_names_before_any_launch() {
    let Some(devices) = both() else { return };
    let [mut here, mut there] = devices.each_ref().map(|device| device.queue().unwrap());
    let spec = PlanSpec::new(BATCH.tokens, BATCH.top_k, BATCH.experts);
    let mut workspace = Workspace::new(&mut here, BATCH.limits()).unwrap();
    let mut far_workspace = Workspace::new(&mut there, BATCH.limits()).unwrap();

    let ids: Vec<i32> = (0..ROUTES).map(|i| (i % BATCH.experts) as i32).collect();
    let near_ids = here.upload(&ids).unwrap();
    let far_ids: Buf<Cuda, i32> = there.zeros(ROUTES).unwrap();
    let mut plan = RoutePlan::new(&mut here, &mut workspace, spec, Routing::top_k(near_ids.view())).unwrap();
    let slots = here.download(plan.slot()).unwrap();

    // A workspace of device 0 that is given a buffer of device 1, and the other way round.
    refused(plan.build_into(&mut here, &mut workspace, spec, Routing::top_k(far_ids.view())), "ids");
    refused(plan.build_into(&mut here, &mut far_workspace, spec, Routing::top_k(near_ids.view())), "workspace");
    let far_map = there.upload(&[0i32; BATCH.experts]).unwrap();
    let mapped = Routing::top_k(near_ids.view()).expert_map(far_map.view());
    refused(plan.build_into(&mut here, &mut workspace, spec, mapped), "expert_map");
    // Nothing was launched: the plan is what it was, although the ids on device 1 are others.
    assert_eq!(here.download(plan.slot()).unwrap(), slots);

    let h = BATCH.hidden;
    let near_x = here.upload(&vec![1f32; BATCH.tokens * h]).unwrap();
    let mut near_rows = here.upload(&vec![7f32; ROUTES * h]).unwrap();
    let mut near_out = here.upload(&vec![7f32; BATCH.tokens * h]).unwrap();
    let far_x: Buf<Cuda, f32> = there.zeros(BATCH.tokens * h).unwrap();
    let mut far_rows = there.upload(&vec![7f32; ROUTES * h]).unwrap();
    let mut far_out = there.upload(&vec![7f32; BATCH.tokens * h]).unwrap();
    let far_weights: Buf<Cuda, f32> = there.zeros(ROUTES).unwrap();

    let (x, far) = (|| near_x.rows(h).unwrap(), || far_x.rows(h).unwrap());
    refused(plan.gather(far()).run_into(&mut here, near_rows.rows_mut(h).unwrap()), "rows");
    refused(plan.gather(x()).run_into(&mut here, far_rows.rows_mut(h).unwrap()), "out");
    refused(plan.gather(far()).run_into(&mut there, far_rows.rows_mut(h).unwrap()), "plan");
    let grad_rows = near_rows.rows_mut(h).unwrap();
    refused(plan.combine_grad(far()).run_into::<f32>(&mut here, Some(grad_rows), None), "grad_out");
    let rows = || near_rows.rows(h).unwrap();
    let weighted = plan.combine(rows()).weights(far_weights.view());
    refused(weighted.run_into(&mut here, near_out.rows_mut(h).unwrap()), "weights");
    refused(plan.combine(rows()).run_into(&mut here, far_out.rows_mut(h).unwrap()), "out");
    refused(plan.combine(far_rows.rows(h).unwrap()).run_into(&mut here, near_out.rows_mut(h).unwrap()), "rows");
    for queue in [&mut here, &mut there] {
        queue.synchronize().unwrap();
    }
    let untouched = |values: Vec<f32>| values.iter().all(|value| *value == 7.0);
    assert!(untouched(here.download(near_rows.view()).unwrap()) && untouched(here.download(near_out.view()).unwrap()));
    assert!(untouched(there.download(far_rows.view()).unwrap()) && untouched(there.download(far_out.view()).unwrap()));

    // Reading and writing through the other device's queue.
    refused(here.download(far_ids.view()), "src");
    refused(here.write(&ids, there.zeros(ROUTES).unwrap().view_mut()), "dst");
}

/// The hardware could read a peer's memory, and with peer access switched on it does.
#[test]
fn a_callers_memory_and_streams_of_the_peer_are_not_silently_accepted() {
    let Some(devices) = both() else { return };
    let [near, far] = devices.each_ref().map(|device| device.raw());
    let stream = far.context().new_stream().unwrap();
    let mut slice = stream.clone_htod(&[1i32]).unwrap();
    refused(near.lend(&slice), "memory");
    refused(near.lend_mut(&mut slice), "memory");
    refused(near.adopt_stream(stream), "stream");
    assert_eq!(far.lend(&slice).map(|lent| lent.len()).ok(), Some(1));
}

/// What a child process of the next test does.
#[test]
#[ignore = "run by its parent with CUDA_VISIBLE_DEVICES"]
fn child_prints_its_device() {
    let device = device("cuda").expect("a device is visible");
    let count = <moe_cuda::CudaDevice as Device>::count().unwrap();
    println!("DEVICE {} {:032x} of {count}", device.id(), device.id().key());
}

#[test]
fn cuda_under_visible_devices_1_is_the_device_that_cuda_1_is_without() {
    let Some(devices) = both() else { return };
    let seen = |visible: &str| {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "identity::child_prints_its_device", "--nocapture"])
            .env("CUDA_VISIBLE_DEVICES", visible)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout).into_owned();
        let line = text.lines().find_map(|line| line.split_once("DEVICE ")).unwrap_or_else(|| panic!("{text}")).1;
        line.trim().to_owned()
    };
    let keys = devices.each_ref().map(|device| device.id().key());
    assert_ne!(keys[0], keys[1]);
    assert_eq!(seen("1"), format!("cuda:0 {:032x} of 1", keys[1]));
    assert_eq!(seen("0"), format!("cuda:0 {:032x} of 1", keys[0]));
    assert_eq!(seen("1,0"), format!("cuda:0 {:032x} of 2", keys[1]));
    println!("cuda with CUDA_VISIBLE_DEVICES=1 is cuda:1 without it: {:032x}", keys[1]);
}
