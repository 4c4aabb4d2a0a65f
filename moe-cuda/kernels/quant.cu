// Gather and quantise: row slot[t, k] of the values and scales is the quantisation of X[t, :], for
// placed routes; padding rows below the last offset are that of zeros; rows past it are not touched.
// Token-major: a row is read and quantised once, then stored to each of its slots. Parameters:
// MoeQuantParams in abi.cuh, a block of whole warps, grid max(tokens * splits, blocks for padding).
// Tail rule: elements past the last whole unit of 16 go one at a time.
#include "quant.cuh"

struct MoeTokenIn {
    u64 row;
    u32 dtype, wide;
    MOE_DEV void operator()(u32 unit, u32 n, float *x) const { moe_load_unit(row, (u64)unit * 16, n, dtype, wide, x); }
};

struct MoeSlots {
    const i32 *slot;
    u32 rows;
    MOE_DEV u64 row(u32 j) const { return (u64)(i64)__ldg(slot + j); }
};

template <u32 F> MOE_DEV void moe_gather_quant(const MoeQuantParams &p) {
    __shared__ u32 shared[32];
    u32 t = blockIdx.x / p.splits, part = blockIdx.x % p.splits;
    if (t < p.tokens) {
        MoeTokenIn in = {p.input + (u64)t * p.input_stride, p.dtype, p.wide};
        MoeSlots to = {(const i32 *)p.slot + (u64)t * p.k, p.k};
        moe_quantise_row<F>(p, in, to, part, p.splits, shared);
    }
    if (!p.zero_padding) return;
    const u32 zero_scale = F == MOE_PER_TOKEN || F == MOE_BLOCK128 ? __float_as_uint(1e-12f) : 0u;
    for (u32 e = blockIdx.x; e < p.local_experts; e += gridDim.x) {
        u64 first = (u64)(u32)((const i32 *)p.expert_offsets)[e] + (u32)((const i32 *)p.tokens_per_expert)[e];
        u64 end = moe_min64((u32)((const i32 *)p.expert_offsets)[e + 1], p.out_rows);
        u64 bytes = F == MOE_NVFP4 ? p.hidden / 2 : p.hidden;
        for (u64 row = first; row < end; row++) {
            moe_zero_span(p.values + row * p.value_stride, bytes, p.wide ? 16 : 1, threadIdx.x, blockDim.x);
            for (u32 g = threadIdx.x; g < p.padded_groups; g += blockDim.x)
                moe_store_scale<F>(p, row, g, g < p.groups ? zero_scale : 0u);
        }
    }
}

extern "C" __global__ void __launch_bounds__(512, 2) moe_gather_quant_per_token(MoeQuantParams p) { moe_gather_quant<MOE_PER_TOKEN>(p); }
extern "C" __global__ void __launch_bounds__(512, 2) moe_gather_quant_block128(MoeQuantParams p) { moe_gather_quant<MOE_BLOCK128>(p); }
extern "C" __global__ void __launch_bounds__(512, 2) moe_gather_quant_mxfp8(MoeQuantParams p) { moe_gather_quant<MOE_MXFP8>(p); }
extern "C" __global__ void __launch_bounds__(512, 2) moe_gather_quant_nvfp4(MoeQuantParams p) { moe_gather_quant<MOE_NVFP4>(p); }
