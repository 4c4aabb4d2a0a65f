//! Quantised rows: formats, their scales, and the exact rules.
//!
//! A quantised row is a row of small floats and one scale for each group of neighbouring elements; what an element
//! stands for is `value * scale`. [`RoutePlan::gather_quant`](crate::RoutePlan::gather_quant) quantises while it
//! gathers, [`Swiglu::quantized`](crate::Swiglu::quantized) while it activates.
//!
//! | format | values | group | scale | layouts of the scales |
//! |---|---|---|---|---|
//! | [`PerToken`] | f8e4m3 | the row | f32 | row-major |
//! | [`Block128`] | f8e4m3 | 128 | f32 | row-major, column-major |
//! | [`Mxfp8`] | f8e4m3 | 32 | e8m0, a power of two, as `u8` | row-major, swizzled |
//! | [`Nvfp4`] | e2m1, two in a byte | 16 | f8e4m3, and one f32 for all rows, given by the caller | row-major, swizzled |
//!
//! A row whose length is no multiple of the group ends with a shorter group.
//!
//! # The rules
//! Rows are widened to f32, and every step below is one IEEE operation in f32 with rounding to nearest even; subnormals
//! are kept. CPU and CUDA give these bits; wgpu may flush subnormals and divides within 2.5 ulp, so that a value
//! there can be a neighbouring one. `amax` is the largest magnitude of a group; it is NaN where an element is.
//!
//! **[`PerToken`] and [`Block128`]**, with r the f32 nearest to 1/448 (`0x3b124925`):
//!
//! ```text
//! scale = max(amax * r, 1e-12)          value = e4m3(x / scale)
//! ```
//!
//! Multiplying by r and dividing by 448 differ in the last bit, and bf16 rows often lie on ties of e4m3: a scale that
//! is off by one bit moves a layer's output by half a percent. PyTorch's and vLLM's dynamic quantisation differ here among
//! themselves; this is the rule of the recorded layer in `benches/data`.
//! A group of zeros has scale 1e-12. With a NaN in the group the scale is NaN (`0x7fc00000`) and so is every value;
//! with an infinity and no NaN the scale is +inf, finite elements become zeros of their sign and infinite ones NaN:
//! what the formulas give.
//!
//! **[`Mxfp8`]**: the scale is `2^(s - 127)` with a byte s. With `amax = m * 2^e`, `1 <= m < 2`:
//!
//! ```text
//! Floor:   s = max(e - 8 + 127, 0)                         value = e4m3(x * 2^(127 - s))
//! Ceil:    the same, with e + 1 where m > 1.75
//! ```
//!
//! `Floor` is what the OCP Microscaling specification 1.0 (section 6.3) gives, and elements above 448 scales saturate.
//! `Ceil` is the smallest power of two that fits `amax` without saturation: TransformerEngine, FlashInfer and the
//! "RCEIL" of torchao round up. A group of zeros, or one below 2^-118, has s = 0. With a NaN or an infinity in the group s
//! is 255 (NaN) and every value is NaN.
//!
//! **[`Nvfp4`]**, with g the caller's global scale (usually `448 * 6 / amax of all rows`, as vLLM's
//! `scaled_fp4_quant` wants it; what an element stands for is `value * scale / g`) and q the f32 nearest to 1/6
//! (`0x3e2aaaab`):
//!
//! ```text
//! scale = e4m3((amax * q) * g)          value = e2m1(x * (g / scale)), or a zero of x's sign where scale is 0
//! ```
//!
//! vLLM and TensorRT-LLM use the GPU's approximate reciprocals in the same places, so their values differ now and then.
//! With a NaN or an infinity in the group the scale is NaN (`0x7f`) and every value +0. Element 2i lies in the low
//! half of byte i, element 2i + 1 in the high half; the length of a row is even.
//!
//! **Conversions**: [`e4m3`] rounds to nearest even, saturates at ±448 (infinities too) and gives `0x7f` for any NaN;
//! zeros keep their sign. [`e2m1`] rounds to nearest even and saturates at ±6.
//!
//! # Padding
//! A padding row below the last expert offset is the quantisation of a row of zeros: PerToken and Block128 have scale
//! 1e-12, the others 0. Rows past the last offset, and their scales, are not touched by `_into` forms.
//!
//! # Scales that exist already
//! Rows that come quantised are gathered as they are, and their scales with the same plan: per token as rows of one
//! element, per block as rows of `ceil(H / block)`. Per tensor there is nothing to move.
//! [`RoutePlan::permute_with_scales`](crate::RoutePlan::permute_with_scales) does both, in one launch where the
//! backend can.
//!
//! ```
//! use moe_core::float8::F8E4M3;
//! use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! use moe_cpu::Cpu;
//!
//! let (num_tokens, top_k, num_experts, hidden_size) = (3, 2, 4, 8);
//! let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
//! let mut workspace = Workspace::new(&mut queue, Limits::new(num_tokens, top_k, num_experts))?;
//! let values = queue.upload(&vec![F8E4M3::from_bits(0x38); num_tokens * hidden_size])?;
//! let scales = queue.upload(&[0.5f32, 0.25, 2.0])?; // one for each token
//! let topk_ids = queue.upload(&[0, 2, 3, 2, 0, 1])?;
//!
//! let spec = PlanSpec::new(num_tokens, top_k, num_experts);
//! let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(topk_ids.view()))?;
//! let rows = plan.gather(values.rows(hidden_size)?).run(&mut queue)?;
//! let row_scales = plan.gather(scales.rows(1)?).run(&mut queue)?;
//! assert_eq!(queue.download(row_scales.view())?, [0.5, 2.0, 2.0, 0.5, 0.25, 0.25]);
//! # assert_eq!(rows.len(), 6 * hidden_size);
//! # Ok::<(), moe_core::Error>(())
//! ```

