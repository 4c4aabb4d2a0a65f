// Backward of combine. For a placed route x = t * K + k with row r = slot[t, k]:
//   dY[r, :] = round(w[t, k] * dX[t, :]),   dw[t, k] = round(sum over h of Y[r, h] * dX[t, h]).
// Without weights dY is a copy of the bits. dY is zero on padding rows, dw is 0 for routes without a row, NaN is canonical. Parameters:
// MoeCombineGradParams in abi.cuh.
// The sum has one order on every machine: 1,024 f32 lanes, lane h mod 1024 in ascending h by fma
// from 0, then lane[i] += lane[i + s] for s = 512, 256, ..., 1. Thread i of 128 holds lanes 8i to
// 8i + 7, so the steps down to s = 8 go between threads and the last three within one.
#include "common.cuh"

MOE_DEV float moe_lane_tree(float *lane, float (*shared)[8]) {
    u32 i = threadIdx.x;
    __syncthreads();
#pragma unroll
    for (u32 j = 0; j < 8; j++) shared[i][j] = lane[j];
    __syncthreads();
    if (i >= 32) return 0.0f;
#pragma unroll
    for (u32 j = 0; j < 8; j++) {
        float low = __fadd_rn(shared[i][j], shared[i + 64][j]);
        float high = __fadd_rn(shared[i + 32][j], shared[i + 96][j]);
        lane[j] = __fadd_rn(low, high);
    }
#pragma unroll
    for (u32 d = 16; d; d >>= 1)
#pragma unroll
        for (u32 j = 0; j < 8; j++) lane[j] = __fadd_rn(lane[j], __shfl_down_sync(0xffffffffu, lane[j], d));
#pragma unroll
    for (u32 d = 4; d; d >>= 1)
#pragma unroll
        for (u32 j = 0; j < d; j++) lane[j] = __fadd_rn(lane[j], lane[j + d]);
    return lane[0];
}

// D: the one dtype of dX, Y and dY, or MOE_NONE for dtypes known at run time.
template <u32 D>
MOE_DEV void moe_combine_grad_route(const MoeCombineGradParams &g) {
    __shared__ float shared[128][8];
    u32 x = blockIdx.x;
    if ((u64)x < (u64)g.tokens * g.k) {
        u64 row = (u64)(i64)((const i32 *)g.slot)[x];
        bool placed = row < g.out_rows;
        float lane[8];
#pragma unroll
        for (u32 j = 0; j < 8; j++) lane[j] = 0.0f;
        if (placed) {
            float w = moe_load_any(g.weights, x, g.weight_dtype);
            u64 in = g.grad + (u64)(x / g.k) * g.grad_stride;
            u64 y = g.rows + row * g.row_stride, out = g.grad_rows + row * g.grad_row_stride;
            bool dot = g.grad_weights != 0 && g.rows != 0;
            // Without weights dY is a copy of the bits: a product with 1 would change some NaNs.
            bool bits = g.weights == 0;
            u64 h = (u64)threadIdx.x * 8;
            if constexpr (D != MOE_NONE) {
                typedef typename MoeType<D>::raw Raw;
                const u32 WORDS = 8 * sizeof(Raw) / 16;
                union Vec {
                    uint4 word[8 * sizeof(Raw) / 16];
                    Raw lane[8];
                };
                for (; h + 8 <= g.hidden; h += 1024) {
                    Vec a, b, o;
#pragma unroll
                    for (u32 i = 0; i < WORDS; i++) a.word[i] = __ldg((const uint4 *)in + h / 8 * WORDS + i);
                    if (dot) {
#pragma unroll
                        for (u32 i = 0; i < WORDS; i++) b.word[i] = __ldg((const uint4 *)y + h / 8 * WORDS + i);
                    }
                    if (g.grad_rows) {
#pragma unroll
                        for (u32 j = 0; j < 8; j++)
                            o.lane[j] = bits ? a.lane[j] : MoeType<D>::narrow(__fmul_rn(w, MoeType<D>::widen(a.lane[j])));
#pragma unroll
                        for (u32 i = 0; i < WORDS; i++) ((uint4 *)out)[h / 8 * WORDS + i] = o.word[i];
                    }
                    if (dot) {
#pragma unroll
                        for (u32 j = 0; j < 8; j++)
                            lane[j] = __fmaf_rn(MoeType<D>::widen(b.lane[j]), MoeType<D>::widen(a.lane[j]), lane[j]);
                    }
                }
            }
            for (; h < g.hidden; h += 1024)
#pragma unroll
                for (u32 j = 0; j < 8; j++)
                    if (h + j < g.hidden) {
                        float a = moe_load_any(in, h + j, g.x_dtype);
                        if (g.grad_rows && bits && g.dy_dtype == g.x_dtype) moe_copy_any(out, in, h + j, g.x_dtype);
                        else if (g.grad_rows) moe_store_any(out, h + j, g.dy_dtype, __fmul_rn(w, a));
                        if (dot) lane[j] = __fmaf_rn(moe_load_any(y, h + j, g.y_dtype), a, lane[j]);
                    }
        }
        if (g.grad_weights) {
            float sum = moe_lane_tree(lane, shared);
            if (threadIdx.x == 0) moe_store_any(g.grad_weights, x, g.dw_dtype, placed ? sum : 0.0f);
        }
    }
    if (g.zero_padding && g.grad_rows) {
        MoeRows r;
        u32 size = g.dy_dtype == MOE_F32 ? 4 : 2;
        r.output = g.grad_rows;
        r.output_stride = g.grad_row_stride;
        r.row_bytes = g.hidden * size;
        r.vec = D != MOE_NONE ? 16 : size;
        moe_zero_padding_rows(r, g.expert_offsets, g.tokens_per_expert, g.local_experts, g.out_rows, blockIdx.x,
                              gridDim.x);
    }
}

extern "C" __global__ void __launch_bounds__(128) moe_combine_grad_f32(MoeCombineGradParams g) {
    moe_combine_grad_route<MOE_F32>(g);
}
extern "C" __global__ void __launch_bounds__(128) moe_combine_grad_f16(MoeCombineGradParams g) {
    moe_combine_grad_route<MOE_F16>(g);
}
extern "C" __global__ void __launch_bounds__(128) moe_combine_grad_bf16(MoeCombineGradParams g) {
    moe_combine_grad_route<MOE_BF16>(g);
}
extern "C" __global__ void __launch_bounds__(128) moe_combine_grad_any(MoeCombineGradParams g) {
    moe_combine_grad_route<MOE_NONE>(g);
}
