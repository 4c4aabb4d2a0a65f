//! Where the scales of quantised rows lie.

use crate::{Error, Result};

/// How scales `[R, S]` lie in memory: S groups for each of R rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleLayout {
    /// `[R, S]`: the scales of a row lie together.
    #[default]
    RowMajor,
    /// `[S, round_up(R, 4)]`: the scales of one group of all rows lie together. A column begins at a multiple of 16
    /// bytes, which is what a TMA descriptor needs: DeepGEMM's `get_mn_major_tma_aligned_tensor` and CUTLASS's
    /// blockwise products read this. Entries of rows from R on are not touched.
    ColumnMajor,
    /// Tiles of 128 rows and 4 groups, `[ceil(R / 128), ceil(S / 4)]` of 512 bytes each, as block-scaled products of
    /// cuBLASLt (`VEC32_UE8M0`, `VEC16_UE4M3`) and the tensor cores of compute capability 10 read them. In a tile the
    /// scale of row r and group s lies at byte `(r % 32) * 16 + (r / 32) * 4 + s`. Groups from S on are zero for rows in
    /// use. With [`Layout::Aligned`](crate::Layout::Aligned)`(128)` every expert begins at a tile.
    Swizzled,
}

/// The shape of the scales of quantised rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleShape {
    /// R.
    pub rows: usize,
    /// S, the groups of a row.
    pub groups: usize,
    /// How they lie.
    pub layout: ScaleLayout,
    len: usize,
}

impl ScaleShape {
    pub(crate) fn new(op: &'static str, layout: ScaleLayout, rows: usize, groups: usize) -> Result<Self> {
        let len = match layout {
            ScaleLayout::RowMajor => rows.checked_mul(groups),
            ScaleLayout::ColumnMajor => rows.checked_next_multiple_of(4).and_then(|r| r.checked_mul(groups)),
            ScaleLayout::Swizzled => {
                let cols = groups.checked_next_multiple_of(4);
                rows.checked_next_multiple_of(128).and_then(|r| r.checked_mul(cols?))
            }
        };
        match len.filter(|len| *len <= isize::MAX as usize / 4) {
            Some(len) => Ok(Self { rows, groups, layout, len }),
            None => {
                let expected = "scales that fit the address space".into();
                Err(Error::InvalidArgument {
                    op,
                    arg: "rows",
                    expected,
                    got: format!("{rows} rows of {groups} scales"),
                })
            }
        }
    }

    /// Elements of all scales, padding included: what a buffer for them needs.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The groups of a row with padding: what is written for a row in use.
    pub fn padded_groups(&self) -> usize {
        match self.layout {
            ScaleLayout::Swizzled => self.groups.next_multiple_of(4),
            _ => self.groups,
        }
    }

    /// Where the scale of a group lies, for `row < rows` and `group < padded_groups()`.
    #[inline]
    pub fn index(&self, row: usize, group: usize) -> usize {
        match self.layout {
            ScaleLayout::RowMajor => row * self.groups + group,
            ScaleLayout::ColumnMajor => group * self.rows.next_multiple_of(4) + row,
            ScaleLayout::Swizzled => {
                let tile = (row / 128) * self.groups.div_ceil(4) + group / 4;
                tile * 512 + (row % 32) * 16 + (row % 128 / 32) * 4 + group % 4
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scale_has_a_place_of_its_own_inside_the_buffer() {
        for layout in [ScaleLayout::RowMajor, ScaleLayout::ColumnMajor, ScaleLayout::Swizzled] {
            for (rows, groups) in [(0, 1), (1, 1), (5, 3), (128, 4), (129, 5), (300, 9)] {
                let shape = ScaleShape::new("test", layout, rows, groups).unwrap();
                let mut seen = vec![false; shape.len()];
                for row in 0..rows {
                    for group in 0..shape.padded_groups() {
                        assert!(
                            !std::mem::replace(&mut seen[shape.index(row, group)], true),
                            "{shape:?} {row} {group}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_layouts_of_other_libraries() {
        let at =
            |layout, rows, groups, row, group| ScaleShape::new("test", layout, rows, groups).unwrap().index(row, group);
        // Seven rows are padded to eight; the second column begins there.
        assert_eq!(at(ScaleLayout::ColumnMajor, 7, 2, 3, 1), 11);
        // cuBLASLt's tile: 32 rows of 16 bytes, each with the 4 scales of rows r, r + 32, r + 64, r + 96.
        assert_eq!(at(ScaleLayout::Swizzled, 128, 4, 0, 1), 1);
        assert_eq!(at(ScaleLayout::Swizzled, 128, 4, 1, 0), 16);
        assert_eq!(at(ScaleLayout::Swizzled, 128, 4, 33, 2), 16 + 4 + 2);
        assert_eq!(at(ScaleLayout::Swizzled, 256, 8, 128, 0), 1024);
        assert_eq!(at(ScaleLayout::Swizzled, 256, 8, 0, 4), 512);
    }
}
