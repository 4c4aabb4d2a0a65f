// Also fills source and m_indices with -1; there may be more workgroups than chunks for that.
@compute @workgroup_size(256)
fn moe_plan_count(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let chunk = group.x + group.y * groups.x;
    for (var row = chunk * 256u + thread; row < p.rows; row += groups.x * groups.y * 256u) {
        plan[p.source + row] = NONE;
        if (M_INDICES) { plan[p.m_indices + row] = NONE; }
    }
    if (chunk >= p.chunks) { return; }
    let histogram = p.scratch_base + chunk * p.local_experts;
    let counters = p.scratch_base + p.counters + chunk * 3u;
    for (var e = thread; e < p.local_experts; e += 256u) { atomicStore(&scratch[histogram + e], 0u); }
    if (thread < 3u) { atomicStore(&scratch[counters + thread], 0u); }
    storageBarrier();
    let end = min((chunk + 1u) * p.tiles * 256u, valid_routes());
    for (var x = chunk * p.tiles * 256u + thread; x < end; x += 256u) {
        let global = global_expert(x);
        if (LOAD && global < p.experts) { atomicAdd(&load[global], 1u); }
        let expert = local_expert(global);
        if (expert < p.local_experts) {
            atomicAdd(&scratch[histogram + expert], 1u);
        } else {
            atomicAdd(&scratch[counters + (expert - MASKED)], 1u);
        }
    }
}
