// Combine: X[t, :] = round(s * X0[t, :] + sum over k, ascending, of w[t, k] * Y[slot[t, k], :]), in f32
// by fma, starting from s * X0, rounded, or +0, rounded once, NaN canonical. With f8 rows and scales the weight
// is first multiplied by the row's block scale and rounded to f32. A slot that is not a row below
// out_rows contributes nothing and nothing of it is read. Parameters: MoeCombineParams in abi.cuh.
// Tail rule: elements past the last whole vector go one at a time, with the last part.
#include "common.cuh"

// One output element, any dtypes.
MOE_DEV float moe_combine_element(const MoeCombineParams &c, u32 t, u64 h, const i32 *slot) {
    float acc = 0.0f;
    if (c.initial) acc = __fmul_rn(c.initial_scale, moe_load_any(c.initial + t * c.initial_stride, h, c.x_dtype));
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

// 16 or 8 bytes of a row that may be absent, then zeros; by predicate, so that the loads of all rows
// are in flight before the first is used.
MOE_DEV void moe_load_word(uint4 &w, u64 address, bool present) {
    asm("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\tmov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\t"
        "mov.u32 %3, 0;\n\t@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
        : "=&r"(w.x), "=&r"(w.y), "=&r"(w.z), "=&r"(w.w)
        : "l"(address), "r"((u32)present));
}
MOE_DEV void moe_load_word(uint2 &w, u64 address, bool present) {
    asm("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %3, 0;\n\tmov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\t"
        "@p ld.global.nc.v2.u32 {%0, %1}, [%2];\n\t}"
        : "=&r"(w.x), "=&r"(w.y)
        : "l"(address), "r"((u32)present));
}

template <u32 BYTES> struct MoeWord;
template <> struct MoeWord<16> { typedef uint4 type; };
template <> struct MoeWord<8> { typedef uint2 type; };

// V elements of dtype D, as raw words.
template <u32 D, u32 V> union MoeVec {
    typedef typename MoeType<D>::raw Raw;
    static constexpr u32 BYTES = V * sizeof(Raw);
    static constexpr u32 WORD = BYTES < 16 ? BYTES : 16;
    typedef typename MoeWord<WORD>::type Word;
    Word word[BYTES / WORD];
    Raw lane[V];
    MOE_DEV void load(u64 base, u64 unit, bool present = true) {
#pragma unroll
        for (u32 i = 0; i < BYTES / WORD; i++) moe_load_word(word[i], base + unit * BYTES + i * WORD, present);
    }
    MOE_DEV void store(u64 base, u64 unit) const {
#pragma unroll
        for (u32 i = 0; i < BYTES / WORD; i++) ((Word *)(base + unit * BYTES))[i] = word[i];
    }
};

template <typename T> MOE_DEV T moe_word_as(u32 w);
template <> MOE_DEV i32 moe_word_as<i32>(u32 w) { return (i32)w; }
template <> MOE_DEV float moe_word_as<float>(u32 w) { return __uint_as_float(w); }

// B consecutive 4-byte words from a 4-byte aligned address: by wide loads where it is aligned more.
template <u32 B, typename T>
MOE_DEV void moe_load_list(T (&list)[B], const T *from) {
    if constexpr (B % 4 == 0) {
        if (((u64)from & 15) == 0) {
#pragma unroll
            for (u32 j = 0; j < B; j += 4) {
                uint4 q = __ldg((const uint4 *)(from + j));
                list[j] = moe_word_as<T>(q.x), list[j + 1] = moe_word_as<T>(q.y);
                list[j + 2] = moe_word_as<T>(q.z), list[j + 3] = moe_word_as<T>(q.w);
            }
            return;
        }
    }
#pragma unroll
    for (u32 j = 0; j < B; j++) list[j] = __ldg(from + j);
}

// Up to B routes of a token. An absent one has address 0 and weight -0: its row reads as zeros, and
// adding 0 * -0 = -0 leaves every sum as it is.
template <u32 B> struct MoeRoutes {
    u64 row[B];
    u64 scale[B];
    float weight[B];

    template <u32 D> MOE_DEV void weights(const MoeCombineParams &c, u64 first, u32 count) {
        typedef typename MoeType<D>::raw Raw;
#pragma unroll
        for (u32 j = 0; j < B; j++)
            if (j < count) weight[j] = MoeType<D>::widen(((const Raw *)c.weights)[first + j]);
    }

    // FULL: count is B. SCALED: the scales' addresses are wanted too.
    template <bool FULL, bool SCALED> MOE_DEV void load(const MoeCombineParams &c, u64 first, u32 count) {
        i32 slot[B];
        if (FULL) {
            moe_load_list(slot, (const i32 *)c.slot + first);
        } else {
#pragma unroll
            for (u32 j = 0; j < B; j++) slot[j] = j < count ? __ldg((const i32 *)c.slot + first + j) : -1;
        }
        if (FULL && c.weight_dtype == MOE_F32) {
            moe_load_list(weight, (const float *)c.weights + first);
        } else {
            switch (c.weight_dtype) {
            case MOE_F32: weights<MOE_F32>(c, first, FULL ? B : count); break;
            case MOE_F16: weights<MOE_F16>(c, first, FULL ? B : count); break;
            case MOE_BF16: weights<MOE_BF16>(c, first, FULL ? B : count); break;
            case MOE_E4M3: weights<MOE_E4M3>(c, first, FULL ? B : count); break;
            case MOE_E5M2: weights<MOE_E5M2>(c, first, FULL ? B : count); break;
            default:
#pragma unroll
                for (u32 j = 0; j < B; j++) weight[j] = 1.0f;
            }
        }
#pragma unroll
        for (u32 j = 0; j < B; j++) {
            bool present = (u64)(i64)slot[j] < c.out_rows;
            row[j] = present ? c.rows + (u64)(u32)slot[j] * c.row_stride : 0;
            scale[j] = SCALED && present && c.scales ? c.scales + (u64)(u32)slot[j] * c.scale_stride : 0;
            weight[j] = present ? weight[j] : -0.0f;
        }
    }
};

// B routes of U vectors at a time: slots and weights, then all B * U loads, then the sums. K: k where
// it is known, and then also B; 0 where it is not. Few routes take more vectors, so that the bytes in
// flight do not depend on k.
template <u32 Y, u32 X, u32 K, u32 B, u32 U>
MOE_DEV void moe_combine_rows(const MoeCombineParams &c) {
    const u32 V = Y == MOE_F32 ? 4 : 8;
    const bool SCALED = Y == MOE_E4M3 || Y == MOE_E5M2;
    u32 t = blockIdx.x, part = 0, k = K ? K : c.k;
    if (c.splits != 1) {
        t = blockIdx.x / c.splits;
        part = blockIdx.x - t * c.splits;
    }
    MoeRoutes<B> r;
    if (K) r.template load<true, SCALED>(c, (u64)t * k, B);
    u32 units = (u32)(c.hidden / V);
    u64 out = c.output + t * c.output_stride;
    for (u32 u = part * U * blockDim.x + threadIdx.x; u < units; u += c.splits * U * blockDim.x) {
        float acc[U][V];
#pragma unroll
        for (u32 n = 0; n < U; n++)
#pragma unroll
            for (u32 i = 0; i < V; i++) acc[n][i] = 0.0f;
        if (c.initial) {
#pragma unroll
            for (u32 n = 0; n < U; n++) {
                u32 at = u + n * blockDim.x;
                MoeVec<X, V> v;
                v.load(c.initial + t * c.initial_stride, at, at < units);
#pragma unroll
                for (u32 i = 0; i < V; i++) acc[n][i] = __fmul_rn(c.initial_scale, MoeType<X>::widen(v.lane[i]));
            }
        }
        for (u32 j0 = 0; j0 < k; j0 += B) {
            if (!K) r.template load<false, SCALED>(c, (u64)t * k + j0, k - j0);
            MoeVec<Y, V> v[B][U];
            float scale[B][U];
#pragma unroll
            for (u32 j = 0; j < B; j++)
#pragma unroll
                for (u32 n = 0; n < U; n++) {
                    u32 at = u + n * blockDim.x;
                    bool present = r.row[j] != 0 && (n == 0 || at < units);
                    v[j][n].load(r.row[j], at, present);
                    scale[j][n] = 1.0f;
                    if (SCALED && r.scale[j] != 0 && present)
                        scale[j][n] = __ldg((const float *)r.scale[j] + (u64)at * V / c.scale_block);
                }
#pragma unroll
            for (u32 j = 0; j < B; j++)
#pragma unroll
                for (u32 n = 0; n < U; n++) {
                    float f = SCALED ? __fmul_rn(r.weight[j], scale[j][n]) : r.weight[j];
#pragma unroll
                    for (u32 i = 0; i < V; i++)
                        acc[n][i] = __fmaf_rn(f, MoeType<Y>::widen(v[j][n].lane[i]), acc[n][i]);
                }
        }
#pragma unroll
        for (u32 n = 0; n < U; n++)
            if (n == 0 || u + n * blockDim.x < units) {
                MoeVec<X, V> o;
#pragma unroll
                for (u32 i = 0; i < V; i++) o.lane[i] = MoeType<X>::narrow(acc[n][i]);
                o.store(out, u + n * blockDim.x);
            }
    }
    if (part + 1 == c.splits && (u64)units * V != c.hidden)
        for (u64 h = (u64)units * V + threadIdx.x; h < c.hidden; h += blockDim.x)
            moe_store_any(out, h, X, moe_combine_element(c, t, h, (const i32 *)c.slot + (u64)t * k));
}

template <u32 Y, u32 X>
MOE_DEV void moe_combine_fast(const MoeCombineParams &c) {
    // Widening e4m3 takes so many registers that keeping eight routes of a known k would spill.
    if (Y != MOE_E4M3 && c.k == 8) moe_combine_rows<Y, X, Y == MOE_E4M3 ? 0 : 8, 8, 1>(c);
    else if (c.k == 2) moe_combine_rows<Y, X, 2, 2, 2>(c);
    else if (c.k == 1) moe_combine_rows<Y, X, 1, 1, 2>(c);
    else moe_combine_rows<Y, X, 0, 8, 1>(c);
}

// At most 64 registers (f16, bf16) keep 16 blocks of 64 threads on a multiprocessor.
#define MOE_COMBINE(y, x, Y, X)                                                              \
    extern "C" __global__ void __launch_bounds__(256, Y == MOE_F32 ? 3 : Y <= MOE_BF16 ? 4 : 2) \
        moe_combine_##y##_##x(MoeCombineParams c) {                                          \
        moe_combine_fast<Y, X>(c);                                                           \
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

// The same load, kept in its place: all of a thread's loads are to be in flight before the first sum.
MOE_DEV uint4 moe_load_now(u64 address, bool present) {
    uint4 w;
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\tmov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\t"
                 "mov.u32 %3, 0;\n\t@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "=&r"(w.x), "=&r"(w.y), "=&r"(w.z), "=&r"(w.w)
                 : "l"(address), "r"((u32)present));
    return w;
}

