// An element for each local expert, in workgroup memory. Not assumed to be zero: `clear_experts` comes first.
var<workgroup> totals: array<atomic<u32>, EXPERTS>; // its routes
var<workgroup> seen: array<atomic<u32>, EXPERTS>;   // those of them before the tile at hand
var<workgroup> first: array<u32, EXPERTS>;          // its first row
// Routes that are masked, invalid, not local, over capacity.
var<workgroup> dropped: array<atomic<u32>, 4>;

fn clear_experts(thread: u32) {
    for (var e = thread; e < EXPERTS; e += THREADS) {
        atomicStore(&totals[e], 0u);
        atomicStore(&seen[e], 0u);
    }
    for (var i = thread; i < 4u; i += THREADS) { atomicStore(&dropped[i], 0u); }
    workgroupBarrier();
}

// Counts a route that was routed.
fn count(expert: u32) {
    if (expert < p.local_experts) {
        atomicAdd(&totals[expert], 1u);
    } else {
        atomicAdd(&dropped[expert - MASKED], 1u);
    }
}

// From `totals` to `first`; one workgroup also writes offsets, counts and status.
fn lay_out_experts(thread: u32, writes: bool) {
    var begin = 0u; // rows of the experts before this block of THREADS
    for (var block = 0u; block < p.local_experts; block += THREADS) {
        let e = block + thread;
        let local = e < p.local_experts;
        var total = 0u;
        if (local) { total = atomicLoad(&totals[e]); }
        let placed = min(total, p.capacity);
        let rows = select(0u, spaced(placed), local);
        let scanned = scan(thread, rows);
        let end = begin + scanned.through;
        if (local) {
            first[e] = end - rows;
            if (writes) {
                plan[p.counts + e] = placed;
                plan[p.offsets + e] = end - rows;
                if (e == p.local_experts - 1u) { plan[p.offsets + e + 1u] = end; }
                if (total > placed) { atomicAdd(&dropped[3], total - placed); }
            }
        }
        begin += scanned.all;
    }
    workgroupBarrier();
    if (writes && thread < 5u) {
        var n = 0u; // the fifth: ids have no limit per token
        if (thread < 4u) { n = atomicLoad(&dropped[thread]); }
        plan[p.status + thread] = n;
    }
}

// Places a tile's route of this thread.
fn place(thread: u32, x: u32, expert: u32) {
    let local = expert < p.local_experts;
    let rank = rank(thread, expert, local);
    if (x >= p.routes) { return; }
    var slot = NONE;
    if (local && rank < p.capacity) {
        slot = first[expert] + rank;
        if (slot < p.rows) {
            plan[p.source + slot] = x;
            if (has(M_INDICES)) { plan[p.m_indices + slot] = expert; }
        } else {
            slot = NONE;
        }
    }
    plan[p.slot + x] = slot;
}
