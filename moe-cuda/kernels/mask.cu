// Mask maps to expert ids and back. A warp takes a token; rows may have any stride and alignment.
// Parameters: MoeMaskParams and MoeScatterMaskParams in abi.cuh.
#include "plan.cuh"

#define MOE_MASK_WARPS 8

// Elements 4 * i to 4 * i + 3 of a mask's row that is aligned to four elements.
template <typename T> struct MoeMaskFour;
template <> struct MoeMaskFour<u8> {
    static MOE_DEV void load(u32 (&v)[4], u64 row, u32 i) {
        u32 w = ((const u32 *)row)[i];
        v[0] = w & 0xff, v[1] = w >> 8 & 0xff, v[2] = w >> 16 & 0xff, v[3] = w >> 24;
    }
};
template <> struct MoeMaskFour<u32> {
    static MOE_DEV void load(u32 (&v)[4], u64 row, u32 i) {
        uint4 w = ((const uint4 *)row)[i];
        v[0] = w.x, v[1] = w.y, v[2] = w.z, v[3] = w.w;
    }
};

// Copies the bits of an element of `bytes` bytes, 2 or 4; from absent ones +0.
MOE_DEV void moe_mask_copy(u64 to, u64 at, u64 from, u64 index, u32 bytes) {
    if (bytes == 4) ((u32 *)to)[at] = from ? ((const u32 *)from)[index] : 0;
    else ((u16 *)to)[at] = from ? ((const u16 *)from)[index] : 0;
}

template <typename T> MOE_DEV void moe_expand_token(const MoeMaskParams &p, u32 t, u32 lane, u32 *over) {
    u64 row = p.mask + t * p.mask_stride, first = (u64)t * p.max_routes;
    u64 probs = p.probs + t * p.probs_stride;
    bool wide = ((row & (4 * sizeof(T) - 1)) == 0);
    u32 found = 0;
    if (t < moe_valid_count(p.valid_tokens, p.tokens))
        for (u32 base = 0; base < p.experts; base += 128) {
            u32 e = base + 4 * lane, v[4] = {0, 0, 0, 0};
            if (wide && e + 4 <= p.experts) {
                MoeMaskFour<T>::load(v, row, e / 4);
            } else {
#pragma unroll
                for (u32 j = 0; j < 4; j++)
                    if (e + j < p.experts) v[j] = ((const T *)row)[e + j];
            }
            // Set elements before this lane's, and of all lanes.
            u32 at = found;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 set = __ballot_sync(MOE_ALL, v[j] != 0);
                at += __popc(set & ((1u << lane) - 1));
                found += __popc(set);
            }
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                if (v[j] == 0) continue;
                if (at < p.max_routes) {
                    ((i32 *)p.ids)[first + at] = (i32)(e + j);
                    if (p.probs_out) moe_mask_copy(p.probs_out, first + at, probs, e + j, p.prob_bytes);
                }
                at++;
            }
        }
    for (u32 k = found + lane; k < p.max_routes; k += 32) {
        ((i32 *)p.ids)[first + k] = -1;
        if (p.probs_out) moe_mask_copy(p.probs_out, first + k, 0, 0, p.prob_bytes);
    }
    if (found > p.max_routes) *over += found - p.max_routes;
}

// ids[t, k] = the k-th set expert of token t, ascending; -1, with probability +0, where there is
// none. over_max_routes gets the set experts past the K-th of their token; it is zero before, unless
// there is room for all, where it becomes zero.
extern "C" __global__ void __launch_bounds__(32 * MOE_MASK_WARPS) moe_expand_mask(MoeMaskParams p) {
    u32 lane = threadIdx.x & 31, over = 0;
    if (p.max_routes >= p.experts && blockIdx.x == 0 && threadIdx.x == 0) *(u32 *)p.over_max_routes = 0;
    for (u64 t = (u64)blockIdx.x * MOE_MASK_WARPS + (threadIdx.x >> 5); t < p.tokens;
         t += (u64)gridDim.x * MOE_MASK_WARPS) {
        if (p.mask_bytes == 1) moe_expand_token<u8>(p, (u32)t, lane, &over);
        else moe_expand_token<u32>(p, (u32)t, lane, &over);
    }
    if (lane == 0 && over) atomicAdd((u32 *)p.over_max_routes, over);
}

// out[t, ids[t, k]] = values[t, k], +0 everywhere else.
extern "C" __global__ void __launch_bounds__(32 * MOE_MASK_WARPS) moe_scatter_mask(MoeScatterMaskParams p) {
    u32 lane = threadIdx.x & 31;
    for (u64 t = (u64)blockIdx.x * MOE_MASK_WARPS + (threadIdx.x >> 5); t < p.tokens;
         t += (u64)gridDim.x * MOE_MASK_WARPS) {
        u64 out = p.output + t * p.output_stride, first = t * p.max_routes;
        moe_zero_span(out, (u64)p.experts * p.bytes, p.vec, lane, 32);
        __syncwarp(); // the zeros come before the values of other lanes
        for (u32 k = lane; k < p.max_routes; k += 32) {
            u32 e = ((const u32 *)p.ids)[first + k];
            if (e < p.experts) moe_mask_copy(out, e, p.values, first + k, p.bytes);
        }
    }
}
