// What all kernels share: bit-exact conversions, guarded index reads, copies of any width.
#pragma once
#include "abi.cuh"

#define MOE_DEV __device__ __forceinline__

MOE_DEV u32 moe_min(u32 a, u32 b) { return a < b ? a : b; }
MOE_DEV u64 moe_min64(u64 a, u64 b) { return a < b ? a : b; }
MOE_DEV u32 moe_log2(u32 power) { return 31 - __clz(power); }

// --- conversions -------------------------------------------------------------------------------
// Widening is exact. Rounding is to nearest even with one NaN for each type.

MOE_DEV float moe_bf16_to_f32(u16 v) { return __uint_as_float((u32)v << 16); }

MOE_DEV float moe_f16_to_f32(u16 v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
}

MOE_DEV u16 moe_f32_to_bf16(float v) {
    u16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return v != v ? (u16)0x7fc0 : r;
}

MOE_DEV u16 moe_f32_to_f16(float v) {
    u16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return v != v ? (u16)0x7e00 : r;
}

MOE_DEV float moe_canonical_f32(float v) { return v != v ? __uint_as_float(0x7fc00000u) : v; }

// e5m2 is the upper byte of an f16.
MOE_DEV float moe_e5m2_to_f32(u8 v) { return moe_f16_to_f32((u16)(v << 8)); }

// The exponent and mantissa of e4m3, one bit up, make an f16 that is 2^8 times too small. Only
// 0x7f and 0xff are NaN.
MOE_DEV float moe_e4m3_to_f32(u8 v) {
    float r = moe_f16_to_f32((u16)(((v & 0x80) << 8) | ((v & 0x7f) << 7))) * 256.0f;
    return (v & 0x7f) == 0x7f ? __uint_as_float(0x7fc00000u) : r;
}

template <u32 D> struct MoeType;
template <> struct MoeType<MOE_F32> {
    typedef u32 raw;
    static MOE_DEV float widen(u32 v) { return __uint_as_float(v); }
    static MOE_DEV u32 narrow(float v) { return __float_as_uint(moe_canonical_f32(v)); }
};
template <> struct MoeType<MOE_F16> {
    typedef u16 raw;
    static MOE_DEV float widen(u16 v) { return moe_f16_to_f32(v); }
    static MOE_DEV u16 narrow(float v) { return moe_f32_to_f16(v); }
};
template <> struct MoeType<MOE_BF16> {
    typedef u16 raw;
    static MOE_DEV float widen(u16 v) { return moe_bf16_to_f32(v); }
    static MOE_DEV u16 narrow(float v) { return moe_f32_to_bf16(v); }
};
template <> struct MoeType<MOE_E4M3> {
    typedef u8 raw;
    static MOE_DEV float widen(u8 v) { return moe_e4m3_to_f32(v); }
};
template <> struct MoeType<MOE_E5M2> {
    typedef u8 raw;
    static MOE_DEV float widen(u8 v) { return moe_e5m2_to_f32(v); }
};

// One element of a dtype known at run time.
MOE_DEV float moe_load_any(u64 base, u64 index, u32 dtype) {
    switch (dtype) {
    case MOE_F32: return ((const float *)base)[index];
    case MOE_F16: return moe_f16_to_f32(((const u16 *)base)[index]);
    case MOE_BF16: return moe_bf16_to_f32(((const u16 *)base)[index]);
    case MOE_E4M3: return moe_e4m3_to_f32(((const u8 *)base)[index]);
    case MOE_E5M2: return moe_e5m2_to_f32(((const u8 *)base)[index]);
    default: return 1.0f;
    }
}

MOE_DEV void moe_store_any(u64 base, u64 index, u32 dtype, float v) {
    switch (dtype) {
    case MOE_F32: ((float *)base)[index] = moe_canonical_f32(v); break;
    case MOE_F16: ((u16 *)base)[index] = moe_f32_to_f16(v); break;
    case MOE_BF16: ((u16 *)base)[index] = moe_f32_to_bf16(v); break;
    default: break;
    }
}

