//! Typed memory on a device: owned, borrowed, and borrowed as rows.

use crate::raw::{RawRows, RawRowsMut, RawView, RawViewMut};
use crate::tag::{Tag, Untagged};
use crate::{Backend, Buffer, DeviceId, Element, Error, Region, Result, Span};
use std::marker::PhantomData;
use std::ops::Range;

/// Owned memory of `len` elements on a device of backend `B`. Freed on drop. No `Clone`: cloning can fail.
#[derive(Debug)]
pub struct Buf<B: Backend, T: Element, G: Tag = Untagged> {
    raw: B::Buffer,
    len: usize,
    marker: PhantomData<(T, G)>,
}

impl<B: Backend, T: Element> Buf<B, T> {
    /// Wraps memory of a backend. The proof shows that the backend itself does it.
    ///
    /// # Errors
    /// [`Error::TooSmall`] if the memory holds fewer than `len` elements, [`Error::Misaligned`] if it is not aligned to
    /// them.
    pub fn from_raw(_proof: B::Mint, raw: B::Buffer, len: usize) -> Result<Self> {
        check_memory::<T>("Buf::from_raw", &raw.region().span(), len)?;
        Ok(Self::new(raw, len))
    }
}

impl<B: Backend, T: Element, G: Tag> Buf<B, T, G> {
    pub(crate) fn new(raw: B::Buffer, len: usize) -> Self {
        Self { raw, len, marker: PhantomData }
    }

    pub(crate) fn retag<H: Tag>(self) -> Buf<B, T, H> {
        Buf::new(self.raw, self.len)
    }

    /// Leaves the tag behind, so that the buffer can leave a branded scope.
    pub fn unbrand(self) -> Buf<B, T> {
        self.retag()
    }

    /// The backend's own memory.
    pub fn raw(&self) -> &B::Buffer {
        &self.raw
    }

    pub(crate) fn raw_mut(&mut self) -> &mut B::Buffer {
        &mut self.raw
    }

    /// Gives the backend's own memory back.
    pub fn into_raw(self) -> B::Buffer {
        self.raw
    }

    /// Where it lives.
    pub fn device_id(&self) -> DeviceId<B> {
        self.raw.device_id()
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it, to read.
    pub fn view(&self) -> View<'_, B, T, G> {
        View::new(self.device_id(), self.raw.region().slice(0..self.len * size_of::<T>()), self.len)
    }

    /// All of it, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, B, T, G> {
        let id = self.device_id();
        ViewMut::new(id, self.raw.region_mut().slice(0..self.len * size_of::<T>()), self.len)
    }

    /// As a matrix of rows of `cols` elements.
    ///
    /// # Errors
    /// As [`View::rows`].
    pub fn rows(&self, cols: usize) -> Result<Rows<'_, B, T, G>> {
        self.view().rows(cols)
    }

    /// As a matrix of rows of `cols` elements, to write.
    ///
    /// # Errors
    /// As [`View::rows`].
    pub fn rows_mut(&mut self, cols: usize) -> Result<RowsMut<'_, B, T, G>> {
        self.view_mut().rows(cols)
    }
}

fn check_memory<T: Element>(op: &'static str, span: &Span, len: usize) -> Result<()> {
    let size = size_of::<T>();
    let bytes = len.saturating_mul(size);
    if (span.len as usize) < bytes {
        let got = span.len as usize / size;
        return Err(Error::TooSmall { op, arg: "memory", unit: "elements", expected: len, got });
    }
    if !span.start.is_multiple_of(size as u64) {
        return Err(Error::Misaligned { op, arg: "memory", expected: size });
    }
    Ok(())
}

fn check_slice(range: &Range<usize>, len: usize) -> Result<()> {
    if range.start <= range.end && range.end <= len {
        return Ok(());
    }
    let expected = format!("a range inside 0..{len}");
    Err(Error::InvalidArgument { op: "slice", arg: "range", expected, got: format!("{range:?}") })
}

