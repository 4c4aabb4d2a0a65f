// Gather: Y[slot[t, k], :] = X[t, :] for placed routes, zero for padding rows below the last
// offset; rows past it are not touched. Bits are copied; the weighted form writes
// round(w[t, k] * X[t, :]) with canonical NaN. Parameters: MoeGatherParams in abi.cuh. Token-major:
// each source row is read once. Tail rule: bytes past the last whole unit go one at a time.
#include "common.cuh"

// Asks for `bytes` from an address into L2, both multiples of 16: by one instruction where the GPU has it.
MOE_DEV void moe_ask_for(u64 from, u32 bytes) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#else
    for (u32 at = threadIdx.x * 128; at < bytes; at += blockDim.x * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
#endif
}

MOE_DEV void moe_gather_padding(const MoeGatherParams &g) {
    for (u32 a = 0; a < 2; a++)
        if (a == 0 || g.rows[1].row_bytes)
            moe_zero_padding_rows(a ? g.rows[1] : g.rows[0], g.expert_offsets, g.tokens_per_expert, g.local_experts,
                                  g.out_rows, blockIdx.x, gridDim.x);
}

template <bool WIDE>
MOE_DEV void moe_gather_body(const MoeGatherParams &g) {
    u32 splits = g.rows[0].splits;
    u32 t = blockIdx.x / splits, part = blockIdx.x % splits;
    if (t < g.tokens) {
        const i32 *slot = (const i32 *)g.slot + (u64)t * g.k;
        if (WIDE) {
            u64 units = g.rows[0].row_bytes / 16;
            u64 first = units * part / splits, end = units * (part + 1) / splits;
            const uint4 *in = (const uint4 *)(g.rows[0].input + t * g.rows[0].input_stride);
            for (u64 base = first + threadIdx.x; base < end; base += 4 * 256) {
                uint4 v[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++)
                    if (base + i * 256 < end) v[i] = __ldg(in + base + i * 256);
                for (u32 j = 0; j < g.k; j++) {
                    u64 row = (u64)(i64)__ldg(slot + j);
                    if (row >= g.out_rows) continue;
                    uint4 *out = (uint4 *)(g.rows[0].output + row * g.rows[0].output_stride) + base;
#pragma unroll
                    for (u32 i = 0; i < 4; i++)
                        if (base + i * 256 < end) out[i * 256] = v[i];
                }
            }
            if (part + 1 == splits && units * 16 < g.rows[0].row_bytes)
                moe_copy_units<u8>(g.rows[0], t, slot, g.k, g.out_rows, units * 16, g.rows[0].row_bytes, threadIdx.x,
                                   blockDim.x);
        } else {
            moe_scatter_row(g.rows[0], t, slot, g.k, g.out_rows, part, splits, threadIdx.x, blockDim.x);
        }
        if (g.rows[1].row_bytes && part + 1 == splits)
            moe_scatter_row(g.rows[1], t, slot, g.k, g.out_rows, 0, 1, threadIdx.x, blockDim.x);
    }
    if (g.zero_padding) moe_gather_padding(g);
}

extern "C" __global__ void __launch_bounds__(256, 4) moe_gather_v16(MoeGatherParams g) { moe_gather_body<true>(g); }

extern "C" __global__ void __launch_bounds__(256, 4) moe_gather_any(MoeGatherParams g) { moe_gather_body<false>(g); }

// The usual case of many tokens with nothing else in the kernel: a block a token, rows of whole 16 bytes, no padding. With
// 32 registers multiprocessors are full. What is written is not needed again soon and leaves L2 first. AHEAD: the row that
// the block `ahead` tokens on will read is asked into L2 on the way, because reads that go to memory wait behind the
// writes; what is read then leaves L2 first, too.
template <bool AHEAD, u32 THREADS>
MOE_DEV void moe_gather_rows(const MoeGatherParams &g) {
    u32 t = blockIdx.x;
    u64 pass;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(pass));
    if (AHEAD && t + g.ahead < g.tokens)
        moe_ask_for(g.rows[0].input + (u64)(t + g.ahead) * g.rows[0].input_stride, (u32)g.rows[0].row_bytes);
    u32 units = (u32)(g.rows[0].row_bytes / 16);
    for (u32 base = threadIdx.x; base < units; base += 4 * THREADS) {
        const uint4 *in = (const uint4 *)(g.rows[0].input + (u64)t * g.rows[0].input_stride) + base;
        uint4 v[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (base + i * THREADS < units) {
                if (AHEAD)
                    asm volatile("ld.global.nc.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                                 : "=r"(v[i].x), "=r"(v[i].y), "=r"(v[i].z), "=r"(v[i].w)
                                 : "l"(in + i * THREADS), "l"(pass));
                else v[i] = __ldg(in + i * THREADS);
            }
        for (u32 j = 0; j < g.k; j++) {
            u64 row = (u64)(i64)__ldg((const i32 *)g.slot + (u64)t * g.k + j);
            if (row >= g.out_rows) continue;
            uint4 *out = (uint4 *)(g.rows[0].output + row * g.rows[0].output_stride) + base;
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (base + i * THREADS < units)
                    asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(out + i * THREADS),
                                 "r"(v[i].x), "r"(v[i].y), "r"(v[i].z), "r"(v[i].w), "l"(pass)
                                 : "memory");
        }
    }
}

