// Plan builders from top-k ids. Inputs and outputs: MoePlanParams in abi.cuh; a route that is not
// placed has slot -1, a row that holds no route has source -1, and both arrays are written to
// their full length. Launch rules: ABI.md.
#include "plan.cuh"

// Every block counts all ids, then ranks its own chunk. No scratch.
extern "C" __global__ void __launch_bounds__(1024, 1)
moe_plan_small(MoePlanParams p) {
    extern __shared__ __align__(16) u32 memory[];
    __shared__ u32 sums[MOE_SUMS];
    MoePlanShared s = moe_plan_shared(p, memory);
    MoeChunk c = moe_chunk(p, blockIdx.x, p.chunk_tokens);
    moe_count_all(p, s, c, sums);
    moe_layout(p, s, blockIdx.x, gridDim.x, sums);
    moe_rank_chunk(p, s, c.begin, c.end, c.valid);
    __syncthreads();
    if (blockIdx.x == 0) moe_write_totals(p, s, sums);
}

// Every block ranks its own chunk and learns of the others through scratch (cooperative launch:
// blocks wait for each other). Writes `order` on request: within each chunk, the placed rows in
// ascending order with their routes, for moe_gather_list_v16.
extern "C" __global__ void __launch_bounds__(1024, 1)
moe_plan_grid(MoePlanParams p) {
    extern __shared__ __align__(16) u32 memory[];
    __shared__ u32 sums[MOE_SUMS];
    MoePlanShared s = moe_plan_shared(p, memory);
    MoeExchange t = moe_exchange(p);
    u32 epoch = moe_exchange_epoch(t);
    MoeChunk c = moe_chunk(p, blockIdx.x, p.chunk_tokens);
    i32 expert;
    u32 rank = moe_rank_local(p, s, c, true, sums, &expert);
    moe_exchange_publish(p, s, t, blockIdx.x, epoch, sums);
    u32 *local = (u32 *)s.ranks; // the ranks are done with
    u32 placed_here = 0;
    if (p.order) {
        u32 per = (p.local_experts + blockDim.x - 1) / blockDim.x, mine = 0;
        u32 first = moe_min(threadIdx.x * per, p.local_experts), last = moe_min(first + per, p.local_experts);
        for (u32 e = first; e < last; e++) mine += s.next[e];
        u32 before = moe_block_scan(mine, sums, &placed_here);
        for (u32 e = first; e < last; e++) local[e] = before, before += s.next[e];
    }
    __syncthreads();
    moe_exchange_leave(t, epoch);
    moe_exchange_collect(s, t, blockIdx.x, gridDim.x, epoch, sums);
    moe_layout(p, s, blockIdx.x, gridDim.x, sums);
    u32 round = moe_rank_warps(p) * 32;
    bool many = c.end - c.begin > round;
    int2 *order = (int2 *)p.order;
    for (u32 base = c.begin; base < c.end; base += round) {
        u32 x = base + threadIdx.x;
        if (threadIdx.x >= round || x >= c.end) continue;
        if (many) {
            expert = x < c.valid ? moe_route_local(p, moe_route_id(p, x), x) : MOE_ROUTE_ABSENT;
            rank = (u32)((i32 *)p.slot)[x];
        }
        u32 row = 0, limit = 0;
        if (expert >= 0) row = s.next[expert] + rank, limit = s.total[expert];
        i32 slot = moe_place(p, x, expert, row, limit);
        if (order && expert >= 0) order[c.begin + local[expert] + rank] = make_int2(slot, (i32)x);
    }
    if (order)
        for (u32 i = c.begin + placed_here + threadIdx.x; i < c.end; i += blockDim.x) order[i] = make_int2(-1, -1);
    moe_exchange_status(p, t, gridDim.x, epoch, sums);
}
