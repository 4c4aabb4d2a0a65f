fn scaled(unit: vec4<u32>, w: f32) -> vec4<u32> {
    if (ELEMENT == F32) { return narrow(F32, widen(F32, unit) * w); }
    let low = narrow(ELEMENT, widen(ELEMENT, unit & vec4(0xffffu)) * w);
    let high = narrow(ELEMENT, widen(ELEMENT, unit >> vec4(16u)) * w);
    return low | (high << vec4(16u));
}

@compute @workgroup_size(256)
fn moe_gather_tokens(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    let t = i / p.row_len;
    let c = i % p.row_len;
    if (t >= p.token_count) { return; }
    let unit = rows[p.in_base + t * p.in_stride + c];
    let first = (p.token_first + t) * p.top_k;
    for (var k = 0u; k < p.top_k; k++) {
        let row = plan[p.slot + first + k] - p.row_first;
        if (row < p.row_count) {
            let at = p.out_base + row * p.out_stride + c;
            if (WEIGHTED) {
                out[at] = scaled(unit, weight(first + k));
            } else {
                out[at] = unit;
            }
        }
    }
}
