alias Scratch = atomic<u32>;

fn load_count(chunk: u32, e: u32) -> u32 {
    if (chunk >= p.chunks) { return 0u; }
    return atomicLoad(&scratch[p.scratch_base + chunk * p.local_experts + e]);
}

fn store_count(chunk: u32, e: u32, count: u32) {
    if (chunk < p.chunks) { atomicStore(&scratch[p.scratch_base + chunk * p.local_experts + e], count); }
}

// One workgroup. A thread takes an expert: its column of the histogram, then its place among the experts.
@compute @workgroup_size(THREADS)
fn moe_plan_scan(invocation: Invocation) {
    let thread = begin_threads(invocation);
    var begin = 0u; // rows of the experts before this block of THREADS
    var over = 0u;  // this thread's routes over capacity
    for (var block = 0u; block < p.local_experts; block += THREADS) {
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
        let rows = select(0u, spaced(count), e < p.local_experts);
        let place = scan(thread, rows);
        let end = begin + place.through;
        if (e < p.local_experts) {
            plan[p.counts + e] = count;
            plan[p.offsets + e] = end - rows;
            if (e == p.local_experts - 1u) { plan[p.offsets + e + 1u] = end; }
        }
        begin += place.all;
    }

    var dropped = vec3(0u);
    for (var chunk = thread; chunk < p.chunks; chunk += THREADS) {
        let at = p.scratch_base + p.drops + chunk * 3u;
        dropped += vec3(atomicLoad(&scratch[at]), atomicLoad(&scratch[at + 1u]), atomicLoad(&scratch[at + 2u]));
    }
    let masked = scan(thread, dropped.x).all;
    let invalid = scan(thread, dropped.y).all;
    let non_local = scan(thread, dropped.z).all;
    let over_capacity = scan(thread, over).all;
    if (thread == 0u) {
        plan[p.status] = masked;
        plan[p.status + 1u] = invalid;
        plan[p.status + 2u] = non_local;
        plan[p.status + 3u] = over_capacity;
        plan[p.status + 4u] = 0u; // ids have no limit per token
    }
}
