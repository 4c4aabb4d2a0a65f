//! Going from one placement to another.

use super::*;

#[test]
fn reuse_keeps_slots_and_loads_and_saves_copies() {
    let mut random = Random::new("reuse");
    let (mut with, mut without) = (0, 0);
    for _ in 0..300 {
        let shape = random.shape();
        let old = rebalance(&random.load(&shape), &shape, &Options::default()).unwrap();
        let load = random.load(&shape);
        let fresh = rebalance(&load, &shape, &Options::default()).unwrap();
        let options = Options { previous: Some(&old), ..Options::default() };
        let kept = rebalance(&load, &shape, &options).unwrap();
        for l in 0..shape.layers {
            let row = layer_load(&shape, &load, l);
            let (a, b) = (kept.gpu_loads(l, row).unwrap(), fresh.gpu_loads(l, row).unwrap());
            assert!((max(&a) - max(&b)).abs() <= 1e-9 * max(&b), "{shape:?}");
            let (had, has) = (copies_per_gpu(&old, l), copies_per_gpu(&kept, l));
            let s = shape.slots_per_gpu();
            for g in 0..shape.gpus {
                let slots = |p: &Placement| p.layer_phy2log(l)[g * s..][..s].to_vec();
                let unmoved = slots(&old).iter().zip(slots(&kept)).filter(|(a, b)| **a == *b).count();
                let common: usize = had[g].iter().zip(&has[g]).map(|(a, b)| *a.min(b)).sum();
                assert_eq!(unmoved, common, "GPU {g}: an expert that stays changed its slot");
            }
        }
        if shape.is_hierarchical() {
            assert_groups_stay_on_one_node(&kept);
        }
        let again = Options { previous: Some(&kept), ..Options::default() };
        assert_eq!(rebalance(&load, &shape, &again).unwrap(), kept, "equal loads must move nothing");
        with += MigrationPlan::between(&old, &kept).unwrap().len();
        without += MigrationPlan::between(&old, &fresh).unwrap().len();
    }
    println!("copies with reuse {with}, without {without}");
    assert!(with < without);
}

#[test]
fn migration_plan_leads_from_old_to_new_within_the_bound() {
    let mut random = Random::new("migration");
    for _ in 0..150 {
        let shape = random.shape();
        let old = rebalance(&random.load(&shape), &shape, &Options::default()).unwrap();
        let load = random.load(&shape);
        let options = Options { previous: Some(&old), ..Options::default() };
        let new = rebalance(&load, &shape, &options).unwrap();
        let plan = MigrationPlan::between(&old, &new).unwrap();
        assert_eq!(plan.apply(&old).unwrap(), new);
        for m in plan.moves() {
            assert_eq!(old.layer_phy2log(m.layer)[m.from] as usize, m.expert);
            assert_eq!(new.layer_phy2log(m.layer)[m.to] as usize, m.expert);
            assert_eq!((shape.gpu_of(m.from), shape.gpu_of(m.to)), (m.from_gpu, m.to_gpu));
            let local = copies_per_gpu(&old, m.layer)[m.to_gpu][m.expert] > 0;
            assert_eq!(local, m.from_gpu == m.to_gpu, "a copy on the same GPU is the nearest");
        }
        let bound = random.within(0, plan.len() + 3);
        let limited = limit_moves(&old, &new, &load, bound).unwrap();
        let cost = MigrationPlan::between(&old, &limited).unwrap().len();
        assert!(cost <= bound, "{cost} > {bound}");
        for l in 0..shape.layers {
            let row = layer_load(&shape, &load, l);
            let maximum = |p: &Placement| max(&p.gpu_loads(l, row).unwrap());
            assert!(maximum(&limited) <= maximum(&old));
        }
        if shape.is_hierarchical() {
            assert_groups_stay_on_one_node(&limited);
        }
    }
}

#[test]
fn a_small_bound_still_buys_balance() {
    let shape = Shape { layers: 4, ..V3 };
    let load = &v3_load()[..shape.layers * shape.experts];
    let old = Placement::identity(shape).unwrap();
    let options = Options { previous: Some(&old), ..Options::default() };
    let new = rebalance(load, &shape, &options).unwrap();
    let full = MigrationPlan::between(&old, &new).unwrap().len();
    let mean = |p: &Placement| p.balancedness(load).unwrap().iter().sum::<f64>() / 4.0;
    let mut last = mean(&old);
    println!("0 of {full} copies: {last:.3}");
    for bound in [8, 40, 160] {
        let limited = limit_moves(&old, &new, load, bound).unwrap();
        let cost = MigrationPlan::between(&old, &limited).unwrap().len();
        println!("{cost} of {full} copies: {:.3}", mean(&limited));
        assert!(cost <= bound && mean(&limited) > last);
        last = mean(&limited);
    }
}
