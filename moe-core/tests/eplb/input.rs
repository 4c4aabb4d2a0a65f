//! Arguments, the load window, and the choice of replicas.

use super::*;

#[test]
fn bad_sizes_and_loads_are_typed_errors_that_name_the_argument() {
    let good = Shape { layers: 1, experts: 4, replicas: 8, groups: 2, nodes: 2, gpus: 4 };
    let load = [1.0, 2.0, 3.0, 4.0];
    let refused = |shape: Shape, load: &[f64]| argument(rebalance(load, &shape, &Options::default()).unwrap_err());
    assert!(rebalance(&load, &good, &Options::default()).is_ok());
    assert_eq!(refused(Shape { layers: 0, ..good }, &[]), "layers");
    assert_eq!(refused(Shape { experts: 0, ..good }, &[]), "experts");
    assert_eq!(refused(Shape { replicas: 0, ..good }, &load), "replicas");
    assert_eq!(refused(Shape { groups: 0, ..good }, &load), "groups");
    assert_eq!(refused(Shape { nodes: 0, ..good }, &load), "nodes");
    assert_eq!(refused(Shape { gpus: 0, ..good }, &load), "gpus");
    assert_eq!(refused(Shape { replicas: 3, gpus: 3, nodes: 1, ..good }, &load), "replicas");
    assert_eq!(refused(Shape { replicas: 9, ..good }, &load), "replicas");
    assert_eq!(refused(Shape { groups: 6, ..good }, &load), "experts");
    assert_eq!(refused(Shape { nodes: 2, gpus: 1, ..good }, &load), "gpus");
    let huge = Shape { replicas: usize::MAX / 4 * 4, ..good };
    assert_eq!(refused(huge, &load), "layers x replicas");
    assert_eq!(refused(good, &load[..3]), "load");
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
        assert_eq!(refused(good, &[1.0, bad, 1.0, 1.0]), "load");
    }
    assert_eq!(refused(good, &[f64::MAX; 4]), "load", "the sum overflows");
    assert!(rebalance(&[-0.0; 4], &good, &Options::default()).is_ok());

    let other = Placement::identity(Shape { replicas: 12, ..good }).unwrap();
    let options = Options { previous: Some(&other), ..Options::default() };
    assert_eq!(argument(rebalance(&load, &good, &options).unwrap_err()), "options.previous");
    let identity = Placement::identity(good).unwrap();
    assert_eq!(argument(MigrationPlan::between(&identity, &other).unwrap_err()), "new");
    assert_eq!(argument(limit_moves(&identity, &other, &load, 1).unwrap_err()), "new");
    for phy2log in [vec![0; 7], vec![0, 1, 2, 3, 4, 0, 0, 0], vec![0, 1, 2, -1, 3, 0, 0, 0], vec![0; 8]] {
        assert_eq!(argument(Placement::new(good, phy2log).unwrap_err()), "phy2log");
    }
    assert_eq!(argument(identity.log2phy_padded(1).unwrap_err()), "width");
    assert_eq!(argument(identity.gpu_loads(1, &load).unwrap_err()), "layer");
    assert_eq!(argument(LoadWindow::new(1, 4, 0).unwrap_err()), "capacity");
    assert_eq!(argument(LoadTotals::zero(1, 0).unwrap_err()), "experts");
}

#[test]
fn window_forgets_steps_that_fall_out_and_adds_ranks() {
    let mut window = LoadWindow::new(1, 2, 3).unwrap();
    for (step, expected) in [([1, 10], [1, 10]), ([2, 20], [3, 30]), ([3, 30], [6, 60]), ([4, 40], [9, 90])] {
        window.push(&step).unwrap();
        assert_eq!(window.totals().sums(), expected);
    }
    assert!(window.is_full());
    let before = window.totals().clone();
    assert_eq!(argument(window.push(&[5, -1]).unwrap_err()), "load");
    assert_eq!(argument(window.push(&[5]).unwrap_err()), "load");
    assert_eq!(window.totals(), &before, "a refused step must leave no trace");
    let mut sum = before.clone();
    sum.add(&before).unwrap();
    assert_eq!((sum.sums(), sum.steps()), ([18, 180].as_slice(), 3));
    assert_eq!(argument(sum.add(&LoadTotals::zero(2, 2).unwrap()).unwrap_err()), "other");
    window.clear();
    window.push(&[7, 0]).unwrap();
    assert_eq!((window.totals().sums(), window.totals().steps()), ([7, 0].as_slice(), 1));
}

#[test]
fn replicas_take_turns_and_bad_ids_stay_bad() {
    let shape = Shape { layers: 1, experts: 3, replicas: 6, groups: 1, nodes: 1, gpus: 3 };
    let placement = Placement::new(shape, vec![0, 1, 0, 2, 0, 2]).unwrap();
    let (map, counts, width) = (placement.log2phy(), placement.logcnt(), placement.width());
    let mut out = [0; 9];
    let ids = [0i32, 0, 0, 0, 1, 2, 2, -1, 3];
    map_ids(map, counts, width, &ids, 1, 0, &mut out).unwrap();
    assert_eq!(out, [0, 2, 4, 0, 1, 5, 3, MASKED_ID, INVALID_ID]);
    map_ids(map, counts, width, &ids, 1, 1, &mut out).unwrap();
    assert_eq!(out, [2, 4, 0, 2, 1, 3, 5, MASKED_ID, INVALID_ID]);
    // 3..6 are slots but not experts: they must not come out as slots.
    for id in [3, 5, i32::MAX, -2, i32::MIN] {
        assert_eq!(physical_id(map, counts, width, id, 0), INVALID_ID);
    }
    assert_eq!(physical_id(map, counts, width, u32::MAX, 0), MASKED_ID);
    assert_eq!(physical_id(map, counts, width, i64::from(u32::MAX), 0), INVALID_ID);
    assert_eq!(physical_id(map, counts, width, 1i64 << 32, 0), INVALID_ID);
    assert_eq!(physical_id(map, &[0, 4, 1], width, 0i32, 0), INVALID_ID);
    assert_eq!(argument(map_ids(map, counts, 2, &ids, 1, 0, &mut out).unwrap_err()), "log2phy");
    let short = &mut out[..8];
    assert_eq!(argument(map_ids(map, counts, width, &ids, 1, 0, short).unwrap_err()), "out");
}

#[test]
fn an_expert_that_all_tokens_name_first_still_uses_all_of_its_copies() {
    let shape = Shape { layers: 1, experts: 3, replicas: 4, groups: 1, nodes: 1, gpus: 2 };
    let placement = Placement::new(shape, vec![0, 1, 0, 2]).unwrap();
    let (map, counts, width) = (placement.log2phy(), placement.logcnt(), placement.width());
    let ids = [0i32, 1].repeat(4);
    let mut out = [0; 8];
    map_ids(map, counts, width, &ids, 2, 0, &mut out).unwrap();
    assert_eq!(out, [0, 1, 2, 1, 0, 1, 2, 1]);
    assert_eq!(argument(map_ids(map, counts, width, &ids, 3, 0, &mut out).unwrap_err()), "ids");
}
