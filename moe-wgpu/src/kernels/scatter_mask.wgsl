// moe_scatter_mask: out[t, ids[t, k]] = values[t, k] as bits, for a window of tokens of out, which is zero before. A thread
// takes a route. Two threads may own halves of one word, so they add their bits to it.
//
// ids i32 [T, K], those that are experts distinct for each token; values [T, K] and out [T, E] of one type.
//
// Constants: SIZE (bytes of an element, 2 or 4).

struct Params {
    experts: u32,
    max_routes: u32,  // K
    token_first: u32,
    token_count: u32,
    ids_base: u32,    // words
    values_base: u32, // bytes, as all that follow
    out_base: u32,
    out_stride: u32,
}

@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<atomic<u32>>;
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(256)
fn moe_scatter_mask(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    let t = i / p.max_routes;
    if (t >= p.token_count) { return; }
    let route = p.token_first * p.max_routes + i;
    let expert = ids[p.ids_base + route];
    if (expert >= p.experts) { return; }
    let from_at = p.values_base + route * SIZE;
    let at = p.out_base + t * p.out_stride + expert * SIZE;
    atomicOr(&out[at >> 2u], insert(0u, at, SIZE, extract(values[from_at >> 2u], from_at, SIZE)));
}
