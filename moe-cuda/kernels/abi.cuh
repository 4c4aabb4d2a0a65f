// The contract between the host and the kernels: parameter blocks, one by value per launch.
//
// Every block is plain data: fixed-width fields, 8-byte aligned, no padding. Pointers are device
// addresses; 0 means absent. `#[repr(C)]` with the same field order mirrors it. Strides and row
// lengths are bytes unless a name says otherwise.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef float f32;

// Id dtypes.
#define MOE_ID_I32 0u
#define MOE_ID_U32 1u
#define MOE_ID_I64 2u

// Layouts.
#define MOE_PACKED 0u
#define MOE_ALIGNED 1u
#define MOE_PADDED 2u

// Element dtypes. NONE stands for "no weights" (1.0).
#define MOE_NONE 0u
#define MOE_F32 1u
#define MOE_F16 2u
#define MOE_BF16 3u
#define MOE_E4M3 4u
#define MOE_E5M2 5u

// Positions in `status`.
#define MOE_MASKED 0
#define MOE_INVALID 1
#define MOE_NON_LOCAL 2
#define MOE_OVER_CAPACITY 3
#define MOE_OVER_MAX_ROUTES 4

#define MOE_NO_CAPACITY 0xffffffffu

// How the scales of quantised rows lie.
#define MOE_SCALES_BY_ROW 0u
#define MOE_SCALES_BY_COLUMN 1u
#define MOE_SCALES_SWIZZLED 2u

// A plan build. 184 bytes.
struct MoePlanParams {
    u64 ids;               // [tokens, k] of id_dtype
    u64 expert_map;        // i32 [physical_experts] or 0
    u64 valid_tokens;      // i32 [1] or 0
    u64 keep;              // u8 [tokens * k] or 0: a route whose byte is 0 counts as over capacity
    u64 over_max_routes;   // u32 [1] or 0: copied to status[4], and masked ids do not count; 0 writes zero there
    u64 source;            // i32 [rows]
    u64 slot;              // i32 [tokens * k]
    u64 expert_offsets;    // i32 [local_experts + 1]
    u64 tokens_per_expert; // i32 [local_experts]
    u64 m_indices;         // i32 [rows] or 0
    u64 status;            // u32 [5]
    u64 logical_load;      // i32 [experts] or 0
    u64 scratch;           // see ABI.md; 256-byte aligned
    u32 tokens;
    u32 k;
    u32 experts;
    u32 local_experts;     // equals physical_experts where expert_map is 0
    u32 rows;              // R
    u32 id_dtype;
    u32 layout;
    u32 align;             // Aligned(n): n; Padded(c): c; Packed: 1
    u32 capacity;          // rows per local expert at most; MOE_NO_CAPACITY for none
    u32 chunk_tokens;      // tokens a block ranks (plan kernels, moe_permute_grid)
    u32 rank_warps;        // warps that rank at a time; see ABI.md
    u32 share;             // blocks that share a chunk: a power of two (moe_permute_grid), else 1
    u64 order;             // i32 pairs (row, route) [tokens * k] or 0 (moe_plan_grid)
    u64 log2phy;           // i32 [experts, copies] or 0: the physical experts of each expert
    u64 logcnt;            // i32 [experts]: how many of them there are, 1 to copies
    u32 copies;
    u32 physical_experts;  // equals experts where log2phy is 0
};

// Which routes stay by weight. 64 bytes.
struct MoeKeepParams {
    u64 weights;           // [routes] of weight_dtype
    u64 source;            // i32 [routes]: the routes of each local expert, ascending
    u64 expert_offsets;    // i32 [local_experts]: where those of an expert begin
    u64 tokens_per_expert; // i32 [local_experts]
    u64 keys;              // u32 [routes]: scratch
    u64 keep;              // u8 [routes]: 1 for the routes that stay, 0 for the others that are listed
    u32 routes;
    u32 local_experts;
    u32 capacity;
    u32 weight_dtype;
};

// Adding a plan's load to sums. 24 bytes.
struct MoeAddLoadParams {
    u64 load;              // i32 [experts], as a plan has it
    u64 sums;              // u32 [experts]
    u32 experts;
    u32 reserved;
};

