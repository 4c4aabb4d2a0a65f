//! Quantised rows in memory, and the checks of what writes them.

use crate::check::Check;
use crate::quant::{QuantFormat, Quantization, ScaleShape};
use crate::raw::RawQuantMut;
use crate::tag::{Tag, Untagged};
use crate::{Backend, Buf, Error, QuantBackend, Queue, Region, Result, RowsMut, Span, ViewMut};

/// Quantised rows that an operation allocated.
#[derive(Debug)]
pub struct QuantRows<B: Backend, Q: Quantization, G: Tag = Untagged> {
    /// `[R, value_cols]`.
    pub values: Buf<B, Q::Value, G>,
    /// As `scale_shape` says.
    pub scales: Buf<B, Q::Scale, G>,
    /// Elements of a row of values.
    pub value_cols: usize,
    /// Where each scale lies.
    pub scale_shape: ScaleShape,
}

impl<B: Backend, Q: Quantization, G: Tag> QuantRows<B, Q, G> {
    /// Memory for `rows` quantised rows of `hidden_size` elements, all zero.
    ///
    /// # Errors
    /// Those of [`QuantFormat::scale_shape`] and of allocation.
    pub fn alloc(queue: &mut Queue<'_, B, G>, format: Q, rows: usize, hidden_size: usize) -> Result<Self> {
        let format = format.format();
        let (value_cols, scale_shape) = (format.value_cols(hidden_size)?, format.scale_shape(rows, hidden_size)?);
        let values = queue.zeros(rows.saturating_mul(value_cols))?;
        Ok(Self { values, scales: queue.zeros(scale_shape.len())?, value_cols, scale_shape })
    }

    /// Values and scales, for an `_into` form.
    ///
    /// # Errors
    /// None: the values are whole rows.
    #[allow(clippy::type_complexity)] // a matrix and a vector of one device
    pub fn views_mut(&mut self) -> Result<(RowsMut<'_, B, Q::Value, G>, ViewMut<'_, B, Q::Scale, G>)> {
        Ok((self.values.rows_mut(self.value_cols)?, self.scales.view_mut()))
    }
}

/// Checks everything about quantised output except overlap.
pub(super) fn check_quant<'o, 'v: 'o, 's: 'o, B: QuantBackend, Q: Quantization, G: Tag>(
    check: &Check<B>,
    format: Q,
    rows: usize,
    hidden_size: usize,
    values: RowsMut<'v, B, Q::Value, G>,
    scales: ViewMut<'s, B, Q::Scale, G>,
) -> Result<RawQuantMut<'o, B>> {
    let format: QuantFormat = format.format();
    let value_cols = format.check(check.op, hidden_size)?;
    let scale_shape = format.scale_shape(rows, hidden_size)?;
    if !B::supports_quant(&format) {
        let reason = format!("the format {format:?}");
        return Err(Error::Unsupported { op: check.op, backend: B::NAME, reason });
    }
    check.device("values", values.device_id())?;
    check.device("scales", scales.device_id())?;
    check.shape("values", [rows, value_cols], [values.num_rows(), values.cols()])?;
    check.len("scales", scale_shape.len(), scales.len())?;
    Ok(RawQuantMut { format, values: values.into_raw().shorten(), scales: scales.into_raw().shorten(), scale_shape })
}

impl<B: Backend> RawQuantMut<'_, B> {
    /// Values and scales share no memory with each other, nor with the inputs.
    pub(super) fn apart_from(
        &self,
        check: &Check<B>,
        inputs: impl Iterator<Item = (&'static str, Span)>,
    ) -> Result<()> {
        let (values, scales) = (("values", self.values.region.span()), ("scales", self.scales.region.span()));
        check.apart(values, scales)?;
        for input in inputs {
            check.apart(values, input)?;
            check.apart(scales, input)?;
        }
        Ok(())
    }
}
