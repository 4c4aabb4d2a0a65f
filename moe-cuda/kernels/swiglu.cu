// SwiGLU: y = silu(gate) * up for rows below the last offset, padding rows too; rows from there on are
// neither read nor touched. Plain: rounded once to the output's dtype, NaN canonical. Quantised:
// rounded to `round_to`, then quantised. Parameters: MoeQuantParams in abi.cuh (input is gate; the plain
// kernel writes `values` as `out_dtype`), a block of whole warps; blocks take rows in turn.
#include "math.cuh"
#include "quant.cuh"

// x / d, rounded to nearest: the hardware's reciprocal, one correction of it, and two of the quotient.
// Where nothing over- or underflows the residuals are exact: this is how a division that rounds begins.
MOE_DEV float moe_divide_inside(float x, float d) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(d));
    y = __fmaf_rn(y, __fmaf_rn(-d, y, 1.0f), y);
    float q = __fmul_rn(x, y);
    q = __fmaf_rn(__fmaf_rn(-d, q, x), y, q);
    return __fmaf_rn(__fmaf_rn(-d, q, x), y, q);
}

// 1 + e^-x for |x| <= 88.72283, where e^-x needs no check of its range.
MOE_DEV float moe_one_and_exp(float x) {
    float z = __fmaf_rn(-x, __uint_as_float(0x3fb8aa3bu), 12582912.0f);
    float n = __fsub_rn(z, 12582912.0f);
    float r = __fmaf_rn(n, -__uint_as_float(0x3f317218u), -x);
    r = __fmaf_rn(n, -__uint_as_float(0xb102e308u), r);
    float p = __fmaf_rn(__uint_as_float(0x3ab5121bu), r, __uint_as_float(0x3c091cebu));
    p = __fmaf_rn(p, r, __uint_as_float(0x3d2aac79u));
    p = __fmaf_rn(p, r, __uint_as_float(0x3e2aaa49u));
    p = __fmaf_rn(p, r, __uint_as_float(0x3efffffeu));
    p = __fmaf_rn(__fmaf_rn(p, r, 1.0f), r, 1.0f);
    return __fadd_rn(1.0f, __uint_as_float(__float_as_uint(p) + (__float_as_uint(z) << 23)));
}

// moe_silu for 2^-100 <= |x| < 64, and NaN.
MOE_DEV float moe_silu_inside(float x) { return moe_divide_inside(x, moe_one_and_exp(x)); }

// moe_silu for any x, without a call. Near zero e^-x is 1, and from 64 on it is lost beside 1; up to -64
// both sides of the division are scaled, so that no step underflows.
MOE_DEV float moe_silu_anywhere(float x) {
    float d = moe_one_and_exp(fmaxf(x, __uint_as_float(0xc2b17217u)));
    float low = __fmul_rn(moe_divide_inside(__fmul_rn(x, 0x1p-24f), __fmul_rn(d, 0x1p-64f)), 0x1p-40f);
    low = x < __uint_as_float(0xc2b17217u) ? __uint_as_float(0x80000000u) : low;
    float y = moe_silu_inside(x);
    y = fabsf(x) < 0x1p-100f ? __fmul_rn(x, 0.5f) : y;
    y = x >= 64.0f ? x : y;
    y = x <= -64.0f ? low : y;
    return x == -MOE_INF ? MOE_NAN : y;
}

// silu(g) * u for eight elements, into g. Few at a time keep registers free, and so more warps running.
MOE_DEV void moe_swiglu_eight(float *g, const float *u) {
    float least = MOE_INF, most = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 8; i++) least = fminf(least, fabsf(g[i])), most = fmaxf(most, fabsf(g[i]));
    if (least >= __uint_as_float(0x0d800000u) && most < 64.0f) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) g[i] = __fmul_rn(moe_silu_inside(g[i]), u[i]);
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) g[i] = __fmul_rn(moe_silu_anywhere(g[i]), u[i]);
    }
}

struct MoeSwigluIn {
    u64 gate, up;
    u32 dtype, wide, round_to;
    MOE_DEV void operator()(u32 unit, u32 n, float *x) const {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u64 first = (u64)unit * 16 + 8 * h;
            u32 m = h ? max(n, 8u) - 8 : min(n, 8u);
            float u[8];
            moe_load_eight(gate, first, m, dtype, wide, x + 8 * h);
            moe_load_eight(up, first, m, dtype, wide, u);
            moe_swiglu_eight(x + 8 * h, u);
        }
        // Which NaN it is makes no difference to what follows.
        if (round_to == MOE_BF16) {
#pragma unroll
            for (u32 i = 0; i < 16; i += 2) {
                u32 two;
                asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(x[i + 1]), "f"(x[i]));
                x[i] = __uint_as_float(two << 16), x[i + 1] = __uint_as_float(two & 0xffff0000u);
            }
        } else if (round_to == MOE_F16) {
#pragma unroll
            for (u32 i = 0; i < 16; i++) x[i] = moe_f16_to_f32(moe_f32_to_f16(x[i]));
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

extern "C" __global__ void __launch_bounds__(256, 3) moe_swiglu_quant_per_token(MoeQuantParams p) { moe_swiglu_quant<MOE_PER_TOKEN>(p); }
extern "C" __global__ void __launch_bounds__(256, 4) moe_swiglu_quant_block128(MoeQuantParams p) { moe_swiglu_quant<MOE_BLOCK128>(p); }
extern "C" __global__ void __launch_bounds__(256, 4) moe_swiglu_quant_mxfp8(MoeQuantParams p) { moe_swiglu_quant<MOE_MXFP8>(p); }
extern "C" __global__ void __launch_bounds__(256, 4) moe_swiglu_quant_nvfp4(MoeQuantParams p) { moe_swiglu_quant<MOE_NVFP4>(p); }

extern "C" __global__ void __launch_bounds__(256, 4) moe_swiglu(MoeQuantParams p) {
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
