// Quantised rows: the rules of moe-core's quant module, operation by operation. A thread takes a unit
// of 16 neighbouring elements; every group of elements that shares a scale is one or more units of
// neighbouring lanes of a warp, or the whole row.
#pragma once
#include "common.cuh"

// Formats. 16-element units of a group: the whole row, 8, 2, 1.
#define MOE_PER_TOKEN 0u
#define MOE_BLOCK128 1u
#define MOE_MXFP8 2u
#define MOE_NVFP4 3u

// Units of a row that a thread keeps in registers between finding the scale and applying it. Longer
// rows are read twice.
#define MOE_KEPT_UNITS 1

// --- conversions -------------------------------------------------------------------------------

// f8e4m3, nearest even, saturating; any NaN is 0x7f.
MOE_DEV u32 moe_f32_to_e4m3(float v) {
    u32 bits = __float_as_uint(v), size = bits & 0x7fffffffu, sign = bits >> 24 & 0x80u;
    u32 normal = ((size + 0x7ffffu + (size >> 20 & 1u)) >> 20) - (120u << 3);
    // Multiples of 2^-9: adding 2^14 leaves exactly those bits.
    u32 small = __float_as_uint(__fadd_rn(__uint_as_float(size), 16384.0f)) & 0xffu;
    u32 code = size < 0x3c800000u ? small : normal;
    code = size >= 0x43e00000u ? 0x7eu : code;
    return size > 0x7f800000u ? 0x7fu : code | sign;
}

// Four of them, none of them NaN, the first in the lowest byte.
MOE_DEV u32 moe_pack_e4m3(const float *v) {
#if __CUDA_ARCH__ >= 890
    u16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(v[1]), "f"(v[0]));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(v[3]), "f"(v[2]));
    return (u32)high << 16 | low;
#else
    return moe_f32_to_e4m3(v[0]) | moe_f32_to_e4m3(v[1]) << 8 | moe_f32_to_e4m3(v[2]) << 16 |
           moe_f32_to_e4m3(v[3]) << 24;
#endif
}

// e2m1, nearest even, saturating; a NaN is +0.
MOE_DEV u32 moe_f32_to_e2m1(float v) {
    float size = fabsf(v);
    u32 code = (size > 0.25f) + (size >= 0.75f) + (size > 1.25f) + (size >= 1.75f) + (size > 2.5f) +
               (size >= 3.5f) + (size > 5.0f);
    return v != v ? 0u : code | (__float_as_uint(v) >> 28 & 8u);
}

// --- a group's scale ---------------------------------------------------------------------------

// What a group's elements are multiplied or divided by.
struct MoeScale {
    u32 stored;  // the scale's bits: f32, e8m0 or e4m3
    float by;    // PER_TOKEN, BLOCK128: the divisor; else the factor
    float recip; // PER_TOKEN, BLOCK128: 1 / by, rounded to nearest
    bool plain;  // whether the fast way is right: no infinity, no NaN
};

// From the largest magnitude's bits: as integers magnitudes ascend, infinity and NaN last.
template <u32 F> MOE_DEV MoeScale moe_scale(u32 amax, u32 ceil, float global_scale) {
    MoeScale s;
    s.plain = amax < 0x7f800000u;
    s.recip = 0.0f;
    if (F == MOE_PER_TOKEN || F == MOE_BLOCK128) {
        float scale = __fmul_rn(__uint_as_float(amax), __uint_as_float(0x3b124925u));
        scale = fmaxf(scale, 1e-12f);
        s.by = amax > 0x7f800000u ? __uint_as_float(0x7fc00000u) : scale;
        s.recip = __frcp_rn(s.by);
        s.stored = __float_as_uint(s.by);
    } else if (F == MOE_MXFP8) {
        i32 exponent = (i32)(amax >> 23) - 8 + (ceil && (amax & 0x7fffffu) > 0x600000u);
        u32 byte = exponent < 0 ? 0u : (u32)exponent;
        s.stored = s.plain ? byte : 255u;
        s.by = __uint_as_float((254u - byte) << 23);
    } else {
        u32 code = moe_f32_to_e4m3(
            __fmul_rn(__fmul_rn(__uint_as_float(amax), __uint_as_float(0x3e2aaaabu)), global_scale));
        s.stored = s.plain ? code : 0x7fu;
        s.by = code == 0 ? 0.0f : __fdiv_rn(global_scale, moe_e4m3_to_f32((u8)code));
    }
    return s;
}

// x / scale, rounded to nearest: two corrections of x * (1 / scale), whose residuals are exact where the
// quotient is one that e4m3 tells from zero. The scale is at least 1e-12. The corrections lose the sign
// of a zero.
MOE_DEV float moe_divide(float x, const MoeScale &s) {
    float q = __fmul_rn(x, s.recip);
    q = __fmaf_rn(__fmaf_rn(-s.by, q, x), s.recip, q);
    q = __fmaf_rn(__fmaf_rn(-s.by, q, x), s.recip, q);
    return copysignf(q, x);
}

