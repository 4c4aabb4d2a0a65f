// The experts of a tile, four to an element. Not assumed to be zero: each element is written before it is read.
var<workgroup> tile: array<u32, 256>;

fn ones(equal: vec4<bool>) -> u32 {
    let v = select(vec4(0u), vec4(1u), equal);
    return v.x + v.y + v.z + v.w;
}

fn tile4(i: u32) -> vec4<u32> {
    return vec4(tile[4u * i], tile[4u * i + 1u], tile[4u * i + 2u], tile[4u * i + 3u]);
}

@compute @workgroup_size(256)
fn moe_plan_scatter(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let chunk = group.x + group.y * groups.x;
    if (chunk >= p.chunks) { return; }
    let histogram = p.scratch_base + chunk * p.local_experts;
    for (var i = 0u; i < p.tiles; i++) {
        let x = (chunk * p.tiles + i) * 256u + thread;
        var expert = UNUSED;
        if (x < valid_routes()) { expert = local_expert(global_expert(x)); }
        let placed = expert < p.local_experts;
        tile[thread] = expert;
        workgroupBarrier();
        // Routes of the same expert in this tile before this one.
        var rank = 0u;
        var before = 0u; // of the expert before this tile
        if (placed) {
            before = atomicLoad(&scratch[histogram + expert]);
            for (var j = 0u; j < thread / 4u; j++) { rank += ones(tile4(j) == vec4(expert)); }
            let own = vec4(thread & ~3u) + vec4(0u, 1u, 2u, 3u);
            rank += ones((tile4(thread / 4u) == vec4(expert)) & (own < vec4(thread)));
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
                    if (M_INDICES) { plan[p.m_indices + slot] = expert; }
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
