// Not assumed to be zero: each element is written before it is read.
var<workgroup> bins: array<atomic<u32>, 256>;
var<workgroup> found: vec2<u32>; // the byte of the last survivor's key, and how many of those with it survive

// Larger for routes that survive longer: by integer operations, so that no adapter takes two weights for one.
fn key_of(route: u32) -> u32 {
    let at = p.weights_base + route * SIZE_OF_WEIGHT;
    let bits = extract(weights[at >> 2u], at, SIZE_OF_WEIGHT) << (32u - 8u * SIZE_OF_WEIGHT);
    let magnitude = bits & 0x7fffffffu;
    if (magnitude > select(0x7f800000u, 0x7c000000u, WEIGHTS == F16)) { return 0u; }
    if (magnitude == 0u) { return 0x80000000u; }
    return select(bits | 0x80000000u, ~bits, bits >> 31u == 1u);
}

// The key of the last of the `keep` survivors among the routes begin..begin + total, and how many with it survive.
fn last_survivor(thread: u32, begin: u32, total: u32, keep: u32) -> vec2<u32> {
    var prefix = 0u;
    var left = keep;
    for (var round = 0u; round < 4u; round++) {
        let shift = 24u - 8u * round;
        atomicStore(&bins[thread], 0u);
        workgroupBarrier();
        for (var i = thread; i < total; i += THREADS) {
            let key = key_of(packed[p.packed_source + begin + i]);
            if (round == 0u || key >> (shift + 8u) == prefix) { atomicAdd(&bins[(key >> shift) & 255u], 1u); }
        }
        workgroupBarrier();
        let count = atomicLoad(&bins[255u - thread]);
        let through = scan(thread, count).through; // keys with this byte or a larger one
        if (through >= left && through - count < left) { found = vec2(255u - thread, left - (through - count)); }
        workgroupBarrier();
        prefix = prefix << 8u | found.x;
        left = found.y;
        workgroupBarrier();
    }
    return vec2(prefix, left);
}

@compute @workgroup_size(THREADS)
fn moe_plan_capacity_select(i: Invocation) {
    let thread = begin_threads(i);
    let e = i.group.x + i.group.y * i.groups.x;
    let groups = i.groups.x * i.groups.y;
    // What belongs to no expert.
    let used = plan[p.offsets + p.local_experts];
    for (var row = used + e * THREADS + thread; row < p.rows; row += groups * THREADS) {
        plan[p.source + row] = NONE;
        if (M_INDICES) { plan[p.m_indices + row] = NONE; }
    }
    for (var x = e * THREADS + thread; x < p.routes; x += groups * THREADS) {
        if (packed[p.packed_slot + x] >= p.routes) { plan[p.slot + x] = NONE; }
    }
    if (e >= p.local_experts) { return; }
    let begin = packed[p.packed_offsets + e];
    let total = packed[p.packed_counts + e];
    let keep = plan[p.counts + e];
    var last = vec2(0u, NONE); // all survive
    if (keep == 0u) {
        last = vec2(NONE, 0u); // no key is as large
    } else if (keep < total) {
        last = last_survivor(thread, begin, total, keep);
    }
    let first = plan[p.offsets + e];
    var placed = 0u;
    var ties = 0u;
    for (var tile = 0u; tile < total; tile += THREADS) {
        let inside = tile + thread < total;
        var route = NONE;
        var key = 0u;
        if (inside) {
            route = packed[p.packed_source + begin + tile + thread];
            key = key_of(route);
        }
        let tie = inside && key == last.x;
        let tied = scan(thread, select(0u, 1u, tie));
        let survives = inside && (key > last.x || (tie && ties + tied.through <= last.y));
        let ranked = scan(thread, select(0u, 1u, survives));
        let row = first + placed + ranked.through - 1u;
        if (inside && route < p.routes) {
            plan[p.slot + route] = select(NONE, row, survives && row < p.rows);
            if (survives && row < p.rows) {
                plan[p.source + row] = route;
                if (M_INDICES) { plan[p.m_indices + row] = e; }
            }
        }
        ties += tied.all;
        placed += ranked.all;
    }
    let end = min(plan[p.offsets + e + 1u], p.rows);
    for (var row = first + placed + thread; row < end; row += THREADS) {
        plan[p.source + row] = NONE;
        if (M_INDICES) { plan[p.m_indices + row] = NONE; }
    }
}