// One element of a group that holds an infinity or a NaN, or of 4-bit values.
template <u32 F> MOE_DEV u32 moe_quantise_any(float x, const MoeScale &s) {
    if (F == MOE_NVFP4) {
        float y = s.by == 0.0f ? __uint_as_float(__float_as_uint(x) & 0x80000000u) : __fmul_rn(x, s.by);
        return s.plain ? moe_f32_to_e2m1(y) : 0u;
    }
    // Finite numbers over infinity are zeros; everything else is NaN.
    bool zero = F != MOE_MXFP8 && s.by == s.by && (__float_as_uint(x) & 0x7fffffffu) < 0x7f800000u;
    return zero ? __float_as_uint(x) >> 24 & 0x80u : 0x7fu;
}

// 16 elements become 16 bytes, or 8 for 4-bit values.
template <u32 F> MOE_DEV uint4 moe_quantise(const float *x, const MoeScale &s) {
    const u32 bits = F == MOE_NVFP4 ? 4 : 8, each = 32 / bits;
    u32 word[4] = {0, 0, 0, 0};
    if (F == MOE_NVFP4 || !s.plain) {
#pragma unroll
        for (u32 i = 0; i < 16; i++) word[i / each] |= moe_quantise_any<F>(x[i], s) << (i % each * bits);
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            float y[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++)
                y[j] = F == MOE_MXFP8 ? __fmul_rn(x[4 * i + j], s.by) : moe_divide(x[4 * i + j], s);
            word[i] = moe_pack_e4m3(y);
        }
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

// --- rows --------------------------------------------------------------------------------------

// `n` elements, at most eight, from element `first` of a row on, widened; zeros up to eight.
MOE_DEV void moe_load_eight(u64 row, u64 first, u32 n, u32 dtype, u32 wide, float *x) {
    if (!wide || n < 8) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = i < n ? moe_load_any(row, first + i, dtype) : 0.0f;
    } else if (dtype == MOE_F32) {
        const float4 *in = (const float4 *)(row + first * 4);
        float4 v = __ldg(in), w = __ldg(in + 1);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w, x[4] = w.x, x[5] = w.y, x[6] = w.z, x[7] = w.w;
    } else {
        uint4 v = __ldg((const uint4 *)(row + first * 2));
        const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            bool bf16 = dtype == MOE_BF16;
            x[2 * i] = bf16 ? __uint_as_float(word[i] << 16) : moe_f16_to_f32((u16)word[i]);
            x[2 * i + 1] = bf16 ? __uint_as_float(word[i] & 0xffff0000u) : moe_f16_to_f32((u16)(word[i] >> 16));
        }
    }
}

// A unit: `n` elements, at most 16.
MOE_DEV void moe_load_unit(u64 row, u64 first, u32 n, u32 dtype, u32 wide, float *x) {
    moe_load_eight(row, first, min(n, 8u), dtype, wide, x);
    moe_load_eight(row, first + 8, max(n, 8u) - 8, dtype, wide, x + 8);
}

// The largest magnitude's bits, NaN where an element is.
MOE_DEV u32 moe_amax(const float *x) {
    float amax = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 16; i++) asm("max.NaN.f32 %0, %0, %1;" : "+f"(amax) : "f"(fabsf(x[i])));
    return __float_as_uint(amax);
}

// Where the scale of a group lies, in elements.
MOE_DEV u64 moe_scale_index(const MoeQuantParams &p, u64 row, u32 group) {
    switch (p.scale_layout) {
    case MOE_SCALES_BY_COLUMN: return (u64)group * p.scale_rows + row;
    case MOE_SCALES_SWIZZLED: {
        u64 tile = (row / 128) * (u64)(p.padded_groups / 4) + group / 4;
        return tile * 512 + (row % 32) * 16 + (row % 128 / 32) * 4 + group % 4;
    }
    default: return row * p.groups + group;
    }
}

template <u32 F> MOE_DEV void moe_store_scale(const MoeQuantParams &p, u64 row, u32 group, u32 bits) {
    u64 at = moe_scale_index(p, row, group);
    if (F == MOE_PER_TOKEN || F == MOE_BLOCK128) ((u32 *)p.scales)[at] = bits;
    else ((u8 *)p.scales)[at] = (u8)bits;
}

template <u32 F> MOE_DEV void moe_store_unit(const MoeQuantParams &p, u64 row, u64 unit, u32 n, uint4 v) {
    const u32 bytes = F == MOE_NVFP4 ? 8 : 16;
    u64 out = p.values + row * p.value_stride + unit * bytes;
    if (p.wide && n == 16) {
        if (F == MOE_NVFP4) *(uint2 *)out = make_uint2(v.x, v.y);
        else *(uint4 *)out = v;
        return;
    }
    const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 i = 0; i < bytes; i++)
        if (i < (F == MOE_NVFP4 ? n / 2 : n)) ((u8 *)out)[i] = (u8)(word[i / 4] >> (i % 4 * 8));
}