// The bits of an element of f32, f16 or bf16.
MOE_DEV void moe_copy_any(u64 out, u64 in, u64 index, u32 dtype) {
    if (dtype == MOE_F32) ((u32 *)out)[index] = ((const u32 *)in)[index];
    else ((u16 *)out)[index] = ((const u16 *)in)[index];
}

// --- rows --------------------------------------------------------------------------------------

// Zeros `bytes` at `out`, by the threads first, first + step, ...; `vec` divides the address.
MOE_DEV void moe_zero_span(u64 out, u64 bytes, u32 vec, u64 first, u64 step) {
    u64 units = bytes / vec;
    switch (vec) {
    case 16: for (u64 i = first; i < units; i += step) ((uint4 *)out)[i] = make_uint4(0, 0, 0, 0); break;
    case 8: for (u64 i = first; i < units; i += step) ((u64 *)out)[i] = 0; break;
    case 4: for (u64 i = first; i < units; i += step) ((u32 *)out)[i] = 0; break;
    case 2: for (u64 i = first; i < units; i += step) ((u16 *)out)[i] = 0; break;
    default: for (u64 i = first; i < units; i += step) ((u8 *)out)[i] = 0; break;
    }
    for (u64 i = units * vec + first; i < bytes; i += step) ((u8 *)out)[i] = 0;
}

// Zeroes the padding rows of experts `block`, `block + blocks`, ...: those between the last
// placed row of an expert and the first row of the next.
MOE_DEV void moe_zero_padding_rows(const MoeRows &r, u64 expert_offsets, u64 tokens_per_expert,
                                   u32 local_experts, u64 out_rows, u32 block, u32 blocks) {
    for (u32 e = block; e < local_experts; e += blocks) {
        u64 first = (u64)(u32)((const i32 *)expert_offsets)[e] + (u32)((const i32 *)tokens_per_expert)[e];
        u64 end = moe_min64((u32)((const i32 *)expert_offsets)[e + 1], out_rows);
        for (u64 row = first; row < end; row++)
            moe_zero_span(r.output + row * r.output_stride, r.row_bytes, r.vec, threadIdx.x, blockDim.x);
    }
}

template <typename V>
MOE_DEV void moe_copy_units(const MoeRows &r, u64 t, const i32 *slot, u32 k, u64 out_rows, u64 first,
                            u64 end, u32 thread, u32 threads) {
    const V *in = (const V *)(r.input + t * r.input_stride);
    for (u64 i = first + thread; i < end; i += threads) {
        V v = in[i];
        for (u32 j = 0; j < k; j++) {
            u64 row = (u64)(i64)slot[j];
            if (row < out_rows) ((V *)(r.output + row * r.output_stride))[i] = v;
        }
    }
}

// Copies part `part` of `splits` of token t's row to its slots, by one read and up to k writes.
// Any width; the row's last bytes, fewer than a unit, go with the last part.
MOE_DEV void moe_scatter_row(const MoeRows &r, u64 t, const i32 *slot, u32 k, u64 out_rows, u32 part,
                             u32 splits, u32 thread, u32 threads) {
    u64 units = r.row_bytes / r.vec;
    u64 first = units * part / splits, end = units * (part + 1) / splits;
    switch (r.vec) {
    case 16: moe_copy_units<uint4>(r, t, slot, k, out_rows, first, end, thread, threads); break;
    case 8: moe_copy_units<u64>(r, t, slot, k, out_rows, first, end, thread, threads); break;
    case 4: moe_copy_units<u32>(r, t, slot, k, out_rows, first, end, thread, threads); break;
    case 2: moe_copy_units<u16>(r, t, slot, k, out_rows, first, end, thread, threads); break;
    default: moe_copy_units<u8>(r, t, slot, k, out_rows, first, end, thread, threads); break;
    }
    if (part + 1 == splits && units * r.vec < r.row_bytes)
        moe_copy_units<u8>(r, t, slot, k, out_rows, units * r.vec, r.row_bytes, thread, threads);
}
