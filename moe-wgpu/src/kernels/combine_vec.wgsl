// Groups of four elements that a thread owns.
const GROUPS: u32 = 4u / SIZE_OF_ROW;
const OUT_UNITS: u32 = GROUPS * SIZE_OF_OUT / 4u;

struct Sum {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

fn load(row: u32, c: u32) -> vec4<u32> {
    return load_at(row, base_of(row) + row_in_window(row) * p.stride + c);
}

fn pairs(w: vec2<u32>) -> vec4<u32> {
    return vec4(w.x & 0xffffu, w.x >> 16u, w.y & 0xffffu, w.y >> 16u);
}

fn bytes(w: u32) -> vec4<u32> {
    return (vec4(w) >> vec4(0u, 8u, 16u, 24u)) & vec4(0xffu);
}

fn add(sum: Sum, f: f32, u: vec4<u32>) -> Sum {
    var s = sum;
    let factors = vec4(f);
    if (SIZE_OF_ROW == 4u) {
        s.a = fma(factors, widen(ROWS, u), s.a);
    } else if (SIZE_OF_ROW == 2u) {
        s.a = fma(factors, widen(ROWS, pairs(u.xy)), s.a);
        s.b = fma(factors, widen(ROWS, pairs(u.zw)), s.b);
    } else {
        s.a = fma(factors, widen(ROWS, bytes(u.x)), s.a);
        s.b = fma(factors, widen(ROWS, bytes(u.y)), s.b);
        s.c = fma(factors, widen(ROWS, bytes(u.z)), s.c);
        s.d = fma(factors, widen(ROWS, bytes(u.w)), s.d);
    }
    return s;
}

fn start(t: u32, c: u32) -> Sum {
    var s = Sum(vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
    let at = p.residual_base + t * p.residual_stride + c * OUT_UNITS;
    let u = residual[at];
    if (SIZE_OF_OUT == 4u) {
        s.a = widen(F32, u);
        if (GROUPS > 1u) { s.b = widen(F32, residual[at + 1u]); }
        if (GROUPS > 2u) {
            s.c = widen(F32, residual[at + 2u]);
            s.d = widen(F32, residual[at + 3u]);
        }
    } else {
        s.a = widen(OUT, pairs(u.xy));
        s.b = widen(OUT, pairs(u.zw));
        if (GROUPS > 2u) {
            let v = residual[at + 1u];
            s.c = widen(OUT, pairs(v.xy));
            s.d = widen(OUT, pairs(v.zw));
        }
    }
    let scale = vec4(p.residual_scale);
    s.a *= scale;
    s.b *= scale;
    s.c *= scale;
    s.d *= scale;
    return s;
}

fn packed(a: vec4<f32>, b: vec4<f32>) -> vec4<u32> {
    let x = narrow(OUT, a);
    let y = narrow(OUT, b);
    return vec4(x.x | (x.y << 16u), x.z | (x.w << 16u), y.x | (y.y << 16u), y.z | (y.w << 16u));
}

fn finish(t: u32, c: u32, s: Sum) {
    let at = p.out_base + t * p.out_stride + c * OUT_UNITS;
    if (SIZE_OF_OUT == 4u) {
        out[at] = narrow(F32, s.a);
        if (GROUPS > 1u) { out[at + 1u] = narrow(F32, s.b); }
        if (GROUPS > 2u) {
            out[at + 2u] = narrow(F32, s.c);
            out[at + 3u] = narrow(F32, s.d);
        }
    } else {
        out[at] = packed(s.a, s.b);
        if (GROUPS > 2u) { out[at + 1u] = packed(s.c, s.d); }
    }
}

@compute @workgroup_size(THREADS)
fn moe_combine_vec(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (group.x + group.y * groups.x) * THREADS + thread;
    let t = i / p.cols;
    let c = i % p.cols;
    if (t >= p.token_count) { return; }
    //@ for U in 0..UNITS
    let c_U = c + Uu * p.cols;
    let in_U = UNITS == 1u || c_U < p.row_len;
    var sum_U = Sum(vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
    if (RESIDUAL && in_U) { sum_U = start(t, c_U); }
    //@ end
    for (var k = 0u; k < p.top_k; k += ROUTES) {
        //@ for K in 0..ROUTES
        let row_K = row_of(t, k + Ku);
        //@ end
        //@ for K in 0..ROUTES
        var weight_K = 0.0;
        //@ for U in 0..UNITS
        var unit_K_U = vec4(0u);
        //@ end
        if (row_K != NOT_PLACED) {
            weight_K = weight_of(t, k + Ku);
            //@ for U in 0..UNITS
            if (in_U) { unit_K_U = load(row_K, c_U); }
            //@ end
        }
        //@ end
        //@ for K in 0..ROUTES
        if (row_K != NOT_PLACED) {
            //@ for U in 0..UNITS
            if (in_U) { sum_U = add(sum_U, factor(weight_K, row_K, c_U * GROUPS * 4u), unit_K_U); }
            //@ end
        }
        //@ end
    }
    //@ for U in 0..UNITS
    if (in_U) { finish(t, c_U, sum_U); }
    //@ end
}
