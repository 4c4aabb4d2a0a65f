//! The kernels' parameter blocks: `kernels/abi.cuh` in Rust. Pointers are device addresses, 0 is absent; strides and
//! row lengths are in bytes.

use moe_core::{DType, Scoring};

/// Ids of type i32, u32, i64.
pub(crate) const ID_I32: u32 = 0;
pub(crate) const ID_U32: u32 = 1;
pub(crate) const ID_I64: u32 = 2;

pub(crate) const PACKED: u32 = 0;
pub(crate) const ALIGNED: u32 = 1;
pub(crate) const PADDED: u32 = 2;

/// No dtype: weights that are not there.
pub(crate) const NONE: u32 = 0;

pub(crate) const NO_CAPACITY: u32 = u32::MAX;

/// How the scales of quantised rows lie.
pub(crate) const SCALES_BY_ROW: u32 = 0;
pub(crate) const SCALES_BY_COLUMN: u32 = 1;
pub(crate) const SCALES_SWIZZLED: u32 = 2;

/// The kernels' number of a dtype that they compute with.
pub(crate) fn dtype(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 1,
        DType::F16 => 2,
        DType::BF16 => 3,
        DType::F8E4M3 => 4,
        DType::F8E5M2 => 5,
        // moe-core lets no other type come to a kernel that computes.
        _ => NONE,
    }
}

/// The kernels' number of a scoring.
pub(crate) fn scoring(scoring: Scoring) -> u32 {
    match scoring {
        Scoring::SoftmaxOfTopK => 1,
        Scoring::Sigmoid => 2,
        _ => 0,
    }
}

/// A parameter block that a kernel takes by value.
///
/// # Safety
/// `#[repr(C)]`, without padding, of the size that `kernels/abi.cuh` asserts for the block of the same name.
pub(crate) unsafe trait Params: Copy {}

