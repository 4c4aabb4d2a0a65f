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

// The physical expert of a route to expert `id`, or MOE_ROUTE_INVALID: copies of an expert take turns by t + k.
MOE_DEV i32 moe_route_copy(const MoePlanParams &p, i32 id, u32 x) {
    u32 count = ((const u32 *)p.logcnt)[id];
    if (count - 1 >= p.copies) return MOE_ROUTE_INVALID; // 0 wraps
    u32 turn = (x / p.k + x % p.k) % count;
    u32 physical = ((const u32 *)p.log2phy)[(u64)(u32)id * p.copies + turn];
    return physical < p.physical_experts ? (i32)physical : MOE_ROUTE_INVALID;
}

// From an id (as moe_route_id gives it) to the local expert, or what became of the route.
MOE_DEV i32 moe_route_local(const MoePlanParams &p, i32 id, u32 x) {
    if (id < 0) return id;
    i32 local = id;
    if (p.log2phy) {
        local = moe_route_copy(p, id, x);
        if (local < 0) return local;
    }
    if (p.expert_map) {
        local = ((const i32 *)p.expert_map)[local];
        if (local == -1) return MOE_ROUTE_NON_LOCAL;
    }
    if ((u32)local >= p.local_experts) return MOE_ROUTE_INVALID;
    if (p.keep && ((const u8 *)p.keep)[x] == 0) return MOE_ROUTE_NOT_KEPT;
    return local;
}

// Tokens that take part: a count on the device that may be absent, out of `tokens`.
MOE_DEV u32 moe_valid_count(u64 valid_tokens, u32 tokens) {
    if (!valid_tokens) return tokens;
    i32 v = *(const i32 *)valid_tokens;
    return v < 0 ? 0u : moe_min((u32)v, tokens);
}

MOE_DEV u32 moe_valid_tokens(const MoePlanParams &p) { return moe_valid_count(p.valid_tokens, p.tokens); }

// --- shared memory -----------------------------------------------------------------------------

struct MoePlanShared {
    u32 *next;  // [EP] routes before the chunk; after the layout the next free row
    u32 *total; // [EP] routes of the expert; after the layout the first row it may not take
    u32 *load;  // [XP] routes per global expert
    u16 *ranks; // [rank_warps + 1][EP] counts of the warps that rank
    u32 stride; // EP
};

// Warps that rank at a time: four by four, as their counts are summed.
MOE_DEV u32 moe_rank_warps(const MoePlanParams &p) { return p.rank_warps & ~3u; }

MOE_DEV MoePlanShared moe_plan_shared(const MoePlanParams &p, u32 *memory) {
    MoePlanShared s;
    s.stride = (p.local_experts + 7) & ~7u;
    s.next = memory;
    s.total = s.next + s.stride;
    s.load = s.total + s.stride;
    s.ranks = (u16 *)(s.load + ((p.experts + 7) & ~7u));
    return s;
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

// Words of static shared memory each plan kernel lends: 32 for sums, then the rejected routes:
// masked, invalid, non-local, over capacity.
#define MOE_SUMS 36

MOE_DEV void moe_reject(u32 *sums, i32 what) { atomicAdd(&sums[31 - what], 1u); }

MOE_DEV void moe_clear_counts(const MoePlanParams &p, const MoePlanShared &s, u32 *sums) {
    if (threadIdx.x < 4) sums[32 + threadIdx.x] = 0;
    for (u32 e = threadIdx.x; e < s.stride; e += blockDim.x) s.next[e] = s.total[e] = 0;
    if (p.logical_load)
        for (u32 e = threadIdx.x; e < p.experts; e += blockDim.x) s.load[e] = 0;
}

// Adds the routes [begin, end) to `counts` and to the global loads.
MOE_DEV void moe_count(const MoePlanParams &p, const MoePlanShared &s, u32 *counts, u32 begin, u32 end,
                       u32 *sums) {
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
            else moe_reject(sums, e);
        }
    }
}

// --- layout ------------------------------------------------------------------------------------

// Rows an expert takes: its placed routes and their padding.
MOE_DEV u32 moe_region(const MoePlanParams &p, u32 placed) {
    if (p.layout == MOE_PACKED) return placed;
    return p.layout == MOE_PADDED ? p.align : (placed + p.align - 1) / p.align * p.align;
}

// The first row past an expert's region, from the end of its placed rows (moe_layout's `total`):
// regions start at multiples of n.
MOE_DEV u32 moe_region_end(const MoePlanParams &p, const MoePlanShared &s, u32 e) {
    if (p.layout == MOE_PACKED) return s.total[e];
    return p.layout == MOE_PADDED ? (e + 1) * p.align : (s.total[e] + p.align - 1) / p.align * p.align;
}

