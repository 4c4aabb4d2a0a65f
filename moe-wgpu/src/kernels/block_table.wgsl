// moe_block_table: the placed routes of a plan in blocks of one expert each, padded with N; the expert of each block; the
// number of entries in use. A workgroup takes an expert and adds up the blocks of those before it; all workgroups share
// what is past the end.
//
// plan: the index arrays, of which expert_offsets, tokens_per_expert and source are read, and not trusted. Outputs i32:
// sorted [L], experts [L / block], used [1]; L is a multiple of block and below 2^31, and sums stop there.
//
// Constants: THREADS.

struct Params {
    routes: u32,       // N
    local_experts: u32,
    rows: u32,         // R
    block: u32,
    len: u32,          // L
    offsets: u32,      // words, as all that follow
    counts: u32,
    source: u32,
    sorted_base: u32,
    experts_base: u32,
    used_base: u32,
}

@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read_write> sorted: array<u32>;
@group(0) @binding(2) var<storage, read_write> experts: array<u32>;
@group(0) @binding(3) var<storage, read_write> used: array<u32>;
@group(0) @binding(4) var<uniform> p: Params;

// Not assumed to be zero: each element is written before it is read.
var<workgroup> sums: array<vec2<u32>, THREADS>;

// Entries of an expert, padding included.
fn entries(e: u32) -> u32 {
    let count = min(plan[p.counts + e], p.rows);
    return min((count + p.block - 1u) / p.block * p.block, p.len);
}

@compute @workgroup_size(THREADS)
fn moe_block_table(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let own = group.x + group.y * groups.x;
    var sum = vec2(0u); // of the experts before this one, and of all
    for (var e = thread; e < p.local_experts; e += THREADS) {
        let n = entries(e);
        sum = min(sum + vec2(select(0u, n, e < own), n), vec2(p.len));
    }
    sums[thread] = sum;
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier();
        if (thread < step) { sums[thread] = min(sums[thread] + sums[thread + step], vec2(p.len)); }
    }
    workgroupBarrier();
    let begin = sums[0].x;
    let end = sums[0].y;
    if (own == 0u && thread == 0u) { used[p.used_base] = end; }
    for (var i = end + own * THREADS + thread; i < p.len; i += groups.x * groups.y * THREADS) {
        sorted[p.sorted_base + i] = p.routes;
        if (i % p.block == 0u) { experts[p.experts_base + i / p.block] = 0xffffffffu; }
    }
    if (own >= p.local_experts) { return; }
    let offset = min(plan[p.offsets + own], p.rows);
    let count = min(plan[p.counts + own], p.rows - offset);
    let last = min(entries(own), p.len - begin);
    for (var i = thread; i < last; i += THREADS) {
        var route = p.routes;
        if (i < count) { route = min(plan[p.source + offset + i], p.routes); }
        sorted[p.sorted_base + begin + i] = route;
        if (i % p.block == 0u) { experts[p.experts_base + (begin + i) / p.block] = own; }
    }
}
