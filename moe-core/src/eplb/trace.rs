//! Recorded or made-up expert choices.

use super::error::{EplbError, bad};

/// The experts that a run of tokens chose, for each layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    experts: usize,
    top_k: usize,
    tokens: usize,
    layers: Vec<Vec<u16>>,
}

/// A synthetic trace with drifting popularity, see [`Trace::drift`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// L.
    pub layers: usize,
    /// E.
    pub experts: usize,
    /// K, distinct experts per token.
    pub top_k: usize,
    /// T.
    pub tokens: usize,
    /// Exponent s of the popularity: the expert of rank r (from 1) is drawn with weight r⁻ˢ.
    /// 0 is uniform.
    pub skew: f64,
    /// Tokens after which every expert climbs one rank, and the first one falls to the last.
    pub hold: usize,
    /// Seed of the generator.
    pub seed: u64,
}

impl Trace {
    /// A trace from ids [T, K] per layer.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if there is no layer or no token, the layers differ in length, the
    /// length is not a multiple of `top_k`, or an id is not below `experts`.
    pub fn new(experts: usize, top_k: usize, layers: Vec<Vec<u16>>) -> Result<Self, EplbError> {
        const OP: &str = "trace";
        if top_k == 0 {
            return Err(bad(OP, "top_k", "at least 1", top_k));
        }
        let Some(len) = layers.first().map(Vec::len).filter(|&len| len > 0) else {
            return Err(bad(OP, "layers", "at least one layer of at least one token", "none"));
        };
        if len % top_k != 0 {
            return Err(bad(OP, "layers", format!("a multiple of top_k ({top_k}) ids"), len));
        }
        for (l, ids) in layers.iter().enumerate() {
            if ids.len() != len {
                let got = format!("{} in layer {l}", ids.len());
                return Err(bad(OP, "layers", format!("{len} ids in every layer"), got));
            }
            if let Some(id) = ids.iter().find(|&&id| usize::from(id) >= experts) {
                let got = format!("{id} in layer {l}");
                return Err(bad(OP, "layers", format!("ids below {experts}"), got));
            }
        }
        Ok(Self { experts, top_k, tokens: len / top_k, layers })
    }

    /// A trace from u8 ids [T, K] per layer.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_u8(experts: usize, top_k: usize, layers: &[&[u8]]) -> Result<Self, EplbError> {
        let widen = |ids: &&[u8]| ids.iter().map(|&id| u16::from(id)).collect();
        Self::new(experts, top_k, layers.iter().map(widen).collect())
    }

    /// Draws a trace whose popular experts change over time. Each layer has its own order of
    /// experts; equal settings give equal traces.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if a size is zero, there are more than 65,536 experts or fewer than
    /// `top_k`, or `skew` is negative or not finite.
    pub fn drift(drift: &Drift) -> Result<Self, EplbError> {
        const OP: &str = "trace.drift";
        let Drift { layers, experts, top_k, tokens, skew, hold, seed } = *drift;
        for (arg, value) in [("layers", layers), ("tokens", tokens), ("hold", hold)] {
            if value == 0 {
                return Err(bad(OP, arg, "at least 1", value));
            }
        }
        if experts > usize::from(u16::MAX) + 1 {
            return Err(bad(OP, "experts", "at most 65536", experts));
        }
        if top_k == 0 || top_k > experts {
            return Err(bad(OP, "top_k", format!("1 to {experts}"), top_k));
        }
        if !skew.is_finite() || skew < 0.0 {
            return Err(bad(OP, "skew", "a finite number of at least 0", skew));
        }
        let mut total = 0.0;
        let cumulative: Vec<f64> = (1..=experts)
            .map(|rank| {
                total += (rank as f64).powf(-skew);
                total
            })
            .collect();
        let mut random = SplitMix(seed);
        let layers = (0..layers).map(|_| {
            let mut order: Vec<u16> = (0..experts).map(|e| e as u16).collect();
            for i in (1..experts).rev() {
                order.swap(i, random.below(i + 1));
            }
            let mut ids = Vec::with_capacity(tokens * top_k);
            for t in 0..tokens {
                let first = ids.len();
                while ids.len() < first + top_k {
                    let u = random.unit() * total;
                    let mut rank = cumulative.partition_point(|&c| c <= u).min(experts - 1);
                    // Steep popularity repeats itself: the next rank that is free serves as well.
                    let expert = loop {
                        let expert = order[(rank + t / hold) % experts];
                        if !ids[first..].contains(&expert) {
                            break expert;
                        }
                        rank += 1;
                    };
                    ids.push(expert);
                }
            }
            ids
        });
        Self::new(experts, top_k, layers.collect())
    }

    /// L.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// E.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// K.
    #[must_use]
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// T.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The ids of `count` tokens from `first`, clipped to the trace, in one layer. Panics if
    /// `layer` is out of range, like slicing.
    #[must_use]
    pub fn ids(&self, layer: usize, first: usize, count: usize) -> &[u16] {
        let first = first.min(self.tokens);
        let end = first.saturating_add(count).min(self.tokens);
        &self.layers[layer][first * self.top_k..end * self.top_k]
    }
}

/// Steele, Lea and Flood's SplitMix64 (OOPSLA 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is small against 2⁶⁴.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In [0, 1), 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
