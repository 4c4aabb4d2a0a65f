//! A placement: the three maps between logical experts and slots.

use super::error::{EplbError, bad};
use super::shape::Shape;

/// Where the replicas of every expert lie, for all layers.
///
/// Each map is a pure function of `phy2log`: the copies of an expert are listed in ascending slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    shape: Shape,
    width: usize,
    phy2log: Vec<i32>,
    log2phy: Vec<i32>,
    logcnt: Vec<i32>,
}

impl Placement {
    /// Builds the placement from `phy2log` [L, R]: the expert that each slot holds.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if the shape is invalid, the length is not L·R, an expert is out
    /// of range, or an expert has no slot in some layer.
    pub fn new(shape: Shape, phy2log: Vec<i32>) -> Result<Self, EplbError> {
        const OP: &str = "placement";
        shape.validate()?;
        let (l, e, r) = (shape.layers, shape.experts, shape.replicas);
        if phy2log.len() != l * r {
            let expected = format!("{l} x {r} = {} entries", l * r);
            return Err(bad(OP, "phy2log", expected, phy2log.len()));
        }
        let mut logcnt = vec![0i32; l * e];
        for (i, &x) in phy2log.iter().enumerate() {
            match usize::try_from(x) {
                Ok(x) if x < e => logcnt[i / r * e + x] += 1,
                _ => {
                    let got = format!("{x} at layer {}, slot {}", i / r, i % r);
                    return Err(bad(OP, "phy2log", format!("experts below {e}"), got));
                }
            }
        }
        if let Some(i) = logcnt.iter().position(|&c| c == 0) {
            let got = format!("none for expert {} in layer {}", i % e, i / e);
            return Err(bad(OP, "phy2log", "a slot for every expert", got));
        }
        let width = logcnt.iter().copied().max().unwrap_or(1) as usize;
        let log2phy = invert(&shape, &phy2log, width);
        Ok(Self { shape, width, phy2log, log2phy, logcnt })
    }

    /// The placement to start with, and the one that [`rebalance`](super::rebalance) is never
    /// worse than: experts in order, and again from the first one until the slots are full.
    ///
    /// In the hierarchical case each node does this with its own share of the experts (node n has
    /// the groups n·groups/nodes and following), so that groups stay on one node here too.
    ///
    /// # Errors
    /// As [`Shape::validate`].
    pub fn identity(shape: Shape) -> Result<Self, EplbError> {
        shape.validate()?;
        Self::new(shape, identity_layer(&shape).repeat(shape.layers))
    }

    /// The sizes this placement was made for.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// X, the row width of `log2phy`: the largest number of copies of one expert in any layer.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// [L, R]: slot → logical expert.
    #[must_use]
    pub fn phy2log(&self) -> &[i32] {
        &self.phy2log
    }

    /// [L, E, X]: logical expert → its slots in ascending order, then -1.
    #[must_use]
    pub fn log2phy(&self) -> &[i32] {
        &self.log2phy
    }

    /// [L, E]: number of copies, at least 1.
    #[must_use]
    pub fn logcnt(&self) -> &[i32] {
        &self.logcnt
    }

    /// \[R\]: `phy2log` of one layer. Panics if `layer` is out of range, like slicing.
    #[must_use]
    pub fn layer_phy2log(&self, layer: usize) -> &[i32] {
        &self.phy2log[layer * self.shape.replicas..][..self.shape.replicas]
    }

    /// [E, X]: `log2phy` of one layer. Panics if `layer` is out of range, like slicing.
    #[must_use]
    pub fn layer_log2phy(&self, layer: usize) -> &[i32] {
        let n = self.shape.experts * self.width;
        &self.log2phy[layer * n..][..n]
    }

    /// \[E\]: `logcnt` of one layer. Panics if `layer` is out of range, like slicing.
    #[must_use]
    pub fn layer_logcnt(&self, layer: usize) -> &[i32] {
        &self.logcnt[layer * self.shape.experts..][..self.shape.experts]
    }

