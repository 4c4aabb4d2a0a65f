//! Conversions between f32 and the small floats, one value at a time.

/// Rounds to f8e4m3 (the variant without infinities), nearest even. Saturates at ±448, infinities too; any NaN becomes
/// `0x7f`; zeros keep their sign.
#[inline]
pub const fn e4m3(x: f32) -> u8 {
    let bits = x.to_bits();
    let (sign, size) = ((bits >> 24) & 0x80, bits & 0x7fff_ffff);
    // Round 23 bits of mantissa to 3; the exponent's bias goes from 127 to 7.
    let normal = (size.wrapping_add(0x7_ffff + ((size >> 20) & 1)) >> 20).wrapping_sub(120 << 3);
    // Below 2^-6 values are multiples of 2^-9: adding 2^14 leaves exactly those bits, rounded to nearest even.
    let subnormal = (f32::from_bits(size) + 16384.0).to_bits() & 0xff;
    // No branches, so that loops over this become vector code.
    let code = if size < 0x3c80_0000 { subnormal } else { normal };
    let code = if size >= 0x43e0_0000 { 0x7e } else { code }; // 448 and above
    let code = if size > 0x7f80_0000 { 0x7f } else { code | sign };
    code as u8
}

/// Widens f8e4m3; exact. NaN is `0x7fc00000`.
#[inline]
pub const fn e4m3_value(bits: u8) -> f32 {
    let (sign, rest) = ((bits as u32 & 0x80) << 24, bits as u32 & 0x7f);
    if rest == 0x7f {
        return f32::from_bits(0x7fc0_0000);
    }
    if rest < 8 {
        return f32::from_bits(sign | (rest as f32 * 0.001_953_125).to_bits()); // multiples of 2^-9
    }
    f32::from_bits(sign | ((rest << 20) + (120 << 23)))
}

/// Rounds to e2m1 (0, 0.5, 1, 1.5, 2, 3, 4, 6), nearest even, into the low four bits. Saturates at ±6; zeros keep their
/// sign; a NaN becomes +0.
#[inline]
pub const fn e2m1(x: f32) -> u8 {
    // The bounds are halfway between neighbours; a tie goes to the even code. No comparison holds for NaN.
    let size = x.abs();
    let code = (size > 0.25) as u8
        + (size >= 0.75) as u8
        + (size > 1.25) as u8
        + (size >= 1.75) as u8
        + (size > 2.5) as u8
        + (size >= 3.5) as u8
        + (size > 5.0) as u8;
    let sign = (x.to_bits() >> 28) as u8 & 8;
    if x.is_nan() { 0 } else { code | sign }
}

/// Widens the low four bits from e2m1.
#[inline]
pub const fn e2m1_value(bits: u8) -> f32 {
    let size = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][bits as usize & 7];
    if bits & 8 == 0 { size } else { -size }
}

/// Widens e8m0, a power of two from 2^-127 to 2^127; 255 is NaN.
#[inline]
pub const fn e8m0_value(bits: u8) -> f32 {
    match bits {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::from_bits(0x7fc0_0000),
        _ => f32::from_bits((bits as u32) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use float8::F8E4M3;

    /// The nearest of a table's values, ties to the even code: by definition, not by bits.
    fn nearest(x: f32, values: &[f32]) -> u8 {
        let size = f64::from(x.abs()).min(f64::from(values[values.len() - 1]));
        let distance = |code: usize| (f64::from(values[code]) - size).abs();
        let best = (0..values.len()).min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1))));
        best.unwrap() as u8
    }

    /// All f32 around every boundary between two values and around the values, and a sweep of all exponents.
    fn inputs(values: &[f32]) -> Vec<f32> {
        let mut inputs = vec![0.0, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, f32::from_bits(1)];
        for pair in values.windows(2) {
            for centre in [pair[0], (pair[0] + pair[1]) / 2.0, pair[1]] {
                let bits = centre.to_bits();
                inputs.extend((bits.saturating_sub(40)..bits + 40).map(f32::from_bits));
            }
        }
        inputs.extend(
            (0..0xff).flat_map(|e| (0..64).map(move |m| f32::from_bits(e << 23 | m << 17 | (m * 0x1_2345) & 0x1_ffff))),
        );
        let negative: Vec<f32> = inputs.iter().map(|x| -x).collect();
        inputs.extend(negative);
        inputs
    }

    #[test]
    fn e4m3_widens_as_the_float8_crate_does() {
        for bits in 0..=255u8 {
            let (ours, theirs) = (e4m3_value(bits), F8E4M3::from_bits(bits).to_f32());
            assert!(
                ours == theirs && ours.is_sign_negative() == theirs.is_sign_negative()
                    || ours.is_nan() && theirs.is_nan()
            );
        }
    }

    #[test]
    fn e4m3_rounds_to_the_nearest_value() {
        let values: Vec<f32> = (0..0x7f).map(e4m3_value).collect();
        for x in inputs(&values) {
            let want = nearest(x, &values) | if x.is_sign_negative() { 0x80 } else { 0 };
            assert_eq!(e4m3(x), want, "{x:e}");
        }
        for x in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)] {
            assert_eq!(e4m3(x), 0x7f);
        }
    }

    #[test]
    fn every_e4m3_value_survives() {
        for bits in 0..=255u8 {
            assert_eq!(e4m3(e4m3_value(bits)), if bits & 0x7f == 0x7f { 0x7f } else { bits });
        }
    }

    #[test]
    fn e2m1_rounds_to_the_nearest_value() {
        let values: Vec<f32> = (0..8).map(e2m1_value).collect();
        for x in inputs(&values) {
            let want = nearest(x, &values) | if x.is_sign_negative() { 8 } else { 0 };
            assert_eq!(e2m1(x), want, "{x:e}");
        }
        assert_eq!(e2m1(f32::NAN), 0);
        assert!((0..16).all(|code| e2m1(e2m1_value(code)) == code));
    }

    #[test]
    fn e8m0_is_a_power_of_two() {
        for bits in 0..255u8 {
            assert_eq!(f64::from(e8m0_value(bits)), 2f64.powi(i32::from(bits) - 127));
        }
        assert!(e8m0_value(255).is_nan());
    }
}