// A mask map to ids. 88 bytes.
struct MoeMaskParams {
    u64 mask;              // [tokens, experts], elements of mask_bytes; not 0 is set
    u64 probs;             // [tokens, experts], elements of prob_bytes, or 0
    u64 valid_tokens;      // i32 [1] or 0
    u64 ids;               // i32 [tokens, max_routes]
    u64 probs_out;         // [tokens, max_routes], elements of prob_bytes, or 0 where probs is
    u64 over_max_routes;   // u32 [1], zero before where max_routes is less than experts
    u64 mask_stride;       // bytes
    u64 probs_stride;      // bytes
    u32 tokens;
    u32 experts;
    u32 max_routes;
    u32 mask_bytes;        // 1 or 4
    u32 prob_bytes;        // 2 or 4
    u32 reserved;
};

// Values of routes back to a mask map. 56 bytes.
struct MoeScatterMaskParams {
    u64 ids;               // i32 [tokens, max_routes]
    u64 values;            // [tokens, max_routes], elements of `bytes`
    u64 output;            // [tokens, experts], elements of `bytes`
    u64 output_stride;     // bytes
    u32 tokens;
    u32 experts;
    u32 max_routes;
    u32 bytes;             // 2 or 4
    u32 vec;               // 16, 8, 4 or 2: divides address and stride
    u32 reserved;
};

// Chunks of rows to ids. 40 bytes.
struct MoeChunksParams {
    u64 sizes;             // i32 [chunks]
    u64 order;             // i32 [chunks] or 0
    u64 ids;               // i32 [tokens]
    u64 work;              // u32 [2 * chunks + 1]: places, then starts
    u32 tokens;
    u32 chunks;
};

// Placed routes in blocks of one expert each. 72 bytes.
struct MoeBlockTableParams {
    u64 source;            // i32 [rows]
    u64 expert_offsets;    // i32 [local_experts + 1]
    u64 tokens_per_expert; // i32 [local_experts]
    u64 sorted_token_ids;  // i32 [blocks * block]
    u64 expert_ids;        // i32 [blocks]
    u64 num_tokens_post_padded; // i32 [1]
    u32 routes;
    u32 rows;
    u32 local_experts;
    u32 block;
    u32 blocks;
    u32 reserved;
};

// Rows for each rank. 24 bytes.
struct MoeSplitSizesParams {
    u64 expert_offsets;    // i32 [ranks * experts_per_rank + 1]
    u64 output;            // i32 [ranks]
    u32 ranks;
    u32 experts_per_rank;
};

// Rows to be copied. 48 bytes.
struct MoeRows {
    u64 input;
    u64 output;
    u64 row_bytes;      // 0: this entry is not used
    u64 input_stride;   // bytes from row to row
    u64 output_stride;
    u32 vec;            // 16, 8, 4, 2 or 1: divides both addresses and both strides
    u32 splits;         // blocks that share a row: at least 1; in moe_permute_* a power of two
};

// Plan and rows in one launch. 280 bytes.
struct MoePermuteParams {
    struct MoePlanParams plan;
    struct MoeRows rows[2];   // rows[1] is the side-car (scales); row_bytes 0 where there is none
};

// Rows by an existing plan. 184 bytes.
struct MoeGatherParams {
    struct MoeRows rows[2];
    u64 slot;              // i32 [tokens, k]
    u64 expert_offsets;    // i32 [local_experts + 1]
    u64 tokens_per_expert; // i32 [local_experts]
    u64 weights;           // [tokens, k] of weight_dtype or 0 (moe_gather_weighted only)
    u64 out_rows;          // R
    u32 tokens;
    u32 k;
    u32 local_experts;
    u32 zero_padding;      // 1: zero the rows between experts (Aligned, Padded); 0: Packed
    u32 weight_dtype;
    u32 dtype;             // of the rows (moe_gather_weighted only)
    u64 hidden;            // elements per row (moe_gather_weighted only)
    u64 order;             // as written by moe_plan_grid (moe_gather_list_v16 only)
    u32 ahead;             // tokens by which rows are asked for ahead (moe_gather_ahead_v16 only)
    u32 reserved;
};

