//! Sums of the experts' load on the device, read back without waiting.

use moe_core::eplb::LoadRecorder;
use moe_core::{
    Dev, DeviceSpec, Error, Limits, PendingReadback, PlanSpec, Queue, Readback, RoutePlan, Routing, Workspace,
};
use moe_cpu::Cpu;

const EXPERTS: usize = 4;

fn queue(ordinal: u32) -> Queue<'static, Cpu> {
    Dev::<Cpu>::open(&DeviceSpec::new("cpu", Some(ordinal)).unwrap()).unwrap().queue().unwrap()
}

fn spec(tokens: usize) -> PlanSpec {
    PlanSpec::new(tokens, 1, EXPERTS).with_logical_load()
}

/// A plan of one expert per token.
fn plan(queue: &mut Queue<'static, Cpu>, ids: &[i32], spec: PlanSpec) -> RoutePlan<Cpu> {
    let mut workspace = Workspace::new(queue, Limits::new(ids.len(), 1, EXPERTS)).unwrap();
    let ids = queue.upload(ids).unwrap();
    RoutePlan::new(queue, &mut workspace, spec, Routing::top_k(ids.view())).unwrap()
}

#[test]
fn each_window_has_the_routes_of_its_own_steps_and_layers() {
    let mut queue = queue(0);
    let mut recorder = LoadRecorder::new(&mut queue, 2, EXPERTS, 3).unwrap();
    for window in 0..4 {
        let mut expected = vec![0u64; 2 * EXPERTS];
        for step in 0..3 {
            assert_eq!(recorder.poll().unwrap(), None);
            for layer in 0..2 {
                // -1 and ids that do not exist are no load.
                let ids = [(window + step) % 4, layer as i32, -1, 9, layer as i32];
                ids.iter().filter_map(|id| usize::try_from(*id).ok()).filter(|id| *id < EXPERTS).for_each(|id| {
                    expected[layer * EXPERTS + id] += 1;
                });
                let plan = plan(&mut queue, &ids, spec(ids.len()));
                recorder.record(&mut queue, layer, &plan).unwrap();
            }
            recorder.end_step(&mut queue).unwrap();
        }
        let totals = recorder.poll().unwrap().expect("a full window");
        assert_eq!((totals.layers(), totals.experts(), totals.steps()), (2, EXPERTS, 3));
        assert_eq!(totals.sums(), expected);
        assert_eq!(recorder.poll().unwrap(), None, "a window is given once");
    }
}

#[test]
fn a_window_goes_on_while_the_one_before_has_not_been_taken_so_that_no_route_is_lost() {
    let mut queue = queue(0);
    let mut recorder = LoadRecorder::new(&mut queue, 1, EXPERTS, 2).unwrap();
    let plan = plan(&mut queue, &[1, 1, 2], spec(3));
    for _ in 0..5 {
        recorder.record(&mut queue, 0, &plan).unwrap();
        recorder.end_step(&mut queue).unwrap();
    }
    assert_eq!(recorder.steps(), 3);
    assert_eq!(recorder.wait().unwrap().unwrap().sums(), [0, 4, 2, 0]);
    recorder.record(&mut queue, 0, &plan).unwrap();
    recorder.end_step(&mut queue).unwrap();
    let totals = recorder.wait().unwrap().unwrap();
    assert_eq!((totals.steps(), totals.sums()), (4, &[0, 8, 4, 0][..]));
    assert_eq!(recorder.wait().unwrap(), None);
}

#[test]
fn what_does_not_fit_is_refused_and_the_sums_stay_as_they_are() {
    let (mut queue, mut other) = (queue(0), queue(3));
    for (layers, experts, window) in [(0, 4, 1), (1, 0, 1), (1, 4, 0), (usize::MAX, 2, 1)] {
        let error = LoadRecorder::new(&mut queue, layers, experts, window).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
    let mut recorder = LoadRecorder::new(&mut queue, 1, EXPERTS, 1).unwrap();
    let good = plan(&mut queue, &[0], spec(1));
    let without = plan(&mut queue, &[0], PlanSpec::new(1, 1, EXPERTS));
    let unbuilt = RoutePlan::alloc(&mut queue, spec(1)).unwrap();
    let wide = {
        let mut workspace = Workspace::new(&mut queue, Limits::new(1, 1, 5)).unwrap();
        let ids = queue.upload(&[4]).unwrap();
        let spec = PlanSpec::new(1, 1, 5).with_logical_load();
        RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(ids.view())).unwrap()
    };
    let elsewhere = plan(&mut other, &[0], spec(1));

    assert!(matches!(recorder.record(&mut queue, 1, &good), Err(Error::InvalidArgument { arg: "layer", .. })));
    assert!(matches!(recorder.record(&mut queue, 0, &without), Err(Error::InvalidArgument { arg: "plan", .. })));
    assert!(matches!(recorder.record(&mut queue, 0, &unbuilt), Err(Error::PlanNotBuilt { .. })));
    assert!(matches!(recorder.record(&mut queue, 0, &wide), Err(Error::Shape { arg: "plan", .. })));
    assert!(matches!(recorder.record(&mut queue, 0, &elsewhere), Err(Error::DeviceMismatch { arg: "plan", .. })));
    assert!(matches!(recorder.record(&mut other, 0, &good), Err(Error::DeviceMismatch { arg: "queue", .. })));
    assert!(matches!(recorder.end_step(&mut other), Err(Error::DeviceMismatch { arg: "queue", .. })));
    assert_eq!(recorder.steps(), 0);

    recorder.record(&mut queue, 0, &good).unwrap();
    recorder.end_step(&mut queue).unwrap();
    assert_eq!(recorder.poll().unwrap().unwrap().sums(), [1, 0, 0, 0]);
}

/// A copy that arrives when it has been asked for a few times.
#[derive(Debug)]
struct Slow(u32);

impl PendingReadback for Slow {
    fn poll(&mut self) -> moe_core::Result<Option<Vec<u8>>> {
        self.0 -= 1;
        Ok((self.0 == 0).then(|| vec![1, 2]))
    }

    fn wait(&mut self) -> moe_core::Result<Vec<u8>> {
        Ok(vec![1, 2])
    }
}

#[test]
fn a_readback_is_asked_until_it_has_arrived_or_waited_for() {
    let again = Readback::pending(Slow(2)).poll().unwrap().expect_err("not there yet");
    assert_eq!(again.poll().unwrap().unwrap(), [1, 2]);
    assert_eq!(Readback::pending(Slow(9)).wait().unwrap(), [1, 2]);
    assert_eq!(Readback::ready(vec![3]).poll().unwrap().unwrap(), [3]);
    assert_eq!(Readback::ready(vec![3]).wait().unwrap(), [3]);
}