MOE_DEV void moe_no_source(const MoePlanParams &p, u32 row) {
    ((i32 *)p.source)[row] = -1;
    if (p.m_indices) ((i32 *)p.m_indices)[row] = -1;
}

// Turns counts into rows. On entry next = routes before the chunk, total = all routes, both
// visible to the block; on return next = the row of the chunk's first route of each expert,
// total = the first row past the expert's placed rows. The block's share of what the plan says
// about experts and about rows that hold no route is written on the way: every parts-th 32 experts,
// and rows past the end in turn. Routes over capacity are added to the rejected.
MOE_DEV void moe_layout(const MoePlanParams &p, const MoePlanShared &s, u32 part, u32 parts, u32 *sums) {
    u32 per = (p.local_experts + blockDim.x - 1) >> moe_log2(blockDim.x); // a division takes as long as the scan
    u32 first = moe_min(threadIdx.x * per, p.local_experts);
    u32 last = moe_min(first + per, p.local_experts);
    bool turns = parts > 1 && parts * 32 < p.local_experts;
    u32 mine = 0, used;
    for (u32 e = first; e < last; e++) mine += moe_region(p, moe_min(s.total[e], p.capacity));
    u32 row = moe_block_scan(mine, sums, &used);
    for (u32 e = first; e < last; e++) {
        u32 total = s.total[e], placed = moe_min(total, p.capacity), size = moe_region(p, placed);
        if (total > placed) atomicAdd(&sums[35], total - placed);
        s.next[e] += row;
        s.total[e] = row + placed;
        if (parts == 1 || (turns ? (e >> 5) % parts : e >> 5) == part) {
            ((i32 *)p.expert_offsets)[e] = (i32)row;
            ((i32 *)p.tokens_per_expert)[e] = (i32)placed;
        }
        row += size;
    }
    if (part == 0 && threadIdx.x == 0) ((i32 *)p.expert_offsets)[p.local_experts] = (i32)used;
    for (u32 r = used + part * blockDim.x + threadIdx.x; r < p.rows; r += parts * blockDim.x) moe_no_source(p, r);
    __syncthreads();
    if (p.layout == MOE_PACKED) return;
    // Padding. Short ones are a thread's work each, long ones a warp's.
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    bool wide = p.align > 64;
    u32 worker = wide ? warp : threadIdx.x, workers = wide ? blockDim.x >> 5 : blockDim.x;
    for (u32 e0 = part * 32; e0 < p.local_experts; e0 += parts * 32)
        for (u32 e = e0 + worker; e < moe_min(e0 + 32, p.local_experts); e += workers)
            for (u32 r = s.total[e] + (wide ? lane : 0); r < moe_min(moe_region_end(p, s, e), p.rows); r += wide ? 32 : 1)
                moe_no_source(p, r);
}

// Masked ids that only fill up the routes of a mask's token count nowhere.
MOE_DEV void moe_write_status(const MoePlanParams &p, const u32 *sums) {
    u32 *status = (u32 *)p.status;
    if (threadIdx.x < 4) status[threadIdx.x] = threadIdx.x == 0 && p.over_max_routes ? 0 : sums[32 + threadIdx.x];
    if (threadIdx.x == 4) status[4] = p.over_max_routes ? *(const u32 *)p.over_max_routes : 0;
}

