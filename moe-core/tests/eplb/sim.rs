//! The simulator.

use super::*;

#[test]
fn simulator_finds_balance_on_drifting_load_and_draws_it() {
    let drift = Drift { layers: 2, experts: 64, top_k: 4, tokens: 20_000, skew: 0.8, hold: 2_000, seed: 7 };
    let trace = Trace::drift(&drift).unwrap();
    assert_eq!(trace, Trace::drift(&drift).unwrap());
    let config = SimConfig {
        replicas: 80,
        groups: 1,
        nodes: 1,
        gpus: 8,
        step_tokens: 500,
        window: 4,
        interval: 2,
        max_moves: None,
    };
    let report = simulate(&trace, &config).unwrap();
    assert_eq!(report.rows.len(), 40);
    assert!(report.rows.iter().all(|r| r.routes == 2_000));
    assert!(!report.rows[1].balanced && report.rows[2].balanced);
    assert_eq!(report.rows[0].before, report.rows[0].after);
    let (before, after, even) = report.means().unwrap();
    println!("before {before:.3}, after {after:.3}, even {even:.3}, {} copies", report.total_moves());
    assert!(after > before + 0.1, "{after} against {before}");
    let svg = report.svg("a < b");
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains("a &lt; b"));
    assert_eq!(svg.matches("<polyline").count(), 3);
    assert!(report.to_string().lines().count() >= 42);
    let bounded = SimConfig { max_moves: Some(10), ..config };
    let report = simulate(&trace, &bounded).unwrap();
    assert!(report.rows.iter().all(|r| r.moves <= 10) && report.means().unwrap().1 > before);
    assert_eq!(argument(simulate(&trace, &SimConfig { interval: 0, ..config }).unwrap_err()), "interval");
    assert_eq!(argument(Trace::from_u8(4, 2, &[&[0, 4]]).unwrap_err()), "layers");
}

/// The recorded choices of a real model: u8 [T, 4] for each of four layers, 32 experts.
fn recorded() -> Trace {
    let bytes = include_bytes!("../../../benches/data/routing_ids.safetensors");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..header]).unwrap();
    let layer = |(_, tensor): (&String, &Value)| {
        assert_eq!(tensor["dtype"], "U8");
        let at = |i: usize| header + tensor["data_offsets"][i].as_u64().unwrap() as usize;
        &bytes[at(0)..at(1)]
    };
    let tensors = tensors.iter().filter(|(name, _)| *name != "__metadata__");
    Trace::from_u8(32, 4, &tensors.map(layer).collect::<Vec<_>>()).unwrap()
}

#[test]
fn recorded_routing_gains_balance_on_tokens_not_seen_before() {
    let trace = recorded();
    assert_eq!((trace.layers(), trace.tokens()), (4, 16_384));
    for gpus in [4, 8] {
        let config = SimConfig {
            replicas: 40,
            groups: 1,
            nodes: 1,
            gpus,
            step_tokens: 512,
            window: 8,
            interval: 4,
            max_moves: None,
        };
        let report = simulate(&trace, &config).unwrap();
        let (before, after, even) = report.means().unwrap();
        println!(
            "{gpus} GPUs: before {before:.3}, after {after:.3}, even {even:.3}, {} copies, {:?}",
            report.total_moves(),
            report.slowest_rebalance()
        );
        assert!(after > before, "{after} against {before}");
    }
}