// The usual case with nothing else in the kernel, which starts 0.3 us sooner at few tokens: K routes, f32 weights, no X0,
// a hidden size that is a multiple of 8, Y of less than 2^32 vectors, and a reciprocal of `splits`. THREADS: of a block.
template <u32 D, u32 K, u32 U, u32 THREADS>
MOE_DEV void moe_combine_plain(const MoeCombineParams &c) {
    u32 t = c.reciprocal ? __umulhi(blockIdx.x, c.reciprocal) : blockIdx.x, part = blockIdx.x - t * c.splits;
    i32 slot[K];
    float weight[K];
    moe_load_list(slot, (const i32 *)c.slot + (u64)t * K);
    moe_load_list(weight, (const float *)c.weights + (u64)t * K);
    u32 units = (u32)(c.hidden / 8), stride = (u32)(c.row_stride / 16), row[K];
#pragma unroll
    for (u32 j = 0; j < K; j++) { // absent routes as in MoeRoutes
        bool present = (u32)slot[j] < (u32)c.out_rows;
        row[j] = present ? (u32)slot[j] * stride : 0xffffffffu;
        weight[j] = present ? weight[j] : -0.0f;
    }
    for (u32 u = part * (U * THREADS) + threadIdx.x; u < units; u += c.splits * (U * THREADS)) {
        MoeVec<D, 8> v[K][U];
#pragma unroll
        for (u32 j = 0; j < K; j++)
#pragma unroll
            for (u32 n = 0; n < U; n++)
                v[j][n].word[0] = moe_load_now(c.rows + (u64)(row[j] + u + n * THREADS) * 16,
                                               row[j] != 0xffffffffu && (n == 0 || u + n * THREADS < units));
#pragma unroll
        for (u32 n = 0; n < U; n++) {
            float acc[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++) acc[i] = 0.0f;
#pragma unroll
            for (u32 j = 0; j < K; j++)
#pragma unroll
                for (u32 i = 0; i < 8; i++)
                    acc[i] = __fmaf_rn(weight[j], MoeType<D>::widen(v[j][n].lane[i]), acc[i]);
            MoeVec<D, 8> o;
#pragma unroll
            for (u32 i = 0; i < 8; i++) o.lane[i] = MoeType<D>::narrow(acc[i]);
            if (n == 0 || u + n * THREADS < units) o.store(c.output + t * c.output_stride, u + n * THREADS);
        }
    }
}

// Eight routes in 64 registers, and in as many as it takes: more blocks at a time, or more loads in flight.
#define MOE_COMBINE_K(y, Y)                                                                                     \
    extern "C" __global__ void __launch_bounds__(64, 8) moe_combine_##y##_##y##_k8(MoeCombineParams c) {        \
        moe_combine_plain<Y, 8, 1, 64>(c);                                                                      \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(64, 16) moe_combine_##y##_##y##_k8_r64(MoeCombineParams c) {   \
        moe_combine_plain<Y, 8, 1, 64>(c);                                                                      \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(64, 16) moe_combine_##y##_##y##_k2(MoeCombineParams c) {       \
        moe_combine_plain<Y, 2, 2, 64>(c);                                                                      \
    }
MOE_COMBINE_K(f16, MOE_F16)
MOE_COMBINE_K(bf16, MOE_BF16)
