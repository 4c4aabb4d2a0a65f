// SwiGLU: y = silu(gate) * up for rows below the last offset, padding rows too; rows from there on are
// neither read nor touched. Plain: rounded once to the output's dtype, NaN canonical. Quantised:
// rounded to `round_to`, then quantised. Parameters: MoeQuantParams in abi.cuh (input is gate; the plain
// kernel writes `values` as `out_dtype`), a block of whole warps; blocks take rows in turn.
#include "math.cuh"
#include "quant.cuh"

struct MoeSwigluIn {
    u64 gate, up;
    u32 dtype, wide, round_to;
    MOE_DEV void operator()(u32 unit, u32 n, float *x) const {
        float u[16];
        moe_load_unit(gate, (u64)unit * 16, n, dtype, wide, x);
        moe_load_unit(up, (u64)unit * 16, n, dtype, wide, u);
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            float y = __fmul_rn(moe_silu(x[i]), u[i]);
            if (round_to == MOE_BF16) y = moe_bf16_to_f32(moe_f32_to_bf16(y));
            if (round_to == MOE_F16) y = moe_f16_to_f32(moe_f32_to_f16(y));
            x[i] = y;
        }
    }
};

struct MoeOneRow {
    u64 at;
    u32 rows;
    MOE_DEV u64 row(u32) const { return at; }
};

MOE_DEV u64 moe_used_rows(const MoeQuantParams &p) {
    i32 used = __ldg((const i32 *)p.expert_offsets + p.local_experts);
    return used < 0 ? 0 : moe_min64((u64)used, p.out_rows);
}

template <u32 F> MOE_DEV void moe_swiglu_quant(const MoeQuantParams &p) {
    __shared__ u32 shared[32];
    u64 used = moe_used_rows(p);
    for (u64 row = blockIdx.x; row < used; row += gridDim.x) {
        MoeSwigluIn in = {p.input + row * p.input_stride, p.up + row * p.up_stride, p.dtype, p.wide, p.round_to};
        MoeOneRow to = {row, 1};
        moe_quantise_row<F>(p, in, to, 0, 1, shared);
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) moe_swiglu_quant_per_token(MoeQuantParams p) { moe_swiglu_quant<MOE_PER_TOKEN>(p); }
extern "C" __global__ void __launch_bounds__(512, 1) moe_swiglu_quant_block128(MoeQuantParams p) { moe_swiglu_quant<MOE_BLOCK128>(p); }
extern "C" __global__ void __launch_bounds__(512, 1) moe_swiglu_quant_mxfp8(MoeQuantParams p) { moe_swiglu_quant<MOE_MXFP8>(p); }
extern "C" __global__ void __launch_bounds__(512, 1) moe_swiglu_quant_nvfp4(MoeQuantParams p) { moe_swiglu_quant<MOE_NVFP4>(p); }

extern "C" __global__ void __launch_bounds__(512, 1) moe_swiglu(MoeQuantParams p) {
    u64 used = moe_used_rows(p);
    u32 units = (u32)((p.hidden + 15) / 16);
    for (u64 row = blockIdx.x; row < used; row += gridDim.x) {
        MoeSwigluIn in = {p.input + row * p.input_stride, p.up + row * p.up_stride, p.dtype, p.wide, MOE_F32};
        u64 out = p.values + row * p.value_stride;
        for (u32 unit = threadIdx.x; unit < units; unit += blockDim.x) {
            u32 n = (u32)moe_min64(16, p.hidden - (u64)unit * 16);
            float x[16];
            in(unit, n, x);
            if (p.wide && n == 16) {
                if (p.out_dtype == MOE_F32) {
#pragma unroll
                    for (u32 i = 0; i < 4; i++)
                        ((float4 *)out)[(u64)unit * 4 + i] =
                            make_float4(moe_canonical_f32(x[4 * i]), moe_canonical_f32(x[4 * i + 1]),
                                        moe_canonical_f32(x[4 * i + 2]), moe_canonical_f32(x[4 * i + 3]));
                } else {
                    bool half = p.out_dtype == MOE_F16;
                    u32 word[8];
#pragma unroll
                    for (u32 i = 0; i < 8; i++) {
                        u32 low = half ? moe_f32_to_f16(x[2 * i]) : moe_f32_to_bf16(x[2 * i]);
                        u32 high = half ? moe_f32_to_f16(x[2 * i + 1]) : moe_f32_to_bf16(x[2 * i + 1]);
                        word[i] = high << 16 | low;
                    }
                    ((uint4 *)out)[(u64)unit * 2] = make_uint4(word[0], word[1], word[2], word[3]);
                    ((uint4 *)out)[(u64)unit * 2 + 1] = make_uint4(word[4], word[5], word[6], word[7]);
                }
            } else {
#pragma unroll
                for (u32 i = 0; i < 16; i++)
                    if (i < n) moe_store_any(out, (u64)unit * 16 + i, p.out_dtype, x[i]);
            }
        }
    }
}
