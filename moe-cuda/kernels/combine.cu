// Combine: X[t, :] = round(X0[t, :] + sum over k, ascending, of w[t, k] * Y[slot[t, k], :]), in f32
// by fma, starting from X0 or +0, rounded once, NaN canonical. With f8 rows and scales the weight
// is first multiplied by the row's block scale and rounded to f32. A slot that is not a row below
// out_rows contributes nothing and nothing of it is read. Parameters: MoeCombineParams in abi.cuh.
// Tail rule: elements past the last whole vector go one at a time, with the last part.
#include "common.cuh"

// One output element, any dtypes.
MOE_DEV float moe_combine_element(const MoeCombineParams &c, u32 t, u64 h, const i32 *slot) {
    float acc = c.initial ? moe_load_any(c.initial + t * c.initial_stride, h, c.x_dtype) : 0.0f;
    for (u32 j = 0; j < c.k; j++) {
        u64 row = (u64)(i64)slot[j];
        if (row >= c.out_rows) continue;
        float w = moe_load_any(c.weights, (u64)t * c.k + j, c.weight_dtype);
        if (c.scales) w = __fmul_rn(w, ((const float *)(c.scales + row * c.scale_stride))[h / c.scale_block]);
        acc = __fmaf_rn(w, moe_load_any(c.rows + row * c.row_stride, h, c.y_dtype), acc);
    }
    return acc;
}

extern "C" __global__ void __launch_bounds__(256) moe_combine_any(MoeCombineParams c) {
    u32 t = blockIdx.x / c.splits, part = blockIdx.x % c.splits;
    const i32 *slot = (const i32 *)c.slot + (u64)t * c.k;
    u64 end = c.hidden * (part + 1) / c.splits;
    for (u64 h = c.hidden * part / c.splits + threadIdx.x; h < end; h += blockDim.x)
        moe_store_any(c.output + t * c.output_stride, h, c.x_dtype, moe_combine_element(c, t, h, slot));
}

template <u32 BYTES> struct MoeWord;
template <> struct MoeWord<16> { typedef uint4 type; };
template <> struct MoeWord<8> { typedef uint2 type; };

// V elements of dtype D, as raw words.
template <u32 D, u32 V> union MoeVec {
    typedef typename MoeType<D>::raw Raw;
    static constexpr u32 WORD = V * sizeof(Raw) < 16 ? V * sizeof(Raw) : 16;
    static constexpr u32 WORDS = V * sizeof(Raw) / WORD;
    typedef typename MoeWord<WORD>::type Word;
    Word word[WORDS];
    Raw lane[V];
    MOE_DEV void load(u64 base, u64 unit) {
#pragma unroll
        for (u32 i = 0; i < WORDS; i++) word[i] = __ldg((const Word *)base + unit * WORDS + i);
    }
    MOE_DEV void store(u64 base, u64 unit) const {
#pragma unroll
        for (u32 i = 0; i < WORDS; i++) ((Word *)base)[unit * WORDS + i] = word[i];
    }
};

