//! Copies of experts: the plan that picks them equals the plan of physical ids picked on the host.

use moe_core::eplb::map_ids;
use moe_core::{Dev, Error, Limits, PlanSpec, RoutePlan, Routing, Workspace};
use moe_cpu::Cpu;

#[test]
fn a_plan_that_picks_copies_equals_the_plan_of_physical_ids() {
    let (tokens, top_k, experts, physical, width) = (3001, 3, 5, 9, 4);
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut state = seed | 1;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let ids: Vec<i32> = (0..tokens * top_k).map(|_| random(experts as u64 + 2) as i32 - 1).collect();
    // Expert 3 has a count that its row cannot hold, expert 4 a copy that is not there.
    let (logcnt, log2phy) = ([1, 3, 2, 5, 2], [0, -1, -1, -1, 1, 2, 3, -1, 4, 5, -1, -1, 6, 7, 0, 1, 8, 9, -1, -1]);
    let expert_map: Vec<i32> = (0..physical as i32).map(|p| if p % 3 == 2 { -1 } else { p - p / 3 }).collect();
    let local = expert_map.iter().filter(|m| **m >= 0).count();

    let mut queue = Dev::<Cpu>::open(&"cpu".parse().unwrap()).unwrap().queue().unwrap();
    let mut workspace = Workspace::new(&mut queue, Limits::new(tokens, top_k, physical)).unwrap();
    let map = queue.upload(&expert_map).unwrap();
    let (on_device, counts) = (queue.upload(&log2phy).unwrap(), queue.upload(&logcnt).unwrap());
    let logical = queue.upload(&ids).unwrap();
    let spec = PlanSpec::new(tokens, top_k, experts).physical_experts(physical).local_experts(local);
    let routing = Routing::top_k(logical.view()).replicas(on_device.rows(width).unwrap(), counts.view());
    let spec = spec.with_logical_load();
    let fused = RoutePlan::new(&mut queue, &mut workspace, spec, routing.expert_map(map.view())).unwrap();
    fused.validate(&mut queue).unwrap();

    let mut picked = vec![0; ids.len()];
    map_ids(&log2phy, &logcnt, width, &ids, top_k, 0, &mut picked).unwrap();
    let picked = queue.upload(&picked).unwrap();
    let spec = PlanSpec::new(tokens, top_k, physical).local_experts(local);
    let routing = Routing::top_k(picked.view()).expert_map(map.view());
    let plain = RoutePlan::new(&mut queue, &mut workspace, spec, routing).unwrap();

    assert_eq!(queue.download(fused.source()).unwrap(), queue.download(plain.source()).unwrap());
    assert_eq!(queue.download(fused.slot()).unwrap(), queue.download(plain.slot()).unwrap());
    assert_eq!(fused.status(&mut queue).unwrap(), plain.status(&mut queue).unwrap());
    let load = queue.download(fused.logical_load().unwrap()).unwrap();
    let named: Vec<i32> = (0..experts as i32).map(|e| ids.iter().filter(|id| **id == e).count() as i32).collect();
    assert_eq!(load, named, "load counts logical experts");
}

#[test]
fn copies_without_their_number_are_a_typed_error() {
    let mut queue = Dev::<Cpu>::open(&"cpu".parse().unwrap()).unwrap().queue().unwrap();
    let mut workspace = Workspace::new(&mut queue, Limits::new(1, 1, 2)).unwrap();
    let ids = queue.upload(&[0]).unwrap();
    let spec = PlanSpec::new(1, 1, 1).physical_experts(2);
    let error = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(ids.view())).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { arg: "num_physical_experts", .. }), "{error}");
}