// Unpermute. 136 bytes.
struct MoeCombineParams {
    u64 rows;          // Y [out_rows, hidden] of y_dtype
    u64 slot;          // i32 [tokens, k]
    u64 weights;       // [tokens, k] of weight_dtype or 0
    u64 scales;        // f32 [out_rows, ceil(hidden / scale_block)] or 0
    u64 initial;       // X0 [tokens, hidden] of x_dtype or 0
    u64 output;        // X [tokens, hidden] of x_dtype
    u64 hidden;
    u64 row_stride;    // bytes, Y
    u64 scale_stride;  // bytes, scales
    u64 initial_stride;// bytes, X0
    u64 output_stride; // bytes, X
    u64 out_rows;      // R
    u32 tokens;
    u32 k;
    u32 y_dtype;
    u32 x_dtype;
    u32 weight_dtype;  // MOE_NONE where weights is 0
    u32 scale_block;   // elements per scale; 0 without scales
    u32 splits;        // blocks that share a token; at least 1
    f32 initial_scale; // multiplies X0
    u32 reciprocal;    // ceil(2^32 / splits), 0 for 1 (moe_combine_*_k2, _k8 and _k8_r64 only)
    u32 reserved;
};

// Backward of unpermute. 160 bytes.
struct MoeCombineGradParams {
    u64 grad;              // dX [tokens, hidden] of x_dtype
    u64 rows;              // Y [out_rows, hidden] of y_dtype, or 0 (no dw)
    u64 weights;           // [tokens, k] of weight_dtype or 0
    u64 slot;              // i32 [tokens, k]
    u64 expert_offsets;    // i32 [local_experts + 1]
    u64 tokens_per_expert; // i32 [local_experts]
    u64 grad_rows;         // dY [out_rows, hidden] of dy_dtype, or 0
    u64 grad_weights;      // dw [tokens, k] of dw_dtype, or 0
    u64 hidden;
    u64 grad_stride;       // bytes, dX
    u64 row_stride;        // bytes, Y
    u64 grad_row_stride;   // bytes, dY
    u64 out_rows;          // R
    u32 tokens;
    u32 k;
    u32 x_dtype;
    u32 y_dtype;
    u32 dy_dtype;
    u32 weight_dtype;
    u32 dw_dtype;
    u32 local_experts;
    u32 zero_padding;      // 1: zero dY's rows between experts
    u32 reserved0;
    u64 reserved1;
    u64 reserved2;
};

// Zero the rows from expert_offsets[local_experts] to out_rows. 48 bytes.
struct MoeZeroTailParams {
    u64 output;
    u64 row_bytes;
    u64 output_stride;
    u64 out_rows;
    u64 expert_offsets;
    u32 local_experts;
    u32 vec;               // 16, 8, 4, 2 or 1: divides address and stride
};

// Scorings of a router.
#define MOE_SOFTMAX 0u
#define MOE_SOFTMAX_OF_TOP_K 1u
#define MOE_SIGMOID 2u

// Logits to ids and weights. 104 bytes.
struct MoeRouteParams {
    u64 logits;            // [tokens, experts] of dtype
    u64 bias;              // f32 [experts] or 0
    u64 valid_tokens;      // i32 [1] or 0
    u64 ids;               // i32 [tokens, k]
    u64 weights;           // [tokens, k] of weight_dtype
    u64 probs;             // f32 [tokens, experts] or 0
    u64 logit_stride;      // bytes
    u64 prob_stride;       // bytes
    u32 tokens;
    u32 experts;
    u32 k;
    u32 dtype;
    u32 weight_dtype;
    u32 scoring;
    u32 renormalize;       // 0 or 1
    u32 n_group;           // 1 to 128; 1 where there are no groups
    u32 topk_group;
    f32 scaling_factor;
};

// A router's losses. 80 bytes.
struct MoeRouterLossParams {
    u64 logits;            // [tokens, experts] of dtype
    u64 load;              // i32 [experts] or 0
    u64 valid_tokens;      // i32 [1] or 0
    u64 token_losses;      // f32 [tokens, 2]
    u64 out;               // f32 [2]
    u64 logit_stride;      // bytes
    u32 tokens;
    u32 experts;
    u32 dtype;
    u32 scoring;
    u32 has_z;             // 0 or 1
    f32 balance_scale;
    f32 z_scale;
    u32 reserved;
};

