//! Which replica serves a route.

use super::error::{EplbError, bad};

/// Physical id of a route that is masked: its logical id was -1 (`u32::MAX` for u32, `u8::MAX`
/// for u8).
pub const MASKED_ID: i32 = -1;

/// Physical id of a route whose logical id is out of range. It is out of range among the physical
/// ids as well, so that a plan builder counts the route as invalid.
pub const INVALID_ID: i32 = -2;

/// An integer that routers use for logical expert ids.
pub trait LogicalId: Copy + sealed::Sealed {
    /// The id as i64, with the type's mask value as -1.
    fn widen(self) -> i64;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! logical_id {
    ($($t:ty, $mask:expr);+) => {$(
        impl sealed::Sealed for $t {}
        impl LogicalId for $t {
            fn widen(self) -> i64 {
                if self == $mask { -1 } else { i64::from(self) }
            }
        }
    )+};
}
logical_id!(u8, u8::MAX; i32, -1; u32, u32::MAX; i64, -1);

/// The slot that serves a route to logical expert `expert`, for one layer with `log2phy` [E, X]
/// and `logcnt` \[E\]:
///
/// ```text
/// physical = log2phy[expert][(t + k) mod logcnt[expert]]
/// ```
///
/// `turn` = t + k, for the k-th route of token t. Turns take the copies in rotation whatever K and
/// the number of copies are. Route numbers t·K + k would not: an expert that most tokens name
/// first, with K = 8 and two copies, would send nearly all of its routes to the first copy.
///
/// The rule reads nothing but its arguments: no counter, no order among the routes, so every
/// backend and every launch gives the same answer. An id of -1 gives [`MASKED_ID`], any other id
/// outside 0..E, and any map entry that cannot be followed, gives [`INVALID_ID`].
#[must_use]
pub fn physical_id(log2phy: &[i32], logcnt: &[i32], width: usize, expert: impl LogicalId, turn: u64) -> i32 {
    let expert = match expert.widen() {
        -1 => return MASKED_ID,
        id => usize::try_from(id).unwrap_or(usize::MAX),
    };
    let Some(&copies) = logcnt.get(expert) else { return INVALID_ID };
    if copies < 1 || copies as usize > width {
        return INVALID_ID;
    }
    let copy = (turn % u64::from(copies.unsigned_abs())) as usize;
    log2phy.get(expert * width + copy).copied().filter(|&p| p >= 0).unwrap_or(INVALID_ID)
}

/// Applies [`physical_id`] to `ids`, `top_k` for each of the tokens `first_token`,
/// `first_token` + 1, … of one layer, and writes the slots to `out`.
///
/// # Errors
/// [`EplbError::Argument`] if `top_k` is 0 or `ids` no multiple of it, `out` and `ids` differ in
/// length, or `log2phy` is not `logcnt.len()` x `width`.
pub fn map_ids<I: LogicalId>(
    log2phy: &[i32],
    logcnt: &[i32],
    width: usize,
    ids: &[I],
    top_k: usize,
    first_token: u64,
    out: &mut [i32],
) -> Result<(), EplbError> {
    const OP: &str = "map_ids";
    if logcnt.len().checked_mul(width) != Some(log2phy.len()) {
        let expected = format!("{} x {width} entries", logcnt.len());
        return Err(bad(OP, "log2phy", expected, log2phy.len()));
    }
    if top_k == 0 || !ids.len().is_multiple_of(top_k) {
        return Err(bad(OP, "ids", format!("a multiple of top_k, {top_k}, which is at least 1"), ids.len()));
    }
    if out.len() != ids.len() {
        return Err(bad(OP, "out", format!("{} entries", ids.len()), out.len()));
    }
    for (i, (&id, out)) in ids.iter().zip(out).enumerate() {
        let turn = first_token.wrapping_add((i / top_k + i % top_k) as u64);
        *out = physical_id(log2phy, logcnt, width, id, turn);
    }
    Ok(())
}
