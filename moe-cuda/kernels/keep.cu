// Capacity by weight: which routes of each local expert stay. Parameters: MoeKeepParams in abi.cuh.
//
// The routes of each expert lie one after the other in ascending order, as a Packed plan without
// capacity lists them. An expert keeps the `capacity` routes of the largest weights: -0 counts as
// +0, NaN is the lowest, ties go to the lower route. keep[x] is written for every route in the
// list; what other routes have there is never looked at.
//
// A block selects among one expert's routes by radix: at most three passes over the list narrow
// the key of the last route that stays down by 11, 11 and 10 bits, one more writes the marks, and
// where not all routes of that very key stay, one before it counts them by warp. Work O(routes); an
// expert's list is read by one multiprocessor.
#include "plan.cuh"

#define MOE_KEEP_BLOCK 512
#define MOE_KEEP_WARPS (MOE_KEEP_BLOCK / 32)
#define MOE_KEEP_BINS 2048
#define MOE_KEEP_BATCH 4

// Smaller for weights that stay longer.
MOE_DEV u32 moe_keep_key(float weight) {
    if (weight != weight) return 0xffffffffu;
    u32 bits = __float_as_uint(weight);
    if (bits == 0x80000000u) bits = 0;
    return ~(bits >> 31 ? ~bits : bits | 0x80000000u);
}

extern "C" __global__ void __launch_bounds__(MOE_KEEP_BLOCK, 2)
moe_keep_by_weight(MoeKeepParams p) {
    __shared__ u32 bins[MOE_KEEP_BINS];
    __shared__ u32 sums[MOE_SUMS];
    __shared__ u32 found[3];
    __shared__ u32 ties[MOE_KEEP_WARPS];
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (u32 e = blockIdx.x; e < p.local_experts; e += gridDim.x) {
        u32 begin = ((const u32 *)p.expert_offsets)[e], len = ((const u32 *)p.tokens_per_expert)[e];
        if (begin > p.routes || len > p.routes - begin) continue;
        const u32 *source = (const u32 *)p.source + begin;
        u32 *keys = (u32 *)p.keys + begin;
        u8 *keep = (u8 *)p.keep;
        if (len <= p.capacity) {
            for (u32 i = threadIdx.x; i < len; i += MOE_KEEP_BLOCK) {
                u32 x = source[i];
                if (x < p.routes) keep[x] = 1;
            }
            continue;
        }
        // Each warp reads its own part of the list, whole lines at a time.
        u32 per = ((len - 1) / MOE_KEEP_BLOCK + 1) * 32;
        u32 first = moe_min(warp * per, len), last = moe_min(first + per, len);
        u32 prefix = 0, mask = 0, need = p.capacity, same = len;
        for (u32 pass = 0; pass < 3; pass++) {
            u32 shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, digits = pass == 2 ? 1023 : 2047;
            for (u32 i = threadIdx.x; i < MOE_KEEP_BINS; i += MOE_KEEP_BLOCK) bins[i] = 0;
            __syncthreads();
            for (u32 base = first; base < last; base += 32 * MOE_KEEP_BATCH) {
                u32 key[MOE_KEEP_BATCH];
                if (pass == 0) {
#pragma unroll
                    for (u32 j = 0; j < MOE_KEEP_BATCH; j++) {
                        u32 i = base + j * 32 + lane, x = i < last ? source[i] : 0xffffffffu;
                        key[j] = 0xffffffffu;
                        if (x < p.routes) key[j] = moe_keep_key(moe_load_any(p.weights, x, p.weight_dtype));
                    }
#pragma unroll
                    for (u32 j = 0; j < MOE_KEEP_BATCH; j++) {
                        u32 i = base + j * 32 + lane;
                        if (i < last) keys[i] = key[j];
                    }
                } else {
#pragma unroll
                    for (u32 j = 0; j < MOE_KEEP_BATCH; j++) {
                        u32 i = base + j * 32 + lane;
                        key[j] = i < last ? keys[i] : 0xffffffffu;
                    }
                }
#pragma unroll
                for (u32 j = 0; j < MOE_KEEP_BATCH; j++) {
                    u32 digit = MOE_KEEP_BINS;
                    if (base + j * 32 + lane < last && (key[j] & mask) == prefix) digit = key[j] >> shift & digits;
                    u32 peers = __match_any_sync(MOE_ALL, digit);
                    if (digit < MOE_KEEP_BINS && (peers & ((1u << lane) - 1)) == 0)
                        atomicAdd(&bins[digit], __popc(peers));
                }
            }
            __syncthreads();
            u32 mine = 0, whole;
#pragma unroll
            for (u32 j = 0; j < 4; j++) mine += bins[4 * threadIdx.x + j];
            u32 before = moe_block_scan(mine, sums, &whole);
            if (before < need && need - before <= mine) {
                u32 bin = 4 * threadIdx.x;
                while (before + bins[bin] < need) before += bins[bin++];
                found[0] = bin, found[1] = before, found[2] = bins[bin];
            }
            __syncthreads();
            prefix |= found[0] << shift;
            mask |= digits << shift;
            need -= found[1];
            same = found[2];
            if (same == need) break; // all of them stay
        }
        u32 rank = 0; // of the next route with the last key
        if (same > need) {
            u32 count = 0;
            for (u32 i = first + lane; i < last; i += 32) count += keys[i] == prefix;
            count = __reduce_add_sync(MOE_ALL, count);
            if (lane == 0) ties[warp] = count;
            __syncthreads();
            for (u32 w = 0; w < warp; w++) rank += ties[w];
        }
        for (u32 base = first; base < last; base += 32) {
            u32 i = base + lane, x = i < last ? source[i] : 0xffffffffu;
            u32 key = i < last ? keys[i] & mask : 0xffffffffu;
            bool stays = key <= prefix;
            if (same > need) {
                u32 tied = __ballot_sync(MOE_ALL, i < last && key == prefix);
                if (key == prefix) stays = rank + __popc(tied & ((1u << lane) - 1)) < need;
                rank += __popc(tied);
            }
            if (i < last && x < p.routes) keep[x] = stays;
        }
        __syncthreads(); // before shared memory serves the next expert
    }
}
