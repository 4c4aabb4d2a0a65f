@compute @workgroup_size(256)
fn moe_gather_words(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    if (i >= p.words) { return; }
    let at_word = (p.out_base >> 2u) + i;
    let used = plan[p.used];
    var word = out[at_word];
    var written = false;
    for (var j = 0u; j < 4u; j += SIZE) {
        let at = at_word * 4u + j;
        if (at < p.out_base) { continue; }
        let row = (at - p.out_base) / p.out_stride;
        let col = (at - p.out_base) % p.out_stride;
        if (row >= p.row_count || col >= p.row_len || p.row_first + row >= used) { continue; }
        let route = plan[p.source + p.row_first + row];
        var bits = 0u;
        if (route < p.routes) {
            let t = route / p.top_k - p.token_first;
            if (t >= p.token_count) { continue; }
            let from_at = p.in_base + t * p.in_stride + col;
            bits = extract(rows[from_at >> 2u], from_at, SIZE);
            if (WEIGHTED) { bits = narrow1(ELEMENT, widen1(ELEMENT, bits) * weight(route)); }
        } else if (p.padding == 0u) {
            continue;
        }
        word = insert(word, at, SIZE, bits);
        written = true;
    }
    if (written) { out[at_word] = word; }
}
