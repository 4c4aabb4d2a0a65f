//! Failures of the driver and limits of the adapter are typed errors, never a panic.

mod common;

use moe_core::{Dev, Device, DeviceSpec, Error, Limits, PlanSpec, RoutePlan, Routing, Workspace};
use moe_wgpu::{Wgpu, WgpuDevice, WgpuOptions};

#[test]
fn a_lost_device_is_a_typed_error_of_every_call() {
    // Options that no other test has, so that the device is this test's own.
    let options = WgpuOptions { max_binding_bytes: Some(1 << 20), ..WgpuOptions::default() };
    let Some(dev) = common::device(options) else { return };
    let mut queue = dev.queue().unwrap();
    let buf = queue.upload(&[1u32, 2, 3]).unwrap();
    queue.synchronize().unwrap();
    dev.raw().device().destroy();
    let lost = |error: Error| assert!(matches!(error, Error::DeviceLost { .. } | Error::Backend { .. }), "{error}");
    lost(queue.download(buf.view()).unwrap_err());
    lost(queue.synchronize().err().or_else(|| queue.upload(&[1u32]).err()).unwrap());
    lost(queue.zeros::<f32>(4).unwrap_err());
}

#[test]
fn the_first_operation_that_can_have_failed_is_the_first_that_is_not_known_to_have_run() {
    let options = WgpuOptions { max_binding_bytes: Some(1 << 20 | 4), ..WgpuOptions::default() };
    let Some(dev) = common::device(options) else { return };
    let mut queue = dev.queue().unwrap();
    let mut buf = queue.upload(&[1u32, 2, 3]).unwrap();
    queue.synchronize().unwrap(); // the upload has run
    queue.fill(buf.view_mut(), 7).unwrap();
    queue.raw_mut().submit().unwrap();
    queue.write(&[4u32, 5, 6], buf.view_mut()).unwrap();
    dev.raw().device().destroy();
    let error = queue.synchronize().unwrap_err();
    match &error {
        Error::DeviceLost { first_op, .. } => assert_eq!(*first_op, "fill", "{error}"),
        Error::Backend { .. } => assert!(error.to_string().contains("can have failed: fill"), "{error}"),
        _ => panic!("{error}"),
    }
}

#[test]
fn an_adopted_device_that_its_owner_says_is_lost_gives_that_error() {
    let Some((device, queue)) = common::foreign() else { return };
    let dev = Dev::<Wgpu>::from_raw(WgpuDevice::adopt(device, queue).unwrap());
    let mut queue = dev.queue().unwrap();
    let buf = queue.upload(&[1u32, 2, 3]).unwrap();
    assert_eq!(queue.download(buf.view()).unwrap(), [1, 2, 3]);
    dev.raw().mark_lost("it fell off the bus");
    for error in [queue.download(buf.view()).unwrap_err(), queue.zeros::<u8>(4).unwrap_err(), dev.queue().unwrap_err()]
    {
        let text = error.to_string();
        assert!(matches!(error, Error::DeviceLost { .. }) && text.contains("fell off the bus"), "{text}");
    }
}

#[test]
fn more_memory_than_there_is_is_a_typed_error() {
    let Some(dev) = common::device(WgpuOptions::default()) else { return };
    let mut queue = dev.queue().unwrap();
    let error = queue.zeros::<u8>(isize::MAX as usize).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert_eq!(queue.zeros::<u8>(3).unwrap().len(), 3); // and the device is well
}

#[test]
fn rows_that_no_window_holds_are_refused_by_name_of_the_limit() {
    let options = WgpuOptions { max_binding_bytes: Some(1 << 12), ..WgpuOptions::default() };
    let Some(dev) = common::device(options) else { return };
    let mut queue = dev.queue().unwrap();
    let mut workspace = Workspace::new(&mut queue, Limits::new(2, 1, 2)).unwrap();
    let ids = queue.upload(&[1, 0]).unwrap();
    let spec = PlanSpec::new(2, 1, 2);
    let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(ids.view())).unwrap();
    let x = queue.zeros::<f32>(2 * 2048).unwrap();
    let error = plan.gather(x.rows(2048).unwrap()).run(&mut queue).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("max_storage_buffer_binding_size"), "{error}");
}

#[test]
fn combine_in_more_windows_than_it_can_see_is_refused_and_in_four_is_right() {
    let options = WgpuOptions { max_binding_bytes: Some(1 << 14), ..WgpuOptions::default() };
    let Some(dev) = common::device(options) else { return };
    for (tokens, fits) in [(900, true), (1500, false)] {
        let mut queue = dev.queue().unwrap();
        let mut workspace = Workspace::new(&mut queue, Limits::new(tokens, 1, 2)).unwrap();
        let ids: Vec<i32> = (0..tokens as i32).map(|t| (t + 1) % 2).collect();
        let ids = queue.upload(&ids).unwrap();
        let spec = PlanSpec::new(tokens, 1, 2);
        let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(ids.view())).unwrap();
        for hidden in [16, 15] {
            let x: Vec<f32> = (0..tokens * hidden).map(|i| i as f32).collect();
            let rows = queue.upload(&x).unwrap();
            let rows = plan.gather(rows.rows(hidden).unwrap()).run(&mut queue).unwrap();
            match plan.combine(rows.rows(hidden).unwrap()).run::<f32>(&mut queue) {
                Ok(out) => assert!(fits && queue.download(out.view()).unwrap() == x),
                Err(error) => assert!(!fits && matches!(error, Error::Unsupported { .. }), "{error}"),
            }
        }
    }
}

#[test]
fn an_adapter_that_is_not_there_is_a_typed_error() {
    let Some(_) = common::spec() else { return };
    let error = WgpuDevice::open(&DeviceSpec::new("wgpu", Some(999)).unwrap()).unwrap_err();
    assert!(matches!(error, Error::NoSuchDevice { .. }), "{error}");
    let error = Dev::<Wgpu>::open(&"cpu".parse().unwrap()).unwrap_err();
    assert!(matches!(error, Error::WrongBackend { .. }), "{error}");
    let bad = WgpuOptions { max_binding_bytes: Some(7), ..WgpuOptions::default() };
    let error = WgpuDevice::open_with(&common::spec().unwrap(), bad).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
}
