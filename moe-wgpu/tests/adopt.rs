//! Devices, queues and buffers that a caller brings along.

mod common;

use moe_core::{Dev, Device, Error, Limits, PlanSpec, RoutePlan, Routing, Workspace};
use moe_wgpu::{WgpuDevice, WgpuOptions};

const STORAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE;
const COPIES: wgpu::BufferUsages = wgpu::BufferUsages::COPY_SRC.union(wgpu::BufferUsages::COPY_DST);

fn buffer(device: &wgpu::Device, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
}

#[test]
fn adopting_a_device_twice_gives_one_device_and_a_second_one_prints_as_such() {
    let Some(spec) = common::spec() else { return };
    let Some((device, queue)) = common::foreign() else { return };
    let opened = WgpuDevice::open(&spec).unwrap();
    let first = WgpuDevice::adopt(device.clone(), queue.clone()).unwrap();
    let again = WgpuDevice::adopt(device, queue).unwrap();
    assert_eq!(first.id(), again.id());
    assert_eq!(first.id().to_string(), again.id().to_string());
    assert_ne!(first.id(), opened.id());
    assert_eq!(first.id().ordinal(), opened.id().ordinal());
    let prefix = format!("wgpu:{}", opened.id().ordinal());
    assert!(first.id().to_string().starts_with(&prefix), "{}", first.id());
    assert_ne!(first.id().to_string(), opened.id().to_string());

    let back = WgpuDevice::adopt(opened.device().clone(), opened.wgpu_queue().clone()).unwrap();
    assert_eq!(back.id(), opened.id());
}

#[test]
fn a_buffer_of_another_logical_device_is_a_typed_error_not_a_panic() {
    let Some(dev) = common::device(WgpuOptions::default()) else { return };
    let options = WgpuOptions { native_f16: false, ..WgpuOptions::default() };
    let Some(second) = common::device(options) else { return };
    assert_ne!(dev.id(), second.id());
    let foreign = buffer(second.raw().device(), 64, STORAGE);
    let error = dev.raw().view::<f32>(&foreign, 0..64).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { arg: "buffer", .. }), "{error}");
}

#[test]
fn buffers_of_two_devices_are_a_typed_error_that_names_both() {
    let Some(dev) = common::device(WgpuOptions::default()) else { return };
    let Some((device, queue)) = common::foreign() else { return };
    let other = Dev::from_raw(WgpuDevice::adopt(device, queue).unwrap());
    let buf = other.queue().unwrap().upload(&[1i32, 2]).unwrap();
    let error = dev.queue().unwrap().download(buf.view()).unwrap_err();
    assert!(matches!(error, Error::DeviceMismatch { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&dev.id().to_string()) && text.contains(&other.id().to_string()), "{text}");
}

#[test]
fn lending_what_cannot_be_bound_is_refused() {
    let Some(dev) = common::device(WgpuOptions::default()) else { return };
    let raw = dev.raw();
    let odd = buffer(raw.device(), 6, STORAGE);
    assert!(matches!(raw.view::<u8>(&odd, 0..6), Err(Error::InvalidArgument { arg: "buffer", .. })));
    let copies = buffer(raw.device(), 64, COPIES);
    assert!(matches!(raw.view::<u8>(&copies, 0..6), Err(Error::InvalidArgument { arg: "buffer", .. })));
    let good = buffer(raw.device(), 64, STORAGE);
    assert!(matches!(raw.view::<f32>(&good, 0..6), Err(Error::InvalidArgument { arg: "bytes", .. })));
    assert!(matches!(raw.view::<f32>(&good, 0..68), Err(Error::InvalidArgument { arg: "bytes", .. })));
    assert!(matches!(raw.view::<f32>(&good, 2..6), Err(Error::Misaligned { .. })));
    assert_eq!(raw.view::<u8>(&good, 3..64).unwrap().len(), 61);
}

#[test]
fn inputs_and_outputs_may_share_one_arena_without_copy_usages() {
    let Some(dev) = common::device(WgpuOptions::default()) else { return };
    // Lent memory that only kernels can touch: uploads, downloads and fills go through a kernel as well.
    let arena = buffer(dev.raw().device(), 4096, STORAGE);
    let mut queue = dev.queue().unwrap();
    queue.fill(dev.raw().view_mut::<u8>(&arena, 0..4096).unwrap(), 0xee).unwrap();
    let (x, y): (Vec<u16>, _) = ((1..=6).collect(), 1001..1001 + 2 * 9);
    queue.write(&[1i32, 0], dev.raw().view_mut(&arena, 256..264).unwrap()).unwrap();
    let values: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    queue.write(&values[..6], dev.raw().view_mut::<u8>(&arena, 515..521).unwrap()).unwrap();

    let mut workspace = Workspace::new(&mut queue, Limits::new(2, 1, 2)).unwrap();
    let ids = dev.raw().view::<i32>(&arena, 256..264).unwrap();
    let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::new(2, 1, 2), Routing::top_k(ids)).unwrap();
    let rows = dev.raw().view::<u8>(&arena, 515..521).unwrap().rows(3).unwrap();
    let out = dev.raw().view_mut::<u8>(&arena, y.start..y.start + 6).unwrap().rows(3).unwrap();
    plan.gather(rows).run_into(&mut queue, out).unwrap();

    let all = queue.download(dev.raw().view::<u8>(&arena, 0..4096).unwrap()).unwrap();
    assert_eq!(all[515..521], values[..6]);
    assert_eq!(all[1001..1007], [values[3], values[4], values[5], values[0], values[1], values[2]]);
    let ours = |i: usize| (256..264).contains(&i) || (515..521).contains(&i) || (1001..1007).contains(&i);
    for (i, byte) in all.iter().enumerate().filter(|(i, _)| !ours(*i)) {
        assert_eq!(*byte, 0xee, "byte {i} is not ours");
    }
}