// The largest of all threads' values. All threads of the block call it.
MOE_DEV u32 moe_block_max(u32 v, u32 *shared) {
    v = __reduce_max_sync(0xffffffffu, v);
    if (blockDim.x == 32) return v;
    __syncthreads(); // the last call's values have been read
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    u32 lane = threadIdx.x % 32;
    return __reduce_max_sync(0xffffffffu, lane < blockDim.x / 32 ? shared[lane] : 0u);
}

// Quantises part `part` of `parts` of a row, which `in(unit, n, x)` gives, for every row that `to`
// names: `to.rows` entries of `to.row(j)`, of which those below out_rows are written. The whole block
// calls it; a row whose scale is its own comes in one part.
template <u32 F, class In, class To>
MOE_DEV void moe_quantise_row(const MoeQuantParams &p, const In &in, const To &to, u32 part, u32 parts, u32 *shared) {
    const u32 lanes = F == MOE_BLOCK128 ? 8 : F == MOE_MXFP8 ? 2 : 1;
    u32 units = (u32)((p.hidden + 15) / 16), threads = blockDim.x;
    u32 warp = threadIdx.x & ~31u, lane = threadIdx.x % 32;
    auto count = [&](u32 unit) { return unit < units ? (u32)moe_min64(16, p.hidden - (u64)unit * 16) : 0u; };
    if (F == MOE_PER_TOKEN) {
        float x[MOE_KEPT_UNITS][16];
        u32 amax = 0;
#pragma unroll
        for (u32 c = 0; c < MOE_KEPT_UNITS; c++) {
            u32 unit = threadIdx.x + c * threads;
            if (unit < units) {
                in(unit, count(unit), x[c]);
                amax = max(amax, moe_amax(x[c]));
            }
        }
        for (u32 unit = threadIdx.x + MOE_KEPT_UNITS * threads; unit < units; unit += threads) {
            float y[16];
            in(unit, count(unit), y);
            amax = max(amax, moe_amax(y));
        }
        MoeScale scale = moe_scale<F>(moe_block_max(amax, shared), 0, 0.0f);
#pragma unroll
        for (u32 c = 0; c < MOE_KEPT_UNITS; c++) {
            u32 unit = threadIdx.x + c * threads;
            if (unit < units) {
                uint4 v = moe_quantise<F>(x[c], scale);
                for (u32 j = 0; j < to.rows; j++)
                    if (to.row(j) < p.out_rows) moe_store_unit<F>(p, to.row(j), unit, count(unit), v);
            }
        }
        for (u32 unit = threadIdx.x + MOE_KEPT_UNITS * threads; unit < units; unit += threads) {
            float y[16];
            in(unit, count(unit), y);
            uint4 v = moe_quantise<F>(y, scale);
            for (u32 j = 0; j < to.rows; j++)
                if (to.row(j) < p.out_rows) moe_store_unit<F>(p, to.row(j), unit, count(unit), v);
        }
        for (u32 j = threadIdx.x; j < to.rows; j += threads)
            if (to.row(j) < p.out_rows) moe_store_scale<F>(p, to.row(j), 0, scale.stored);
        return;
    }
    // Parts are whole warps' steps, so that a group never spans two.
    u32 steps = (units + 31) / 32, first = (u32)((u64)steps * part / parts), end = (u32)((u64)steps * (part + 1) / parts);
    for (u32 step = first + warp / 32; step < end; step += threads / 32) {
        u32 unit = step * 32 + lane, n = count(unit);
        float x[16];
        u32 amax = 0;
        if (n) {
            in(unit, n, x);
            amax = moe_amax(x);
        }
#pragma unroll
        for (u32 s = 1; s < lanes; s *= 2) amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, s));
        if (!n) continue;
        MoeScale scale = moe_scale<F>(amax, p.ceil, __uint_as_float(p.global_scale));
        uint4 v = moe_quantise<F>(x, scale);
        for (u32 j = 0; j < to.rows; j++) {
            u64 row = to.row(j);
            if (row >= p.out_rows) continue;
            moe_store_unit<F>(p, row, unit, n, v);
            if (lane % lanes == 0) moe_store_scale<F>(p, row, unit / lanes, scale.stored);
        }
    }
    if (part + 1 == parts)
        for (u32 g = p.groups + threadIdx.x; g < p.padded_groups; g += threads)
            for (u32 j = 0; j < to.rows; j++)
                if (to.row(j) < p.out_rows) moe_store_scale<F>(p, to.row(j), g, 0);
}
