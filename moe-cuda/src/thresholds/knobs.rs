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

    /// A plan of 4,096 routes of dsv3 takes 6.0 in chunks of 128, 6.1 of 256, 6.9 of 512 and 8.0 of 1,024; of 8,192 routes
    /// 6.8, 6.5, 6.6 and 8.3.
    PLAN_CHUNK_ROUTES, plan_chunk_routes: "routes of a chunk of a plan at least",
        32, 65_535, 256, [128, 256, 512, 1_024];

    /// dsv3 takes 2.4 with 1 token and 6.8 with 128 tokens by comparing keys, 3.9 and 8.0 by counting.
    SMALL_PERMUTE_ROUTES, small_permute_routes: "routes up to which every block of a permute ranks its own token",
        LEAST_SMALL_ROUTES, 65_535, 1_024, [256, 512, 1_024, 2_048, 4_096];

    /// qwen3 takes 4.4 with 128 tokens (4.6 by shorter blocks) and 6.0 with 256 (8.6 by chunks), dsv3 6.8 (7.1) and 10.6
    /// (13.5).
    WIDE_PERMUTE_ROUTES, wide_permute_routes: "routes up to which it does so by long blocks, if tokens are few",
        0, 65_535, 2_048, [0, 1_024, 2_048, 4_096];

    /// dsv3 with 1,024 tokens takes 38.7, of which the copy alone takes 33.1.
    PERMUTE_GRID_ROUTES, permute_grid_routes: "routes up to which one launch ranks chunks and moves their rows",
        0, 1 << 20, 8_192, [0, 2_048, 4_096, 8_192, 16_384, 32_768];
    /// Every block ranks its whole chunk.
    PERMUTE_GRID_CHUNK_ROUTES, permute_grid_chunk_routes: "routes of a chunk of that launch",
        32, 1_024, 256, [128, 256, 512, 1_024];
    /// mixtral, whose tokens have two routes, takes 10.8 with 1,024 tokens and 15.1 with 2,048, by two launches 11.8 and
    /// 15.9.
    PERMUTE_GRID_TOP_K, permute_grid_top_k: "routes of a token from which one launch may rank and move them",
        1, 1 << 16, 2, [1, 2, 3, 5];
    /// Measured up to 1,024 tokens.
    PERMUTE_GRID_WHOLE_TOKENS, permute_grid_whole_tokens: "tokens from which that launch moves short rows whole",
        0, 1 << 20, 1_024, [256, 512, 1_024, 2_048];
    /// A row of 14,336 bytes is moved in two parts by any number of tokens.
    PERMUTE_GRID_WHOLE_BYTES, permute_grid_whole_bytes: "bytes up to which a row is short in that launch",
        0, 1 << 20, 8_192, [2_048, 4_096, 8_192, 16_384];

    /// Rows alone take dsv3 134.5 with 4,096 tokens and 534 with 16,384, token by token 143 and 574.
    LISTED_ROUTES, listed_routes: "routes from which rows are moved in the order of their chunk's experts",
        LEAST_LISTED_ROUTES, 1 << 30, 65_536, [4_096, 8_192, 16_384, 32_768, 65_536, 1 << 30];
    /// Rows of 8,192 bytes and more were measured.
    LISTED_ROW_BYTES, listed_row_bytes: "bytes of a row from which they are",
        0, 1 << 30, 8_193, [2_048, 4_096, 8_192, 8_193, 16_384];
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
    /// qwen3 takes 36.7 in four parts with 4,096 tokens and 36.9 in two, 6.3 and 5.7 with 1,024; dsv3, whose rows are not
    /// short, 482.8 in 14 and 479.3 in seven with 16,384.
    COMBINE_LONG_TOKENS, combine_long_tokens: "tokens above which it has one step again where rows are short, else two",
        0, 1 << 20, 2_048, [512, 1_024, 2_048, 4_096, 16_384];

    /// dsv3 with 4,096 tokens reads 59 MB and takes 134.5 instead of 139.8, with 1,024 tokens 15 MB and 32.6 instead of
    /// 29.8; qwen3 with 4,096 tokens reads 17 MB and takes 36.3 instead of 33.9.
    GATHER_AHEAD_BYTES, gather_ahead_bytes: "bytes of a gather's input from which rows are asked for ahead",
        0, 1 << 40, 24 << 20, [8 << 20, 16 << 20, 24 << 20, 48 << 20, 1 << 40];
    /// Fewer leave multiprocessors idle.
    GATHER_BLOCKS, gather_blocks: "blocks of a gather for each multiprocessor, where rows can be cut",
        1, 64, 2, [1, 2, 4, 8];
}

impl Default for Thresholds {
    fn default() -> Self {
        Self::new(&Tuned::built_in(KNOBS))
    }
}
