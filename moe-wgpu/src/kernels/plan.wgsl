// moe_plan: expert ids to the index arrays of a route plan, by a stable counting sort in three dispatches.
//
// Routes are cut into chunks of `tiles` tiles of 256. moe_plan_count counts each chunk's routes per local expert;
// moe_plan_scan turns the counts into the number of routes of each expert before each chunk, and writes offsets, counts
// and status; moe_plan_scatter ranks the routes inside each chunk and places them. The order is by local expert, then
// by route, whatever the number of chunks.
//
// ids [T, K]: i32 or u32, or WIDE: i64 as pairs of words, low first. All ones is a masked route, any other id outside
// [0, E) is invalid: one unsigned compare. expert_map i32 [E]: -1 is not local, anything else outside [0, E_local) is
// invalid. valid i32 [1]. Outputs, each written to its full length with -1 for what is not placed, padding and tail, are
// sections of `plan` at word offsets that are multiples of 64. Every index is below 2^31.
//
// scratch: histogram [chunks, E_local], then masked, invalid, non_local [chunks, 3].
//
// Constants: WIDE, MAPPED, VALID, LOAD, M_INDICES.

struct Params {
    routes: u32,
    top_k: u32,
    experts: u32,
    local_experts: u32,
    rows: u32,
    chunks: u32,
    tiles: u32,        // tiles of 256 routes in a chunk
    counters: u32,     // word of the scratch where the drop counters begin
    capacity: u32,     // 0xffffffff where there is none
    spacing: u32,      // 0 packed, 1 aligned, 2 padded
    unit: u32,         // the alignment, or the rows of an expert
    ids_base: u32,     // words, as all that follow
    map_base: u32,
    valid_base: u32,
    scratch_base: u32,
    status: u32,
    offsets: u32,
    counts: u32,
    slot: u32,
    source: u32,
    m_indices: u32,
}

@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> expert_map: array<u32>;
@group(0) @binding(2) var<storage, read> valid: array<i32>;
@group(0) @binding(3) var<storage, read_write> scratch: array<atomic<u32>>;
@group(0) @binding(4) var<storage, read_write> plan: array<u32>;
@group(0) @binding(5) var<storage, read_write> load: array<atomic<u32>>;
@group(0) @binding(6) var<uniform> p: Params;

const NONE: u32 = 0xffffffffu;
// Classes of routes that no expert takes.
const MASKED: u32 = 0xfffffff0u;
const INVALID: u32 = 0xfffffff1u;
const NON_LOCAL: u32 = 0xfffffff2u;
const UNUSED: u32 = 0xfffffff3u; // past the valid tokens, or past the end

fn valid_routes() -> u32 {
    if (!VALID) { return p.routes; }
    let tokens = u32(max(valid[p.valid_base], 0));
    return select(p.routes, tokens * p.top_k, tokens < p.routes / p.top_k);
}

// The global expert of a route, or a class.
fn global_expert(x: u32) -> u32 {
    var low: u32;
    var outside = 0u;
    if (WIDE) {
        low = ids[p.ids_base + 2u * x];
        let high = ids[p.ids_base + 2u * x + 1u];
        if (high != 0u) { outside = select(1u, 2u, (low & high) == NONE); }
    } else {
        low = ids[p.ids_base + x];
        if (low == NONE) { outside = 2u; }
    }
    if (outside == 2u) { return MASKED; }
    return select(low, INVALID, outside == 1u || low >= p.experts);
}

// The local expert that a global one is, or a class.
fn local_expert(global: u32) -> u32 {
    if (!MAPPED || global >= p.experts) { return global; }
    let local = expert_map[p.map_base + global];
    if (local == NONE) { return NON_LOCAL; }
    return select(INVALID, local, local < p.local_experts);
}
