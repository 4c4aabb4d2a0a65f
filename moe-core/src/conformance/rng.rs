//! A small generator of random numbers (splitmix64, by Sebastiano Vigna), so that a seed gives the same cases
//! everywhere.

/// Random numbers from a seed.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    /// A generator for one part of the work that a seed stands for.
    pub(super) fn new(seed: u64, part: &str, index: usize) -> Self {
        let mut rng = Self(seed);
        for byte in part.bytes().chain((index as u64).to_le_bytes()) {
            rng.0 ^= u64::from(byte);
            rng.next();
        }
        rng
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait)]
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is at least 1.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// A number from -1 to 1.
    pub(super) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
