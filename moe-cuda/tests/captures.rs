//! Captures that are misused, and captures of somebody else: no graph may outlive the memory that it uses, and no stream
//! may stay in a capture.

mod common;

use common::device;
use moe_core::{Buf, Dev, Error, Queue};
use moe_cuda::cudarc::driver::CudaContext;
use moe_cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use moe_cuda::{Capture, Cuda, CudaDevice, CudaQueue};
use std::mem;

const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const FLAGS: CUgraphInstantiate_flags = CUgraphInstantiate_flags(0);

fn unsupported<T>(result: moe_core::Result<T>, op: &str) {
    match result.map(|_| ()) {
        Err(Error::Unsupported { op: got, backend: "cuda", .. }) => assert_eq!(got, op),
        other => panic!("{op}: {other:?}"),
    }
}

fn works(queue: &mut Queue<'_, Cuda>) {
    let mut buf = queue.zeros::<i32>(4).unwrap();
    queue.fill(buf.view_mut(), 0xff).unwrap();
    assert_eq!(queue.download(buf.view()).unwrap(), [-1; 4]);
}

#[test]
fn only_a_queue_of_this_very_capture_is_forked_or_joined() {
    let Some(device) = device("cuda") else { return };
    let (mut queue, idle, mut other) = (device.queue().unwrap(), device.queue().unwrap(), device.queue().unwrap());
    let mut buf = queue.zeros::<i32>(4).unwrap();
    let graph = queue.capture(|queue, graph| {
        queue.fill(buf.view_mut(), 0x11)?;
        unsupported(graph.fork(&idle), "fork");
        unsupported(graph.join(queue, &idle), "join");
        unsupported(graph.join(&idle, queue), "join");
        let inner = other.capture(|inner, _| {
            unsupported(graph.fork(inner), "fork");
            unsupported(graph.join(queue, inner), "join");
            inner.zeros::<i32>(usize::MAX).map(|_| ()) // leaves this capture early
        });
        assert!(matches!(inner, Err(Error::InvalidArgument { .. })), "{inner:?}");
        Ok(())
    });
    graph.unwrap();
    works(&mut queue);
    works(&mut other);
}

#[test]
fn a_forked_queue_is_a_queue_like_any_other_after_the_capture() {
    let Some(device) = device("cuda") else { return };
    let mut queue = device.queue().unwrap();
    let mut buf = queue.zeros::<i32>(4).unwrap();
    let mut kept: Option<Queue<'_, Cuda>> = None;
    let mut graph = queue
        .capture(|queue, graph| {
            let mut side = device.adopt_queue(graph.fork(queue)?)?;
            side.fill(buf.view_mut(), 0x11)?;
            kept = Some(side);
            Ok(())
        })
        .unwrap();
    works(&mut kept.unwrap());
    graph.replay().unwrap();
    assert_eq!(queue.download(buf.view()).unwrap(), [0x1111_1111; 4]);
}

/// The queue that a capture was begun on can be moved out of the reference.
#[test]
fn a_capture_ends_on_its_own_stream_when_the_queue_is_swapped_for_another() {
    let Some(device) = device("cuda") else { return };
    for fails in [false, true] {
        let (mut queue, mut other) = (device.queue().unwrap(), device.queue().unwrap());
        let mut buf = queue.zeros::<i32>(4).unwrap();
        let graph = queue.capture(|queue, _| {
            queue.fill(buf.view_mut(), 0x11)?;
            mem::swap(queue, &mut other);
            if fails { queue.zeros::<i32>(usize::MAX).map(|_| ()) } else { Ok(()) }
        });
        assert_eq!(graph.is_err(), fails);
        works(&mut queue);
        works(&mut other); // neither is in a capture
        if let Ok(mut graph) = graph {
            graph.replay().unwrap();
            other.synchronize().unwrap(); // the stream of the graph
            assert_eq!(queue.download(buf.view()).unwrap(), [0x1111_1111; 4]);
        }
    }
}

