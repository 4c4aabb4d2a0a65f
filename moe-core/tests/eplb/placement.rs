//! Placements: recorded answers, and properties at random.

use super::*;

#[test]
fn recorded_answers_of_the_published_algorithm_are_reproduced() {
    let text = include_str!("../../../benches/data/eplb.json");
    let cases: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap();
    assert_eq!(cases.len(), 5);
    for (name, case) in &cases {
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let rows = case["weight"].as_array().unwrap();
        let load: Vec<f64> = ints(&case["weight"]).into_iter().map(f64::from).collect();
        let shape = Shape {
            layers: rows.len(),
            experts: rows[0].as_array().unwrap().len(),
            replicas: size("num_replicas"),
            groups: size("num_groups"),
            nodes: size("num_nodes"),
            gpus: size("num_gpus"),
        };
        let published = Options::published();
        for options in [published, Options { never_worse: true, ..published }] {
            let placement = rebalance(&load, &shape, &options).unwrap();
            assert_eq!(placement.phy2log(), ints(&case["phy2log"]), "{name}: phy2log");
            assert_eq!(placement.logcnt(), ints(&case["logcnt"]), "{name}: logcnt");
            // Copies of one expert have equal loads: their order is free.
            let (ours, theirs) = (placement.log2phy(), ints(&case["log2phy"]));
            assert_eq!(theirs.len(), ours.len(), "{name}: width of log2phy");
            let width = placement.width();
            for (ours, theirs) in ours.chunks(width).zip(theirs.chunks(width)) {
                let set = |row: &[i32]| row.iter().copied().collect::<BTreeSet<_>>();
                assert_eq!(set(ours), set(theirs), "{name}: log2phy");
            }
        }
        // Spreading the copies must not cost balance on these loads.
        let spread = rebalance(&load, &shape, &Options::default()).unwrap();
        let plain = rebalance(&load, &shape, &published).unwrap();
        let (spread, plain) = (spread.balancedness(&load), plain.balancedness(&load));
        println!("{name}: balancedness spread {spread:.4?}, published {plain:.4?}");
        for (s, p) in spread.unwrap().iter().zip(plain.unwrap()) {
            assert!(*s > p - 0.01, "{name}: {s} against {p}");
        }
    }
}

#[test]
fn maps_are_inverse_complete_and_never_worse_than_identity_at_random() {
    let mut random = Random::new("properties");
    for _ in 0..600 {
        let shape = random.shape();
        let load = random.load(&shape);
        let options = Options {
            spread: random.pick(&[true, false]),
            parallel: random.pick(&[true, false]),
            ..Options::default()
        };
        let placement = rebalance(&load, &shape, &options).unwrap();
        let identity = Placement::identity(shape).unwrap();
        for l in 0..shape.layers {
            let (phy, log) = (placement.layer_phy2log(l), placement.layer_log2phy(l));
            let counts = placement.layer_logcnt(l);
            assert_eq!(counts.iter().sum::<i32>() as usize, shape.replicas);
            assert!(counts.iter().all(|&c| c >= 1), "{shape:?}");
            for (e, row) in log.chunks(placement.width()).enumerate() {
                let copies = counts[e] as usize;
                assert!(row[..copies].windows(2).all(|w| w[0] < w[1]));
                assert!(row[..copies].iter().all(|&p| phy[p as usize] as usize == e));
                assert!(row[copies..].iter().all(|&p| p == -1));
            }
            let row = layer_load(&shape, &load, l);
            let ours = max(&placement.gpu_loads(l, row).unwrap());
            let theirs = max(&identity.gpu_loads(l, row).unwrap());
            assert!(ours <= theirs, "layer {l}: {ours} > {theirs}, {shape:?} {options:?}");
        }
        if shape.is_hierarchical() {
            assert_groups_stay_on_one_node(&placement);
        }
    }
}

#[test]
fn spread_never_doubles_an_expert_on_a_gpu_while_another_gpu_lacks_it() {
    let mut random = Random::new("spread");
    let mut doubled_without = 0;
    for _ in 0..600 {
        let shape = random.shape();
        let load = random.load(&shape);
        let domain = if shape.is_hierarchical() { shape.gpus / shape.nodes } else { shape.gpus };
        let doubles = |placement: &Placement| {
            (0..shape.layers)
                .flat_map(|l| copies_per_gpu(placement, l).chunks(domain).map(<[_]>::to_vec).collect::<Vec<_>>())
                .map(|gpus| {
                    (0..shape.experts)
                        .filter(|&e| gpus.iter().any(|g| g[e] > 1) && gpus.iter().any(|g| g[e] == 0))
                        .count()
                })
                .sum::<usize>()
        };
        let spread = rebalance(&load, &shape, &Options::default()).unwrap();
        assert_eq!(doubles(&spread), 0, "{shape:?} {load:?}");
        let published = rebalance(&load, &shape, &Options::published()).unwrap();
        doubled_without += doubles(&published);
    }
    assert!(doubled_without > 0, "the loads never put the option to the test");
}

#[test]
fn published_greedy_alone_can_be_worse_than_identity_and_the_fallback_mends_it() {
    let mut random = Random::new("fallback");
    let mut worse = 0;
    for _ in 0..2000 {
        let shape = random.shape();
        let load = random.load(&shape);
        let placement = rebalance(&load, &shape, &Options::published()).unwrap();
        let identity = Placement::identity(shape).unwrap();
        for l in 0..shape.layers {
            let row = layer_load(&shape, &load, l);
            let maximum = |p: &Placement| max(&p.gpu_loads(l, row).unwrap());
            worse += usize::from(maximum(&placement) > maximum(&identity) * (1.0 + 1e-9));
        }
    }
    println!("{worse} layers were worse than identity without the fallback");
    // Items 3 3 2 2 2 on two GPUs of 3 slots, the sixth empty: greedy 7 + 5, in order 6 + 6.
    let shape = Shape { layers: 1, experts: 6, replicas: 6, groups: 1, nodes: 1, gpus: 2 };
    let load = [3.0, 3.0, 0.0, 2.0, 2.0, 2.0];
    for (never_worse, expected) in [(false, 7.0), (true, 6.0)] {
        let options = Options { never_worse, ..Options::published() };
        let placement = rebalance(&load, &shape, &options).unwrap();
        assert_eq!(max(&placement.gpu_loads(0, &load).unwrap()), expected);
    }
}

#[test]
fn result_does_not_depend_on_the_number_of_threads() {
    let load = v3_load();
    let at = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| rebalance(&load, &V3, &Options::default()).unwrap())
    };
    let serial = rebalance(&load, &V3, &Options { parallel: false, ..Options::default() }).unwrap();
    assert_eq!(at(1), serial);
    assert_eq!(at(3), serial);
}
