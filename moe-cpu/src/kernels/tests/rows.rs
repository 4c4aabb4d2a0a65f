use super::*;

/// Bytes at an odd address, with guards on both sides.
struct Guarded {
    bytes: Vec<u8>,
    shift: usize,
    len: usize,
}

impl Guarded {
    fn new(len: usize, shift: usize) -> Self {
        Guarded { bytes: vec![0xa5; len + 128], shift, len }
    }
    fn of(data: &[u8], shift: usize) -> Self {
        let mut g = Self::new(data.len(), shift);
        g.get_mut().copy_from_slice(data);
        g
    }
    fn get(&self) -> &[u8] {
        &self.bytes[self.shift..][..self.len]
    }
    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.shift..][..self.len]
    }
    fn assert_guards(&self) {
        let (head, tail) = (&self.bytes[..self.shift], &self.bytes[self.shift + self.len..]);
        assert!(head.iter().chain(tail).all(|&b| b == 0xa5), "written out of bounds");
    }
}

struct Case {
    plan: Arrays,
    top_k: usize,
    tokens: usize,
    hidden: usize,
    shift: usize,
    weights: Vec<f32>,
}

const HIDDEN: [usize; 9] = [1, 7, 15, 16, 64, 100, 1025, 1500, 2048];

fn case(rng: &mut Rng) -> Case {
    let experts = [1, 5, 32][rng.below(3)];
    let top_k = [1, 2, 8, 40][rng.below(4)];
    let hidden = HIDDEN[rng.below(HIDDEN.len())];
    let tokens = [0, 1, 5, 40, 1 + 400_000 / (hidden * top_k)][rng.below(5)].min(700);
    let ids: Vec<i32> = (0..tokens * top_k).map(|_| rng.below(experts + 1) as i32 - 1).collect();
    let layout = if rng.below(2) == 0 { Layout::Packed } else { Layout::Aligned(5) };
    let args = PlanArgs { ids: Ids::I32(&ids), layout, ..base(top_k, experts) };
    let plan = build(&args, ids.len());
    let weights = (0..ids.len()).map(|_| rng.float()).collect();
    Case { plan, top_k, tokens, hidden, shift: rng.below(64), weights }
}

/// Runs a kernel on every instruction set and number of threads, through the cache and past it, and compares with what
/// the naive version gives.
fn everywhere(want: &Guarded, fresh: &(dyn Fn() -> Guarded + Sync), f: &(dyn Fn(Tier, &mut [u8]) + Sync), what: &str) {
    in_pools(|threads| {
        for tier in Tier::available().flat_map(|tier| [tier, tier.with(Thresholds::EAGER)]) {
            let mut got = fresh();
            f(tier, got.get_mut());
            got.assert_guards();
            let differs = got.get().iter().zip(want.get()).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{what} on {} with {threads} threads: first byte that differs", tier.name());
        }
    });
}

#[test]
fn gather_copies_bits_zeroes_padding_and_leaves_the_tail_alone() {
    let mut rng = Rng::fresh("gather");
    for _ in 0..60 {
        let c = case(&mut rng);
        let elem = [Elem::F32, Elem::F16, Elem::Bf16, Elem::E4m3][rng.below(4)];
        let scaled = elem != Elem::E4m3 && rng.below(2) == 0;
        let row = c.hidden * elem.size();
        let stride = row + rng.below(2) * 13;
        let x = Guarded::of(&rng.elems(elem, c.tokens * c.hidden), c.shift);
        let rows = c.plan.source.len();
        let fresh = || Guarded::new(rows * stride, 63 - c.shift);
        let mut want = fresh();
        let used = c.plan.offsets[c.plan.offsets.len() - 1] as usize;
        for (r, &source) in c.plan.source[..used].iter().enumerate() {
            let dst = &mut want.get_mut()[r * stride..][..row];
            if source < 0 {
                dst.fill(0);
                continue;
            }
            let src = &x.get()[source as usize / c.top_k * row..][..row];
            for i in 0..c.hidden {
                let at = i * elem.size();
                let value = if scaled {
                    rounded(elem, c.weights[source as usize] * decode(elem, src, i))
                } else {
                    src[at..at + elem.size()].to_vec()
                };
                dst[at..at + elem.size()].copy_from_slice(&value);
            }
        }
        let weights = scaled.then_some((Weights::F32(&c.weights), elem));
        let args = Gather {
            plan: c.plan.placement(c.top_k),
            rows: Rows { bytes: x.get(), stride: row },
            row_bytes: row,
            weights,
        };
        let run = |tier: Tier, out: &mut [u8]| gather(tier, &args, RowsMut { bytes: out, stride });
        everywhere(&want, &fresh, &run, &format!("gather {elem:?} H {} scaled {scaled}", c.hidden));
    }
}

