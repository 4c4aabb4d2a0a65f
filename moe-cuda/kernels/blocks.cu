// Further index arrays of a plan. Parameters: MoeBlockTableParams and MoeSplitSizesParams in abi.cuh.
#include "plan.cuh"

// The local expert of block `b`: the last whose first block is not past it.
MOE_DEV u32 moe_block_expert(const u32 *first, u32 experts, u32 b) {
    u32 low = 0, high = experts - 1;
    while (low < high) {
        u32 middle = low + (high - low) / 2 + 1;
        if (first[middle] <= b) low = middle;
        else high = middle - 1;
    }
    return low;
}

// The placed routes by expert, each expert's padded with `routes` to a multiple of `block`; past
// the end `routes`, and -1 for the expert. Every block of threads counts the blocks of all experts
// (dynamic shared memory: local_experts words), then fills its share of the table.
extern "C" __global__ void __launch_bounds__(512) moe_block_table(MoeBlockTableParams p) {
    extern __shared__ __align__(16) u32 first[];
    __shared__ u32 sums[MOE_SUMS];
    const u32 *offsets = (const u32 *)p.expert_offsets, *counts = (const u32 *)p.tokens_per_expert;
    u32 per = (p.local_experts + blockDim.x - 1) / blockDim.x;
    u32 begin = moe_min(threadIdx.x * per, p.local_experts), end = moe_min(begin + per, p.local_experts);
    u32 mine = 0, used;
    for (u32 e = begin; e < end; e++) {
        u32 count = moe_min(counts[e], p.rows);
        first[e] = count / p.block + (count % p.block != 0);
        mine += first[e];
    }
    u32 before = moe_block_scan(mine, sums, &used);
    for (u32 e = begin; e < end; e++) {
        u32 blocks = first[e];
        first[e] = before;
        before += blocks;
    }
    __syncthreads();
    used = moe_min(used, p.blocks);
    u32 thread = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    if (thread == 0) *(i32 *)p.num_tokens_post_padded = (i32)(used * p.block);
    for (u32 b = thread; b < p.blocks; b += step)
        ((i32 *)p.expert_ids)[b] = b < used ? (i32)moe_block_expert(first, p.local_experts, b) : -1;
    u32 len = p.blocks * p.block;
    for (u32 i = thread; i < len; i += step) {
        u32 route = p.routes, b = i / p.block;
        if (b < used) {
            u32 e = moe_block_expert(first, p.local_experts, b), at = i - first[e] * p.block;
            u64 row = (u64)offsets[e] + at;
            if (at < counts[e] && row < p.rows) route = ((const u32 *)p.source)[row];
        }
        ((u32 *)p.sorted_token_ids)[i] = route;
    }
}

// The rows of each rank's experts, padding included.
extern "C" __global__ void __launch_bounds__(256) moe_split_sizes(MoeSplitSizesParams p) {
    u32 r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= p.ranks) return;
    const u32 *offsets = (const u32 *)p.expert_offsets + (u64)r * p.experts_per_rank;
    ((u32 *)p.output)[r] = offsets[p.experts_per_rank] - offsets[0];
}