// What a block that has counted all routes knows of them.
MOE_DEV void moe_write_totals(const MoePlanParams &p, const MoePlanShared &s, const u32 *sums) {
    moe_write_status(p, sums);
    if (p.logical_load)
        for (u32 e = threadIdx.x; e < p.experts; e += blockDim.x) ((i32 *)p.logical_load)[e] = (i32)s.load[e];
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
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = moe_rank_warps(p);
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
MOE_DEV void moe_count_all(const MoePlanParams &p, const MoePlanShared &s, const MoeChunk &c, u32 *sums) {
    moe_clear_counts(p, s, sums);
    __syncthreads();
    u32 before = moe_min(c.begin, c.valid);
    moe_count(p, s, s.next, 0, before, sums);
    moe_count(p, s, s.total, before, c.valid, sums);
    __syncthreads();
    for (u32 e = threadIdx.x; e < s.stride; e += blockDim.x) s.total[e] += s.next[e];
    __syncthreads();
}

// The grid kernels exchange counts through scratch without a barrier: a word holds two counts of
// 16 bits under the number of the call (its epoch), so a reader knows from the word itself that it
// is this call's. Scratch: 64 words, zeroed once, then for each chunk: EP counts, 4 rejected, XP
// global loads (if asked for).
struct MoeExchange {
    u32 *epoch, *left;
    u64 *rows;
    u32 counts, loads, stride; // words
};

MOE_DEV MoeExchange moe_exchange(const MoePlanParams &p) {
    MoeExchange t;
    t.epoch = (u32 *)p.scratch;
    t.left = t.epoch + 32;
    t.rows = (u64 *)(t.epoch + 64);
    t.counts = ((p.local_experts + 7) & ~7u) / 2;
    t.loads = p.logical_load ? ((p.experts + 7) & ~7u) / 2 : 0;
    t.stride = t.counts + t.loads + 2;
    return t;
}

MOE_DEV u32 moe_exchange_epoch(const MoeExchange &t) { return *(volatile u32 *)t.epoch + 1; }

MOE_DEV void moe_exchange_store(u64 *word, u32 epoch, u32 a, u32 b) {
    u64 v = (u64)epoch << 32 | (b << 16 | a);
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(v) : "memory");
}

// Two counts, once they are there.
MOE_DEV u32 moe_exchange_load(const u64 *word, u32 epoch) {
    u64 v;
    do {
        asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(word) : "memory");
    } while ((u32)(v >> 32) != epoch);
    return (u32)v;
}

// Every block has read the epoch once all have been here: the last one makes the scratch ready for
// the next call. Called after a barrier of the block, off the path that others wait for.
MOE_DEV void moe_exchange_leave(const MoeExchange &t, u32 epoch) {
    if (threadIdx.x == blockDim.x - 1 && atomicAdd(t.left, 1u) == gridDim.x - 1) {
        *t.left = 0;
        *t.epoch = epoch;
    }
}

// Ranks the chunk within itself: each route's place among its expert's routes in the chunk goes to
// slot[x] (chunks of more than one round) or is returned; next[e] = the chunk's routes of e.
// Rejected routes and global loads are counted on the way if `counting` is set.
MOE_DEV u32 moe_rank_local(const MoePlanParams &p, const MoePlanShared &s, const MoeChunk &c, bool counting,
                           u32 *sums, i32 *expert) {
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = moe_rank_warps(p), rank = 0;
    u32 *words = (u32 *)s.ranks;
    bool many = c.end - c.begin > warps * 32;
    *expert = MOE_ROUTE_ABSENT;
    moe_clear_counts(p, s, sums);
    for (u32 base = c.begin; base < c.end; base += warps * 32) {
        u32 x = base + threadIdx.x;
        i32 id = MOE_ROUTE_ABSENT, e = MOE_ROUTE_ABSENT;
        if (warp < warps && x < c.end && x < c.valid) id = moe_route_id(p, x);
        for (u32 i = threadIdx.x; i < warps * s.stride / 2; i += blockDim.x) words[i] = 0; // while the id travels
        e = moe_route_local(p, id, x);
        __syncthreads();
        u32 peers = 0, below = 0;
        if (warp < warps) {
            peers = moe_peers(e);
            below = __popc(peers & ((1u << lane) - 1));
            if (e >= 0 && below == 0) s.ranks[warp * s.stride + e] = (u16)__popc(peers);
            if (counting && x < c.end && x < c.valid) {
                if (e < 0) moe_reject(sums, e);
                if (p.logical_load && id >= 0) atomicAdd(&s.load[id], 1u);
            }
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < p.local_experts; i += blockDim.x) {
            u32 sum = 0;
            for (u32 w = 0; w < warps; w += 4) {
                u16 *cell = s.ranks + w * s.stride + i;
                u32 a = cell[0], b = cell[s.stride], d = cell[2 * s.stride], f = cell[3 * s.stride];
                cell[0] = (u16)sum;
                cell[s.stride] = (u16)(sum + a);
                cell[2 * s.stride] = (u16)(sum + a + b);
                cell[3 * s.stride] = (u16)(sum + a + b + d);
                sum += a + b + d + f;
            }
            s.total[i] = sum;
        }
        __syncthreads();
        if (e >= 0) rank = s.next[e] + s.ranks[warp * s.stride + e] + below;
        *expert = e;
        if (many && warp < warps && x < c.end) ((i32 *)p.slot)[x] = (i32)rank;
        __syncthreads();
        for (u32 i = threadIdx.x; i < p.local_experts; i += blockDim.x) s.next[i] += s.total[i];
    }
    __syncthreads();
    return rank;
}

