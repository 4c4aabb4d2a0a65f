//! What is wanted.

use super::op::Op;
use crate::plan::PlanSpec;
use crate::{DType, DeviceSpec, Error, Layout, Result};
use std::fmt;

/// The sizes that a backend is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sizes {
    /// The most tokens of a batch.
    pub max_tokens: usize,
    /// Tokens of a batch as it mostly is: what candidates are ranked by.
    pub typical_tokens: usize,
    /// K, routes of a token.
    pub top_k: usize,
    /// E, experts.
    pub num_experts: usize,
    /// `E_local`, experts that live on the device.
    pub num_local_experts: usize,
    /// H, elements of a row.
    pub hidden_size: usize,
}

impl Sizes {
    /// All experts local, batches typically as large as they get.
    pub fn new(max_tokens: usize, top_k: usize, num_experts: usize, hidden_size: usize) -> Self {
        let (typical_tokens, num_local_experts) = (max_tokens, num_experts);
        Self { max_tokens, typical_tokens, top_k, num_experts, num_local_experts, hidden_size }
    }

    /// How many tokens a batch mostly has.
    pub fn typical_tokens(self, typical_tokens: usize) -> Self {
        Self { typical_tokens, ..self }
    }

    /// How many experts live on the device.
    pub fn local_experts(self, num_local_experts: usize) -> Self {
        Self { num_local_experts, ..self }
    }
}

/// How rows are quantised on the way; see [`quant`](crate::quant).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Quantisation {
    /// Not at all: rows keep their type.
    #[default]
    None,
    /// f8e4m3, a scale for each row.
    PerToken,
    /// f8e4m3, a scale for 128 elements.
    Block128,
    /// f8e4m3, a power of two for 32 elements.
    Mxfp8,
    /// e2m1, a scale for 16 elements.
    Nvfp4,
}

impl Quantisation {
    /// All that quantise.
    pub const ALL: &'static [Self] = &[Self::PerToken, Self::Block128, Self::Mxfp8, Self::Nvfp4];

    /// The name used in messages and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Quantisation::None => "none",
            Quantisation::PerToken => "fp8 by row",
            Quantisation::Block128 => "fp8 by 128 elements",
            Quantisation::Mxfp8 => "mxfp8",
            Quantisation::Nvfp4 => "nvfp4",
        }
    }
}

/// A [`Layout`] without its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum LayoutKind {
    Packed,
    Aligned,
    Padded,
}

impl LayoutKind {
    /// The name used in messages and reports.
    pub const fn name(self) -> &'static str {
        match self {
            LayoutKind::Packed => "packed",
            LayoutKind::Aligned => "aligned",
            LayoutKind::Padded => "padded",
        }
    }
}

impl From<Layout> for LayoutKind {
    fn from(layout: Layout) -> Self {
        match layout {
            Layout::Packed => Self::Packed,
            Layout::Aligned(_) => Self::Aligned,
            Layout::Padded(_) => Self::Padded,
        }
    }
}

/// A backend or device by name.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Ask {
    /// Any: the fastest by estimate.
    #[default]
    Any,
    /// This one where it can do the work, the fastest of the others where not; the report says which it was.
    Prefer(DeviceSpec),
    /// This one and no other.
    Require(DeviceSpec),
}

impl Ask {
    /// What was named.
    pub fn spec(&self) -> Option<&DeviceSpec> {
        match self {
            Ask::Any => None,
            Ask::Prefer(spec) | Ask::Require(spec) => Some(spec),
        }
    }
}

/// What is wanted of a backend.
#[derive(Clone, Debug)]
pub struct Wish {
    pub(super) ops: Vec<Op>,
    pub(super) dtype: DType,
    pub(super) quantisation: Quantisation,
    pub(super) sizes: Sizes,
    pub(super) layout: Layout,
    pub(super) training: bool,
    pub(super) ask: Ask,
}

impl Wish {
    /// Plan, gather and combine for rows of a type, packed, for inference, on any device.
    pub fn new(sizes: Sizes, dtype: DType) -> Self {
        Self {
            ops: vec![Op::Plan, Op::Gather, Op::Combine],
            dtype,
            quantisation: Quantisation::None,
            sizes,
            layout: Layout::Packed,
            training: false,
            ask: Ask::Any,
        }
    }

    /// Exactly these operations.
    pub fn ops(self, ops: &[Op]) -> Self {
        let mut unique = Vec::new();
        for op in ops {
            if !unique.contains(op) {
                unique.push(*op);
            }
        }
        Self { ops: unique, ..self }
    }

    /// How rows are quantised.
    pub fn quantisation(self, quantisation: Quantisation) -> Self {
        Self { quantisation, ..self }
    }

