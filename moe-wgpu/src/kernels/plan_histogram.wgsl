alias Scratch = u32;

// An element for each local expert, then masked, invalid, not local. Not assumed to be zero.
var<workgroup> counts: array<atomic<u32>, EXPERTS + 3u>;

// Also fills source and m_indices with -1 and zeroes the load that is counted next; there may be more workgroups than chunks for that.
@compute @workgroup_size(THREADS)
fn moe_plan_histogram(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let chunk = group.x + group.y * groups.x;
    let routed = chunk < p.chunks;
    for (var e = thread; e < EXPERTS + 3u; e += THREADS) { atomicStore(&counts[e], 0u); }
    workgroupBarrier();
    if (routed) {
        let end = min((chunk + 1u) * p.tiles * THREADS, valid_routes());
        for (var x = chunk * p.tiles * THREADS + thread; x < end; x += THREADS) {
            let expert = expert_of(x);
            if (expert == UNUSED) { continue; }
            atomicAdd(&counts[select(EXPERTS + (expert - MASKED), expert, expert < p.local_experts)], 1u);
        }
    }
    if (has(LOAD)) {
        for (var e = chunk * THREADS + thread; e < p.experts; e += groups.x * groups.y * THREADS) {
            atomicStore(&load[e], 0u);
        }
    }
    for (var row = chunk * THREADS + thread; row < p.rows; row += groups.x * groups.y * THREADS) {
        plan[p.source + row] = NONE;
        if (has(M_INDICES)) { plan[p.m_indices + row] = NONE; }
    }
    workgroupBarrier();
    if (routed) {
        let to = p.scratch_base + chunk * p.local_experts;
        for (var e = thread; e < p.local_experts; e += THREADS) { scratch[to + e] = atomicLoad(&counts[e]); }
        let drops = p.scratch_base + p.drops + chunk * 3u;
        if (thread < 3u) { scratch[drops + thread] = atomicLoad(&counts[EXPERTS + thread]); }
    }
}
