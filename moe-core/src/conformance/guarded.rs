//! Device memory between canary words.

use super::harness::{Checked, Fail};
use super::rng::Rng;
use crate::dtype::{as_bytes, as_bytes_mut};
use crate::{Buf, Element, PermuteBackend, Queue, Result, Rows, RowsMut, View, ViewMut};

/// Elements before and after.
const GUARD: usize = 64;

/// How a matrix lies in its buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Elements by which its start is off an aligned address.
    pub(super) offset: usize,
    /// Elements between two rows.
    pub(super) gap: usize,
    /// What surrounds it, and what an output holds before: all ones is NaN, 0xA5 a plain number in most types.
    pub(super) poison: u8,
}

impl Place {
    pub(super) fn random(rng: &mut Rng, offset: usize, gap: usize) -> Self {
        Self { offset, gap, poison: [0xff, 0xa5][rng.below(2)] }
    }
}

/// A matrix of `rows` rows of `cols` elements in a larger buffer, all of whose other bytes are canaries.
#[derive(Debug)]
pub(super) struct Guarded<B: PermuteBackend, T: Element> {
    buf: Buf<B, T>,
    place: Place,
    rows: usize,
    cols: usize,
}

impl<B: PermuteBackend, T: Element> Guarded<B, T> {
    /// A poisoned matrix.
    pub(super) fn poisoned(queue: &mut Queue<'_, B>, rows: usize, cols: usize, place: Place) -> Result<Self> {
        let len = GUARD + place.offset + rows * (cols + place.gap) + GUARD;
        let mut buf = queue.zeros(len)?;
        queue.fill(buf.view_mut(), place.poison)?;
        Ok(Self { buf, place, rows, cols })
    }

    /// A matrix that holds `data`.
    pub(super) fn matrix(queue: &mut Queue<'_, B>, data: &[T], cols: usize, place: Place) -> Result<Self> {
        let mut out = Self::poisoned(queue, data.len() / cols, cols, place)?;
        let mut all = vec![poison_value::<T>(place.poison); out.buf.len()];
        for (row, values) in data.chunks_exact(cols).enumerate() {
            all[out.start(row)..][..cols].copy_from_slice(values);
        }
        queue.write(&all, out.buf.view_mut())?;
        Ok(out)
    }

    /// One row that holds `data`.
    pub(super) fn vector(queue: &mut Queue<'_, B>, data: &[T], place: Place) -> Result<Self> {
        if data.is_empty() {
            return Self::poisoned(queue, 1, 0, place);
        }
        Self::matrix(queue, data, data.len(), place)
    }

    fn start(&self, row: usize) -> usize {
        GUARD + self.place.offset + row * (self.cols + self.place.gap)
    }

    fn end(&self) -> usize {
        if self.rows == 0 { self.start(0) } else { self.start(self.rows - 1) + self.cols }
    }

    pub(super) fn view(&self) -> Result<View<'_, B, T>> {
        self.buf.view().slice(self.start(0)..self.end())
    }

    pub(super) fn view_mut(&mut self) -> Result<ViewMut<'_, B, T>> {
        let range = self.start(0)..self.end();
        self.buf.view_mut().slice(range)
    }

    pub(super) fn rows(&self) -> Result<Rows<'_, B, T>> {
        self.view()?.rows_strided(self.rows, self.cols, self.cols + self.place.gap)
    }

    pub(super) fn rows_mut(&mut self) -> Result<RowsMut<'_, B, T>> {
        let (rows, cols, stride) = (self.rows, self.cols, self.cols + self.place.gap);
        self.view_mut()?.rows_strided(rows, cols, stride)
    }

    /// What an element holds before it is written.
    pub(super) fn poison(&self) -> T {
        poison_value(self.place.poison)
    }

    /// The matrix, after a look at every canary.
    pub(super) fn read(&self, queue: &mut Queue<'_, B>, what: &str) -> Checked<Vec<T>> {
        let mut all = queue.download(self.buf.view())?;
        let mut out = Vec::with_capacity(self.rows * self.cols);
        for row in 0..self.rows {
            let values = &mut all[self.start(row)..][..self.cols];
            out.extend_from_slice(values);
            values.fill(self.poison());
        }
        if let Some(byte) = as_bytes(&all).iter().position(|b| *b != self.place.poison) {
            let element = byte / size_of::<T>();
            let (first, end) = (self.start(0), self.end());
            return Err(Fail(format!(
                "{what}: canary at element {element} overwritten ({first}..{end} holds the rows)"
            )));
        }
        Ok(out)
    }
}

fn poison_value<T: Element>(byte: u8) -> T {
    let mut value = T::default();
    as_bytes_mut(std::slice::from_mut(&mut value)).fill(byte);
    value
}
