// Permute: plan and row movement in one launch. Every plan field is written as by plan.cu, and
// Y[slot[t, k], :] = X[t, :] for placed routes, zero for padding rows below the last offset; rows
// past it are not touched. rows[0].vec is 16; rows[1] is the side-car. Launch rules: ABI.md.
#include "plan.cuh"

MOE_DEV uint4 moe_read_row(const uint4 *p) { return __ldg(p); }

// Zeroes the padding rows of this block's share of the experts.
MOE_DEV void moe_zero_own_padding(const MoePermuteParams &q, const MoePlanShared &s) {
    const MoePlanParams &p = q.plan;
    if (p.layout == MOE_PACKED) return;
    for (u32 e = blockIdx.x; e < p.local_experts; e += gridDim.x)
        for (u32 row = s.total[e]; row < moe_min(moe_region_end(p, s, e), p.rows); row++)
#pragma unroll
            for (u32 a = 0; a < 2; a++)
                if (q.rows[a].row_bytes)
                    moe_zero_span(q.rows[a].output + (u64)row * q.rows[a].output_stride, q.rows[a].row_bytes,
                                  q.rows[a].vec, threadIdx.x, blockDim.x);
}

// Small batches: a block per part of a token's row. Each block counts all ids and ranks its own
// token, while its part of the row is already on the way.
extern "C" __global__ void __launch_bounds__(256, 4)
moe_permute_small(MoePermuteParams q) {
    extern __shared__ __align__(16) u32 memory[];
    __shared__ u32 sums[MOE_SUMS];
    __shared__ i32 rows[32];
    const MoePlanParams &p = q.plan;
    u32 splits = q.rows[0].splits, shift = moe_log2(splits), t = blockIdx.x >> shift, part = blockIdx.x & (splits - 1);

    u32 units = (u32)(q.rows[0].row_bytes / 16), per = (units + splits - 1) >> shift;
    u32 first = moe_min(part * per, units), end = moe_min(first + per, units);
    const uint4 *in = (const uint4 *)(q.rows[0].input + (u64)t * q.rows[0].input_stride);
    u32 unit = first + threadIdx.x;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (unit < end) v = moe_read_row(in + unit);

    MoePlanShared s = moe_plan_shared(p, memory);
    MoeChunk c = moe_chunk(p, t, 1);
    moe_count_all(p, s, c, sums);
    moe_layout(p, s, blockIdx.x, gridDim.x, sums);

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
    moe_zero_own_padding(q, s);
    if (blockIdx.x == 0) moe_write_totals(p, s, sums);
}

// Decode batches, Packed without capacity or keep. A block per part of a token's row, and one more
// for the plan's per-expert arrays. A row's place is the number of routes before it in (expert,
// route) order, counted by comparing ids: no histogram, no scan, one barrier.
// AT_ONCE: ids that a thread has in flight.
template <u32 THREADS, u32 AT_ONCE>
MOE_DEV void moe_permute_by_keys(const MoePermuteParams &q, u32 *memory) {
    __shared__ u32 sums[MOE_SUMS];
    __shared__ u32 partial[THREADS / 32][32];
    const MoePlanParams &p = q.plan;
    u32 splits = q.rows[0].splits, shift = moe_log2(splits), t = blockIdx.x >> shift, part = blockIdx.x & (splits - 1);
    if (t == p.tokens) {
        MoePlanShared s = moe_plan_shared(p, memory);
        MoeChunk c = moe_chunk(p, 0, 0);
        moe_count_all(p, s, c, sums);
        moe_layout(p, s, 0, 1, sums);
        moe_write_totals(p, s, sums);
        return;
    }
    u32 units = (u32)(q.rows[0].row_bytes / 16), per = (units + splits - 1) >> shift;
    u32 first = moe_min(part * per, units), end = moe_min(first + per, units), unit = first + threadIdx.x;
    const uint4 *in = (const uint4 *)(q.rows[0].input + (u64)t * q.rows[0].input_stride);
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, valid = moe_valid_tokens(p) * p.k;
    u32 begin = t * p.k;
    i32 mine = MOE_ROUTE_ABSENT, other = MOE_ROUTE_ABSENT;
    if (lane < p.k && begin + lane < valid) mine = moe_route_local(p, moe_route_id(p, begin + lane), begin + lane);
    if (threadIdx.x < valid) other = moe_route_local(p, moe_route_id(p, threadIdx.x), threadIdx.x);
    uint4 v = make_uint4(0, 0, 0, 0);
    if (unit < end) v = moe_read_row(in + unit);
    // (expert, route) as one number; what is not placed comes last.
    u32 my_key = mine >= 0 ? (u32)mine << 16 | (begin + lane) : 0, mine_before = 0;
    for (u32 j0 = 0; j0 < p.k; j0 += 8) {
        u32 key[8], n[8];
#pragma unroll
        for (u32 j = 0; j < 8; j++) key[j] = __shfl_sync(MOE_ALL, my_key, j0 + j), n[j] = 0;
        for (u32 base = 0; base < valid; base += AT_ONCE * THREADS) {
            i32 e[AT_ONCE];
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; i++) {
                u32 x = base + i * THREADS + threadIdx.x;
                e[i] = i == 0 ? other : MOE_ROUTE_ABSENT;
                if (i || base || j0) e[i] = x < valid ? moe_route_local(p, moe_route_id(p, x), x) : MOE_ROUTE_ABSENT;
            }
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; i++) {
                u32 k = e[i] >= 0 ? (u32)e[i] << 16 | (base + i * THREADS + threadIdx.x) : 0xffffffffu;
#pragma unroll
                for (u32 j = 0; j < 8; j++) n[j] += k < key[j];
            }
        }
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            u32 sum = __reduce_add_sync(MOE_ALL, n[j]);
            if (lane == j0 + j) mine_before = sum;
        }
    }
    partial[warp][lane] = mine_before;
    __syncthreads();
    i32 row = 0;
