// Permute: plan and row movement in one launch. Every plan field is written as by plan.cu, and
// Y[slot[t, k], :] = X[t, :] for placed routes, zero for padding rows below the last offset; rows
// past it are not touched. rows[0].vec is 16; rows[1] is the side-car. Launch rules: ABI.md.
#include "plan.cuh"

MOE_DEV uint4 moe_read_row(const uint4 *p) { return __ldg(p); }

// Small batches: a block per part of a token's row. Each block counts all ids and ranks its own
// token, while its part of the row is already on the way.
extern "C" __global__ void __launch_bounds__(256, 4)
moe_permute_small(MoePermuteParams q) {
    extern __shared__ __align__(16) u32 memory[];
    __shared__ u32 sums[32];
    __shared__ i32 rows[32];
    const MoePlanParams &p = q.plan;
    u32 splits = q.rows[0].splits, t = blockIdx.x / splits, part = blockIdx.x % splits;

    u32 units = (u32)(q.rows[0].row_bytes / 16);
    u32 first = (u32)((u64)units * part / splits), end = (u32)((u64)units * (part + 1) / splits);
    const uint4 *in = (const uint4 *)(q.rows[0].input + (u64)t * q.rows[0].input_stride);
    u32 unit = first + threadIdx.x;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (unit < end) v = moe_read_row(in + unit);

    MoePlanShared s = moe_plan_shared(p, memory);
    MoeChunk c = moe_chunk(p, t, 1);
    MoeRejected r = {0, 0, 0, 0};
    moe_count_all(p, s, c, r);
    u32 over = moe_layout(p, s, blockIdx.x, gridDim.x, sums);

    if (threadIdx.x < 32) {
        u32 x = c.begin + threadIdx.x;
        i32 e = -1;
        if (threadIdx.x < p.k && x < c.valid) e = moe_route_local(p, moe_route_id(p, x), x);
        u32 below = __popc(moe_peers(e) & ((1u << threadIdx.x) - 1));
        i32 slot = -1;
        if (e >= 0) {
            u32 row = s.next[e] + below;
            if (row < s.total[e] && row < p.rows) slot = (i32)row;
        }
        rows[threadIdx.x] = slot;
        if (part == 0 && threadIdx.x < p.k) {
            if (slot >= 0) {
                ((i32 *)p.source)[slot] = (i32)x;
                if (p.m_indices) ((i32 *)p.m_indices)[slot] = e;
            }
            ((i32 *)p.slot)[x] = slot;
        }
    }
    __syncthreads();

    for (; unit < end; unit += blockDim.x) {
        if (unit >= first + blockDim.x) v = moe_read_row(in + unit);
        for (u32 j = 0; j < p.k; j++) {
            i32 row = rows[j];
            if (row >= 0) ((uint4 *)(q.rows[0].output + (u64)row * q.rows[0].output_stride))[unit] = v;
        }
    }
    if (part + 1 == splits) {
        if (units * 16 < q.rows[0].row_bytes)
            moe_copy_units<u8>(q.rows[0], t, rows, p.k, p.rows, (u64)units * 16, q.rows[0].row_bytes, threadIdx.x,
                               blockDim.x);
        if (q.rows[1].row_bytes)
            moe_scatter_row(q.rows[1], t, rows, p.k, p.rows, 0, 1, threadIdx.x, blockDim.x);
    }
    // Padding rows. s.total is the end of an expert's placed rows; where its region ends depends
    // on the layout alone.
    if (p.layout != MOE_PACKED)
        for (u32 e = blockIdx.x; e < p.local_experts; e += gridDim.x) {
            u32 row = s.total[e], stop = p.layout == MOE_PADDED ? (e + 1) * p.align
                                                               : (row + p.align - 1) / p.align * p.align;
            for (; row < moe_min(stop, p.rows); row++)
#pragma unroll
                for (u32 a = 0; a < 2; a++)
                    if (q.rows[a].row_bytes)
                        moe_zero_span(q.rows[a].output + (u64)row * q.rows[a].output_stride, q.rows[a].row_bytes,
                                      q.rows[a].vec, threadIdx.x, blockDim.x);
        }
    if (blockIdx.x == 0) {
        moe_write_status(p, r, over, sums);
        if (p.logical_load)
            for (u32 e = threadIdx.x; e < p.experts; e += blockDim.x) ((i32 *)p.logical_load)[e] = (i32)s.load[e];
    }
}

