//! Capacity by weight: the largest weights stay, in route order.

use moe_core::half::bf16;
use moe_core::{Capacity, Dev, Error, Layout, Limits, PlanSpec, Queue, RoutePlan, Routing, Workspace};
use moe_cpu::Cpu;

fn queue() -> Queue<'static, Cpu> {
    Dev::<Cpu>::open(&"cpu".parse().unwrap()).unwrap().queue().unwrap()
}

#[test]
fn the_largest_weights_stay_in_route_order_with_ties_to_the_lower_route_and_nan_lowest() {
    let mut queue = queue();
    let mut workspace = Workspace::new(&mut queue, Limits::new(8, 1, 2)).unwrap();
    let ids = queue.upload(&[0, 0, 1, 0, 0, 1, 0, 1]).unwrap();
    let weights = [0.25, f32::NAN, 0.5, 1.0, 0.25, f32::NEG_INFINITY, 0.25, f32::NAN].map(bf16::from_f32);
    let weights = queue.upload(&weights).unwrap();
    for layout in [Layout::Packed, Layout::Padded(3)] {
        let spec = PlanSpec::new(8, 1, 2).capacity(Capacity::ByWeight(2)).layout(layout);
        let routing = Routing::top_k(ids.view()).capacity_weights(weights.view());
        let plan = RoutePlan::new(&mut queue, &mut workspace, spec, routing).unwrap();
        plan.validate(&mut queue).unwrap();
        let slot = queue.download(plan.slot()).unwrap();
        let kept: Vec<usize> = (0..8).filter(|x| slot[*x] >= 0).collect();
        assert_eq!(kept, [0, 2, 3, 5], "{layout:?}");
        assert_eq!(plan.status(&mut queue).unwrap().over_capacity, 4);
    }
}

#[test]
fn weights_without_such_a_capacity_and_the_other_way_round_are_typed_errors() {
    let mut queue = queue();
    let mut workspace = Workspace::new(&mut queue, Limits::new(2, 1, 2)).unwrap();
    let ids = queue.upload(&[0, 1]).unwrap();
    let weights = queue.upload(&[1.0f32, 2.0]).unwrap();
    let by_weight = PlanSpec::new(2, 1, 2).capacity(Capacity::ByWeight(1));
    let with = Routing::top_k(ids.view()).capacity_weights(weights.view());
    let without = Routing::top_k(ids.view());
    for (spec, routing) in [(PlanSpec::new(2, 1, 2), with), (by_weight, without)] {
        let error = RoutePlan::new(&mut queue, &mut workspace, spec, routing).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { arg: "capacity_weights", .. }), "{error}");
    }
}
