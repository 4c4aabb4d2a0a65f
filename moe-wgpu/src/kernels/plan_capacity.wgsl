// moe_plan_capacity: from a packed plan of all routes in the scratch, whatever their number, to a plan in which each local
// expert has at most `capacity` routes: those with the largest weights, ties to the lower route, NaN lowest. Survivors
// stay in route order.
//
// moe_plan_capacity_scan, one workgroup, writes offsets, counts and status. In moe_plan_capacity_select a workgroup of 256
// takes an expert: it finds the key of the last survivor byte by byte, from histograms, then places what is left.
//
// weights [T, K]; packed: sections `packed_*` of the scratch. Outputs are sections of `plan`, each written to its full
// length, -1 for what is not placed, padding and tail.
//
// Constants: THREADS (256), WEIGHTS (dtype), SIZE_OF_WEIGHT, M_INDICES.

struct Params {
    routes: u32,
    local_experts: u32,
    rows: u32,
    capacity: u32,
    spacing: u32,      // 0 packed, 1 aligned, 2 padded
    unit: u32,         // the alignment, or the rows of an expert
    weights_base: u32, // bytes
    packed_status: u32, // words, as all that follow
    packed_offsets: u32,
    packed_counts: u32,
    packed_slot: u32,
    packed_source: u32,
    status: u32,
    offsets: u32,
    counts: u32,
    slot: u32,
    source: u32,
    m_indices: u32,
}

@group(0) @binding(0) var<storage, read> weights: array<u32>;
@group(0) @binding(1) var<storage, read> packed: array<u32>;
@group(0) @binding(2) var<storage, read_write> plan: array<u32>;
@group(0) @binding(3) var<uniform> p: Params;

const NONE: u32 = 0xffffffffu;

// Rows of an expert that takes `count` routes, padding included.
fn spaced(count: u32) -> u32 {
    if (p.spacing == 1u) { return (count + p.unit - 1u) / p.unit * p.unit; }
    return select(count, p.unit, p.spacing == 2u);
}