MOE_DEV void moe_exchange_publish(const MoePlanParams &p, const MoePlanShared &s, const MoeExchange &t, u32 chunk,
                                  u32 epoch, const u32 *sums) {
    u64 *row = t.rows + (u64)chunk * t.stride;
    for (u32 i = threadIdx.x; i < t.counts; i += blockDim.x)
        moe_exchange_store(row + i, epoch, s.next[2 * i], s.next[2 * i + 1]);
    for (u32 i = threadIdx.x; i < t.loads; i += blockDim.x)
        moe_exchange_store(row + t.counts + 2 + i, epoch, s.load[2 * i], s.load[2 * i + 1]);
    if (threadIdx.x < 2)
        moe_exchange_store(row + t.counts + threadIdx.x, epoch, sums[32 + 2 * threadIdx.x],
                           sums[33 + 2 * threadIdx.x]);
}

// Adds up the table: next = routes before `chunk`, total = all, and in block 0 the rejected routes.
// Waits for every chunk.
MOE_DEV void moe_exchange_collect(const MoePlanShared &s, const MoeExchange &t, u32 chunk, u32 chunks, u32 epoch,
                                  u32 *sums) {
    for (u32 e = threadIdx.x; e < s.stride; e += blockDim.x) s.next[e] = s.total[e] = 0;
    if (threadIdx.x < 4) sums[32 + threadIdx.x] = 0;
    __syncthreads();
    if (blockIdx.x == 0)
        for (u32 i = threadIdx.x; i < 2 * chunks; i += blockDim.x) {
            u32 w = moe_exchange_load(t.rows + (u64)(i >> 1) * t.stride + t.counts + (i & 1), epoch);
            if (w & 0xffff) atomicAdd(&sums[32 + 2 * (i & 1)], w & 0xffff);
            if (w >> 16) atomicAdd(&sums[33 + 2 * (i & 1)], w >> 16);
        }
    // Threads side by side take words side by side; groups of them, chunks in turn.
    u32 across = t.counts > 1 ? 32 - __clz(t.counts - 1) : 0;
    across = moe_min(across, moe_log2(blockDim.x));
    u32 groups = blockDim.x >> across, group = threadIdx.x >> across, lane = threadIdx.x - (group << across);
    for (u32 i = lane; i < t.counts; i += 1u << across) {
        u32 before_a = 0, before_b = 0, all_a = 0, all_b = 0;
        for (u32 c0 = group; c0 < chunks; c0 += 8 * groups) {
            u64 v[8];
#pragma unroll
            for (u32 j = 0; j < 8; j++)
                if (c0 + j * groups < chunks)
                    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
                                 : "=l"(v[j])
                                 : "l"(t.rows + (u64)(c0 + j * groups) * t.stride + i)
                                 : "memory");
#pragma unroll
            for (u32 j = 0; j < 8; j++) {
                u32 c = c0 + j * groups;
                if (c >= chunks) continue;
                u32 w = (u32)(v[j] >> 32) == epoch ? (u32)v[j]
                                                   : moe_exchange_load(t.rows + (u64)c * t.stride + i, epoch);
                all_a += w & 0xffff, all_b += w >> 16;
                if (c < chunk) before_a += w & 0xffff, before_b += w >> 16;
            }
        }
        atomicAdd(&s.total[2 * i], all_a);
        atomicAdd(&s.total[2 * i + 1], all_b);
        atomicAdd(&s.next[2 * i], before_a);
        atomicAdd(&s.next[2 * i + 1], before_b);
    }
    __syncthreads();
}

// Writes the rejected routes (block 0, after moe_layout) and adds up global loads (all blocks).
MOE_DEV void moe_exchange_status(const MoePlanParams &p, const MoeExchange &t, u32 chunks, u32 epoch,
                                 const u32 *sums) {
    if (blockIdx.x == 0) moe_write_status(p, sums);
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < t.loads; i += gridDim.x * blockDim.x) {
        u32 a = 0, b = 0;
        for (u32 c = 0; c < chunks; c++) {
            u32 w = moe_exchange_load(t.rows + (u64)c * t.stride + t.counts + 2 + i, epoch);
            a += w & 0xffff, b += w >> 16;
        }
        if (2 * i < p.experts) ((i32 *)p.logical_load)[2 * i] = (i32)a;
        if (2 * i + 1 < p.experts) ((i32 *)p.logical_load)[2 * i + 1] = (i32)b;
    }
}