#[test]
fn long_rows_of_whole_lines_are_gathered_in_pieces_without_a_gap() {
    let mut rng = Rng::fresh("pieces");
    // Rows of pieces, of less than one, and with a rest; tokens with more routes than are written side by side.
    for (lines, top_k) in [(16, 8), (9, 3), (40, 8), (224, 2), (49, 37)] {
        let (row, experts) = (lines * 64, 5);
        let tokens = (3 << 20) / (row * top_k) + 1;
        let ids: Vec<i32> = (0..tokens * top_k).map(|_| rng.below(experts + 1) as i32 - 1).collect();
        let plan =
            build(&PlanArgs { ids: Ids::I32(&ids), layout: Layout::Aligned(3), ..base(top_k, experts) }, ids.len());
        let used = plan.offsets[experts] as usize;
        let x: Vec<u8> = (0..tokens * row).map(|_| rng.next() as u8).collect();
        let args = Gather {
            plan: plan.placement(top_k),
            rows: Rows { bytes: &x, stride: row },
            row_bytes: row,
            weights: None,
        };
        in_pools(|threads| {
            for tier in Tier::available() {
                let mut out = vec![0xa5u8; (used + 2) * row];
                let start = out.as_ptr().align_offset(64);
                gather(tier, &args, RowsMut { bytes: &mut out[start..start + used * row], stride: row });
                for (r, &source) in plan.source[..used].iter().enumerate() {
                    let got = &out[start + r * row..][..row];
                    let same = match usize::try_from(source) {
                        Ok(route) => got == &x[route / top_k * row..][..row],
                        Err(_) => got.iter().all(|&b| b == 0),
                    };
                    assert!(same, "row {r} of {lines} lines, K {top_k}, {} with {threads} threads", tier.name());
                }
                assert!(out[..start].iter().chain(&out[start + used * row..]).all(|&b| b == 0xa5));
            }
        });
    }
}

#[test]
fn combine_sums_in_order_with_one_rounding_and_reads_no_row_that_is_not_placed() {
    let mut rng = Rng::fresh("combine");
    for _ in 0..120 {
        let c = case(&mut rng);
        let elem = [Elem::F32, Elem::F16, Elem::Bf16, Elem::E4m3, Elem::E5m2][rng.below(5)];
        let out_elem = [Elem::F32, Elem::F16, Elem::Bf16][rng.below(3)];
        let block = elem.size() == 1 && rng.below(3) > 0;
        let block = block.then(|| [1, 3, 32, 128][rng.below(4)]);
        let weighted = rng.below(4) > 0;
        let f16_weights: Vec<half::f16> = c.weights.iter().map(|&w| half::f16::from_f32(w)).collect();
        let weights = match (weighted, rng.below(2)) {
            (false, _) => None,
            (true, 0) => Some(Weights::F32(&c.weights)),
            _ => Some(Weights::F16(&f16_weights)),
        };
        let rows = c.plan.source.len();
        let y = Guarded::of(&rng.elems(elem, rows * c.hidden), c.shift);
        let row = c.hidden * out_elem.size();
        let x0 = (rng.below(2) == 0).then(|| rng.elems(out_elem, c.tokens * c.hidden));
        let per_row = block.map_or(0, |b| c.hidden.div_ceil(b));
        let scales: Vec<f32> = (0..rows * per_row).map(|_| rng.float()).collect();
        let scale_bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_ne_bytes()).collect();

        let fresh = || Guarded::new(c.tokens * row, 63 - c.shift);
        let mut want = fresh();
        for t in 0..c.tokens {
            for h in 0..c.hidden {
                let mut sum = x0.as_ref().map_or(0.0, |x| decode(out_elem, x, t * c.hidden + h));
                for k in 0..c.top_k {
                    let Ok(slot) = usize::try_from(c.plan.slot[t * c.top_k + k]) else { continue };
                    let mut w = weights.map_or(1.0, |w| w.get(t * c.top_k + k));
                    if let Some(b) = block {
                        w *= scales[slot * per_row + h / b];
                    }
                    sum = w.mul_add(decode(elem, y.get(), slot * c.hidden + h), sum);
                }
                let at = t * row + h * out_elem.size();
                want.get_mut()[at..at + out_elem.size()].copy_from_slice(&rounded(out_elem, sum));
            }
        }
        let args = Combine {
            plan: c.plan.placement(c.top_k),
            rows: Rows { bytes: y.get(), stride: c.hidden * elem.size() },
            elem,
            hidden: c.hidden,
            scales: block.map(|block| Scales { rows: Rows { bytes: &scale_bytes, stride: per_row * 4 }, block }),
            weights,
            init: x0.as_ref().map(|x| Rows { bytes: x, stride: row }),
            init_scale: 1.0,
            out_elem,
        };
        let run = |tier: Tier, out: &mut [u8]| combine(tier, &args, RowsMut { bytes: out, stride: row });
        everywhere(
            &want,
            &fresh,
            &run,
            &format!("combine {elem:?} to {out_elem:?} H {} K {} {block:?}", c.hidden, c.top_k),
        );
    }
}

