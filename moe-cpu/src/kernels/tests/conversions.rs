use super::*;
use crate::kernels::elem::{self, Input, Output};
use crate::kernels::simd::Simd;
use crate::kernels::tier::Op;

struct Widen<'a, I>(&'a [u8], &'a mut Vec<f32>, std::marker::PhantomData<I>);

impl<I: Input> Op for Widen<'_, I> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.0.len() / I::SIZE;
        self.1.resize(n, 0.0);
        for i in (0..n).step_by(S::LANES) {
            // SAFETY: the tests give a multiple of 16 elements, which all vectors divide.
            unsafe { S::store_raw(self.1.as_mut_ptr().add(i).cast(), I::load::<S>(self.0.as_ptr().add(i * I::SIZE))) }
        }
    }
}

struct Narrow<'a, O>(&'a [f32], &'a mut Vec<u8>, std::marker::PhantomData<O>);

impl<O: Output> Op for Narrow<'_, O> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        self.1.resize(self.0.len() * O::SIZE, 0);
        for i in (0..self.0.len()).step_by(S::LANES) {
            // SAFETY: the tests give a multiple of 16 elements, which all vectors divide.
            unsafe {
                let v = S::load_f32(self.0.as_ptr().add(i).cast());
                O::store::<S, false>(self.1.as_mut_ptr().add(i * O::SIZE), v);
            }
        }
    }
}

fn widens_all<I: Input>(elem: Elem, bytes: &[u8]) {
    for tier in Tier::available() {
        let mut got = Vec::new();
        tier.run(Widen::<I>(bytes, &mut got, std::marker::PhantomData));
        for (i, got) in got.iter().enumerate() {
            let want = decode(elem, bytes, i);
            let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            assert!(same, "{elem:?} element {i} on {}: {got} for {want}", tier.name());
        }
    }
}

#[test]
fn every_bit_pattern_of_the_small_floats_widens_exactly() {
    let bytes: Vec<u8> = (0..=255).collect();
    widens_all::<elem::E4m3>(Elem::E4m3, &bytes);
    widens_all::<elem::E5m2>(Elem::E5m2, &bytes);
    let words: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_ne_bytes).collect();
    widens_all::<elem::F16>(Elem::F16, &words);
    widens_all::<elem::Bf16>(Elem::Bf16, &words);
}

fn narrows_all<O: Output>(elem: Elem, values: &[f32]) {
    for tier in Tier::available() {
        let mut got = Vec::new();
        tier.run(Narrow::<O>(values, &mut got, std::marker::PhantomData));
        for (i, &x) in values.iter().enumerate() {
            let want = rounded(elem, x);
            assert_eq!(got[i * O::SIZE..][..O::SIZE], want, "{elem:?} of {:#x} on {}", x.to_bits(), tier.name());
        }
    }
}

#[test]
fn rounding_is_nearest_even_with_canonical_nan_and_subnormals_on_every_instruction_set() {
    let mut rng = Rng::fresh("rounding");
    // All sign and exponent values with mantissas around the ties of f16 and bf16, then random bits.
    let mut values = Vec::new();
    for high in 0..512u32 {
        for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0xfff, 0x1000, 0x1001, 0x3000, 0x2000, 0x7f_ffff] {
            values.push(f32::from_bits(high << 23 | low));
        }
    }
    values.extend((0..1 << 18).map(|_| f32::from_bits((rng.next() >> 16) as u32)));
    values.truncate(values.len() / 16 * 16);
    narrows_all::<elem::F32>(Elem::F32, &values);
    narrows_all::<elem::F16>(Elem::F16, &values);
    narrows_all::<elem::Bf16>(Elem::Bf16, &values);
}
