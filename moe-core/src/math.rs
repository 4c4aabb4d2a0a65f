//! `exp`, `ln`, `sigmoid` and `silu` in f32, the same bits on every machine.
//!
//! A processor's or a driver's own functions differ in the last bits, and an expert is chosen by comparing them. So the
//! arithmetic is written down here, one IEEE operation after the other, each rounded to nearest even, and every backend
//! repeats it: `a * b + c` is one fused multiply-add where the code says `mul_add`, and nowhere else. Results are never
//! subnormal except where a division makes them so ([`sigmoid`], [`silu`]).
//!
//! [`exp`] is within 1 ulp of the true value, [`ln`] within 1 ulp, [`sigmoid`] and [`silu`] within 2.5 ulp from -87 up.
//! The polynomials are minimax fits made for this crate.

/// Added and taken off again, it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
const LOG2_E: f32 = f32::from_bits(0x3fb8_aa3b);
const LN_2: f32 = f32::from_bits(0x3f31_7218);
/// ln 2 - `LN_2`.
const LN_2_REST: f32 = f32::from_bits(0xb102_e308);
/// ln 2 with eight bits to spare: times an exponent it is exact.
const LN_2_SHORT: f32 = f32::from_bits(0x3f31_7200);
/// ln 2 - `LN_2_SHORT`.
const LN_2_SHORT_REST: f32 = f32::from_bits(0x35bf_be8e);
/// The smallest x with a normal result, and the largest with a finite one.
const EXP_RANGE: (f32, f32) = (f32::from_bits(0xc2ae_ac4f), f32::from_bits(0x42b1_7217));
/// The coefficients of r², r³, … in e^r on ±ln 2 / 2.
const EXP: [u32; 5] = [0x3eff_fffe, 0x3e2a_aa49, 0x3d2a_ac79, 0x3c09_1ceb, 0x3ab5_121b];
/// The coefficients of f³, f⁴, … in ln(1 + f) between √½ and √2.
const LN: [u32; 9] = [
    0x3eaa_aaa4,
    0xbe80_0003,
    0x3e4c_d25b,
    0xbe2a_ae26,
    0x3e11_9bad,
    0xbdfe_110b,
    0x3df3_789a,
    0xbdef_1dfd,
    0x3d8a_2ae9,
];
const SQRT_HALF: u32 = 0x3f35_04f3;

/// The one NaN that is written.
pub const NAN: f32 = f32::from_bits(0x7fc0_0000);

/// e^x. 1 for 0; infinity above 88.72283; +0 below -87.33654, where the result would be subnormal; [`NAN`] for NaN.
///
/// ```text
/// z = fma(x, log2 e, 1.5 * 2^23)      n = z - 1.5 * 2^23
/// r = fma(n, -ln2, x)                 r = fma(n, -ln2_rest, r)
/// p = c6; p = fma(p, r, c5), …, fma(p, r, c2), fma(p, r, 1), fma(p, r, 1)
/// e^x = p with n added to its exponent: bits(p) + (bits(z) << 23)
/// ```
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let z = x.mul_add(LOG2_E, ROUND);
    let n = z - ROUND;
    let r = n.mul_add(-LN_2_REST, n.mul_add(-LN_2, x));
    let mut p = f32::from_bits(EXP[4]);
    p = p.mul_add(r, f32::from_bits(EXP[3]));
    p = p.mul_add(r, f32::from_bits(EXP[2]));
    p = p.mul_add(r, f32::from_bits(EXP[1]));
    p = p.mul_add(r, f32::from_bits(EXP[0]));
    p = p.mul_add(r, 1.0).mul_add(r, 1.0);
    let y = f32::from_bits(p.to_bits().wrapping_add(z.to_bits() << 23));
    let y = if x < EXP_RANGE.0 { 0.0 } else { y };
    let y = if x > EXP_RANGE.1 { f32::INFINITY } else { y };
    if x.is_nan() { NAN } else { y }
}

/// The natural logarithm. -infinity for ±0 and subnormal numbers, [`NAN`] for NaN and below, infinity for infinity.
///
/// ```text
/// x = 2^e (1 + f), 1 + f between √½ and √2: e = (bits(x) - bits(√½)) >> 23
/// p = c11; p = fma(p, f, c10), …, fma(p, f, c3)
/// s = f * f                y = (p * f) * s
/// y = fma(-1/2, s, y)      y = fma(e, ln2_short_rest, y)
/// ln x = fma(e, ln2_short, f + y)
/// ```
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let e = (x.to_bits().wrapping_sub(SQRT_HALF) as i32) >> 23;
    let f = f32::from_bits(x.to_bits().wrapping_sub((e << 23) as u32)) - 1.0;
    let e = e as f32;
    let mut p = f32::from_bits(LN[8]);
    for c in LN[..8].iter().rev() {
        p = p.mul_add(f, f32::from_bits(*c));
    }
    let s = f * f;
    let y = (p * f) * s;
    let y = s.mul_add(-0.5, y);
    let y = e.mul_add(LN_2_SHORT_REST, y);
    let y = e.mul_add(LN_2_SHORT, f + y);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x < f32::MIN_POSITIVE { f32::NEG_INFINITY } else { y };
    if x <= -f32::MIN_POSITIVE || x.is_nan() { NAN } else { y }
}

