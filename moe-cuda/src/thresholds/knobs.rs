//! The numbers that choices between paths depend on, as measured on an H200. Each can be measured again: no value
//! changes a result, and with none does a launch leave the limits of `kernels/ABI.md`.

use moe_core::oracle::{Knob, Tuned};

/// Routes from which a permute may go by a list, whatever was measured: scratch for fewer holds none.
pub(crate) const LEAST_LISTED_ROUTES: usize = 1_024;
/// Routes up to which no plan exchanges counts, whatever was measured: scratch for so few holds no table.
pub(crate) const LEAST_SMALL_ROUTES: usize = 32;

macro_rules! knobs {
    ($($(#[$meta:meta])* $NAME:ident, $field:ident: $about:literal, $from:expr, $to:expr, $built_in:expr, $candidates:expr;)*) => {
        $(
            $(#[$meta])*
            pub(crate) const $NAME: Knob =
                Knob::number(stringify!($field), $about, ($from, $to), $built_in, &$candidates);
        )*

        /// Everything that can be tuned.
        pub(crate) const KNOBS: &[Knob] = &[$($NAME),*];

        /// The values in use.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) struct Thresholds { $(pub(crate) $field: usize,)* }

        impl Thresholds {
            pub(crate) fn new(tuned: &Tuned) -> Self {
                Self { $($field: tuned.get(&$NAME),)* }
            }
        }
    };
}

knobs! {
    /// With 8,192 routes counting all ids takes 9.2 where the exchange of counts takes 7.2.
    SMALL_PLAN_ROUTES, small_plan_routes: "routes up to which each block of a plan counts all ids for itself",
        LEAST_SMALL_ROUTES, 1 << 20, 1_024, [512, 1_024, 2_048, 4_096];

    /// dsv3 takes 2.4 with 1 token and 6.8 with 128 tokens by comparing keys, 3.9 and 8.0 by counting.
    SMALL_PERMUTE_ROUTES, small_permute_routes: "routes up to which every block of a permute ranks its own token",
        LEAST_SMALL_ROUTES, 65_535, 1_024, [256, 512, 1_024, 2_048, 4_096];

    /// dsv3 with 1,024 tokens takes 38.7, of which the copy alone takes 33.1.
    PERMUTE_GRID_ROUTES, permute_grid_routes: "routes up to which one launch ranks chunks and moves their rows",
        0, 1 << 20, 8_192, [0, 2_048, 4_096, 8_192, 16_384, 32_768];
    /// With fewer routes for each token, moving starts too late.
    PERMUTE_GRID_TOP_K, permute_grid_top_k: "routes of a token from which one launch may rank and move them",
        1, 1 << 16, 3, [1, 2, 3, 5];
    /// Measured up to 1,024 tokens.
    PERMUTE_GRID_WHOLE_TOKENS, permute_grid_whole_tokens: "tokens from which that launch moves short rows whole",
        0, 1 << 20, 1_024, [256, 512, 1_024, 2_048];
    /// A row of 14,336 bytes is moved in two parts by any number of tokens.
    PERMUTE_GRID_WHOLE_BYTES, permute_grid_whole_bytes: "bytes up to which a row is short in that launch",
        0, 1 << 20, 8_192, [2_048, 4_096, 8_192, 16_384];

    /// Rows alone take dsv3 134.5 with 4,096 tokens and 534 with 16,384, token by token 143 and 574.
    LISTED_ROUTES, listed_routes: "routes from which rows are moved in the order of their chunk's experts",
        LEAST_LISTED_ROUTES, 1 << 30, 32_768, [4_096, 8_192, 16_384, 32_768, 65_536, 1 << 30];
    /// Rows of 8,192 bytes and more were measured.
    LISTED_ROW_BYTES, listed_row_bytes: "bytes of a row from which they are",
        0, 1 << 30, 8_192, [2_048, 4_096, 8_192, 16_384];
    /// Longer chunks move faster, but are ranked slower.
    LISTED_CHUNK_ROUTES, listed_chunk_routes: "routes of a chunk of such a list",
        32, 65_535, 1_024, [512, 1_024, 2_048, 4_096];
    /// dsv3 with 16,384 tokens.
    LISTED_LONG_CHUNK_ROUTES, listed_long_chunk_routes: "routes of a chunk of a long list",
        32, 65_535, 2_048, [1_024, 2_048, 4_096];
    /// Between dsv3 with 4,096 and with 16,384 tokens.
    LISTED_LONG_ROUTES, listed_long_routes: "routes from which a list is long",
        0, 1 << 30, 65_536, [32_768, 65_536, 131_072];

    /// 32 to 256 threads with as many vectors in flight give the same time within 1 % from 512 tokens on; 256 take 0.2
    /// more with one token.
    COMBINE_WARPS, combine_warps: "warps of a block of a combine by vectors",
        1, 8, 2, [1, 2, 4, 8];
    /// Best up to 128 tokens for all rows.
    COMBINE_WHOLE_TOKENS, combine_whole_tokens: "tokens up to which a thread of a combine has one step",
        0, 1 << 20, 256, [64, 128, 256, 512, 1_024];
    /// Within 1 % of the best up to 4,096 tokens; four parts take qwen3 with 16,384 tokens 150 instead of 143.
    COMBINE_HALF_TOKENS, combine_half_tokens: "tokens up to which it has two; above, a token has two blocks at most",
        0, 1 << 20, 8_192, [512, 1_024, 4_096, 8_192, 16_384];

    /// Fewer leave multiprocessors idle.
    GATHER_BLOCKS, gather_blocks: "blocks of a gather for each multiprocessor, where rows can be cut",
        1, 64, 2, [1, 2, 4, 8];
}

impl Default for Thresholds {
    fn default() -> Self {
        Self::new(&Tuned::built_in(KNOBS))
    }
}
