// Building a route plan inside a kernel. A counting sort in three steps: count the routes of each
// expert, lay the experts out, rank the routes of a chunk of tokens. Order: local expert, then
// route number; nothing depends on the order in which threads or blocks run.
//
// Each block ranks one chunk of consecutive tokens. It learns what lies before its chunk either by
// counting all ids itself (`small`: no communication) or through a table in scratch that all
// blocks fill before one barrier (`grid`).
#pragma once
#include "common.cuh"

#define MOE_ALL 0xffffffffu

// --- routes ------------------------------------------------------------------------------------

// What became of a route: a local expert, or one of these.
#define MOE_ROUTE_MASKED (-1)
#define MOE_ROUTE_INVALID (-2)
#define MOE_ROUTE_NON_LOCAL (-3)
#define MOE_ROUTE_NOT_KEPT (-4)
#define MOE_ROUTE_ABSENT (-5)

// The id of route x as an expert below `experts`, or MOE_ROUTE_MASKED / _INVALID. Compared at full
// width, so that a wide id cannot alias a narrow one.
MOE_DEV i32 moe_route_id(const MoePlanParams &p, u32 x) {
    switch (p.id_dtype) {
    case MOE_ID_I32: {
        i32 id = ((const i32 *)p.ids)[x];
        return (u32)id < p.experts ? id : (id == -1 ? MOE_ROUTE_MASKED : MOE_ROUTE_INVALID);
    }
    case MOE_ID_U32: {
        u32 id = ((const u32 *)p.ids)[x];
        return id < p.experts ? (i32)id : (id == 0xffffffffu ? MOE_ROUTE_MASKED : MOE_ROUTE_INVALID);
    }
    default: {
        i64 id = ((const i64 *)p.ids)[x];
        return (u64)id < (u64)p.experts ? (i32)id : (id == -1 ? MOE_ROUTE_MASKED : MOE_ROUTE_INVALID);
    }
    }
}

// From an id (as moe_route_id gives it) to the local expert, or what became of the route.
MOE_DEV i32 moe_route_local(const MoePlanParams &p, i32 id, u32 x) {
    if (id < 0) return id;
    i32 local = id;
    if (p.expert_map) {
        local = ((const i32 *)p.expert_map)[id];
        if (local == -1) return MOE_ROUTE_NON_LOCAL;
    }
    if ((u32)local >= p.local_experts) return MOE_ROUTE_INVALID;
    if (p.keep && ((const u8 *)p.keep)[x] == 0) return MOE_ROUTE_NOT_KEPT;
    return local;
}

// Tokens that take part.
MOE_DEV u32 moe_valid_tokens(const MoePlanParams &p) {
    if (!p.valid_tokens) return p.tokens;
    i32 v = *(const i32 *)p.valid_tokens;
    return v < 0 ? 0u : moe_min((u32)v, p.tokens);
}

// --- shared memory -----------------------------------------------------------------------------

struct MoePlanShared {
    u32 *next;  // [EP] routes before the chunk; after the layout the next free row
    u32 *total; // [EP] routes of the expert; after the layout the first row it may not take
    u32 *load;  // [XP] routes per global expert
    u16 *ranks; // [rank_warps + 1][EP] counts of the warps that rank
    u32 stride; // EP
};

MOE_DEV MoePlanShared moe_plan_shared(const MoePlanParams &p, u32 *memory) {
    MoePlanShared s;
    s.stride = (p.local_experts + 7) & ~7u;
    s.next = memory;
    s.total = s.next + s.stride;
    s.load = s.total + s.stride;
    s.ranks = (u16 *)(s.load + ((p.experts + 7) & ~7u));
    return s;
}