// B routes of U vectors at a time: their slots, then all B * U loads, then weights and sums. Few
// routes take more vectors, so that the bytes in flight do not depend on k.
template <u32 Y, u32 X, u32 B, u32 U>
MOE_DEV void moe_combine_rows(const MoeCombineParams &c) {
    const u32 V = Y == MOE_F32 ? 4 : 8;
    u32 t = blockIdx.x / c.splits, part = blockIdx.x % c.splits;
    const i32 *slot = (const i32 *)c.slot + (u64)t * c.k;
    u32 units = (u32)(c.hidden / V);
    u32 end = (u32)((u64)units * (part + 1) / c.splits);
    u64 out = c.output + t * c.output_stride;
    bool scaled = (Y == MOE_E4M3 || Y == MOE_E5M2) && c.scales;
    for (u32 u = (u32)((u64)units * part / c.splits) + threadIdx.x; u < end; u += U * blockDim.x) {
        float acc[U][V];
#pragma unroll
        for (u32 n = 0; n < U; n++) {
#pragma unroll
            for (u32 i = 0; i < V; i++) acc[n][i] = 0.0f;
            if (c.initial && u + n * blockDim.x < end) {
                MoeVec<X, V> v;
                v.load(c.initial + t * c.initial_stride, u + n * blockDim.x);
#pragma unroll
                for (u32 i = 0; i < V; i++) acc[n][i] = MoeType<X>::widen(v.lane[i]);
            }
        }
        for (u32 j0 = 0; j0 < c.k; j0 += B) {
            u64 row[B];
            MoeVec<Y, V> v[B][U];
#pragma unroll
            for (u32 j = 0; j < B; j++) row[j] = j0 + j < c.k ? (u64)(i64)__ldg(slot + j0 + j) : ~0ull;
#pragma unroll
            for (u32 j = 0; j < B; j++)
                if (row[j] < c.out_rows)
#pragma unroll
                    for (u32 n = 0; n < U; n++)
                        if (n == 0 || u + n * blockDim.x < end)
                            v[j][n].load(c.rows + row[j] * c.row_stride, u + n * blockDim.x);
            float w[B];
#pragma unroll
            for (u32 j = 0; j < B; j++)
                if (row[j] < c.out_rows) w[j] = moe_load_any(c.weights, (u64)t * c.k + j0 + j, c.weight_dtype);
#pragma unroll
            for (u32 j = 0; j < B; j++)
                if (row[j] < c.out_rows)
#pragma unroll
                    for (u32 n = 0; n < U; n++) {
                        float f = w[j];
                        if (scaled && (n == 0 || u + n * blockDim.x < end))
                            f = __fmul_rn(f, __ldg((const float *)(c.scales + row[j] * c.scale_stride) +
                                                   (u64)(u + n * blockDim.x) * V / c.scale_block));
#pragma unroll
                        for (u32 i = 0; i < V; i++)
                            acc[n][i] = __fmaf_rn(f, MoeType<Y>::widen(v[j][n].lane[i]), acc[n][i]);
                    }
        }
#pragma unroll
        for (u32 n = 0; n < U; n++)
            if (u + n * blockDim.x < end) {
                MoeVec<X, V> o;
#pragma unroll
                for (u32 i = 0; i < V; i++) o.lane[i] = MoeType<X>::narrow(acc[n][i]);
                o.store(out, u + n * blockDim.x);
            }
    }
    if (part + 1 == c.splits)
        for (u64 h = (u64)units * V + threadIdx.x; h < c.hidden; h += blockDim.x)
            moe_store_any(out, h, X, moe_combine_element(c, t, h, slot));
}

#define MOE_COMBINE(y, x, Y, X)                                                                   \
    extern "C" __global__ void __launch_bounds__(256, 2) moe_combine_##y##_##x(MoeCombineParams c) { \
        if (c.k <= 2) moe_combine_rows<Y, X, 2, 2>(c);                                            \
        else moe_combine_rows<Y, X, 8, 1>(c);                                                     \
    }
MOE_COMBINE(f32, f32, MOE_F32, MOE_F32)
MOE_COMBINE(f16, f16, MOE_F16, MOE_F16)
MOE_COMBINE(f16, f32, MOE_F16, MOE_F32)
MOE_COMBINE(bf16, bf16, MOE_BF16, MOE_BF16)
MOE_COMBINE(bf16, f32, MOE_BF16, MOE_F32)
MOE_COMBINE(e4m3, f32, MOE_E4M3, MOE_F32)
MOE_COMBINE(e4m3, f16, MOE_E4M3, MOE_F16)
MOE_COMBINE(e4m3, bf16, MOE_E4M3, MOE_BF16)
MOE_COMBINE(e5m2, f32, MOE_E5M2, MOE_F32)
MOE_COMBINE(e5m2, f16, MOE_E5M2, MOE_F16)
MOE_COMBINE(e5m2, bf16, MOE_E5M2, MOE_BF16)