mod convert;
mod scales;

pub use convert::{e2m1, e2m1_value, e4m3, e4m3_value, e8m0_value};
pub use scales::{ScaleLayout, ScaleShape};

use crate::{DType, Element, Error, F4x2, Result};
use float8::F8E4M3;

/// The f32 nearest to 1/448, the reciprocal of e4m3's largest value.
pub const RECIPROCAL_448: f32 = f32::from_bits(0x3b12_4925);
/// The f32 nearest to 1/6, the reciprocal of e2m1's largest value.
pub const RECIPROCAL_6: f32 = f32::from_bits(0x3e2a_aaab);
/// The smallest scale of [`PerToken`] and [`Block128`].
pub const MIN_SCALE: f32 = 1e-12;

/// How the exponent of an [`Mxfp8`] scale is rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ExponentRounding {
    /// Down, as the OCP specification has it: the largest elements of a group can saturate.
    #[default]
    Floor,
    /// Up where the largest element would saturate, as NVIDIA's libraries do.
    Ceil,
}

/// A format, at run time. See the [module](self) for the rules.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum QuantFormat {
    /// f8e4m3, one f32 scale for a row. The scales are `[R]`.
    PerToken,
    /// f8e4m3, one f32 scale for 128 elements: row-major or column-major.
    Block128(ScaleLayout),
    /// f8e4m3, one e8m0 scale for 32 elements: row-major or swizzled.
    Mxfp8(ExponentRounding, ScaleLayout),
    /// e2m1, one f8e4m3 scale for 16 elements: row-major or swizzled.
    Nvfp4 {
        /// What all scales are multiplied by; finite and above 0.
        global_scale: f32,
        /// How the scales lie.
        layout: ScaleLayout,
    },
}

impl QuantFormat {
    /// Elements that share a scale; `None` where a whole row does.
    pub const fn group(&self) -> Option<usize> {
        match self {
            QuantFormat::PerToken => None,
            QuantFormat::Block128(_) => Some(128),
            QuantFormat::Mxfp8(..) => Some(32),
            QuantFormat::Nvfp4 { .. } => Some(16),
        }
    }

    /// The type of the values.
    pub const fn value_dtype(&self) -> DType {
        match self {
            QuantFormat::Nvfp4 { .. } => DType::F4x2,
            _ => DType::F8E4M3,
        }
    }

    /// The type of the scales; e8m0 is `u8`.
    pub const fn scale_dtype(&self) -> DType {
        match self {
            QuantFormat::PerToken | QuantFormat::Block128(_) => DType::F32,
            QuantFormat::Mxfp8(..) => DType::U8,
            QuantFormat::Nvfp4 { .. } => DType::F8E4M3,
        }
    }

    /// How the scales lie.
    pub const fn layout(&self) -> ScaleLayout {
        match self {
            QuantFormat::PerToken => ScaleLayout::RowMajor,
            QuantFormat::Block128(layout) | QuantFormat::Mxfp8(_, layout) | QuantFormat::Nvfp4 { layout, .. } => {
                *layout
            }
        }
    }

