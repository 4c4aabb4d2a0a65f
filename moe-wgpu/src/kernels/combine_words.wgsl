fn element(row: u32, h: u32) -> u32 {
    let at = base_of(row) + row_in_window(row) * p.stride + h * SIZE_OF_ROW;
    return extract(load_at(row, at >> 2u), at, SIZE_OF_ROW);
}

fn combined(t: u32, h: u32) -> u32 {
    var sum = 0.0;
    if (RESIDUAL) {
        let at = p.residual_base + t * p.residual_stride + h * SIZE_OF_OUT;
        sum = p.residual_scale * widen1(OUT, extract(residual[at >> 2u], at, SIZE_OF_OUT));
    }
    for (var k = 0u; k < p.top_k; k++) {
        let row = row_of(t, k);
        if (row != NOT_PLACED) { sum = fma(factor(weight_of(t, k), row, h), widen1(ROWS, element(row, h)), sum); }
    }
    return narrow1(OUT, sum);
}

@compute @workgroup_size(256)
fn moe_combine_words(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    if (i >= p.words) { return; }
    let at_word = (p.out_base >> 2u) + i;
    var word = out[at_word];
    var written = false;
    for (var j = 0u; j < 4u; j += SIZE_OF_OUT) {
        let at = at_word * 4u + j;
        if (at < p.out_base) { continue; }
        let t = (at - p.out_base) / p.out_stride;
        let h = ((at - p.out_base) % p.out_stride) / SIZE_OF_OUT;
        if (t >= p.token_count || h >= p.row_len) { continue; }
        word = insert(word, at, SIZE_OF_OUT, combined(t, h));
        written = true;
    }
    if (written) { out[at_word] = word; }
}