// Sum over the block; every thread gets it. `sums` has room for 32 words.
MOE_DEV u32 moe_block_sum(u32 v, u32 *sums) {
    v = __reduce_add_sync(MOE_ALL, v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = v;
    __syncthreads();
    u32 lane = threadIdx.x & 31;
    u32 w = lane < (blockDim.x >> 5) ? sums[lane] : 0;
    return __reduce_add_sync(MOE_ALL, w);
}

// Exclusive sum over the block's threads, and the whole sum.
MOE_DEV u32 moe_block_scan(u32 v, u32 *sums, u32 *whole) {
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, inclusive = v;
#pragma unroll
    for (u32 d = 1; d < 32; d <<= 1) {
        u32 o = __shfl_up_sync(MOE_ALL, inclusive, d);
        if (lane >= d) inclusive += o;
    }
    if (lane == 31) sums[warp] = inclusive;
    __syncthreads();
    u32 w = lane < (blockDim.x >> 5) ? sums[lane] : 0, below = w;
#pragma unroll
    for (u32 d = 1; d < 32; d <<= 1) {
        u32 o = __shfl_up_sync(MOE_ALL, below, d);
        if (lane >= d) below += o;
    }
    *whole = __shfl_sync(MOE_ALL, below, 31);
    u32 before = __shfl_sync(MOE_ALL, below - w, warp);
    return before + inclusive - v;
}

// --- counting ----------------------------------------------------------------------------------

struct MoeRejected {
    u32 masked, invalid, non_local, not_kept;
};

MOE_DEV void moe_reject(MoeRejected &r, i32 what) {
    r.masked += what == MOE_ROUTE_MASKED;
    r.invalid += what == MOE_ROUTE_INVALID;
    r.non_local += what == MOE_ROUTE_NON_LOCAL;
    r.not_kept += what == MOE_ROUTE_NOT_KEPT;
}

MOE_DEV void moe_clear_counts(const MoePlanParams &p, const MoePlanShared &s) {
    for (u32 e = threadIdx.x; e < s.stride; e += blockDim.x) s.next[e] = s.total[e] = 0;
    if (p.logical_load)
        for (u32 e = threadIdx.x; e < p.experts; e += blockDim.x) s.load[e] = 0;
}

// Adds the routes [begin, end) to `counts` and to the global loads.
MOE_DEV void moe_count(const MoePlanParams &p, const MoePlanShared &s, u32 *counts, u32 begin, u32 end,
                       MoeRejected &r) {
    for (u32 base = begin; base < end; base += 4 * blockDim.x) {
        i32 id[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 x = base + i * blockDim.x + threadIdx.x;
            id[i] = x < end ? moe_route_id(p, x) : MOE_ROUTE_ABSENT;
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (id[i] == MOE_ROUTE_ABSENT) continue;
            if (p.logical_load && id[i] >= 0) atomicAdd(&s.load[id[i]], 1u);
            i32 e = moe_route_local(p, id[i], base + i * blockDim.x + threadIdx.x);
            if (e >= 0) atomicAdd(&counts[e], 1u);
            else moe_reject(r, e);
        }
    }
}

// --- layout ------------------------------------------------------------------------------------

// Turns counts into rows. On entry next = routes before the chunk, total = all routes, both
// visible to the block; on return next = the row of the chunk's first route of each expert,
// total = the first row past the expert's placed rows. The block's share of what the plan says
// about experts and about rows that hold no route is written on the way: experts part, part +
// parts, ...; rows past the end in the same fashion. Returns routes over capacity.
MOE_DEV u32 moe_layout(const MoePlanParams &p, const MoePlanShared &s, u32 part, u32 parts, u32 *sums) {
    u32 per = (p.local_experts + blockDim.x - 1) / blockDim.x;
    u32 first = moe_min(threadIdx.x * per, p.local_experts);
    u32 last = moe_min(first + per, p.local_experts);
    u32 mine = 0, over = 0;
    u32 step = p.layout == MOE_ALIGNED ? p.align : 1;
    for (u32 e = first; e < last; e++) {
        u32 placed = moe_min(s.total[e], p.capacity);
        mine += p.layout == MOE_PADDED ? p.align : (placed + step - 1) / step * step;
    }
    u32 used;
    u32 row = moe_block_scan(mine, sums, &used);
    i32 *source = (i32 *)p.source, *m_indices = (i32 *)p.m_indices;
    for (u32 e = first; e < last; e++) {
        u32 total = s.total[e], placed = moe_min(total, p.capacity);
        u32 size = p.layout == MOE_PADDED ? p.align : (placed + step - 1) / step * step;
        over += total - placed;
        s.next[e] += row;
        s.total[e] = row + placed;
        if (e % parts == part) {
            ((i32 *)p.expert_offsets)[e] = (i32)row;
            ((i32 *)p.tokens_per_expert)[e] = (i32)placed;
            if (size - placed < 256)
                for (u32 r = row + placed; r < moe_min(row + size, p.rows); r++) {
                    source[r] = -1;
                    if (m_indices) m_indices[r] = -1;
                }
        }
        row += size;
    }
    if (part == 0 && threadIdx.x == 0) ((i32 *)p.expert_offsets)[p.local_experts] = (i32)used;
    for (u32 r = used + part * blockDim.x + threadIdx.x; r < p.rows; r += parts * blockDim.x) {
        source[r] = -1;
        if (m_indices) m_indices[r] = -1;
    }
    __syncthreads();
    // Long paddings are written by the whole block. Here total[e] is the end of e's placed rows,
    // and its last row follows from the next expert's first, which only Padded needs to know.
    if (p.layout == MOE_PADDED || step > 256)
        for (u32 e = part; e < p.local_experts; e += parts) {
            u32 begin = s.total[e], end;
            if (p.layout == MOE_PADDED) end = (e + 1) * p.align;
            else end = (begin + step - 1) / step * step; // offsets are multiples of n themselves
            if (end - begin < 256) continue;
            for (u32 r = begin + threadIdx.x; r < moe_min(end, p.rows); r += blockDim.x) {
                source[r] = -1;
                if (m_indices) m_indices[r] = -1;
            }
        }
    return over;
}

MOE_DEV void moe_write_status(const MoePlanParams &p, const MoeRejected &r, u32 over, u32 *sums) {
    u32 masked = moe_block_sum(r.masked, sums);
    u32 invalid = moe_block_sum(r.invalid, sums);
    u32 non_local = moe_block_sum(r.non_local, sums);
    u32 over_all = moe_block_sum(over + r.not_kept, sums);
    if (threadIdx.x == 0) {
        u32 *status = (u32 *)p.status;
        status[MOE_MASKED] = masked;
        status[MOE_INVALID] = invalid;
        status[MOE_NON_LOCAL] = non_local;
        status[MOE_OVER_CAPACITY] = over_all;
        status[MOE_OVER_MAX_ROUTES] = p.over_max_routes ? *(const u32 *)p.over_max_routes : 0;
    }
}

// --- ranking -----------------------------------------------------------------------------------

MOE_DEV u32 moe_peers(i32 e) { return __match_any_sync(MOE_ALL, e); }

// Writes where route x went.
MOE_DEV i32 moe_place(const MoePlanParams &p, u32 x, i32 e, u32 row, u32 limit) {
    i32 slot = -1;
    if (e >= 0 && row < limit && row < p.rows) {
        slot = (i32)row;
        ((i32 *)p.source)[row] = (i32)x;
        if (p.m_indices) ((i32 *)p.m_indices)[row] = e;
    }
    ((i32 *)p.slot)[x] = slot;
    return slot;
}

// Ranks the routes [begin, end), in rounds of rank_warps * 32. Routes from `valid` on are not
// placed. All threads of the block take part. `ranks` is cleared here.
MOE_DEV void moe_rank_chunk(const MoePlanParams &p, const MoePlanShared &s, u32 begin, u32 end, u32 valid) {
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = p.rank_warps;
    u32 *words = (u32 *)s.ranks;
    u16 *carry = s.ranks + warps * s.stride;
    for (u32 i = threadIdx.x; i < s.stride / 2; i += blockDim.x) ((u32 *)carry)[i] = 0;
    for (u32 base = begin; base < end; base += warps * 32) {
        for (u32 i = threadIdx.x; i < warps * s.stride / 2; i += blockDim.x) words[i] = 0;
        u32 x = base + threadIdx.x;
        i32 e = -1;
        if (warp < warps && x < end && x < valid) e = moe_route_local(p, moe_route_id(p, x), x);
        u32 peers = moe_peers(e), below = __popc(peers & ((1u << lane) - 1));
        __syncthreads();
        if (warp < warps && e >= 0 && below == 0) s.ranks[warp * s.stride + e] = (u16)__popc(peers);
        __syncthreads();
        for (u32 i = threadIdx.x; i < p.local_experts; i += blockDim.x) {
            u32 sum = 0;
            s.next[i] += carry[i];
            u32 w = 0;
            for (; w + 4 <= warps; w += 4) {
                u16 *c = s.ranks + w * s.stride + i;
                u32 a = c[0], b = c[s.stride], d = c[2 * s.stride], f = c[3 * s.stride];
                c[0] = (u16)sum;
                c[s.stride] = (u16)(sum + a);
                c[2 * s.stride] = (u16)(sum + a + b);
                c[3 * s.stride] = (u16)(sum + a + b + d);
                sum += a + b + d + f;
            }
            for (; w < warps; w++) {
                u16 *c = s.ranks + w * s.stride + i;
                u32 a = c[0];
                c[0] = (u16)sum;
                sum += a;
            }
            carry[i] = (u16)sum;
        }
        __syncthreads();
        if (warp < warps && x < end) {
            u32 row = 0, limit = 0;
            if (e >= 0) {
                row = s.next[e] + s.ranks[warp * s.stride + e] + below;
                limit = s.total[e];
            }
            moe_place(p, x, e, row, limit);
        }
        __syncthreads();
    }
}

// --- the two ways to know what lies before a chunk -----------------------------------------------

struct MoeChunk {
    u32 begin, end, valid; // routes
};

MOE_DEV MoeChunk moe_chunk(const MoePlanParams &p, u32 block, u32 chunk_tokens) {
    MoeChunk c;
    c.begin = (u32)moe_min64((u64)block * chunk_tokens, p.tokens) * p.k;
    c.end = (u32)moe_min64((u64)(block + 1) * chunk_tokens, p.tokens) * p.k;
    c.valid = moe_valid_tokens(p) * p.k;
    return c;
}

// Counts all routes in this block. `next` gets those before the chunk, `total` all.
MOE_DEV void moe_count_all(const MoePlanParams &p, const MoePlanShared &s, const MoeChunk &c, MoeRejected &r) {
    moe_clear_counts(p, s);
    __syncthreads();
    u32 before = moe_min(c.begin, c.valid);
    moe_count(p, s, s.next, 0, before, r);
    moe_count(p, s, s.total, before, c.valid, r);
    __syncthreads();
    for (u32 e = threadIdx.x; e < s.stride; e += blockDim.x) s.total[e] += s.next[e];
    __syncthreads();
}

// A barrier of all blocks of a cooperative launch. The counter's low 31 bits return to zero, so it
// serves any later grid; its top bit says which of two generations is on.
MOE_DEV void moe_grid_arrive(u32 *counter, u32 *ticket) {
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 add = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
        asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], %2;" : "=r"(*ticket) : "l"(counter), "r"(add) : "memory");
    }
}