    /// How the rows of the experts lie.
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// For training: the gradients as well.
    pub fn training(mut self) -> Self {
        if !self.ops.contains(&Op::CombineGrad) {
            self.ops.push(Op::CombineGrad);
        }
        Self { training: true, ..self }
    }

    /// This backend or device where it can do the work.
    pub fn prefer(self, spec: DeviceSpec) -> Self {
        Self { ask: Ask::Prefer(spec), ..self }
    }

    /// This backend or device and no other.
    pub fn require(self, spec: DeviceSpec) -> Self {
        Self { ask: Ask::Require(spec), ..self }
    }

    /// Preferred, required or any.
    pub fn ask(&self) -> &Ask {
        &self.ask
    }

    /// The sizes.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The type of the rows.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How rows are quantised.
    pub fn wanted_quantisation(&self) -> Quantisation {
        self.quantisation
    }

    /// The operations.
    pub fn wanted_ops(&self) -> &[Op] {
        &self.ops
    }

    /// How the rows lie.
    pub fn wanted_layout(&self) -> Layout {
        self.layout
    }

    /// What the library itself asks of a wish, whatever the backend.
    pub(super) fn check(&self) -> Result<Need> {
        const OP: &str = "select";
        let sizes = &self.sizes;
        let error = |arg, expected: String, got: String| Err(Error::InvalidArgument { op: OP, arg, expected, got });
        if self.ops.is_empty() {
            return error("ops", "at least one operation".into(), "none".into());
        }
        if sizes.hidden_size == 0 {
            return error("hidden_size", "at least 1".into(), "0".into());
        }
        if sizes.typical_tokens > sizes.max_tokens {
            let expected = format!("at most {} (max_tokens)", sizes.max_tokens);
            return error("typical_tokens", expected, sizes.typical_tokens.to_string());
        }
        for &op in &self.ops {
            if !op.takes(self.dtype) {
                let takes = match op {
                    Op::Combine => "f32, f16, bf16, f8e4m3 or f8e5m2",
                    _ => "f32, f16 or bf16",
                };
                return error("dtype", format!("{takes} for {op}"), self.dtype.to_string());
            }
        }
        if self.quantisation != Quantisation::None && !matches!(self.dtype, DType::F32 | DType::F16 | DType::BF16) {
            let expected = format!("f32, f16 or bf16 to be quantised to {}", self.quantisation.name());
            return error("dtype", expected, self.dtype.to_string());
        }
        let spec = PlanSpec::new(sizes.max_tokens, sizes.top_k, sizes.num_experts);
        let arrays = spec.local_experts(sizes.num_local_experts).layout(self.layout).check(OP)?;
        let row = (sizes.hidden_size as u64).saturating_mul(self.dtype.size() as u64);
        let rows = arrays.shape.rows as u64;
        let rows_bytes = rows.saturating_mul(row);
        // The tokens' rows, the experts' rows and the result, which may be f32; gradients once more.
        let out = (sizes.max_tokens as u64).saturating_mul(sizes.hidden_size as u64 * 4);
        let once = rows_bytes.saturating_add((sizes.max_tokens as u64).saturating_mul(row)).saturating_add(out);
        let bytes = once.saturating_mul(1 + u64::from(self.training)).saturating_add(arrays.byte_len as u64);
        Ok(Need { rows, rows_bytes, bytes })
    }
}

/// What the largest batch needs.
pub(super) struct Need {
    /// R.
    pub(super) rows: u64,
    /// Bytes of `[R, H]`.
    pub(super) rows_bytes: u64,
    /// Bytes of all buffers.
    pub(super) bytes: u64,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sizes { max_tokens, typical_tokens, top_k, num_experts, num_local_experts, hidden_size } = self.sizes;
        let ops: Vec<&str> = self.ops.iter().map(|op| op.name()).collect();
        write!(f, "{} of {} rows, up to {max_tokens} tokens", ops.join(", "), self.dtype)?;
        if typical_tokens != max_tokens {
            write!(f, " (typically {typical_tokens})")?;
        }
        write!(f, ", top-{top_k} of {num_experts} experts")?;
        if num_local_experts != num_experts {
            write!(f, " ({num_local_experts} local)")?;
        }
        write!(f, ", hidden size {hidden_size}, ")?;
        match self.layout {
            Layout::Packed => write!(f, "packed")?,
            Layout::Aligned(n) => write!(f, "aligned to {n}")?,
            Layout::Padded(n) => write!(f, "padded to {n}")?,
        }
        if self.quantisation != Quantisation::None {
            write!(f, ", quantised to {}", self.quantisation.name())?;
        }
        write!(f, ", for {}", if self.training { "training" } else { "inference" })?;
        match &self.ask {
            Ask::Any => Ok(()),
            Ask::Prefer(spec) => write!(f, "; {spec} preferred"),
            Ask::Require(spec) => write!(f, "; {spec} required"),
        }
    }
}
