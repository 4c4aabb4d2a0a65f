//! Which instruction set a kernel runs on, picked at run time, and the thresholds that it goes by.

use super::simd::{Scalar, Simd};
#[cfg(target_arch = "x86_64")]
use super::simd_x86::{Avx2, Avx512};
use super::thresholds::Thresholds;

/// An instruction set that this machine has: a value exists only after the processor was asked. With it go the
/// thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tier(Kind, Thresholds);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Tier {
    /// Plain Rust, which every machine has; the compiler vectorises it for the target's baseline.
    pub(crate) const SCALAR: Tier = Tier(Kind::Scalar, Thresholds::BUILT_IN);

    /// The widest that this machine has.
    pub(crate) fn best() -> Tier {
        Self::avx512().or_else(Self::avx2).unwrap_or(Self::SCALAR)
    }

    /// All that this machine has.
    #[cfg(test)]
    pub(crate) fn available() -> impl Iterator<Item = Tier> {
        [Some(Self::SCALAR), Self::avx2(), Self::avx512()].into_iter().flatten()
    }

    /// The one that the knob names: the widest, or a certain one if this machine has it.
    pub(crate) fn named(word: usize) -> Option<Tier> {
        match word {
            0 => Some(Self::best()),
            1 => Some(Self::SCALAR),
            2 => Self::avx2(),
            _ => Self::avx512(),
        }
    }

    /// The same instruction set, with other thresholds.
    pub(crate) fn with(self, thresholds: Thresholds) -> Tier {
        Tier(self.0, thresholds)
    }

    /// The thresholds.
    pub(crate) fn thresholds(&self) -> Thresholds {
        self.1
    }

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2+fma+f16c",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2() -> Option<Tier> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Tier(Kind::Avx2, Thresholds::BUILT_IN))
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512() -> Option<Tier> {
        let has = Self::avx2().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        has.then_some(Tier(Kind::Avx512, Thresholds::BUILT_IN))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn avx2() -> Option<Tier> {
        None
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn avx512() -> Option<Tier> {
        None
    }

    /// Runs a piece of work compiled for this instruction set.
    pub(crate) fn run<O: Op>(self, op: O) {
        match self.0 {
            // SAFETY: the scalar set needs nothing of the processor.
            Kind::Scalar => unsafe { op.run::<Scalar>() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Tier` of this kind is made by `avx2()` alone, after the processor reported these features.
            Kind::Avx2 => unsafe { run_avx2(op) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Tier` of this kind is made by `avx512()` alone, after the processor reported these features.
            Kind::Avx512 => unsafe { run_avx512(op) },
        }
    }
}

/// A piece of work, generic over the instruction set. Implementations mark `run` as `#[inline(always)]`, so that its
/// body is compiled with the features of the function that calls it.
pub(crate) trait Op {
    /// Does the work.
    ///
    /// # Safety
    /// The processor has what `S` needs.
    unsafe fn run<S: Simd>(self);
}

/// # Safety
/// The processor has the enabled features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<O: Op>(op: O) {
    // SAFETY: the features are enabled here, and the caller promised that the processor has them.
    unsafe { op.run::<Avx2>() }
}

/// # Safety
/// The processor has the enabled features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn run_avx512<O: Op>(op: O) {
    // SAFETY: the features are enabled here, and the caller promised that the processor has them.
    unsafe { op.run::<Avx512>() }
}
