// Plan builders from top-k ids. Inputs and outputs: MoePlanParams in abi.cuh; a route that is not
// placed has slot -1, a row that holds no route has source -1, and both arrays are written to
// their full length. Launch rules: ABI.md.
#include "plan.cuh"

// Every block counts all ids, then ranks its own chunk. No scratch.
extern "C" __global__ void __launch_bounds__(1024, 1)
moe_plan_small(MoePlanParams p) {
    extern __shared__ __align__(16) u32 memory[];
    __shared__ u32 sums[32];
    MoePlanShared s = moe_plan_shared(p, memory);
    MoeChunk c = moe_chunk(p, blockIdx.x, p.chunk_tokens);
    MoeRejected r = {0, 0, 0, 0};
    moe_count_all(p, s, c, r);
    u32 over = moe_layout(p, s, blockIdx.x, gridDim.x, sums);
    moe_rank_chunk(p, s, c.begin, c.end, c.valid);
    if (blockIdx.x == 0) {
        moe_write_status(p, r, over, sums);
        if (p.logical_load)
            for (u32 e = threadIdx.x; e < p.experts; e += blockDim.x) ((i32 *)p.logical_load)[e] = (i32)s.load[e];
    }
}

// Every block counts its own chunk; one barrier of the whole grid (cooperative launch).
extern "C" __global__ void __launch_bounds__(1024, 1)
moe_plan_grid(MoePlanParams p) {
    extern __shared__ __align__(16) u32 memory[];
    __shared__ u32 sums[32];
    MoePlanShared s = moe_plan_shared(p, memory);
    MoePlanTable t = moe_plan_table(p);
    MoeChunk c = moe_chunk(p, blockIdx.x, p.chunk_tokens);
    u32 ticket = moe_count_publish(p, s, t, c, sums);
    moe_count_collect(p, s, t, ticket);
    u32 over = moe_layout(p, s, blockIdx.x, gridDim.x, sums);
    moe_rank_chunk(p, s, c.begin, c.end, c.valid);
    moe_collect_status(p, t, over, sums);
}