MOE_DEV void moe_grid_wait(u32 *counter, u32 ticket) {
    if (threadIdx.x == 0) {
        u32 now;
        do {
            asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
        } while (((now ^ ticket) & 0x80000000u) == 0);
    }
    __syncthreads();
}

// Scratch of the grid kernels: barrier, then one row of the table for each block:
// [EP] counts, [XP] global loads (if asked for), [8] rejected.
struct MoePlanTable {
    u32 *barrier, *rows;
    u32 stride, experts, loads;
};

MOE_DEV MoePlanTable moe_plan_table(const MoePlanParams &p) {
    MoePlanTable t;
    t.barrier = (u32 *)p.scratch;
    t.rows = t.barrier + 64;
    t.experts = (p.local_experts + 7) & ~7u;
    t.loads = (p.experts + 7) & ~7u;
    t.stride = t.experts + t.loads + 8;
    return t;
}

// Counts the chunk and publishes it. What is read here is read before the barrier, so work that
// does not depend on other blocks may stand between this and moe_count_collect.
MOE_DEV u32 moe_count_publish(const MoePlanParams &p, const MoePlanShared &s, const MoePlanTable &t,
                              const MoeChunk &c, u32 *sums) {
    MoeRejected r = {0, 0, 0, 0};
    moe_clear_counts(p, s);
    __syncthreads();
    moe_count(p, s, s.total, c.begin, moe_min(c.end, c.valid), r);
    u32 masked = moe_block_sum(r.masked, sums);
    u32 invalid = moe_block_sum(r.invalid, sums);
    u32 non_local = moe_block_sum(r.non_local, sums);
    u32 not_kept = moe_block_sum(r.not_kept, sums);
    u32 *row = t.rows + (u64)blockIdx.x * t.stride;
    for (u32 e = threadIdx.x; e < t.experts; e += blockDim.x) __stcg(row + e, s.total[e]);
    if (p.logical_load)
        for (u32 e = threadIdx.x; e < p.experts; e += blockDim.x) __stcg(row + t.experts + e, s.load[e]);
    if (threadIdx.x == 0)
        __stcg((uint4 *)(row + t.experts + t.loads), make_uint4(masked, invalid, non_local, not_kept));
    u32 ticket = 0;
    moe_grid_arrive(t.barrier, &ticket);
    return ticket;
}