#[test]
fn a_layer_recorded_into_the_callers_encoder_is_one_submission() {
    let Some(dev) = common::device(WgpuOptions::default()) else { return };
    let mut own = dev.queue().unwrap();
    let mut workspace = Workspace::new(&mut own, Limits::new(3, 2, 4)).unwrap();
    let x = own.upload(&[1.0f32, 2.0, 3.0]).unwrap();
    own.synchronize().unwrap();

    let mut encoder = dev.raw().device().create_command_encoder(&Default::default());
    let mut queue = dev.adopt_queue(dev.raw().record(&mut encoder)).unwrap();
    let ids = queue.upload(&[0, 2, 3, 2, 0, 1]).unwrap();
    let spec = PlanSpec::new(3, 2, 4);
    let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(ids.view())).unwrap();
    let rows = plan.gather(x.rows(1).unwrap()).run(&mut queue).unwrap();
    let out = plan.combine(rows.rows(1).unwrap()).run::<f32>(&mut queue).unwrap();
    assert!(matches!(queue.synchronize(), Err(Error::Unsupported { .. })));
    assert!(matches!(queue.download(out.view()), Err(Error::Unsupported { .. })));
    drop(queue);

    assert_eq!(own.download(out.view()).unwrap(), [0.0; 3], "nothing runs before the caller submits");
    dev.raw().wgpu_queue().submit([encoder.finish()]);
    assert_eq!(own.download(out.view()).unwrap(), [2.0, 4.0, 6.0]);
    assert_eq!(own.download(plan.expert_offsets()).unwrap(), [0, 2, 3, 5, 6]);
}

#[test]
fn what_a_dropped_queue_recorded_has_run() {
    let Some(dev) = common::device(WgpuOptions::default()) else { return };
    let buf = dev.queue().unwrap().upload(&[7u8, 8, 9]).unwrap();
    assert_eq!(dev.queue().unwrap().download(buf.view()).unwrap(), [7, 8, 9]);
}

#[test]
fn queues_of_one_device_run_in_the_order_of_recording() {
    let Some(dev) = common::device(WgpuOptions::default()) else { return };
    let (mut first, mut second) = (dev.queue().unwrap(), dev.queue().unwrap());
    let mut buf = first.upload(&[1u32, 2, 3, 4]).unwrap();
    second.write(&[9u32], buf.view_mut().slice(1..2).unwrap()).unwrap();
    first.fill(buf.view_mut().slice(2..3).unwrap(), 0xff).unwrap();
    assert_eq!(second.download(buf.view()).unwrap(), [1, 9, u32::MAX, 4]);
}