#pragma unroll
    for (u32 w = 0; w < THREADS / 32; w++) row += partial[w][lane];
    if (mine < 0 || (u32)row >= p.rows) row = -1;
    for (u32 base = first; base < end; base += blockDim.x) {
        u32 u = base + threadIdx.x;
        if (base != first && u < end) v = moe_read_row(in + u);
        for (u32 j = 0; j < p.k; j++) {
            i32 to = __shfl_sync(MOE_ALL, row, j);
            if (to >= 0 && u < end) ((uint4 *)(q.rows[0].output + (u64)to * q.rows[0].output_stride))[u] = v;
        }
    }
    if (part == 0 && threadIdx.x < p.k) {
        u32 x = begin + lane;
        if (row >= 0) {
            ((i32 *)p.source)[row] = (i32)x;
            if (p.m_indices) ((i32 *)p.m_indices)[row] = mine;
        }
        ((i32 *)p.slot)[x] = row;
    }
    if (part + 1 == splits && ((u64)units * 16 < q.rows[0].row_bytes || q.rows[1].row_bytes)) {
        __shared__ i32 rows[32];
        if (threadIdx.x < 32) rows[lane] = row;
        __syncthreads();
        moe_copy_units<u8>(q.rows[0], t, rows, p.k, p.rows, (u64)units * 16, q.rows[0].row_bytes, threadIdx.x,
                           blockDim.x);
        if (q.rows[1].row_bytes)
            moe_scatter_row(q.rows[1], t, rows, p.k, p.rows, 0, 1, threadIdx.x, blockDim.x);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) moe_permute_tiny(MoePermuteParams q) {
    extern __shared__ __align__(16) u32 memory[];
    moe_permute_by_keys<256, 1>(q, memory);
}

// The same where there are many ids and few blocks.
extern "C" __global__ void __launch_bounds__(512, 2) moe_permute_tiny_wide(MoePermuteParams q) {
    extern __shared__ __align__(16) u32 memory[];
    moe_permute_by_keys<512, 4>(q, memory);
}