/// The dot product in the order that is promised.
fn dot(elem: Elem, a: &[u8], b: &[u8], hidden: usize) -> f32 {
    let mut lanes = [0f32; 1024];
    for h in 0..hidden {
        lanes[h % 1024] = decode(elem, a, h).mul_add(decode(elem, b, h), lanes[h % 1024]);
    }
    for half in [512, 256, 128, 64, 32, 16, 8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

#[test]
fn gradients_have_the_promised_order_of_sums_and_zero_where_nothing_is_placed() {
    let mut rng = Rng::fresh("gradients");
    for _ in 0..60 {
        let c = case(&mut rng);
        let elem = [Elem::F32, Elem::F16, Elem::Bf16][rng.below(3)];
        let row = c.hidden * elem.size();
        let rows = c.plan.source.len();
        let y = Guarded::of(&rng.elems(elem, rows * c.hidden), c.shift);
        let dx = Guarded::of(&rng.elems(elem, c.tokens * c.hidden), c.shift / 2);
        let fresh = || Guarded::new(rows * row, 63 - c.shift);
        let mut want = fresh();
        let mut want_dw = vec![0f32; c.plan.slot.len()];
        let used = c.plan.offsets[c.plan.offsets.len() - 1] as usize;
        for (r, &x) in c.plan.source[..used].iter().enumerate() {
            let dst = &mut want.get_mut()[r * row..][..row];
            dst.fill(0);
            if let Ok(x) = usize::try_from(x) {
                let dx = &dx.get()[x / c.top_k * row..][..row];
                for h in 0..c.hidden {
                    let value = rounded(elem, c.weights[x] * decode(elem, dx, h));
                    dst[h * elem.size()..][..elem.size()].copy_from_slice(&value);
                }
                want_dw[x] = dot(elem, &y.get()[r * row..][..row], dx, c.hidden);
            }
        }
        let want_dw: Vec<Vec<u8>> = want_dw.iter().map(|&x| rounded(Elem::F32, x)).collect();
        let args = CombineGrad {
            plan: c.plan.placement(c.top_k),
            dx: Rows { bytes: dx.get(), stride: row },
            y: Some(Rows { bytes: y.get(), stride: row }),
            elem,
            hidden: c.hidden,
            weights: Some(Weights::F32(&c.weights)),
        };
        let run = |tier: Tier, out: &mut [u8]| {
            let mut dw = vec![f32::NAN; want_dw.len()];
            combine_grad(tier, &args, Some(RowsMut { bytes: out, stride: row }), Some(WeightsMut::F32(&mut dw)));
            for (got, want) in dw.iter().zip(&want_dw) {
                assert_eq!(got.to_ne_bytes().to_vec(), *want, "dw {elem:?} H {} on {}", c.hidden, tier.name());
            }
            let mut alone = vec![half::bf16::NAN; want_dw.len()];
            combine_grad(tier, &args, None, Some(WeightsMut::Bf16(&mut alone)));
            for (got, full) in alone.iter().zip(&dw) {
                assert_eq!(got.to_ne_bytes().to_vec(), rounded(Elem::Bf16, *full), "dw rounded to bf16");
            }
        };
        everywhere(&want, &fresh, &run, &format!("combine_grad {elem:?} H {}", c.hidden));
    }
}

#[test]
fn index_arrays_that_lie_are_never_followed_out_of_bounds() {
    let mut rng = Rng::fresh("lies");
    for _ in 0..40 {
        let (tokens, top_k, hidden, rows) = (1 + rng.below(50), 1 + rng.below(5), 1 + rng.below(300), rng.below(120));
        let any = |rng: &mut Rng, n: usize| -> Vec<i32> {
            (0..n).map(|_| if rng.below(4) == 0 { rng.next() as i32 } else { rng.below(rows + 2) as i32 - 1 }).collect()
        };
        let (slot, source) = (any(&mut rng, tokens * top_k), any(&mut rng, rows));
        let offsets = [0, rng.next() as i32];
        let plan = Placement { source: &source, slot: &slot, expert_offsets: &offsets, top_k };
        let row = hidden * 2;
        let x = vec![1u8; tokens * row];
        let y = vec![1u8; rows * row];
        in_pools(|_| {
            for tier in Tier::available() {
                let mut out = Guarded::new(rows * row, 5);
                let rows_x = Rows { bytes: &x, stride: row };
                let args = Gather { plan, rows: rows_x, row_bytes: row, weights: None };
                gather(tier, &args, RowsMut { bytes: out.get_mut(), stride: row });
                out.assert_guards();
                let mut out = Guarded::new(tokens * row, 5);
                let args = Combine {
                    plan,
                    rows: Rows { bytes: &y, stride: row },
                    elem: Elem::Bf16,
                    hidden,
                    scales: None,
                    weights: None,
                    init: None,
                    init_scale: 1.0,
                    out_elem: Elem::Bf16,
                };
                combine(tier, &args, RowsMut { bytes: out.get_mut(), stride: row });
                out.assert_guards();
            }
        });
    }
}

#[test]
fn both_copies_copy_everything() {
    let mut rng = Rng::fresh("copies");
    for len in [0, 1, 63, 64, 1000, 3 << 20] {
        let src: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
        let (mut a, mut b) = (vec![0; len], vec![0; len]);
        copy_memcpy(&src, &mut a);
        copy_streaming(Tier::best(), &src, &mut b);
        assert!(a == src && b == src, "{len} bytes");
    }
}