#[test]
fn recordings_of_two_captures_that_were_swapped_make_no_graph() {
    let Some(device) = device("cuda") else { return };
    let (mut first, mut second) = (device.queue().unwrap(), device.queue().unwrap());
    let mut buf = first.zeros::<i32>(4).unwrap();
    let outer = first.capture(|first, outer| {
        first.fill(buf.view_mut(), 0x11)?;
        unsupported(
            second.capture(|_, inner| {
                mem::swap(outer, inner);
                Ok(())
            }),
            "capture",
        );
        Ok(())
    });
    unsupported(outer, "capture");
    works(&mut first);
    works(&mut second);
}

/// cudarc lets anybody capture a stream, into a graph that keeps nothing of ours.
#[test]
fn a_stream_that_somebody_else_captures_takes_no_operations() {
    let Some(device) = device("cuda") else { return };
    let mut queue = device.queue().unwrap();
    let mut buf = queue.zeros::<i32>(4).unwrap();
    let mut graph = queue.capture(|queue, _| queue.fill(buf.view_mut(), 0x11)).unwrap();
    let stream = queue.raw().stream().clone();
    stream.begin_capture(MODE).unwrap();
    unsupported(queue.fill(buf.view_mut(), 0xff), "fill");
    unsupported(queue.zeros::<i32>(4), "alloc_zeroed");
    unsupported(queue.write(&[1, 2, 3, 4], buf.view_mut()), "upload");
    unsupported(queue.synchronize(), "synchronize");
    unsupported(queue.capture(|_, _| Ok(())), "capture");
    unsupported(graph.replay(), "replay");
    stream.end_capture(FLAGS).unwrap(); // nothing of the above has broken it
    works(&mut queue);
    graph.replay().unwrap();
    assert_eq!(queue.download(buf.view()).unwrap(), [0x1111_1111; 4]);
}

#[test]
fn a_promised_stream_is_captured_by_its_owner() {
    if device("cuda").is_none() {
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let raw = CudaDevice::adopt(context.clone()).unwrap();
    let stream = context.new_stream().unwrap();
    // SAFETY: the graph is dropped before the buffer, and runs between its uses.
    let queue: CudaQueue = unsafe { raw.adopt_capturing_stream(stream.clone()) }.unwrap();
    let mut queue = Dev::<Cuda>::from_raw(raw).adopt_queue(queue).unwrap();
    let mut buf: Buf<Cuda, i32> = queue.zeros(4).unwrap();
    stream.begin_capture(MODE).unwrap();
    queue.fill(buf.view_mut(), 0x11).unwrap();
    unsupported(queue.zeros::<i32>(4), "alloc_zeroed");
    let graph = stream.end_capture(FLAGS).unwrap().expect("something was captured");
    assert_eq!(queue.download(buf.view()).unwrap(), [0; 4]);
    graph.launch().unwrap();
    assert_eq!(queue.download(buf.view()).unwrap(), [0x1111_1111; 4]);
    drop(graph);
}

/// Somebody else ends our capture and has the graph: what it uses is never freed.
#[test]
fn a_capture_that_somebody_else_ends_is_an_error_and_keeps_the_memory() {
    let Some(device) = device("cuda") else { return };
    let mut queue = device.queue().unwrap();
    let mut buf = queue.zeros::<i32>(4).unwrap();
    let mut stolen = None;
    let ours = queue.capture(|queue, _| {
        queue.fill(buf.view_mut(), 0x11)?;
        stolen = queue.raw().stream().end_capture(FLAGS).unwrap();
        Ok(())
    });
    assert!(matches!(ours, Err(Error::Backend { op: "capture", .. })), "{ours:?}");
    let address = buf.raw().device_ptr();
    drop(buf);
    for _ in 0..8 {
        let other = queue.zeros::<i32>(4).unwrap();
        assert_ne!(other.raw().device_ptr(), address);
    }
    stolen.expect("something was captured").launch().unwrap();
    works(&mut queue);
}
