// moe_mask_probs: out[t, k] = probs[t, ids[t, k]] as bits, +0 where the id is no expert.
//
// ids i32 [T, K]; probs [T, E] and out [T, K] of one type of 2 or 4 bytes; a window of tokens. A thread owns a 32-bit word
// of out; a half of it that belongs to no token of the window keeps its value.
//
// Constants: SIZE (bytes of an element).

struct Params {
    experts: u32,
    max_routes: u32, // K
    token_first: u32,
    token_count: u32,
    ids_base: u32,   // words
    probs_base: u32, // bytes, as all that follow
    probs_stride: u32,
    out_base: u32,   // of the window
    words: u32,      // words of out that hold the window
}

@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> probs: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(256)
fn moe_mask_probs(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    if (i >= p.words) { return; }
    let at_word = (p.out_base >> 2u) + i;
    var word = out[at_word];
    var written = false;
    for (var j = 0u; j < 4u; j += SIZE) {
        let at = at_word * 4u + j;
        if (at < p.out_base) { continue; }
        let route = (at - p.out_base) / SIZE;
        let t = route / p.max_routes;
        if (t >= p.token_count) { continue; }
        let expert = ids[p.ids_base + p.token_first * p.max_routes + route];
        var bits = 0u;
        if (expert < p.experts) {
            let from_at = p.probs_base + t * p.probs_stride + expert * SIZE;
            bits = extract(probs[from_at >> 2u], from_at, SIZE);
        }
        word = insert(word, at, SIZE, bits);
        written = true;
    }
    if (written) { out[at_word] = word; }
}
