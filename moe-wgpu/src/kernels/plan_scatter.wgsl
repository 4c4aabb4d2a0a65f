alias Scratch = atomic<u32>;

@compute @workgroup_size(THREADS)
fn moe_plan_scatter(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let chunk = group.x + group.y * groups.x;
    if (chunk >= p.chunks) { return; }
    let histogram = p.scratch_base + chunk * p.local_experts;
    for (var i = 0u; i < p.tiles; i++) {
        let x = (chunk * p.tiles + i) * THREADS + thread;
        var expert = UNUSED;
        if (x < valid_routes()) { expert = loaded_expert_of(x); }
        let placed = expert < p.local_experts;
        show_tile(thread, expert);
        var rank = 0u;
        var before = 0u; // of the expert before this tile
        if (placed) {
            before = atomicLoad(&scratch[histogram + expert]);
            rank = rank_in_tile(thread, expert);
        }
        // Everyone has read the tile and the counts before they change.
        storageBarrier();
        workgroupBarrier();
        if (placed) { atomicAdd(&scratch[histogram + expert], 1u); }
        if (x < p.routes) {
            var slot = NONE;
            if (placed && before + rank < p.capacity) {
                slot = plan[p.offsets + expert] + before + rank;
                if (slot < p.rows) {
                    plan[p.source + slot] = x;
                    if (has(M_INDICES)) { plan[p.m_indices + slot] = expert; }
                } else {
                    slot = NONE;
                }
            }
            plan[p.slot + x] = slot;
        }
        storageBarrier();
        workgroupBarrier();
    }
}