// The compiler knows the number of threads, and with it offsets.
template <bool AHEAD>
MOE_DEV void moe_gather_by_threads(const MoeGatherParams &g) {
    if (blockDim.x == 64) moe_gather_rows<AHEAD, 64>(g);
    else if (blockDim.x == 128) moe_gather_rows<AHEAD, 128>(g);
    else moe_gather_rows<AHEAD, 256>(g);
}

extern "C" __global__ void __launch_bounds__(256, 8) moe_gather_rows_v16(MoeGatherParams g) {
    moe_gather_by_threads<false>(g);
}

extern "C" __global__ void __launch_bounds__(256, 8) moe_gather_ahead_v16(MoeGatherParams g) {
    moe_gather_by_threads<true>(g);
}

// Rows in the order of a plan's `order`: within a chunk of tokens expert by expert, so that writes
// run on and the chunk's source rows are read from L2, where the policies keep them. A block a row.
extern "C" __global__ void __launch_bounds__(128, 8) moe_gather_list_v16(MoeGatherParams g) {
    u64 keep, pass;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(keep));
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(pass));
    int2 entry = __ldg((const int2 *)g.order + blockIdx.x);
    u64 row = (u64)(i64)entry.x;
    u32 t = (u32)entry.y / g.k;
    if (row < g.out_rows && t < g.tokens) {
        u32 units = (u32)(g.rows[0].row_bytes / 16);
        const uint4 *in = (const uint4 *)(g.rows[0].input + (u64)t * g.rows[0].input_stride);
        uint4 *out = (uint4 *)(g.rows[0].output + row * g.rows[0].output_stride);
        for (u32 base = threadIdx.x; base < units; base += 8 * 128) {
            uint4 v[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++)
                if (base + i * 128 < units)
                    asm volatile("ld.global.nc.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                                 : "=r"(v[i].x), "=r"(v[i].y), "=r"(v[i].z), "=r"(v[i].w)
                                 : "l"(in + base + i * 128), "l"(keep));
#pragma unroll
            for (u32 i = 0; i < 8; i++)
                if (base + i * 128 < units)
                    asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(out + base + i * 128),
                                 "r"(v[i].x), "r"(v[i].y), "r"(v[i].z), "r"(v[i].w), "l"(pass)
                                 : "memory");
        }
        i32 one = entry.x;
        if ((u64)units * 16 < g.rows[0].row_bytes)
            moe_copy_units<u8>(g.rows[0], t, &one, 1, g.out_rows, (u64)units * 16, g.rows[0].row_bytes, threadIdx.x, 128);
        if (g.rows[1].row_bytes) moe_scatter_row(g.rows[1], t, &one, 1, g.out_rows, 0, 1, threadIdx.x, 128);
    }
    if (g.zero_padding) moe_gather_padding(g);
}

template <u32 D>
MOE_DEV void moe_gather_weighted_rows(const MoeGatherParams &g) {
    typedef typename MoeType<D>::raw Raw;
    const u32 V = 16 / sizeof(Raw);
    union Vec {
        uint4 all;
        Raw lane[16 / sizeof(Raw)];
    };
    u32 splits = g.rows[0].splits;
    u32 t = blockIdx.x / splits, part = blockIdx.x % splits;
    if (t >= g.tokens) return;
    const i32 *slot = (const i32 *)g.slot + (u64)t * g.k;
    u64 in = g.rows[0].input + t * g.rows[0].input_stride;
    u64 units = g.rows[0].vec == 16 ? g.hidden / V : 0;
    for (u64 u = units * part / splits + threadIdx.x; u < units * (part + 1) / splits; u += blockDim.x) {
        Vec v;
        v.all = __ldg((const uint4 *)in + u);
        for (u32 j = 0; j < g.k; j++) {
            u64 row = (u64)(i64)__ldg(slot + j);
            if (row >= g.out_rows) continue;
            float w = moe_load_any(g.weights, (u64)t * g.k + j, g.weight_dtype);
            Vec o;
#pragma unroll
            for (u32 i = 0; i < V; i++) o.lane[i] = MoeType<D>::narrow(__fmul_rn(w, MoeType<D>::widen(v.lane[i])));
            ((uint4 *)(g.rows[0].output + row * g.rows[0].output_stride))[u] = o.all;
        }
    }
    u64 rest = g.hidden - units * V;
    for (u64 h = units * V + rest * part / splits + threadIdx.x; h < units * V + rest * (part + 1) / splits;
         h += blockDim.x) {
        float v = MoeType<D>::widen(((const Raw *)in)[h]);
        for (u32 j = 0; j < g.k; j++) {
            u64 row = (u64)(i64)__ldg(slot + j);
            if (row >= g.out_rows) continue;
            float w = moe_load_any(g.weights, (u64)t * g.k + j, g.weight_dtype);
            ((Raw *)(g.rows[0].output + row * g.rows[0].output_stride))[h] = MoeType<D>::narrow(__fmul_rn(w, v));
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) moe_gather_weighted(MoeGatherParams g) {
    switch (g.dtype) {
    case MOE_F32: moe_gather_weighted_rows<MOE_F32>(g); break;
    case MOE_F16: moe_gather_weighted_rows<MOE_F16>(g); break;
    case MOE_BF16: moe_gather_weighted_rows<MOE_BF16>(g); break;
    default: break;
    }
    if (g.zero_padding)
        moe_zero_padding_rows(g.rows[0], g.expert_offsets, g.tokens_per_expert, g.local_experts, g.out_rows,
                              blockIdx.x, gridDim.x);
}
