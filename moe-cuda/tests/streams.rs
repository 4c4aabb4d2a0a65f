//! A caller's contexts, streams and memory; bug 16: work that lands elsewhere than the data.

mod common;

use common::{Batch, Rng, device, layer};
use half::bf16;
use moe_core::oracle::DeviceClass;
use moe_core::{Buffer, CommandQueue, Dev, Device, Error, PlanSpec, Queue, RoutePlan, Routing, Workspace};
use moe_cuda::cudarc::driver::CudaContext;
use moe_cuda::{Cuda, CudaDevice};
use std::thread;

#[test]
fn adopting_and_opening_give_one_device() {
    let Some(opened) = device("cuda") else { return };
    let context = CudaContext::new(0).unwrap();
    let first = CudaDevice::adopt(context.clone()).unwrap();
    let second = CudaDevice::adopt(CudaContext::new(0).unwrap()).unwrap();
    assert_eq!((opened.id(), first.id()), (first.id(), second.id()));
    assert_eq!(opened.id().to_string(), "cuda:0");
    // A stream of any `Arc` of the one primary context is a stream of the device.
    second.adopt_stream(context.new_stream().unwrap()).unwrap();
}

#[test]
fn a_context_that_is_not_primary_is_a_typed_error() {
    if device("cuda").is_none() {
        return;
    }
    let context = CudaContext::new_non_primary(0, 0).unwrap();
    let error = CudaDevice::adopt(context).unwrap_err();
    assert!(matches!(error, Error::Unsupported { op: "adopt", .. }), "{error}");
}

