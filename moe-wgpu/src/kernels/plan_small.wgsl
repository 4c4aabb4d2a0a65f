alias Scratch = u32;

// One workgroup. A thread holds the experts of TILES routes.
@compute @workgroup_size(THREADS)
fn moe_plan_small(i: Invocation) {
    let thread = begin_threads(i);
    clear_experts(thread);
    for (var row = thread; row < p.rows; row += THREADS) {
        plan[p.source + row] = NONE;
        if (has(M_INDICES)) { plan[p.m_indices + row] = NONE; }
    }
    if (has(LOAD)) {
        for (var e = thread; e < p.experts; e += THREADS) { atomicStore(&load[e], 0u); }
    }
    storageBarrier();
    let end = valid_routes();
    //@ for J in 0..TILES
    var expert_J = UNUSED;
    if (thread + Ju * THREADS < end) { expert_J = loaded_expert_of(thread + Ju * THREADS); }
    //@ end
    //@ for J in 0..TILES
    if (expert_J != UNUSED) { count(expert_J); }
    //@ end
    workgroupBarrier();
    lay_out_experts(thread, true);
    //@ for J in 0..TILES
    place(thread, thread + Ju * THREADS, expert_J);
    //@ end
}