// Adds up the table: what lies before this block's chunk, and all. Many experts are spread over
// the blocks first, by a second barrier, so that the work does not grow with blocks * experts.
MOE_DEV void moe_count_collect(const MoePlanParams &p, const MoePlanShared &s, const MoePlanTable &t, u32 ticket) {
    for (u32 e = threadIdx.x; e < s.stride; e += blockDim.x) s.next[e] = s.total[e] = 0;
    u32 blocks = gridDim.x;
    if (t.experts <= 512) {
        u32 quads = t.experts / 4, groups = blockDim.x / quads;
        u32 group = threadIdx.x / quads, quad = threadIdx.x % quads;
        moe_grid_wait(t.barrier, ticket);
        uint4 before = make_uint4(0, 0, 0, 0), all = before;
        if (group < groups) {
#pragma unroll 8
            for (u32 b = group; b < blocks; b += groups) {
                uint4 v = __ldcg((const uint4 *)(t.rows + (u64)b * t.stride) + quad);
                all.x += v.x, all.y += v.y, all.z += v.z, all.w += v.w;
                if (b < blockIdx.x) before.x += v.x, before.y += v.y, before.z += v.z, before.w += v.w;
            }
            atomicAdd(&s.total[4 * quad], all.x);
            atomicAdd(&s.total[4 * quad + 1], all.y);
            atomicAdd(&s.total[4 * quad + 2], all.z);
            atomicAdd(&s.total[4 * quad + 3], all.w);
            atomicAdd(&s.next[4 * quad], before.x);
            atomicAdd(&s.next[4 * quad + 1], before.y);
            atomicAdd(&s.next[4 * quad + 2], before.z);
            atomicAdd(&s.next[4 * quad + 3], before.w);
        }
    } else {
        // A warp per expert: the lanes walk the blocks' rows in order and leave, in place of each
        // count, the sum of those before it; the sums of all go to the table's last row.
        moe_grid_wait(t.barrier, ticket);
        u32 lane = threadIdx.x & 31, warps = blockDim.x >> 5;
        u32 *whole = t.rows + (u64)blocks * t.stride;
        for (u32 e = blockIdx.x * warps + (threadIdx.x >> 5); e < p.local_experts; e += blocks * warps) {
            u32 sum = 0;
            for (u32 b = 0; b < blocks; b += 32) {
                u32 *cell = t.rows + (u64)(b + lane) * t.stride + e;
                u32 v = b + lane < blocks ? __ldcg(cell) : 0, inclusive = v;
#pragma unroll
                for (u32 d = 1; d < 32; d <<= 1) {
                    u32 o = __shfl_up_sync(MOE_ALL, inclusive, d);
                    if (lane >= d) inclusive += o;
                }
                if (b + lane < blocks) __stcg(cell, sum + inclusive - v);
                sum += __shfl_sync(MOE_ALL, inclusive, 31);
            }
            if (lane == 0) __stcg(whole + e, sum);
        }
        u32 second = 0;
        moe_grid_arrive(t.barrier, &second);
        moe_grid_wait(t.barrier, second);
        const u32 *row = t.rows + (u64)blockIdx.x * t.stride;
        for (u32 e = threadIdx.x; e < p.local_experts; e += blockDim.x) {
            s.next[e] = __ldcg(row + e);
            s.total[e] = __ldcg(whole + e);
        }
    }
    __syncthreads();
}

// Adds up the rejected routes (block 0) and the global loads (all blocks, an expert per warp).
MOE_DEV void moe_collect_status(const MoePlanParams &p, const MoePlanTable &t, u32 over, u32 *sums) {
    u32 lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    if (p.logical_load)
        for (u32 e = blockIdx.x * warps + (threadIdx.x >> 5); e < p.experts; e += gridDim.x * warps) {
            u32 sum = 0;
            for (u32 b = lane; b < gridDim.x; b += 32) sum += __ldcg(t.rows + (u64)b * t.stride + t.experts + e);
            sum = __reduce_add_sync(MOE_ALL, sum);
            if (lane == 0) ((i32 *)p.logical_load)[e] = (i32)sum;
        }
    if (blockIdx.x == 0) {
        MoeRejected r = {0, 0, 0, 0};
        for (u32 b = threadIdx.x; b < gridDim.x; b += blockDim.x) {
            uint4 v = __ldcg((const uint4 *)(t.rows + (u64)b * t.stride + t.experts + t.loads));
            r.masked += v.x, r.invalid += v.y, r.non_local += v.z, r.not_kept += v.w;
        }
        moe_write_status(p, r, over, sums);
    }
}
