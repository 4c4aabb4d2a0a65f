@compute @workgroup_size(THREADS)
fn moe_plan_capacity_scan(i: Invocation) {
    let thread = begin_threads(i);
    var begin = 0u; // rows of the experts before this block of THREADS
    var over = 0u;  // this thread's routes over capacity
    for (var block = 0u; block < p.local_experts; block += THREADS) {
        let e = block + thread;
        let local = e < p.local_experts;
        var total = 0u;
        if (local) { total = packed[p.packed_counts + e]; }
        let count = min(total, p.capacity);
        over += total - count;
        let rows = select(0u, spaced(count), local);
        let scanned = scan(thread, rows);
        let end = begin + scanned.through;
        if (local) {
            plan[p.counts + e] = count;
            plan[p.offsets + e] = end - rows;
            if (e == p.local_experts - 1u) { plan[p.offsets + e + 1u] = end; }
        }
        begin += scanned.all;
    }
    let dropped = scan(thread, over).all;
    if (thread < 5u) { plan[p.status + thread] = select(packed[p.packed_status + thread], dropped, thread == 3u); }
}