// Large batches: as many blocks as multiprocessors, each with a chunk of tokens. The chunk's first
// rows are fetched into L2 while the blocks wait for each other. Then 128 threads move a token:
// one read, a store for each slot.
extern "C" __global__ void __launch_bounds__(1024, 1)
moe_permute_grid(MoePermuteParams q) {
    extern __shared__ __align__(16) u32 memory[];
    __shared__ u32 sums[32];
    const MoePlanParams &p = q.plan;
    MoePlanShared s = moe_plan_shared(p, memory);
    MoePlanTable t = moe_plan_table(p);
    MoeChunk c = moe_chunk(p, blockIdx.x, p.chunk_tokens);
    u32 ticket = moe_count_publish(p, s, t, c, sums);
    u32 token = (u32)moe_min64((u64)blockIdx.x * p.chunk_tokens, p.tokens);
    u32 stop = (u32)moe_min64((u64)token + p.chunk_tokens, p.tokens);
    {
        u32 lines = (u32)((q.rows[0].row_bytes + 127) / 128);
        u32 t0 = token + threadIdx.x / lines;
        if (t0 < stop && t0 * p.k < c.valid) {
            u64 at = q.rows[0].input + (u64)t0 * q.rows[0].input_stride + threadIdx.x % lines * 128;
            asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
        }
    }
    moe_count_collect(p, s, t, ticket);
    u32 over = moe_layout(p, s, blockIdx.x, gridDim.x, sums);
    // Padding rows are found from the ends in s.total, which ranking leaves as they are.
    moe_rank_chunk(p, s, c.begin, c.end, c.valid);

    u32 group = threadIdx.x >> 7, thread = threadIdx.x & 127, lane = threadIdx.x & 31;
    u32 units = (u32)(q.rows[0].row_bytes / 16);
    for (u32 tok = token + group; tok < stop; tok += 8) {
        const i32 *slot = (const i32 *)p.slot + (u64)tok * p.k;
        const uint4 *in = (const uint4 *)(q.rows[0].input + (u64)tok * q.rows[0].input_stride);
        for (u32 base = 0; base < units; base += 8 * 128) {
            uint4 v[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                u32 u = base + i * 128 + thread;
                if (u < units) v[i] = moe_read_row(in + u);
            }
            for (u32 j0 = 0; j0 < p.k; j0 += 32) {
                i32 mine = j0 + lane < p.k ? __ldcg(slot + j0 + lane) : -1;
                for (u32 j = 0; j < moe_min(32, p.k - j0); j++) {
                    i32 row = __shfl_sync(MOE_ALL, mine, j);
                    if ((u32)row >= p.rows) continue;
                    uint4 *out = (uint4 *)(q.rows[0].output + (u64)row * q.rows[0].output_stride) + base + thread;
#pragma unroll
                    for (u32 i = 0; i < 8; i++)
                        if (base + i * 128 + thread < units) out[i * 128] = v[i];
                }
            }
        }
        if ((u64)units * 16 < q.rows[0].row_bytes)
            moe_copy_units<u8>(q.rows[0], tok, slot, p.k, p.rows, (u64)units * 16, q.rows[0].row_bytes, thread, 128);
        if (q.rows[1].row_bytes) moe_scatter_row(q.rows[1], tok, slot, p.k, p.rows, 0, 1, thread, 128);
    }
    if (p.layout != MOE_PACKED)
        for (u32 e = blockIdx.x; e < p.local_experts; e += gridDim.x) {
            u32 row = s.total[e], end = p.layout == MOE_PADDED ? (e + 1) * p.align
                                                              : (row + p.align - 1) / p.align * p.align;
            for (; row < moe_min(end, p.rows); row++)
#pragma unroll
                for (u32 a = 0; a < 2; a++)
                    if (q.rows[a].row_bytes)
                        moe_zero_span(q.rows[a].output + (u64)row * q.rows[a].output_stride, q.rows[a].row_bytes,
                                      q.rows[a].vec, threadIdx.x, blockDim.x);
        }
    moe_collect_status(p, t, over, sums);
}