// A router's gradient. 136 bytes.
struct MoeRouterGradParams {
    u64 logits;            // [tokens, experts] of dtype
    u64 ids;               // i32 [tokens, k] or 0
    u64 grad_weights;      // [tokens, k] of weight_dtype or 0
    u64 grad_probs;        // f32 [tokens, experts] or 0
    u64 load;              // i32 [experts] or 0
    u64 loss_grads;        // f32 [2] or 0
    u64 valid_tokens;      // i32 [1] or 0
    u64 grad_logits;       // [tokens, experts] of dtype
    u64 logit_stride;      // bytes
    u64 grad_prob_stride;  // bytes
    u64 grad_logit_stride; // bytes
    u32 tokens;
    u32 experts;
    u32 k;
    u32 dtype;
    u32 weight_dtype;
    u32 scoring;
    u32 renormalize;       // 0 or 1
    u32 has_z;             // 0 or 1
    f32 scaling_factor;
    f32 balance_scale;
    f32 z_scale;
    u32 reserved;
};

// Rows to be quantised: gathered, or made by SwiGLU. 168 bytes.
struct MoeQuantParams {
    u64 input;             // X [tokens, hidden] of dtype; SwiGLU: gate [out_rows, hidden]
    u64 up;                // SwiGLU: [out_rows, hidden] of dtype; else 0
    u64 slot;              // i32 [tokens, k]; SwiGLU: 0
    u64 expert_offsets;    // i32 [local_experts + 1]
    u64 tokens_per_expert; // i32 [local_experts]; SwiGLU: 0
    u64 values;            // [out_rows, hidden] e4m3, or [out_rows, hidden / 2] packed e2m1
    u64 scales;            // f32, or u8 for e8m0 and e4m3
    u64 hidden;            // elements of a row
    u64 input_stride;      // bytes, X or gate
    u64 up_stride;         // bytes
    u64 value_stride;      // bytes
    u64 out_rows;          // R
    u64 scale_rows;        // column-major: elements of a column
    u32 tokens;
    u32 k;
    u32 local_experts;
    u32 zero_padding;      // gather: 1 where there can be rows between experts
    u32 dtype;             // of the inputs
    u32 round_to;          // SwiGLU: what y is rounded to before it is quantised
    u32 out_dtype;         // moe_swiglu: of the values
    u32 scale_layout;
    u32 groups;            // scales of a row
    u32 padded_groups;     // swizzled: rounded up to 4; else groups
    u32 ceil;              // MXFP8: 1 rounds exponents up where the largest would saturate
    u32 global_scale;      // NVFP4: the bits of an f32
    u32 wide;              // 1 where all addresses and strides are multiples of 16
    u32 splits;            // blocks that share a token (not per token); at least 1
    u32 reserved0;
    u32 reserved1;
};

static_assert(sizeof(MoePlanParams) == 184, "");
static_assert(sizeof(MoeKeepParams) == 64, "");
static_assert(sizeof(MoeAddLoadParams) == 24, "");
static_assert(sizeof(MoeMaskParams) == 88, "");
static_assert(sizeof(MoeScatterMaskParams) == 56, "");
static_assert(sizeof(MoeChunksParams) == 40, "");
static_assert(sizeof(MoeBlockTableParams) == 72, "");
static_assert(sizeof(MoeSplitSizesParams) == 24, "");
static_assert(sizeof(MoeRows) == 48, "");
static_assert(sizeof(MoePermuteParams) == 280, "");
static_assert(sizeof(MoeGatherParams) == 184, "");
static_assert(sizeof(MoeCombineParams) == 136, "");
static_assert(sizeof(MoeCombineGradParams) == 160, "");
static_assert(sizeof(MoeZeroTailParams) == 48, "");
static_assert(sizeof(MoeRouteParams) == 104, "");
static_assert(sizeof(MoeRouterLossParams) == 80, "");
static_assert(sizeof(MoeRouterGradParams) == 136, "");
static_assert(sizeof(MoeQuantParams) == 168, "");
