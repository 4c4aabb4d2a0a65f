fn scaled(unit: vec4<u32>, w: f32) -> vec4<u32> {
    if (ELEMENT == F32) { return narrow(F32, widen(F32, unit) * w); }
    let low = narrow(ELEMENT, widen(ELEMENT, unit & vec4(0xffffu)) * w);
    let high = narrow(ELEMENT, widen(ELEMENT, unit >> vec4(16u)) * w);
    return low | (high << vec4(16u));
}

// The row of a token's k-th route in the window, or something that is no row of it.
fn row_of(first: u32, k: u32) -> u32 {
    if (k >= p.top_k) { return NOT_PLACED; }
    return plan[p.slot + first + k] - p.row_first;
}

@compute @workgroup_size(THREADS)
fn moe_gather_tokens(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (group.x + group.y * groups.x) * THREADS + thread;
    let t = i / p.cols;
    let c = i % p.cols;
    if (t >= p.token_count) { return; }
    let first = (p.token_first + t) * p.top_k;
    let from_at = p.in_base + t * p.in_stride;
    //@ for U in 0..UNITS
    let c_U = c + Uu * p.cols;
    let in_U = UNITS == 1u || c_U < p.row_len;
    var unit_U = vec4(0u);
    if (in_U) { unit_U = rows[from_at + c_U]; }
    //@ end
    for (var k = 0u; k < p.top_k; k += ROUTES) {
        //@ for K in 0..ROUTES
        let row_K = row_of(first, k + Ku);
        //@ end
        //@ for K in 0..ROUTES
        if (row_K < p.row_count) {
            let at = p.out_base + row_K * p.out_stride;
            if (WEIGHTED) {
                let w = weight(first + k + Ku);
                //@ for U in 0..UNITS
                if (in_U) { out[at + c_U] = scaled(unit_U, w); }
                //@ end
            } else {
                //@ for U in 0..UNITS
                if (in_U) { out[at + c_U] = unit_U; }
                //@ end
            }
        }
        //@ end
    }
}