    /// Elements of a row of values (bytes, for packed 4-bit floats) that `hidden_size` elements become.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an odd number of 4-bit floats, or none.
    pub fn value_cols(&self, hidden_size: usize) -> Result<usize> {
        self.check("QuantFormat::value_cols", hidden_size)
    }

    /// How many scales `rows` rows of `hidden_size` elements have, and where each lies.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a layout that the format does not have, a `hidden_size` of 0, an odd one for
    /// 4-bit floats, or numbers that do not fit.
    pub fn scale_shape(&self, rows: usize, hidden_size: usize) -> Result<ScaleShape> {
        let op = "QuantFormat::scale_shape";
        self.check(op, hidden_size)?;
        ScaleShape::new(op, self.layout(), rows, self.group().map_or(1, |group| hidden_size.div_ceil(group)))
    }

    /// Checks the format's numbers; gives the elements of a row of values.
    pub(crate) fn check(&self, op: &'static str, hidden_size: usize) -> Result<usize> {
        let invalid =
            |arg, expected: &str, got: String| Err(Error::InvalidArgument { op, arg, expected: expected.into(), got });
        if hidden_size == 0 {
            return invalid("hidden_size", "at least 1", "0".into());
        }
        match (self, self.layout()) {
            (QuantFormat::Block128(_), ScaleLayout::Swizzled) => {
                return invalid("layout", "RowMajor or ColumnMajor for f32 scales", "Swizzled".into());
            }
            (QuantFormat::Mxfp8(..) | QuantFormat::Nvfp4 { .. }, ScaleLayout::ColumnMajor) => {
                return invalid("layout", "RowMajor or Swizzled for 8-bit scales", "ColumnMajor".into());
            }
            _ => {}
        }
        let QuantFormat::Nvfp4 { global_scale, .. } = *self else { return Ok(hidden_size) };
        if !(global_scale.is_finite() && global_scale > 0.0) {
            return invalid("global_scale", "finite and above 0", global_scale.to_string());
        }
        if !hidden_size.is_multiple_of(2) {
            return invalid("hidden_size", "even: two 4-bit floats lie in a byte", hidden_size.to_string());
        }
        Ok(hidden_size / 2)
    }
}

/// A format whose types of values and scales the compiler knows.
pub trait Quantization: Copy + std::fmt::Debug + sealed::Sealed {
    /// The values' type.
    type Value: Element;
    /// The scales' type.
    type Scale: Element;
    /// The same at run time.
    fn format(self) -> QuantFormat;
}

mod sealed {
    pub trait Sealed {}
}

/// f8e4m3 values with one f32 scale for each row: "fp8 dynamic".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerToken;

/// f8e4m3 values with one f32 scale for 128 elements, as DeepSeek-V3 has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block128(
    /// Row-major, or column-major as DeepGEMM and CUTLASS read them.
    pub ScaleLayout,
);

/// f8e4m3 values with one power of two for 32 elements: OCP MXFP8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mxfp8 {
    /// How the exponent is rounded.
    pub rounding: ExponentRounding,
    /// Row-major, or swizzled as tensor cores read them.
    pub layout: ScaleLayout,
}

/// e2m1 values with one f8e4m3 scale for 16 elements and one f32 for all: NVIDIA's NVFP4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nvfp4 {
    /// What all scales are multiplied by, usually `448 * 6 / amax`; finite and above 0.
    pub global_scale: f32,
    /// Row-major, or swizzled as tensor cores read them.
    pub layout: ScaleLayout,
}

macro_rules! quantizations {
    ($($name:ident: $value:ty, $scale:ty, |$q:pat_param| $format:expr;)*) => { $(
        impl sealed::Sealed for $name {}
        impl Quantization for $name {
            type Value = $value;
            type Scale = $scale;
            fn format(self) -> QuantFormat {
                let $q = self;
                $format
            }
        }
        impl From<$name> for QuantFormat {
            fn from(format: $name) -> Self {
                format.format()
            }
        }
    )* };
}
quantizations! {
    PerToken: F8E4M3, f32, |_| QuantFormat::PerToken;
    Block128: F8E4M3, f32, |Block128(layout)| QuantFormat::Block128(layout);
    Mxfp8: F8E4M3, u8, |Mxfp8 { rounding, layout }| QuantFormat::Mxfp8(rounding, layout);
    Nvfp4: F4x2, F8E4M3, |Nvfp4 { global_scale, layout }| QuantFormat::Nvfp4 { global_scale, layout };
}
