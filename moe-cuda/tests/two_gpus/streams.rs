//! Bug 16: work and memory go to the device that the data is on, whatever is current on the thread.

use crate::both;
use crate::common::{Batch, Rng, layer};
use half::bf16;
use moe_core::{Buf, Queue};
use moe_cuda::Cuda;
use moe_cuda::cudarc::driver::sys::{CUpointer_attribute, cuPointerGetAttribute};
use std::thread;

const BATCH: Batch = Batch { tokens: 257, top_k: 8, experts: 64, hidden: 256 };

type Inputs = (Vec<i32>, Vec<bf16>, Vec<f32>);

fn inputs(batch: Batch, seed: u64) -> Inputs {
    let mut rng = Rng(seed);
    let n = batch.tokens * batch.top_k;
    (rng.ids(n, batch.experts), rng.floats(batch.tokens * batch.hidden), rng.floats(n))
}

/// The driver's number of the GPU that the memory is on.
fn ordinal_of_memory(buf: &Buf<Cuda, i32>) -> u32 {
    let mut ordinal = u32::MAX;
    let out = (&raw mut ordinal).cast();
    // SAFETY: the attribute is a 32-bit number, and is written to one that lives.
    let status = unsafe {
        cuPointerGetAttribute(out, CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, buf.raw().device_ptr())
    };
    status.result().unwrap();
    ordinal
}

#[test]
fn bug_16_work_and_memory_are_on_device_1_with_device_0_current() {
    let Some(devices) = both() else { return };
    let (ids, x, weights) = inputs(BATCH, 8);
    let run = |queue: &mut Queue<'_, Cuda>| layer(queue, BATCH, BATCH.spec(), &ids, &x, &weights);
    let expected = run(&mut devices[0].queue().unwrap());
    let mut second = devices[1].queue().unwrap();
    devices[0].raw().context().bind_to_thread().unwrap();
    assert!(run(&mut second) == expected);
    for (other, device) in [(1, &devices[0]), (0, &devices[1])] {
        let mut queue = device.queue().unwrap();
        devices[other].raw().context().bind_to_thread().unwrap();
        let buf = queue.zeros(1_000).unwrap();
        assert_eq!(ordinal_of_memory(&buf), device.id().ordinal(), "with device {other} current");
    }
}

#[test]
fn bug_16_threads_that_switch_devices_get_the_same_bits() {
    let Some(devices) = both() else { return };
    let (ids, x, weights) = inputs(BATCH, 9);
    let run = |queue: &mut Queue<'_, Cuda>| layer(queue, BATCH, BATCH.spec(), &ids, &x, &weights);
    let expected = run(&mut devices[0].queue().unwrap());
    thread::scope(|scope| {
        for number in 0..4 {
            let (devices, expected, run) = (&devices, &expected, &run);
            scope.spawn(move || {
                let mut queues = devices.each_ref().map(|device| device.queue().unwrap());
                for round in 0..16 {
                    // All four pairs of the device that is current and the device that is used.
                    devices[(round + number) % 2].raw().context().bind_to_thread().unwrap();
                    assert!(run(&mut queues[(round / 2) % 2]) == *expected, "round {round} of thread {number}");
                }
            });
        }
    });
}

#[test]
fn one_plan_runs_on_both_devices_at_once_on_two_streams_each() {
    let Some(devices) = both() else { return };
    let batch = Batch { tokens: 4_096, top_k: 8, experts: 256, hidden: 512 };
    let inputs = inputs(batch, 10);
    let queues = devices.each_ref().map(|device| [device.queue().unwrap(), device.queue().unwrap()]);
    let results = thread::scope(|scope| {
        let handles = queues.into_iter().flatten().map(|mut queue| {
            let (ids, x, weights) = &inputs;
            scope.spawn(move || [(); 4].map(|()| layer(&mut queue, batch, batch.spec(), ids, x, weights)))
        });
        let handles: Vec<_> = handles.collect();
        handles.into_iter().flat_map(|handle| handle.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(results.len(), 16);
    assert!(results.iter().all(|result| *result == results[0]));
}