// Larger batches: all multiprocessors, `share` blocks to a chunk, which each of them ranks (a chunk
// of more than rank_warps * 32 routes needs share 1). The rows that a block will move are fetched into L2 while the chunks'
// counts travel. Then 128 threads move a part of a token: one read, a store for each slot.
extern "C" __global__ void __launch_bounds__(1024, 1)
moe_permute_grid(MoePermuteParams q) {
    extern __shared__ __align__(16) u32 memory[];
    __shared__ u32 sums[MOE_SUMS];
    __shared__ i32 slots[1024];
    const MoePlanParams &p = q.plan;
    MoePlanShared s = moe_plan_shared(p, memory);
    MoeExchange t = moe_exchange(p);
    u32 epoch = moe_exchange_epoch(t);
    u32 chunk = blockIdx.x >> moe_log2(p.share), member = blockIdx.x & (p.share - 1);
    u32 chunks = gridDim.x >> moe_log2(p.share);
    MoeChunk c = moe_chunk(p, chunk, p.chunk_tokens);
    u32 token = (u32)moe_min64((u64)chunk * p.chunk_tokens, p.tokens);
    u32 tokens = (u32)moe_min64((u64)token + p.chunk_tokens, p.tokens) - token;
    u32 splits = q.rows[0].splits, shift = moe_log2(splits), items = tokens << shift;
    u32 units = (u32)(q.rows[0].row_bytes / 16), per = (units + splits - 1) >> shift;
    u32 group = threadIdx.x >> 7, thread = threadIdx.x & 127;
    for (u32 item = member * 8 + group, n = 0; item < items && n < 2; item += p.share * 8, n++) {
        u32 from = (item & (splits - 1)) * per, at = from + thread * 8;
        if (at < moe_min(from + per, units))
            asm volatile("prefetch.global.L2 [%0];" ::"l"(q.rows[0].input + (u64)(token + (item >> shift)) *
                                                          q.rows[0].input_stride + (u64)at * 16));
    }
    i32 expert;
    u32 rank = moe_rank_local(p, s, c, member == 0, sums, &expert);
    if (member == 0) moe_exchange_publish(p, s, t, chunk, epoch, sums);
    __syncthreads();
    moe_exchange_leave(t, epoch);
    moe_exchange_collect(s, t, chunk, chunks, epoch, sums);
    moe_layout(p, s, blockIdx.x, gridDim.x, sums);
    u32 round = moe_rank_warps(p) * 32;
    bool many = c.end - c.begin > round; // share is 1 then: the slots are read back from the plan
    for (u32 base = c.begin; base < c.end; base += round) {
        u32 x = base + threadIdx.x;
        if (threadIdx.x >= round || x >= c.end) continue;
        if (many) {
            expert = x < c.valid ? moe_route_local(p, moe_route_id(p, x), x) : MOE_ROUTE_ABSENT;
            rank = (u32)((i32 *)p.slot)[x];
        }
        u32 row = 0, limit = 0;
        i32 slot = -1;
        if (expert >= 0) row = s.next[expert] + rank, limit = s.total[expert];
        if (member == 0) slot = moe_place(p, x, expert, row, limit);
        else if (expert >= 0 && row < limit && row < p.rows) slot = (i32)row;
        if (!many) slots[threadIdx.x] = slot;
    }
    __syncthreads();
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    for (u32 item = member * 8 + group; item < items; item += p.share * 8) {
        u32 local = item >> shift, part = item & (splits - 1), tok = token + local;
        const i32 *to = many ? (const i32 *)p.slot + (u64)tok * p.k : slots + local * p.k;
        u32 end = moe_min((part + 1) * per, units);
        const uint4 *in = (const uint4 *)(q.rows[0].input + (u64)tok * q.rows[0].input_stride);
        for (u32 base = part * per + thread; base < end; base += 4 * 128) {
            uint4 v[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (base + i * 128 < end) v[i] = moe_read_row(in + base + i * 128);
            for (u32 j = 0; j < p.k; j++) {
                i32 row = to[j];
                if (row < 0) continue;
                uint4 *out = (uint4 *)(q.rows[0].output + (u64)row * q.rows[0].output_stride) + base;
#pragma unroll
                for (u32 i = 0; i < 4; i++)
                    if (base + i * 128 < end)
                        asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(out + i * 128),
                                     "r"(v[i].x), "r"(v[i].y), "r"(v[i].z), "r"(v[i].w), "l"(policy)
                                     : "memory");
            }
        }
        if (part) continue;
        if ((u64)units * 16 < q.rows[0].row_bytes)
            moe_copy_units<u8>(q.rows[0], tok, to, p.k, p.rows, (u64)units * 16, q.rows[0].row_bytes, thread, 128);
        if (q.rows[1].row_bytes) moe_scatter_row(q.rows[1], tok, to, p.k, p.rows, 0, 1, thread, 128);
    }
    moe_zero_own_padding(q, s);
    moe_exchange_status(p, t, chunks, epoch, sums);
}
