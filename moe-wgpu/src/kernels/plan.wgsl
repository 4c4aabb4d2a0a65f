// moe_plan: expert ids to the index arrays of a route plan, by a stable counting sort. The order is by local expert, then
// by route, whatever the kernels.
//
// One dispatch for few routes: moe_plan_small, one workgroup.
// Two for more: routes are cut into chunks of `tiles` tiles of THREADS. moe_plan_histogram counts each chunk's routes per
// local expert; in moe_plan_place each chunk's workgroup adds up the counts of all chunks, and with that ranks and places
// its own routes.
// Three for more experts than workgroup memory holds: moe_plan_count counts; moe_plan_scan turns the counts into the number
// of routes of each expert before each chunk, and writes offsets, counts and status; moe_plan_scatter places.
//
// ids [T, K]: i32 or u32, or WIDE: i64 as pairs of words, low first. All ones is a masked route, any other id outside
// [0, E) is invalid: one unsigned compare. REPLICAS: log2phy i32 [E, width] and logcnt i32 [E], the physical experts of each
// expert; the k-th route of token t takes the one numbered (t + k) mod logcnt, and a count outside 1..=width or a physical
// expert outside [0, P) makes a route invalid. expert_map i32 [P]: -1 is not local, anything else outside [0, E_local) is
// invalid. valid i32 [1]. Outputs, each written to its full length with -1 for what is not placed, padding and tail, are
// sections of `plan` at word offsets. Every index is below 2^31.
//
// With FILLED, ids of -1 only fill a token's K up and count nowhere.
//
// scratch: counts [chunks, E_local], then masked, invalid, non_local [chunks, 3].
//
// What varies from call to call are flags, not constants: a kernel is compiled for few sizes only.
//
// Constants: THREADS; EXPERTS, a power of 2, at least E_local, in the kernels that keep an element for each expert in
// workgroup memory.

struct Params {
    routes: u32,
    top_k: u32,
    experts: u32,
    physical: u32,     // P
    local_experts: u32,
    rows: u32,
    chunks: u32,
    tiles: u32,        // tiles of THREADS routes in a chunk
    drops: u32,        // word of the scratch where the counters of dropped routes begin
    capacity: u32,     // 0xffffffff where there is none
    spacing: u32,      // 0 packed, 1 aligned, 2 padded
    unit: u32,         // the alignment, or the rows of an expert
    width: u32,        // of log2phy
    flags: u32,
    ids_base: u32,     // words, as all that follow
    map_base: u32,
    valid_base: u32,
    log2phy_base: u32,
    logcnt_base: u32,
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
@group(0) @binding(3) var<storage, read> log2phy: array<u32>;
@group(0) @binding(4) var<storage, read> logcnt: array<u32>;
@group(0) @binding(5) var<storage, read_write> scratch: array<Scratch>;
@group(0) @binding(6) var<storage, read_write> plan: array<u32>;
@group(0) @binding(7) var<storage, read_write> load: array<atomic<u32>>;
@group(0) @binding(8) var<uniform> p: Params;

// Flags.
const WIDE: u32 = 1u;
const FILLED: u32 = 2u;
const REPLICAS: u32 = 4u;
const MAPPED: u32 = 8u;
const VALID: u32 = 16u;
const LOAD: u32 = 32u;
const M_INDICES: u32 = 64u;

fn has(flag: u32) -> bool {
    return (p.flags & flag) != 0u;
}

const NONE: u32 = 0xffffffffu;
// Classes of routes that no expert takes.
const MASKED: u32 = 0xfffffff0u;
const INVALID: u32 = 0xfffffff1u;
const NON_LOCAL: u32 = 0xfffffff2u;
const UNUSED: u32 = 0xfffffff3u; // past the valid tokens, or past the end

fn valid_routes() -> u32 {
    if (!has(VALID)) { return p.routes; }
    let tokens = u32(max(valid[p.valid_base], 0));
    return select(p.routes, tokens * p.top_k, tokens < p.routes / p.top_k);
}

// The global expert of a route, or a class.
fn global_expert(x: u32) -> u32 {
    var low: u32;
    var outside = 0u;
    if (has(WIDE)) {
        low = ids[p.ids_base + 2u * x];
        let high = ids[p.ids_base + 2u * x + 1u];
        if (high != 0u) { outside = select(1u, 2u, (low & high) == NONE); }
    } else {
        low = ids[p.ids_base + x];
        if (low == NONE) { outside = 2u; }
    }
    if (outside == 2u) { return select(MASKED, UNUSED, has(FILLED)); }
    return select(low, INVALID, outside == 1u || low >= p.experts);
}

// The physical expert that takes a route of a global one, or a class.
fn physical_expert(x: u32, global: u32) -> u32 {
    if (!has(REPLICAS) || global >= p.experts) { return global; }
    let count = logcnt[p.logcnt_base + global];
    if (count - 1u >= p.width) { return INVALID; }
    let turn = (x / p.top_k + x % p.top_k) % count;
    let physical = log2phy[p.log2phy_base + global * p.width + turn];
    return select(INVALID, physical, physical < p.physical);
}

// The local expert that a physical one is, or a class.
fn local_expert(physical: u32) -> u32 {
    if (!has(MAPPED) || physical >= p.physical) { return physical; }
    let local = expert_map[p.map_base + physical];
    if (local == NONE) { return NON_LOCAL; }
    return select(INVALID, local, local < p.local_experts);
}

// The local expert of a route, or a class.
fn expert_of(x: u32) -> u32 {
    return local_expert(physical_expert(x, global_expert(x)));
}

// The same, counted in `load`.
fn loaded_expert_of(x: u32) -> u32 {
    let global = global_expert(x);
    if (has(LOAD) && global < p.experts) { atomicAdd(&load[global], 1u); }
    return local_expert(physical_expert(x, global));
}

// Rows of an expert that takes `count` routes, padding included.
fn spaced(count: u32) -> u32 {
    if (p.spacing == 1u) { return (count + p.unit - 1u) / p.unit * p.unit; }
    return select(count, p.unit, p.spacing == 2u);
}
