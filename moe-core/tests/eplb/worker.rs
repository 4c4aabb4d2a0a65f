//! The worker, its watchdog, and the times.

use super::*;

/// Polls until something comes, for at most ten seconds.
fn wait(balancer: &Balancer) -> Result<moe_core::eplb::Offer, EplbError> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(10) {
        if let Some(offer) = balancer.poll()? {
            return Ok(offer);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no offer within ten seconds: {balancer:?}");
}

#[test]
fn worker_offers_the_same_placement_as_the_synchronous_mode() {
    let load = v3_load();
    let initial = Placement::identity(V3).unwrap();
    let offer = |mode: Mode| {
        let config = BalancerConfig { mode, max_moves: Some(3000), ..BalancerConfig::default() };
        let balancer = Balancer::new(initial.clone(), config).unwrap();
        balancer.submit(totals(&V3, &load)).unwrap();
        let offer = wait(&balancer).unwrap();
        assert_eq!(&offer.migration().apply(&initial).unwrap(), &**offer.placement());
        assert!(offer.migration().len() <= 3000);
        println!("{mode:?}: {:?} for {} copies", offer.elapsed(), offer.migration().len());
        offer.placement().clone()
    };
    assert_eq!(offer(Mode::Async), offer(Mode::Sync));
}

#[test]
fn step_in_flight_keeps_its_maps_and_the_next_one_sees_the_new() {
    let initial = Placement::identity(V3).unwrap();
    let balancer = Balancer::new(initial.clone(), BalancerConfig::default()).unwrap();
    let mut reader = balancer.reader();
    let in_flight = Arc::clone(reader.current());
    balancer.submit(totals(&V3, &v3_load())).unwrap();
    let offer = wait(&balancer).unwrap();
    assert_eq!(**reader.current(), initial, "an offer alone changes nothing");
    let (stale, new) = (offer.clone(), Arc::clone(offer.placement()));
    let (generation, old) = balancer.commit(offer).unwrap();
    assert!(generation == 1 && Arc::ptr_eq(&old, &in_flight));
    assert_eq!(*in_flight, initial);
    assert!(Arc::ptr_eq(reader.current(), &new) && reader.generation() == 1);
    let error = balancer.commit(stale).unwrap_err();
    assert_eq!(error, EplbError::StaleOffer { base: 0, current: 1 });
}

#[test]
fn load_that_gains_nothing_makes_no_offer() {
    let shape = Shape { layers: 2, ..V3 };
    let config = BalancerConfig { mode: Mode::Sync, ..BalancerConfig::default() };
    let balancer = Balancer::new(Placement::identity(shape).unwrap(), config).unwrap();
    balancer.submit(LoadTotals::zero(2, 256).unwrap()).unwrap();
    assert!(balancer.poll().unwrap().is_none());
    let wrong = LoadTotals::zero(3, 256).unwrap();
    assert_eq!(argument(balancer.submit(wrong).unwrap_err()), "loads");
}

#[test]
fn watchdog_reports_a_panicked_worker_until_restart() {
    let shape = Shape { layers: 1, experts: 4, replicas: 4, groups: 1, nodes: 1, gpus: 2 };
    let initial = Placement::identity(shape).unwrap();
    let broken = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&broken);
    let next = Placement::new(shape, vec![3, 2, 1, 0]).unwrap();
    let solver = move |_: &LoadTotals, _: &Placement| {
        assert!(!flag.load(Ordering::SeqCst), "solver broke");
        Ok(Some(next.clone()))
    };
    let config = BalancerConfig::default();
    let mut balancer = Balancer::with_solver(initial, config, Arc::new(solver)).unwrap();
    balancer.submit(LoadTotals::zero(1, 4).unwrap()).unwrap();
    for _ in 0..2 {
        let error = wait(&balancer).unwrap_err();
        assert_eq!(error, EplbError::WorkerDied { reason: "solver broke".into() });
    }
    assert!(matches!(balancer.health(), Health::Dead(_)));
    assert_eq!(balancer.reader().generation(), 0, "the maps in use stay valid");
    broken.store(false, Ordering::SeqCst);
    balancer.restart().unwrap();
    balancer.submit(LoadTotals::zero(1, 4).unwrap()).unwrap();
    let offer = wait(&balancer).unwrap();
    assert_eq!(balancer.commit(offer).unwrap().0, 1);
}

