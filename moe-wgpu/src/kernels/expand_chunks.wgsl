// moe_chunks: ids[t] = the place of the row's chunk in the output, C for a row of no chunk.
//
// moe_chunk_ends, one workgroup: work[c] = the row behind chunk c, and work[C + c] = its place. moe_chunk_ids: a thread
// takes a row and looks for the first chunk that ends behind it.
//
// sizes i32 [C], negative ones as 0; ORDERED: order i32 [C], the chunk at each place, entries outside [0, C) name none;
// ids i32 [T]; work u32 [2 C]. Sums stop at T, which is below 2^31.
//
// Constants: THREADS, ORDERED.

struct Params {
    chunks: u32,     // C
    tokens: u32,     // T
    sizes_base: u32, // words, as all that follow
    order_base: u32,
    ids_base: u32,
    work_base: u32,
}

@group(0) @binding(0) var<storage, read> sizes: array<i32>;
@group(0) @binding(1) var<storage, read> order: array<u32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> work: array<atomic<u32>>;
@group(0) @binding(4) var<uniform> p: Params;

// Not assumed to be zero: each element is written before it is read.
var<workgroup> ends: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn moe_chunk_ends(@builtin(local_invocation_index) thread: u32) {
    for (var c = thread; c < p.chunks; c += THREADS) {
        atomicStore(&work[p.work_base + p.chunks + c], select(c, p.chunks, ORDERED));
    }
    storageBarrier();
    if (ORDERED) {
        for (var place = thread; place < p.chunks; place += THREADS) {
            let c = order[p.order_base + place];
            if (c < p.chunks) { atomicMin(&work[p.work_base + p.chunks + c], place); }
        }
    }
    var begin = 0u;
    for (var block = 0u; block < p.chunks; block += THREADS) {
        let c = block + thread;
        var size = 0u;
        if (c < p.chunks) { size = min(u32(max(sizes[p.sizes_base + c], 0)), p.tokens); }
        workgroupBarrier();
        ends[thread] = size;
        for (var step = 1u; step < THREADS; step <<= 1u) {
            workgroupBarrier();
            var before = 0u;
            if (thread >= step) { before = ends[thread - step]; }
            workgroupBarrier();
            ends[thread] = min(ends[thread] + before, p.tokens);
        }
        workgroupBarrier();
        if (c < p.chunks) { atomicStore(&work[p.work_base + c], min(begin + ends[thread], p.tokens)); }
        begin = min(begin + ends[THREADS - 1u], p.tokens);
    }
}

@compute @workgroup_size(THREADS)
fn moe_chunk_ids(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let t = (group.x + group.y * groups.x) * THREADS + thread;
    if (t >= p.tokens) { return; }
    var low = 0u; // all chunks before end at t or before
    var high = p.chunks;
    while (low < high) {
        let middle = (low + high) / 2u;
        if (atomicLoad(&work[p.work_base + middle]) <= t) { low = middle + 1u; } else { high = middle; }
    }
    var place = p.chunks;
    if (low < p.chunks) { place = atomicLoad(&work[p.work_base + p.chunks + low]); }
    ids[p.ids_base + t] = place;
}
