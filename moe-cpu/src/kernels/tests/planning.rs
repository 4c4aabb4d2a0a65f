use super::*;

/// The plan by its definition, one route after the other.
fn naive(args: &PlanArgs<'_>, ids: &[i64]) -> Arrays {
    let (local, rows) = (args.local_experts, row_capacity(args, ids.len()));
    let (mut status, mut load, mut lists) = (vec![0u32; 5], vec![0; args.experts], vec![Vec::new(); local]);
    let tokens = ids.len() / args.top_k;
    let valid = args.valid_tokens.map_or(tokens, |v| (v.max(0) as usize).min(tokens));
    for (x, &id) in ids[..valid * args.top_k].iter().enumerate() {
        if id == -1 {
            status[0] += 1;
        } else if id < 0 || id >= args.experts as i64 {
            status[1] += 1;
        } else {
            load[id as usize] += 1;
            let physical = match args.copies {
                None => id as i32,
                Some(c) => {
                    let (e, n) = (id as usize, c.logcnt[id as usize]);
                    let turn = (x / args.top_k + x % args.top_k) as i32;
                    if (1..=c.width as i32).contains(&n) { c.log2phy[e * c.width + (turn % n) as usize] } else { -1 }
                }
            };
            if physical < 0 || physical as usize >= args.physical_experts() {
                status[1] += 1;
                continue;
            }
            match args.expert_map.map_or(physical, |m| m[physical as usize]) {
                -1 => status[2] += 1,
                e if e < 0 || e as usize >= local => status[1] += 1,
                e => lists[e as usize].push(x),
            }
        }
    }
    for list in &mut lists {
        let mut c = if let Layout::Padded(c) = args.layout { c } else { usize::MAX };
        if let Some(Capacity::ByRoute(limit) | Capacity::ByWeight(limit, _)) = args.capacity {
            c = c.min(limit);
        }
        if let Some(Capacity::ByWeight(_, w)) = args.capacity {
            let rank = |x: &usize| if w.get(*x).is_nan() { f32::NEG_INFINITY } else { w.get(*x) };
            let nan = |x: &usize| w.get(*x).is_nan();
            list.sort_by(|a, b| nan(a).cmp(&nan(b)).then(rank(b).partial_cmp(&rank(a)).unwrap()).then(a.cmp(b)));
        }
        status[3] += list.len().saturating_sub(c) as u32;
        list.truncate(c);
        list.sort_unstable();
    }
    let (mut source, mut slot, mut m_indices) = (vec![-1; rows], vec![-1; ids.len()], vec![-1; rows]);
    let (mut offsets, mut start) = (vec![0], 0);
    for (e, list) in lists.iter().enumerate() {
        for (i, &x) in list.iter().enumerate() {
            source[start + i] = x as i32;
            slot[x] = (start + i) as i32;
            m_indices[start + i] = e as i32;
        }
        start += match args.layout {
            Layout::Packed => list.len(),
            Layout::Aligned(n) => list.len().div_ceil(n) * n,
            Layout::Padded(c) => c,
        };
        offsets.push(start as i32);
    }
    let counts = lists.iter().map(|l| l.len() as i32).collect();
    Arrays { source, slot, offsets, counts, m_indices, status, load }
}

fn check(args: &PlanArgs<'_>, ids: &[i64]) {
    let i32s: Vec<i32> = ids.iter().map(|&x| x as i32).collect();
    let u32s: Vec<u32> = i32s.iter().map(|&x| x as u32).collect();
    let want = naive(args, ids);
    let narrow: Vec<i64> = i32s.iter().map(|&x| i64::from(x)).collect();
    let want32 = naive(args, &narrow);
    in_pools(|threads| {
        for (ids, want) in [(Ids::I64(ids), &want), (Ids::I32(&i32s), &want32), (Ids::U32(&u32s), &want32)] {
            let args = PlanArgs { ids, ..*args };
            let got = build(&args, i32s.len());
            assert!(
                got == *want,
                "E {} local {} K {} {:?}, {threads} threads",
                args.experts,
                args.local_experts,
                args.top_k,
                args.layout
            );
        }
    });
}

/// Copies of experts; some rows of the map cannot be followed.
struct RandomCopies {
    log2phy: Vec<i32>,
    logcnt: Vec<i32>,
    width: usize,
    physical: usize,
}

impl RandomCopies {
    fn args(&self) -> Copies<'_> {
        let &Self { ref log2phy, ref logcnt, width, physical } = self;
        Copies { log2phy, logcnt, width, physical_experts: physical }
    }
}

fn random_copies(rng: &mut Rng, experts: usize) -> RandomCopies {
    let width = 1 + rng.below(5);
    // Fewer physical experts than experts is odd, but a map can say so.
    let physical = (experts + rng.below(40)).saturating_sub(rng.below(20)).max(1);
    let log2phy = (0..experts * width)
        .map(|_| match rng.below(20) {
            0 => [-1, i32::MIN, physical as i32, i32::MAX][rng.below(4)],
            _ => rng.below(physical) as i32,
        })
        .collect();
    let logcnt = (0..experts)
        .map(|_| match rng.below(20) {
            0 => [0, -1, i32::MIN, width as i32 + 1, i32::MAX][rng.below(5)],
            _ => 1 + rng.below(width) as i32,
        })
        .collect();
    RandomCopies { log2phy, logcnt, width, physical }
}

