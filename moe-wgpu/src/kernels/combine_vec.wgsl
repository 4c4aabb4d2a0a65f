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
    if (!RESIDUAL) { return s; }
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

@compute @workgroup_size(256)
fn moe_combine_vec(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    let t = i / p.row_len;
    let c = i % p.row_len;
    if (t >= p.token_count) { return; }
    let h = c * GROUPS * 4u;
    var sum = start(t, c);
    for (var k = 0u; k < p.top_k; k += 4u) {
        let r0 = row_of(t, k);
        let r1 = row_of(t, k + 1u);
        let r2 = row_of(t, k + 2u);
        let r3 = row_of(t, k + 3u);
        var u0 = vec4(0u);
        var u1 = vec4(0u);
        var u2 = vec4(0u);
        var u3 = vec4(0u);
        if (r0 != NOT_PLACED) { u0 = load(r0, c); }
        if (r1 != NOT_PLACED) { u1 = load(r1, c); }
        if (r2 != NOT_PLACED) { u2 = load(r2, c); }
        if (r3 != NOT_PLACED) { u3 = load(r3, c); }
        if (r0 != NOT_PLACED) { sum = add(sum, factor(t, k, r0, h), u0); }
        if (r1 != NOT_PLACED) { sum = add(sum, factor(t, k + 1u, r1, h), u1); }
        if (r2 != NOT_PLACED) { sum = add(sum, factor(t, k + 2u, r2, h), u2); }
        if (r3 != NOT_PLACED) { sum = add(sum, factor(t, k + 3u, r3, h), u3); }
    }
    finish(t, c, sum);
}