#[test]
fn watchdog_reports_a_hanging_worker_and_its_late_answer_is_thrown_away() {
    let shape = Shape { layers: 1, experts: 4, replicas: 4, groups: 1, nodes: 1, gpus: 2 };
    let release = Arc::new(AtomicBool::new(false));
    let (gate, late) = (Arc::clone(&release), Placement::new(shape, vec![3, 2, 1, 0]).unwrap());
    let solver = move |_: &LoadTotals, _: &Placement| {
        while !gate.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Some(late.clone()))
    };
    let deadline = Duration::from_millis(30);
    let config = BalancerConfig { deadline, ..BalancerConfig::default() };
    let initial = Placement::identity(shape).unwrap();
    let mut balancer = Balancer::with_solver(initial, config, Arc::new(solver)).unwrap();
    assert_eq!(balancer.health(), Health::Idle);
    balancer.submit(LoadTotals::zero(1, 4).unwrap()).unwrap();
    match wait(&balancer) {
        Err(EplbError::WorkerHung { busy, deadline: d }) => assert!(busy > deadline && d == deadline),
        other => panic!("{other:?}"),
    }
    balancer.restart().unwrap();
    assert_eq!(balancer.health(), Health::Idle);
    release.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(20));
    assert!(balancer.poll().unwrap().is_none(), "the abandoned worker's answer came through");
}

/// Prints the times; the limits are asserted in release builds, where nothing else should run.
#[test]
fn rebalance_takes_milliseconds_and_a_swap_microseconds() {
    let load = v3_load();
    let best = |options: &Options<'_>| {
        let time = || {
            let begin = Instant::now();
            std::hint::black_box(rebalance(&load, &V3, options).unwrap());
            begin.elapsed()
        };
        (0..9).map(|_| time()).min().unwrap()
    };
    let old = Placement::identity(V3).unwrap();
    let full = best(&Options { previous: Some(&old), ..Options::default() });
    let serial = best(&Options { previous: Some(&old), parallel: false, ..Options::default() });
    println!(
        "rebalance 61 x 256 -> 288 on 32: {full:?}, one thread {serial:?}, published {:?}",
        best(&Options::published())
    );

    let config = BalancerConfig { mode: Mode::Sync, min_gain: -1.0, ..BalancerConfig::default() };
    let balancer = Balancer::new(old, config).unwrap();
    let mut reader = balancer.reader();
    let mut swaps = Vec::new();
    for i in 0..8 {
        let turned: Vec<f64> = load.iter().cycle().skip(i * 17).take(load.len()).copied().collect();
        balancer.submit(totals(&V3, &turned)).unwrap();
        let begin = Instant::now();
        let offer = balancer.poll().unwrap();
        let polled = begin.elapsed();
        let offer = offer.expect("another load gives another placement");
        let plan = offer.migration().clone();
        let begin = Instant::now();
        let former = balancer.commit(offer).unwrap();
        let seen = reader.current();
        let swap = polled + begin.elapsed();
        assert!(!Arc::ptr_eq(seen, &former.1) && !plan.is_empty());
        swaps.push(swap);
    }
    swaps.sort();
    println!("swap (poll + commit + first read): median {:?}, worst {:?}", swaps[4], swaps[7]);
    let begin = Instant::now();
    for _ in 0..1000 {
        std::hint::black_box(reader.current());
    }
    println!("reader.current(): {:?} for 1000", begin.elapsed());
    if !cfg!(debug_assertions) {
        assert!(full < Duration::from_millis(20), "{full:?}");
        assert!(swaps[4] < Duration::from_micros(10), "{:?}", swaps[4]);
    }
}