#[test]
fn random_plans_equal_the_definition_for_every_layout_map_capacity_and_id_type() {
    let mut rng = Rng::fresh("plans");
    for round in 0..120 {
        let experts = [1, 3, 60, 127, 128, 160, 257, 1024, 1025, 4096][rng.below(10)];
        let top_k = 1 + rng.below(9);
        let tokens = if round % 8 == 0 { 6000 } else { rng.below(700) };
        let skew = rng.below(3) == 0;
        let ids: Vec<i64> = (0..tokens * top_k)
            .map(|_| match rng.below(12) {
                0 => -1,
                1 => [i64::from(i32::MIN), -2, experts as i64, 1 << 32, i64::MAX, (1 << 40) + 1][rng.below(6)],
                _ if skew => rng.below(2.min(experts)) as i64,
                _ => rng.below(experts) as i64,
            })
            .collect();
        let copies = random_copies(&mut rng, experts);
        let copies = (rng.below(3) == 0).then_some(&copies);
        let physical = copies.map_or(experts, |c| c.physical);
        let local = 1 + rng.below(physical);
        let map: Vec<i32> = (0..physical)
            .map(|_| match rng.below(6) {
                0 | 1 => -1,
                2 => [-7, local as i32, i32::MAX][rng.below(3)],
                _ => rng.below(local) as i32,
            })
            .collect();
        let weights: Vec<f32> =
            (0..ids.len()).map(|_| if rng.below(2) == 0 { rng.float() } else { rng.below(3) as f32 }).collect();
        let mut args = base(top_k, experts);
        args.copies = copies.map(RandomCopies::args);
        args.local_experts = physical;
        if rng.below(2) == 0 {
            (args.expert_map, args.local_experts) = (Some(map.as_slice()), local);
        }
        args.layout = match rng.below(4) {
            0 => Layout::Aligned(1 + rng.below(130)),
            1 => Layout::Padded(rng.below(50)),
            _ => Layout::Packed,
        };
        args.capacity = match rng.below(4) {
            0 => Some(Capacity::ByRoute(rng.below(40))),
            1 => Some(Capacity::ByWeight(rng.below(40), Weights::F32(&weights))),
            _ => None,
        };
        if rng.below(3) == 0 {
            args.valid_tokens = Some(rng.below(tokens + 20) as i32 - 10);
        }
        check(&args, &ids);
    }
}

#[test]
fn equal_and_nan_weights_keep_the_lower_routes() {
    let nan = f32::NAN;
    let weights = [0.0, -0.0, nan, 0.0, f32::NEG_INFINITY, -nan, 1.0];
    for capacity in 0..8 {
        let args = PlanArgs { capacity: Some(Capacity::ByWeight(capacity, Weights::F32(&weights))), ..base(1, 1) };
        check(&args, &[0; 7]);
    }
    let args = PlanArgs {
        capacity: Some(Capacity::ByWeight(4, Weights::F32(&weights))),
        ids: Ids::I32(&[0; 7]),
        ..base(1, 1)
    };
    assert_eq!(build(&args, 7).source[..4], [0, 1, 3, 6]);
}

#[test]
fn no_tokens_and_all_masked_ids_give_an_empty_plan() {
    check(&base(8, 256), &[]);
    check(&base(4, 3), &[-1; 4000]);
    check(&PlanArgs { layout: Layout::Padded(3), ..base(4, 3) }, &[-1; 4000]);
}

#[test]
fn copies_take_turns_by_token_plus_k_and_loads_count_the_expert() {
    // Expert 0 has copies 0, 2 and 3; expert 1 is physical 1; expert 2's count is out of range.
    let copies = Copies { log2phy: &[0, 2, 3, 1, -1, -1, 0, 1, 2], logcnt: &[3, 1, 4], width: 3, physical_experts: 4 };
    let ids = [0, 0, 1, 0, 0, 2, -1, 0];
    let args = PlanArgs { copies: Some(copies), local_experts: 4, ..base(2, 3) };
    check(&args, &ids);
    let got = build(&PlanArgs { ids: Ids::I64(&ids), ..args }, 8);
    // Turns of the routes: 0 1 | 1 2 | 2 3 | 3 4.
    assert_eq!(got.counts, [1, 1, 2, 2]);
    assert_eq!(got.source[..6], [0, 2, 1, 7, 3, 4]);
    assert_eq!((got.load, got.status), (vec![5, 1, 1], vec![1, 1, 0, 0, 0]));
}

#[test]
fn rows_are_written_at_every_alignment_and_nothing_beside_them() {
    let mut rng = Rng::fresh("alignments");
    for shift in 0..17 {
        for (experts, routes) in [(1, 40), (3, 500), (60, 9000), (256, 40_000)] {
            let ids: Vec<i32> = (0..routes).map(|_| rng.below(experts) as i32).collect();
            let args = PlanArgs { ids: Ids::I32(&ids), ..base(1, experts) };
            let want = build(&args, routes);
            in_pools(|threads| {
                let mut source = vec![POISON; routes + 64];
                let at = (source.as_ptr() as usize).wrapping_neg() / 4 % 16 + shift;
                let mut others = want.clone();
                let bytes = plan_scratch_bytes(routes, experts, experts, experts, threads, false);
                let mut out = PlanOut {
                    source: &mut source[at..at + routes],
                    slot: &mut others.slot,
                    expert_offsets: &mut others.offsets,
                    tokens_per_expert: &mut others.counts,
                    m_indices: None,
                    status: &mut others.status,
                    logical_load: None,
                };
                plan(&args, &mut out, &mut vec![0x5a; bytes]);
                assert_eq!(source[at..at + routes], want.source, "E {experts}, {shift} words in, {threads} threads");
                assert!(source[..at].iter().chain(&source[at + routes..]).all(|&x| x == POISON));
                assert_eq!(others.slot, want.slot);
            });
        }
    }
}
