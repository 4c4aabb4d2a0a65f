@compute @workgroup_size(256)
fn moe_zero_rows_words(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    if (i >= p.words) { return; }
    let at_word = (p.out_base >> 2u) + i;
    var mask = 0u;
    for (var j = 0u; j < 4u; j++) {
        let at = at_word * 4u + j;
        if (at < p.out_base) { continue; }
        let row = (at - p.out_base) / p.out_stride;
        let col = (at - p.out_base) % p.out_stride;
        if (row < p.row_count && col < p.row_len && zeroed(p.row_first + row)) { mask |= 0xffu << (j * 8u); }
    }
    if (mask != 0u) { out[at_word] = out[at_word] & ~mask; }
}