/// 1 / (1 + e^-x), with an addition and a division that round. 0 for -infinity, 1 for infinity, [`NAN`] for NaN.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let y = 1.0 / (1.0 + exp(-x));
    if x.is_nan() { NAN } else { y }
}

/// x / (1 + e^-x), with an addition and a division that round. [`NAN`] for NaN and -infinity (where it is -∞ / ∞); -0
/// from -88.72284 down to the smallest number.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    let y = x / (1.0 + exp(-x));
    if y.is_nan() { NAN } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 997th number, and the numbers around the ends of the ranges.
    fn numbers() -> impl Iterator<Item = f32> {
        let ends = [EXP_RANGE.0, EXP_RANGE.1, 0.0, -0.0, 1.0, f32::MIN_POSITIVE, f32::MAX, f32::from_bits(SQRT_HALF)];
        let near = ends.into_iter().flat_map(|end| (-3i32..4).map(move |d| end.to_bits().wrapping_add_signed(d)));
        (0..u32::MAX).step_by(997).chain(near).map(f32::from_bits)
    }

    /// The largest error in units in the last place of the true value, over normal results.
    fn worst(f: fn(f32) -> f32, from: f32, truth: fn(f64) -> f64) -> f64 {
        let mut worst = 0f64;
        for x in numbers() {
            let (got, truth) = (f64::from(f(x)), truth(f64::from(x)));
            if x < from
                || x.is_subnormal()
                || truth.abs() < f64::from(f32::MIN_POSITIVE)
                || truth.is_nan()
                || truth.abs() > f64::from(f32::MAX)
            {
                continue;
            }
            let ulp = 2f64.powi(truth.abs().log2().floor() as i32 - 23);
            let error = (got - truth).abs() / ulp;
            assert!(error < 16.0, "f({x:e}) is {got:e}, not {truth:e}");
            worst = worst.max(error);
        }
        worst
    }

    #[test]
    fn errors_are_as_written() {
        let found = [
            ("exp", worst(exp, f32::MIN, f64::exp), 1.0),
            ("ln", worst(ln, f32::MIN, f64::ln), 1.0),
            ("sigmoid", worst(sigmoid, -87.0, |x| 1.0 / (1.0 + (-x).exp())), 2.5),
            ("silu", worst(silu, -87.0, |x| x / (1.0 + (-x).exp())), 2.5),
        ];
        for (name, error, bound) in found {
            println!("{name}: {error:.3} ulp");
            assert!(error <= bound, "{name}: {error} ulp");
        }
    }

    #[test]
    fn ends_are_exact() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        /// A function, and pairs of argument and result.
        type Ends<'a> = (fn(f32) -> f32, &'a [(f32, f32)]);
        let cases: &[Ends] = &[
            (
                exp,
                &[
                    (0.0, 1.0),
                    (-0.0, 1.0),
                    (-inf, 0.0),
                    (-88.0, 0.0),
                    (-1e38, 0.0),
                    (89.0, inf),
                    (inf, inf),
                    (nan, NAN),
                    (-nan, NAN),
                ],
            ),
            (
                ln,
                &[
                    (1.0, 0.0),
                    (0.0, -inf),
                    (-0.0, -inf),
                    (1e-40, -inf),
                    (-1e-40, -inf),
                    (inf, inf),
                    (-1.0, NAN),
                    (-inf, NAN),
                    (-nan, NAN),
                ],
            ),
            (sigmoid, &[(0.0, 0.5), (-inf, 0.0), (inf, 1.0), (-100.0, 0.0), (100.0, 1.0), (nan, NAN), (-nan, NAN)]),
            (
                silu,
                &[
                    (0.0, 0.0),
                    (-0.0, -0.0),
                    (inf, inf),
                    (-inf, NAN),
                    (-100.0, -0.0),
                    (100.0, 100.0),
                    (nan, NAN),
                    (-nan, NAN),
                ],
            ),
        ];
        for (i, (f, pairs)) in cases.iter().enumerate() {
            for (x, y) in *pairs {
                assert_eq!(f(*x).to_bits(), y.to_bits(), "function {i} of {x}");
            }
        }
    }

    /// What other backends' tables can be compared with.
    #[test]
    fn bits_stay_as_they_are() {
        let digest = |f: fn(f32) -> f32| {
            let fnv = |hash: u32, x: f32| (hash ^ f(x).to_bits()).wrapping_mul(0x0100_0193);
            (0..u32::MAX).step_by(65_521).map(f32::from_bits).fold(0x811c_9dc5, fnv)
        };
        let digests = [exp, ln, sigmoid, silu].map(|f| format!("{:08x}", digest(f)));
        assert_eq!(digests, ["143edcc8", "19a789e2", "4a026d49", "297f69bd"]);
    }
}