    /// `log2phy` as [L, E, width]: a device buffer of width R - E + 1 fits every placement of a
    /// shape, so that it need not be allocated anew at a swap.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if `width` is less than [`width`](Self::width).
    pub fn log2phy_padded(&self, width: usize) -> Result<Vec<i32>, EplbError> {
        if width < self.width {
            let expected = format!("at least {}", self.width);
            return Err(bad("log2phy_padded", "width", expected, width));
        }
        Ok(invert(&self.shape, &self.phy2log, width))
    }

    /// Load of each GPU in one layer, if the copies of an expert share its load evenly.
    /// `load` \[E\] is that layer's load.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if `layer` is out of range or `load` has not E values.
    pub fn gpu_loads(&self, layer: usize, load: &[f64]) -> Result<Vec<f64>, EplbError> {
        const OP: &str = "gpu_loads";
        if layer >= self.shape.layers {
            return Err(bad(OP, "layer", format!("below {}", self.shape.layers), layer));
        }
        if load.len() != self.shape.experts {
            return Err(bad(OP, "load", format!("{} values", self.shape.experts), load.len()));
        }
        let counts = self.layer_logcnt(layer);
        Ok(gpu_loads(&self.shape, self.layer_phy2log(layer), counts, load))
    }

    /// Mean over maximum of the GPU loads, per layer: 1 is perfect balance, 1/GPUs the worst.
    /// A layer without load counts as balanced. `load` is [L, E].
    ///
    /// # Errors
    /// [`EplbError::Argument`] if `load` has not L·E values, all finite and none negative.
    pub fn balancedness(&self, load: &[f64]) -> Result<Vec<f64>, EplbError> {
        self.shape.check_load("balancedness", load)?;
        let rows = load.chunks_exact(self.shape.experts).enumerate();
        rows.map(|(l, row)| Ok(mean_over_max(&self.gpu_loads(l, row)?))).collect()
    }
}

/// \[R\]: experts in order and again from the first, per domain.
pub(super) fn identity_layer(shape: &Shape) -> Vec<i32> {
    let domains = shape.domains();
    let (experts, slots) = (shape.experts / domains, shape.replicas / domains);
    (0..shape.replicas).map(|p| (p / slots * experts + p % slots % experts) as i32).collect()
}

/// Copies per expert of one layer.
pub(super) fn counts(experts: usize, phy2log: &[i32]) -> Vec<i32> {
    let mut counts = vec![0; experts];
    for &e in phy2log {
        counts[e as usize] += 1;
    }
    counts
}

/// GPU loads of one layer; each sum runs over the slots in order.
pub(super) fn gpu_loads(shape: &Shape, phy2log: &[i32], counts: &[i32], load: &[f64]) -> Vec<f64> {
    let share = |&e: &i32| load[e as usize] / f64::from(counts[e as usize]);
    phy2log.chunks_exact(shape.slots_per_gpu()).map(|gpu| gpu.iter().map(share).sum()).collect()
}

/// The largest of non-negative loads.
pub(super) fn max_load(loads: &[f64]) -> f64 {
    loads.iter().copied().fold(0.0, f64::max)
}

/// Mean over maximum; 1 where there is no load.
pub(super) fn mean_over_max(loads: &[f64]) -> f64 {
    let max = max_load(loads);
    // Dividing first keeps the sum finite whatever the loads are.
    if max > 0.0 { loads.iter().map(|v| v / max).sum::<f64>() / loads.len() as f64 } else { 1.0 }
}

fn invert(shape: &Shape, phy2log: &[i32], width: usize) -> Vec<i32> {
    let (e, r) = (shape.experts, shape.replicas);
    let mut log2phy = vec![-1; shape.layers * e * width];
    let mut filled = vec![0usize; e];
    for (layer, slots) in phy2log.chunks_exact(r).enumerate() {
        filled.fill(0);
        for (p, &x) in slots.iter().enumerate() {
            let x = x as usize;
            log2phy[(layer * e + x) * width + filled[x]] = p as i32;
            filled[x] += 1;
        }
    }
    log2phy
}
