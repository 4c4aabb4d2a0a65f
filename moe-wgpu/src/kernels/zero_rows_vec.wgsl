@compute @workgroup_size(128)
fn moe_zero_rows_vec(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if (row >= p.row_count) { return; }
    if (!zeroed(p.row_first + row)) { return; }
    for (var c = lane; c < p.row_len; c += 128u) {
        out[p.out_base + row * p.out_stride + c] = vec4(0u);
    }
}