#[test]
fn the_per_thread_default_stream_is_a_typed_error() {
    if device("cuda").is_none() {
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let error = CudaDevice::adopt(context.clone()).unwrap().adopt_stream(context.per_thread_stream()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[test]
fn work_on_a_callers_stream_and_slices_needs_no_copy_and_no_wait() {
    if device("cuda").is_none() {
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let raw = CudaDevice::adopt(context.clone()).unwrap();
    let dev = Dev::<Cuda>::from_raw(raw.clone());
    let other = context.new_stream().unwrap();
    // The caller's one stream, the default stream, and a stream beside the one that the memory was written on.
    for stream in [other.clone(), context.default_stream(), context.new_stream().unwrap()] {
        let mut queue = dev.adopt_queue(raw.adopt_stream(stream.clone()).unwrap()).unwrap();
        let mut workspace = Workspace::new(&mut queue, Batch { tokens: 2, top_k: 1, experts: 2, hidden: 2 }.limits());
        let workspace = workspace.as_mut().unwrap();
        let ids = other.clone_htod(&[1i32, 0]).unwrap();
        let x = other.clone_htod(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let mut out = other.alloc_zeros::<f32>(4).unwrap();
        {
            let ids = raw.lend(&ids).unwrap();
            let part = x.slice(2..6); // a view of a slice
            let rows = raw.lend::<f32>(&part).unwrap();
            let out = raw.lend_mut::<f32>(&mut out).unwrap();
            let spec = PlanSpec::new(2, 1, 2);
            let mut plan = RoutePlan::alloc(&mut queue, spec).unwrap();
            let (rows, out) = (rows.rows(2).unwrap(), out.rows(2).unwrap());
            plan.permute_into(&mut queue, workspace, spec, Routing::top_k(ids), rows, out).unwrap();
        }
        assert_eq!(other.clone_dtoh(&out).unwrap(), [5.0, 6.0, 3.0, 4.0]);
    }
}

#[test]
fn an_adopted_slice_is_given_back_with_the_work_on_it_done() {
    if device("cuda").is_none() {
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let raw = CudaDevice::adopt(context.clone()).unwrap();
    let dev = Dev::<Cuda>::from_raw(raw.clone());
    let mut queue = dev.queue().unwrap();
    let own = context.new_stream().unwrap();
    let mut buf = queue.raw_mut().adopt_slice(own.clone_htod(&[1i32, 2, 3, 4]).unwrap()).unwrap();
    let address = buf.raw().device_ptr();
    queue.fill(buf.view_mut().slice(1..3).unwrap(), 0xff).unwrap();
    let slice = buf.into_raw().into_slice::<i32>().unwrap();
    assert_eq!(own.clone_dtoh(&slice).unwrap(), [1, -1, -1, 4]);
    let again = queue.raw_mut().adopt_slice(slice).unwrap();
    assert_eq!(again.raw().device_ptr(), address);
    let refused = again.into_raw().into_slice::<f32>().unwrap_err();
    assert!(matches!(*refused.error, Error::Unsupported { op: "into_slice", .. }), "{refused}");
    let slice = refused.memory.into_slice::<i32>().unwrap(); // not lost by asking for the wrong type
    assert_eq!(own.clone_dtoh(&slice).unwrap(), [1, -1, -1, 4]);
}

#[test]
fn memory_of_another_context_is_refused_by_the_name_of_the_operation_and_given_back() {
    let Some(device) = device("cuda") else { return };
    let foreign = CudaContext::new_non_primary(0, 0).unwrap();
    let stream = foreign.new_stream().unwrap();
    let slice = stream.clone_htod(&[7i32; 64]).unwrap();
    let error = device.raw().lend(&slice).unwrap_err();
    assert!(matches!(error, Error::Unsupported { op: "lend", .. }), "{error}");
    let error = device.raw().adopt_stream(stream.clone()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { op: "adopt_stream", .. }), "{error}");
    let refused = device.queue().unwrap().raw_mut().adopt_slice(slice).unwrap_err();
    assert!(matches!(*refused.error, Error::Unsupported { op: "adopt_slice", .. }), "{refused}");
    assert_eq!(stream.clone_dtoh(&refused.memory).unwrap(), [7; 64]);
}

#[test]
fn a_started_download_has_the_bytes_of_its_time_also_when_the_buffer_changes_or_goes() {
    let Some(device) = device("cuda") else { return };
    let mut queue = device.queue().unwrap();
    let n = 1 << 20;
    let mut source = queue.zeros::<u8>(n).unwrap();
    queue.fill(source.view_mut(), 0x3f).unwrap();
    let start = |queue: &mut Queue<'_, Cuda>, region| {
        // SAFETY: the region is on the queue's device.
        unsafe { queue.raw_mut().start_download(region) }.unwrap()
    };
    let waited = start(&mut queue, source.raw().region());
    let polled = start(&mut queue, source.raw().region());
    drop(start(&mut queue, source.raw().region())); // given up
    queue.fill(source.view_mut(), 0xff).unwrap();
    drop(source);
    assert!(waited.wait().unwrap() == vec![0x3f; n]);
    queue.synchronize().unwrap();
    let Ok(bytes) = polled.poll().unwrap() else { panic!("the stream is done, so the copy is") };
    assert!(bytes == vec![0x3f; n]);
}

/// One GPU: a thread whose current context is another one, and threads without any.
#[test]
fn bug_16_work_runs_on_the_buffers_device_whatever_context_is_current() {
    let Some(device) = device("cuda") else { return };
    let batch = Batch { tokens: 48, top_k: 4, experts: 16, hidden: 64 };
    let mut rng = Rng(16);
    let (ids, weights) = (rng.ids(192, 16), rng.floats::<f32>(192));
    let x = rng.floats::<bf16>(48 * 64);
    let expected = layer(&mut device.queue().unwrap(), batch, batch.spec(), &ids, &x, &weights);
    thread::scope(|scope| {
        for number in 0..4 {
            let (device, expected, ids, x, weights) = (&device, &expected, &ids, &x, &weights);
            scope.spawn(move || {
                let foreign = (number % 2 == 1).then(|| CudaContext::new_non_primary(0, 0).unwrap());
                let mut queue = device.queue().unwrap();
                for _ in 0..8 {
                    if let Some(foreign) = &foreign {
                        foreign.bind_to_thread().unwrap();
                    }
                    assert!(layer(&mut queue, batch, batch.spec(), ids, x, weights) == *expected);
                }
            });
        }
    });
}

/// Memory that is freed while another stream still works with it.
#[test]
fn freeing_waits_for_every_stream_that_used_the_memory() {
    let Some(device) = device("cuda") else { return };
    let (mut home, mut other) = (device.queue().unwrap(), device.queue().unwrap());
    let n = if common::sanitized() { 1 << 16 } else { 64 << 20 };
    let mut kept = home.zeros::<f32>(n).unwrap();
    home.synchronize().unwrap();
    for _ in 0..4 {
        let ids = home.upload(&[0i32]).unwrap();
        let mut workspace = Workspace::new(&mut other, moe_core::Limits::new(1, 1, 1)).unwrap();
        let spec = PlanSpec::new(1, 1, 1);
        let plan = RoutePlan::new(&mut other, &mut workspace, spec, Routing::top_k(ids.view())).unwrap();
        let mut source = home.zeros::<f32>(n).unwrap();
        home.fill(source.view_mut(), 0x3f).unwrap();
        home.synchronize().unwrap();
        // A long copy on the other stream, then the source is freed and its memory overwritten on home.
        plan.gather(source.rows(n).unwrap()).run_into(&mut other, kept.rows_mut(n).unwrap()).unwrap();
        drop(source);
        let mut next = home.zeros::<f32>(n).unwrap();
        home.fill(next.view_mut(), 0xff).unwrap();
        let copied = other.download(kept.view()).unwrap();
        assert!(copied.iter().all(|v| v.to_bits() == 0x3f3f_3f3f));
    }
}

#[test]
fn a_device_tells_what_people_ask_of_it() {
    let Some(device) = device("cuda") else { return };
    let info = device.info();
    println!("{info:?}");
    let capabilities = device.raw().capabilities();
    println!("{capabilities}");
    assert_eq!(capabilities.class, DeviceClass::DiscreteGpu);
    assert!(capabilities.bandwidth.is_some_and(|b| (5e10..1e14).contains(&b)), "{capabilities}");
    assert!(!info.name.is_empty() && info.memory_bytes.is_some_and(|bytes| bytes > 1 << 30));
    assert!(CudaDevice::count().unwrap() >= 1);
    let past = format!("cuda:{}", CudaDevice::count().unwrap());
    assert!(matches!(Dev::<Cuda>::open(&past.parse().unwrap()), Err(Error::NoSuchDevice { .. })));
}
