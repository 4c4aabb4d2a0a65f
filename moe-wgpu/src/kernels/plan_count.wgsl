alias Scratch = atomic<u32>;

// Also fills source and m_indices with -1 and zeroes the load that is counted next; there may be more workgroups than chunks for that.
@compute @workgroup_size(THREADS)
fn moe_plan_count(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let chunk = group.x + group.y * groups.x;
    if (has(LOAD)) {
        for (var e = chunk * THREADS + thread; e < p.experts; e += groups.x * groups.y * THREADS) {
            atomicStore(&load[e], 0u);
        }
    }
    for (var row = chunk * THREADS + thread; row < p.rows; row += groups.x * groups.y * THREADS) {
        plan[p.source + row] = NONE;
        if (has(M_INDICES)) { plan[p.m_indices + row] = NONE; }
    }
    if (chunk >= p.chunks) { return; }
    let histogram = p.scratch_base + chunk * p.local_experts;
    let counters = p.scratch_base + p.drops + chunk * 3u;
    for (var e = thread; e < p.local_experts; e += THREADS) { atomicStore(&scratch[histogram + e], 0u); }
    if (thread < 3u) { atomicStore(&scratch[counters + thread], 0u); }
    storageBarrier();
    let end = min((chunk + 1u) * p.tiles * THREADS, valid_routes());
    for (var x = chunk * p.tiles * THREADS + thread; x < end; x += THREADS) {
        let expert = expert_of(x);
        if (expert == UNUSED) { continue; }
        if (expert < p.local_experts) {
            atomicAdd(&scratch[histogram + expert], 1u);
        } else {
            atomicAdd(&scratch[counters + (expert - MASKED)], 1u);
        }
    }
}
