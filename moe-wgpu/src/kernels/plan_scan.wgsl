// Not assumed to be zero: each element is written before it is read.
var<workgroup> sums: array<u32, 256>;

// The sum of `value` over the threads up to and including this one.
fn scan(thread: u32, value: u32) -> u32 {
    workgroupBarrier();
    sums[thread] = value;
    for (var step = 1u; step < 256u; step <<= 1u) {
        workgroupBarrier();
        var before = 0u;
        if (thread >= step) { before = sums[thread - step]; }
        workgroupBarrier();
        sums[thread] += before;
    }
    workgroupBarrier();
    return sums[thread];
}

fn load_count(chunk: u32, e: u32) -> u32 {
    if (chunk >= p.chunks) { return 0u; }
    return atomicLoad(&scratch[p.scratch_base + chunk * p.local_experts + e]);
}

fn store_count(chunk: u32, e: u32, count: u32) {
    if (chunk < p.chunks) { atomicStore(&scratch[p.scratch_base + chunk * p.local_experts + e], count); }
}

// One workgroup. A thread takes an expert: its column of the histogram, then its place among the experts.
@compute @workgroup_size(256)
fn moe_plan_scan(@builtin(local_invocation_index) thread: u32) {
    var begin = 0u; // rows of the experts before this block of 256
    var over = 0u;  // this thread's routes over capacity
    for (var block = 0u; block < p.local_experts; block += 256u) {
        let e = block + thread;
        var total = 0u;
        if (e < p.local_experts) {
            for (var chunk = 0u; chunk < p.chunks; chunk += 4u) {
                // Four loads before the first store, so that they overlap.
                let c0 = load_count(chunk, e);
                let c1 = load_count(chunk + 1u, e);
                let c2 = load_count(chunk + 2u, e);
                let c3 = load_count(chunk + 3u, e);
                store_count(chunk, e, total);
                store_count(chunk + 1u, e, total + c0);
                store_count(chunk + 2u, e, total + c0 + c1);
                store_count(chunk + 3u, e, total + c0 + c1 + c2);
                total += c0 + c1 + c2 + c3;
            }
        }
        let count = min(total, p.capacity);
        over += total - count;
        var rows = count;
        if (p.spacing == 1u) { rows = (count + p.unit - 1u) / p.unit * p.unit; }
        if (p.spacing == 2u) { rows = select(0u, p.unit, e < p.local_experts); }
        let end = begin + scan(thread, rows);
        if (e < p.local_experts) {
            plan[p.counts + e] = count;
            plan[p.offsets + e] = end - rows;
            if (e == p.local_experts - 1u) { plan[p.offsets + e + 1u] = end; }
        }
        workgroupBarrier();
        begin += sums[255];
    }

    var dropped = vec3(0u);
    for (var chunk = thread; chunk < p.chunks; chunk += 256u) {
        let at = p.scratch_base + p.counters + chunk * 3u;
        dropped += vec3(atomicLoad(&scratch[at]), atomicLoad(&scratch[at + 1u]), atomicLoad(&scratch[at + 2u]));
    }
    let masked = scan(thread, dropped.x);
    let invalid = scan(thread, dropped.y);
    let non_local = scan(thread, dropped.z);
    let over_capacity = scan(thread, over);
    if (thread == 255u) {
        plan[p.status] = masked;
        plan[p.status + 1u] = invalid;
        plan[p.status + 2u] = non_local;
        plan[p.status + 3u] = over_capacity;
        plan[p.status + 4u] = 0u; // ids have no limit per token
    }
}