/// Rows of a view of `len` elements: how many, and how far they reach.
fn check_rows(len: usize, cols: usize) -> Result<usize> {
    if cols == 0 {
        let (expected, got) = ("at least 1".into(), "0".into());
        return Err(Error::InvalidArgument { op: "rows", arg: "cols", expected, got });
    }
    if !len.is_multiple_of(cols) {
        let (expected, got) = (format!("a multiple of {cols} elements"), format!("{len} elements"));
        return Err(Error::Shape { op: "rows", arg: "view", expected, got });
    }
    Ok(len / cols)
}

/// Elements from the start of a strided matrix to the end of its last row.
fn check_strided(len: usize, rows: usize, cols: usize, stride: usize) -> Result<usize> {
    let op = "rows_strided";
    if cols == 0 || stride < cols {
        let expected = format!("at least {} (cols, itself at least 1)", cols.max(1));
        return Err(Error::InvalidArgument { op, arg: "stride", expected, got: stride.to_string() });
    }
    let end = match rows {
        0 => Some(0),
        _ => (rows - 1).checked_mul(stride).and_then(|e| e.checked_add(cols)),
    };
    match end {
        Some(end) if end <= len => Ok(end),
        _ => {
            let expected = format!("at least {rows} rows of {cols} elements, {stride} apart");
            Err(Error::Shape { op, arg: "view", expected, got: format!("{len} elements") })
        }
    }
}

macro_rules! views {
    ($View:ident, $Rows:ident, $Region:ident, $shorten:ident, $RawView:ident, $RawRows:ident, $what:literal) => {
        #[doc = concat!("`len` borrowed elements on a device, ", $what, ".")]
        #[derive(Debug)]
        pub struct $View<'a, B: Backend, T: Element, G: Tag = Untagged> {
            id: DeviceId<B>,
            region: B::$Region<'a>,
            len: usize,
            marker: PhantomData<(T, G)>,
        }

        #[doc = concat!("A borrowed matrix on a device, ", $what, ": rows of `cols` elements, `stride` apart.")]
        #[derive(Debug)]
        pub struct $Rows<'a, B: Backend, T: Element, G: Tag = Untagged> {
            id: DeviceId<B>,
            region: B::$Region<'a>,
            rows: usize,
            cols: usize,
            stride: usize,
            marker: PhantomData<(T, G)>,
        }

        impl<'a, B: Backend, T: Element> $View<'a, B, T> {
            /// Wraps memory that a caller lends, on a device that the backend has resolved. The proof shows that the
            /// backend itself does it.
            ///
            /// # Errors
            /// [`Error::TooSmall`] if the memory holds fewer than `len` elements, [`Error::Misaligned`] if it is not
            /// aligned to them.
            pub fn from_raw(_proof: B::Mint, id: DeviceId<B>, region: B::$Region<'a>, len: usize) -> Result<Self> {
                check_memory::<T>(concat!(stringify!($View), "::from_raw"), &region.span(), len)?;
                Ok(Self::new(id, region.slice(0..len * size_of::<T>()), len))
            }
        }

        impl<'a, B: Backend, T: Element, G: Tag> $View<'a, B, T, G> {
            pub(crate) fn new(id: DeviceId<B>, region: B::$Region<'a>, len: usize) -> Self {
                Self { id, region, len, marker: PhantomData }
            }

            pub(crate) fn into_region(self) -> B::$Region<'a> {
                self.region
            }

            pub(crate) fn retag<H: Tag>(self) -> $View<'a, B, T, H> {
                $View::new(self.id, self.region, self.len)
            }

            pub(crate) fn into_raw(self) -> $RawView<'a, B> {
                $RawView { region: self.region, dtype: T::DTYPE, len: self.len }
            }

            /// The same view for a shorter time, to be used beside things that do not live as long.
            pub fn shorten<'s>(self) -> $View<'s, B, T, G>
            where
                'a: 's,
            {
                $View::new(self.id, B::$shorten(self.region), self.len)
            }

            /// Where the memory lives.
            pub fn device_id(&self) -> DeviceId<B> {
                self.id
            }

            /// Elements.
            pub fn len(&self) -> usize {
                self.len
            }

            /// Whether it has no elements.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }

            /// A part of it, in elements.
            ///
            /// # Errors
            /// [`Error::InvalidArgument`] if the range is not inside.
            pub fn slice(self, range: Range<usize>) -> Result<Self> {
                check_slice(&range, self.len)?;
                let size = size_of::<T>();
                Ok(Self::new(self.id, self.region.slice(range.start * size..range.end * size), range.len()))
            }

            /// As a matrix of rows of `cols` elements, one after the other.
            ///
            /// # Errors
            /// [`Error::InvalidArgument`] if `cols` is 0, [`Error::Shape`] if the length is no multiple of it.
            pub fn rows(self, cols: usize) -> Result<$Rows<'a, B, T, G>> {
                let rows = check_rows(self.len, cols)?;
                Ok($Rows { id: self.id, region: self.region, rows, cols, stride: cols, marker: PhantomData })
            }

            /// As a matrix of `rows` rows of `cols` elements, row r starting at element `r * stride`.
            ///
            /// # Errors
            /// [`Error::InvalidArgument`] if `cols` is 0 or more than `stride`, [`Error::Shape`] if the rows reach past
            /// the end.
            pub fn rows_strided(self, rows: usize, cols: usize, stride: usize) -> Result<$Rows<'a, B, T, G>> {
                let end = check_strided(self.len, rows, cols, stride)?;
                // A stride that is never taken could be too large to compute with.
                let stride = if rows < 2 { cols } else { stride };
                let region = self.region.slice(0..end * size_of::<T>());
                Ok($Rows { id: self.id, region, rows, cols, stride, marker: PhantomData })
            }
        }

        impl<'a, B: Backend, T: Element, G: Tag> $Rows<'a, B, T, G> {
            pub(crate) fn into_raw(self) -> $RawRows<'a, B> {
                let Self { region, rows, cols, stride, .. } = self;
                $RawRows { region, dtype: T::DTYPE, rows, cols, stride }
            }

            /// The same matrix for a shorter time.
            pub fn shorten<'s>(self) -> $Rows<'s, B, T, G>
            where
                'a: 's,
            {
                let Self { id, region, rows, cols, stride, marker } = self;
                $Rows { id, region: B::$shorten(region), rows, cols, stride, marker }
            }

            /// Where the memory lives.
            pub fn device_id(&self) -> DeviceId<B> {
                self.id
            }

            /// The number of rows.
            pub fn num_rows(&self) -> usize {
                self.rows
            }

            /// Elements of a row.
            pub fn cols(&self) -> usize {
                self.cols
            }

            /// Elements from the start of one row to the start of the next.
            pub fn stride(&self) -> usize {
                self.stride
            }
        }
    };
}

