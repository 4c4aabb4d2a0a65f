// Chunks of rows to the ids that a plan is built from. Parameters: MoeChunksParams in abi.cuh.
//
// Chunk c has the rows from starts[c] to starts[c + 1]; the id of each is the chunk's place in the
// output, or `chunks` where it has none, as for rows past the last chunk.
#include "plan.cuh"

#define MOE_CHUNKS_BLOCK 1024

// places[c] = the lowest p with order[p] == c, else `chunks`; starts[c] = min(tokens, sum of the
// sizes before c), where sizes below 0 count as 0. One block.
extern "C" __global__ void __launch_bounds__(MOE_CHUNKS_BLOCK, 1) moe_expand_chunks_starts(MoeChunksParams p) {
    __shared__ u64 sums[32];
    u32 *places = (u32 *)p.work, *starts = places + p.chunks;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (u32 c = threadIdx.x; c < p.chunks; c += MOE_CHUNKS_BLOCK) places[c] = p.order ? p.chunks : c;
    u64 done = 0;
    for (u32 base = 0; base < p.chunks; base += MOE_CHUNKS_BLOCK) {
        u32 c = base + threadIdx.x;
        i32 size = c < p.chunks ? ((const i32 *)p.sizes)[c] : 0;
        u64 mine = size > 0 ? (u64)size : 0, inclusive = mine;
#pragma unroll
        for (u32 d = 1; d < 32; d <<= 1) {
            u64 o = __shfl_up_sync(MOE_ALL, inclusive, d);
            if (lane >= d) inclusive += o;
        }
        if (lane == 31) sums[warp] = inclusive;
        __syncthreads();
        u64 before = done;
        for (u32 w = 0; w < 32; w++) {
            if (w < warp) before += sums[w];
            done += sums[w];
        }
        if (c < p.chunks) starts[c] = (u32)moe_min64(before + inclusive - mine, p.tokens);
        __syncthreads();
    }
    if (threadIdx.x == 0) starts[p.chunks] = (u32)moe_min64(done, p.tokens);
    if (p.order)
        for (u32 place = threadIdx.x; place < p.chunks; place += MOE_CHUNKS_BLOCK) {
            u32 c = ((const u32 *)p.order)[place];
            if (c < p.chunks) atomicMin(&places[c], place);
        }
}

// The id of each row, from what moe_expand_chunks_starts wrote.
extern "C" __global__ void __launch_bounds__(256) moe_expand_chunks(MoeChunksParams p) {
    const u32 *places = (const u32 *)p.work, *starts = places + p.chunks;
    for (u64 t = (u64)blockIdx.x * blockDim.x + threadIdx.x; t < p.tokens; t += (u64)gridDim.x * blockDim.x) {
        // The last chunk that starts at or before the row: empty chunks lie before it.
        u32 low = 0, high = p.chunks;
        while (low < high) {
            u32 middle = low + (high - low) / 2 + 1;
            if (starts[middle] <= t) low = middle;
            else high = middle - 1;
        }
        ((i32 *)p.ids)[t] = (i32)(low < p.chunks ? places[low] : p.chunks);
    }
}