macro_rules! blocks {
    ($($(#[$meta:meta])* $Name:ident: $size:literal { $($field:ident: $ty:ty,)* })*) => { $(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        pub(crate) struct $Name { $(pub(crate) $field: $ty,)* }
        const _: () = assert!(size_of::<$Name>() == $size && align_of::<$Name>() == 8);
        // Without padding: the fields fill the block.
        const _: () = assert!(0 $(+ size_of::<$ty>())* == $size);
        // SAFETY: `repr(C)`; size and padding are asserted above.
        unsafe impl Params for $Name {}
    )* };
}

blocks! {
    /// A plan build.
    PlanParams: 184 {
        ids: u64,
        expert_map: u64,
        valid_tokens: u64,
        keep: u64,
        over_max_routes: u64,
        source: u64,
        slot: u64,
        expert_offsets: u64,
        tokens_per_expert: u64,
        m_indices: u64,
        status: u64,
        logical_load: u64,
        scratch: u64,
        tokens: u32,
        k: u32,
        experts: u32,
        local_experts: u32,
        rows: u32,
        id_dtype: u32,
        layout: u32,
        align: u32,
        capacity: u32,
        chunk_tokens: u32,
        rank_warps: u32,
        share: u32,
        order: u64,
        log2phy: u64,
        logcnt: u64,
        copies: u32,
        physical_experts: u32,
    }

    /// Which routes stay by weight.
    KeepParams: 64 {
        weights: u64,
        source: u64,
        expert_offsets: u64,
        tokens_per_expert: u64,
        keys: u64,
        keep: u64,
        routes: u32,
        local_experts: u32,
        capacity: u32,
        weight_dtype: u32,
    }

    /// Adding a plan's load to sums.
    AddLoadParams: 24 {
        load: u64,
        sums: u64,
        experts: u32,
        reserved: u32,
    }

    /// A mask map to ids.
    MaskParams: 88 {
        mask: u64,
        probs: u64,
        valid_tokens: u64,
        ids: u64,
        probs_out: u64,
        over_max_routes: u64,
        mask_stride: u64,
        probs_stride: u64,
        tokens: u32,
        experts: u32,
        max_routes: u32,
        mask_bytes: u32,
        prob_bytes: u32,
        reserved: u32,
    }

    /// Values of routes back to a mask map.
    ScatterMaskParams: 56 {
        ids: u64,
        values: u64,
        output: u64,
        output_stride: u64,
        tokens: u32,
        experts: u32,
        max_routes: u32,
        bytes: u32,
        vec: u32,
        reserved: u32,
    }

    /// Chunks of rows to ids.
    ChunksParams: 40 {
        sizes: u64,
        order: u64,
        ids: u64,
        work: u64,
        tokens: u32,
        chunks: u32,
    }

    /// Placed routes in blocks of one expert each.
    BlockTableParams: 72 {
        source: u64,
        expert_offsets: u64,
        tokens_per_expert: u64,
        sorted_token_ids: u64,
        expert_ids: u64,
        num_tokens_post_padded: u64,
        routes: u32,
        rows: u32,
        local_experts: u32,
        block: u32,
        blocks: u32,
        reserved: u32,
    }

    /// Rows for each rank.
    SplitSizesParams: 24 {
        expert_offsets: u64,
        output: u64,
        ranks: u32,
        experts_per_rank: u32,
    }

    /// Rows to be copied.
    RowsParams: 48 {
        input: u64,
        output: u64,
        row_bytes: u64,
        input_stride: u64,
        output_stride: u64,
        vec: u32,
        splits: u32,
    }

    /// Plan and rows in one launch.
    PermuteParams: 280 {
        plan: PlanParams,
        rows: [RowsParams; 2],
    }

    /// Rows by an existing plan.
    GatherParams: 184 {
        rows: [RowsParams; 2],
        slot: u64,
        expert_offsets: u64,
        tokens_per_expert: u64,
        weights: u64,
        out_rows: u64,
        tokens: u32,
        k: u32,
        local_experts: u32,
        zero_padding: u32,
        weight_dtype: u32,
        dtype: u32,
        hidden: u64,
        order: u64,
        ahead: u32,
        reserved: u32,
    }

    /// Unpermute.
    CombineParams: 136 {
        rows: u64,
        slot: u64,
        weights: u64,
        scales: u64,
        initial: u64,
        output: u64,
        hidden: u64,
        row_stride: u64,
        scale_stride: u64,
        initial_stride: u64,
        output_stride: u64,
        out_rows: u64,
        tokens: u32,
        k: u32,
        y_dtype: u32,
        x_dtype: u32,
        weight_dtype: u32,
        scale_block: u32,
        splits: u32,
        initial_scale: f32,
        reciprocal: u32,
        reserved: u32,
    }

    /// The backward of unpermute.
    CombineGradParams: 160 {
        grad: u64,
        rows: u64,
        weights: u64,
        slot: u64,
        expert_offsets: u64,
        tokens_per_expert: u64,
        grad_rows: u64,
        grad_weights: u64,
        hidden: u64,
        grad_stride: u64,
        row_stride: u64,
        grad_row_stride: u64,
        out_rows: u64,
        tokens: u32,
        k: u32,
        x_dtype: u32,
        y_dtype: u32,
        dy_dtype: u32,
        weight_dtype: u32,
        dw_dtype: u32,
        local_experts: u32,
        zero_padding: u32,
        reserved0: u32,
        reserved1: u64,
        reserved2: u64,
    }

    /// Rows to be quantised: gathered, or made by SwiGLU.
    QuantParams: 168 {
        input: u64,
        up: u64,
        slot: u64,
        expert_offsets: u64,
        tokens_per_expert: u64,
        values: u64,
        scales: u64,
        hidden: u64,
        input_stride: u64,
        up_stride: u64,
        value_stride: u64,
        out_rows: u64,
        scale_rows: u64,
        tokens: u32,
        k: u32,
        local_experts: u32,
        zero_padding: u32,
        dtype: u32,
        round_to: u32,
        out_dtype: u32,
        scale_layout: u32,
        groups: u32,
        padded_groups: u32,
        ceil: u32,
        global_scale: u32,
        wide: u32,
        splits: u32,
        reserved0: u32,
        reserved1: u32,
    }

    /// Zeroing the rows past the last expert offset.
    ZeroTailParams: 48 {
        output: u64,
        row_bytes: u64,
        output_stride: u64,
        out_rows: u64,
        expert_offsets: u64,
        local_experts: u32,
        vec: u32,
    }

    /// Logits to ids and weights.
    RouteParams: 104 {
        logits: u64,
        bias: u64,
        valid_tokens: u64,
        ids: u64,
        weights: u64,
        probs: u64,
        logit_stride: u64,
        prob_stride: u64,
        tokens: u32,
        experts: u32,
        k: u32,
        dtype: u32,
        weight_dtype: u32,
        scoring: u32,
        renormalize: u32,
        n_group: u32,
        topk_group: u32,
        scaling_factor: f32,
    }

    /// A router's losses.
    RouterLossParams: 80 {
        logits: u64,
        load: u64,
        valid_tokens: u64,
        token_losses: u64,
        out: u64,
        logit_stride: u64,
        tokens: u32,
        experts: u32,
        dtype: u32,
        scoring: u32,
        has_z: u32,
        balance_scale: f32,
        z_scale: f32,
        reserved: u32,
    }

    /// A router's gradient.
    RouterGradParams: 136 {
        logits: u64,
        ids: u64,
        grad_weights: u64,
        grad_probs: u64,
        load: u64,
        loss_grads: u64,
        valid_tokens: u64,
        grad_logits: u64,
        logit_stride: u64,
        grad_prob_stride: u64,
        grad_logit_stride: u64,
        tokens: u32,
        experts: u32,
        k: u32,
        dtype: u32,
        weight_dtype: u32,
        scoring: u32,
        renormalize: u32,
        has_z: u32,
        scaling_factor: f32,
        balance_scale: f32,
        z_scale: f32,
        reserved: u32,
    }
}

impl RowsParams {
    /// No rows.
    pub(crate) const UNUSED: Self =
        Self { input: 0, output: 0, row_bytes: 0, input_stride: 0, output_stride: 0, vec: 1, splits: 1 };
}

#[cfg(test)]
mod tests {
    /// The fields of each block in abi.cuh, in order, with their types: what `repr(C)` mirrors.
    fn header_fields(name: &str) -> Vec<(String, String)> {
        let header = include_str!("../kernels/abi.cuh");
        let (_, rest) = header.split_once(&format!("struct {name} {{")).unwrap();
        let (body, _) = rest.split_once("};").unwrap();
        let lines = body.lines().filter_map(|line| line.split(';').next()).map(str::trim);
        let fields = lines.filter(|line| !line.is_empty() && !line.starts_with("//"));
        fields
            .map(|line| {
                let (ty, field) = line.trim_start_matches("struct ").split_once(' ').unwrap();
                (ty.to_owned(), field.to_owned())
            })
            .collect()
    }

    /// The same from this file's own text.
    fn rust_fields(name: &str) -> Vec<(String, String)> {
        let (_, rest) = include_str!("abi.rs").split_once(&format!("    {name}: ")).unwrap();
        let (_, rest) = rest.split_once("{\n").unwrap();
        let (body, _) = rest.split_once('}').unwrap();
        let fields = body.lines().map(|line| line.trim().trim_end_matches(',')).filter(|line| !line.is_empty());
        fields
            .map(|line| {
                let (field, ty) = line.split_once(": ").unwrap();
                match ty {
                    "PlanParams" => ("MoePlanParams".into(), field.into()),
                    "[RowsParams; 2]" => ("MoeRows".into(), format!("{field}[2]")),
                    _ => (ty.into(), field.into()),
                }
            })
            .collect()
    }

    #[test]
    fn parameter_blocks_have_the_fields_of_the_header_in_its_order() {
        for (c, rust) in [
            ("MoePlanParams", "PlanParams"),
            ("MoeKeepParams", "KeepParams"),
            ("MoeAddLoadParams", "AddLoadParams"),
            ("MoeMaskParams", "MaskParams"),
            ("MoeScatterMaskParams", "ScatterMaskParams"),
            ("MoeChunksParams", "ChunksParams"),
            ("MoeBlockTableParams", "BlockTableParams"),
            ("MoeSplitSizesParams", "SplitSizesParams"),
            ("MoeRows", "RowsParams"),
            ("MoePermuteParams", "PermuteParams"),
            ("MoeGatherParams", "GatherParams"),
            ("MoeCombineParams", "CombineParams"),
            ("MoeCombineGradParams", "CombineGradParams"),
            ("MoeQuantParams", "QuantParams"),
            ("MoeZeroTailParams", "ZeroTailParams"),
            ("MoeRouteParams", "RouteParams"),
            ("MoeRouterLossParams", "RouterLossParams"),
            ("MoeRouterGradParams", "RouterGradParams"),
        ] {
            let fields = header_fields(c);
            assert!(fields.len() > 1, "{c} was not found");
            assert_eq!(rust_fields(rust), fields, "{c}");
        }
    }

    #[test]
    fn constants_are_those_of_the_header() {
        let header = include_str!("../kernels/abi.cuh");
        let value = |name: &str| {
            let line = header.lines().find_map(|l| l.strip_prefix(&format!("#define {name} "))).unwrap();
            let text = line.trim().trim_end_matches('u');
            text.strip_prefix("0x").map_or_else(|| text.parse().unwrap(), |hex| u32::from_str_radix(hex, 16).unwrap())
        };
        use super::*;
        for (name, ours) in [
            ("MOE_ID_I32", ID_I32),
            ("MOE_ID_U32", ID_U32),
            ("MOE_ID_I64", ID_I64),
            ("MOE_PACKED", PACKED),
            ("MOE_ALIGNED", ALIGNED),
            ("MOE_PADDED", PADDED),
            ("MOE_NONE", NONE),
            ("MOE_NO_CAPACITY", NO_CAPACITY),
            ("MOE_SCALES_BY_ROW", SCALES_BY_ROW),
            ("MOE_SCALES_BY_COLUMN", SCALES_BY_COLUMN),
            ("MOE_SCALES_SWIZZLED", SCALES_SWIZZLED),
            ("MOE_F32", dtype(DType::F32)),
            ("MOE_F16", dtype(DType::F16)),
            ("MOE_BF16", dtype(DType::BF16)),
            ("MOE_E4M3", dtype(DType::F8E4M3)),
            ("MOE_E5M2", dtype(DType::F8E5M2)),
            ("MOE_SOFTMAX", scoring(Scoring::Softmax)),
            ("MOE_SOFTMAX_OF_TOP_K", scoring(Scoring::SoftmaxOfTopK)),
            ("MOE_SIGMOID", scoring(Scoring::Sigmoid)),
        ] {
            assert_eq!(ours, value(name), "{name}");
        }
    }
}