views!(View, Rows, Region, shorten, RawView, RawRows, "to read");
views!(ViewMut, RowsMut, RegionMut, shorten_mut, RawViewMut, RawRowsMut, "to write");

impl<'a, B: Backend, T: Element, G: Tag> Rows<'a, B, T, G> {
    /// The first and the second half of each row.
    pub(crate) fn halves(self, op: &'static str) -> Result<(Self, Self)> {
        if !self.cols.is_multiple_of(2) {
            let (expected, got) = ("rows of an even number of elements".into(), format!("{} elements", self.cols));
            return Err(Error::Shape { op, arg: "rows", expected, got });
        }
        let (cols, size, bytes) = (self.cols / 2, size_of::<T>(), self.region.byte_len());
        let stride = if self.rows < 2 { cols } else { self.stride };
        let at = if self.rows == 0 { 0 } else { cols * size };
        let (id, rows, marker) = (self.id, self.rows, self.marker);
        let half = |region| Self { id, region, rows, cols, stride, marker };
        let (first, second) = (self.region.clone().slice(0..bytes - at), self.region.clone().slice(at..bytes));
        Ok((half(first), half(second)))
    }
}

impl<B: Backend, T: Element, G: Tag> Clone for View<'_, B, T, G> {
    fn clone(&self) -> Self {
        Self::new(self.id, self.region.clone(), self.len)
    }
}

impl<B: Backend, T: Element, G: Tag> Clone for Rows<'_, B, T, G> {
    fn clone(&self) -> Self {
        Self { region: self.region.clone(), marker: PhantomData, ..*self }
    }
}
