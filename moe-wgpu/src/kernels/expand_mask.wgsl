// moe_expand_mask: ids[t, k] = the k-th set expert of token t, ascending, -1 where there is none.
// moe_mask_probs: probs_out[t, k] = probs[t, ids[t, k]] as bits, +0 where there is none.
//
// mask [T, E], u8 or i32, in windows of tokens; ids i32 [T, K]; valid i32 [1]; over u32 [1], zero before: set experts past
// the K-th of their token.
//
// Constants: THREADS, VALID, SIZE (bytes of an element).

struct Params {
    experts: u32,
    max_routes: u32,  // K
    token_first: u32,
    token_count: u32,
    mask_base: u32,   // bytes
    mask_stride: u32,
    valid_base: u32,  // words, as all that follow
    ids_base: u32,
    over_base: u32,
}

@group(0) @binding(0) var<storage, read> mask: array<u32>;
@group(0) @binding(1) var<storage, read> valid: array<i32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> over: array<atomic<u32>>;
@group(0) @binding(4) var<uniform> p: Params;

fn is_valid(token: u32) -> bool {
    return !VALID || i32(token) < valid[p.valid_base];
}

@compute @workgroup_size(THREADS)
fn moe_expand_mask(i: Invocation) {
    let thread = begin_threads(i);
    let t = i.group.x + i.group.y * i.groups.x;
    if (t >= p.token_count) { return; }
    let token = p.token_first + t;
    let to = p.ids_base + token * p.max_routes;
    var before = 0u;
    if (is_valid(token)) {
        for (var block = 0u; block < p.experts; block += THREADS) {
            let e = block + thread;
            var is_set = false;
            if (e < p.experts) {
                let at = p.mask_base + t * p.mask_stride + e * SIZE;
                is_set = extract(mask[at >> 2u], at, SIZE) != 0u;
            }
            let scanned = scan(thread, select(0u, 1u, is_set));
            let k = before + scanned.through - 1u;
            if (is_set && k < p.max_routes) { ids[to + k] = e; }
            before += scanned.all;
        }
    }
    for (var k = before + thread; k < p.max_routes; k += THREADS) { ids[to + k] = 0xffffffffu; }
    if (thread == 0u && before > p.max_routes) { atomicAdd(&over[p.over_base], before - p.max_routes); }
}
