// moe_combine: out[t, :] = residual_scale * residual[t, :] + Σ_k weights[t, k] * rows[slot[t, k], :], summed in f32 for k = 0, 1, … and
// rounded once.
//
// rows [R, H], in up to four windows where one binding does not hold all; weights [T, K]; scales f32
// [R, ceil(H / block)]; residual and out [T, H] of one dtype; plan: the index arrays, of which `slot` [T, K] is read.
// -1, and any other slot outside [0, R), is a route that is not placed: its weight and any row are not read.
//
// moe_combine_vec: a thread owns UNITS times 16 bytes of a row, `cols` units apart: 4, 8 or 16 elements of out each. Bases,
//   strides and row lengths are multiples of 16 bytes, for out likewise; a scale covers a multiple of 16 elements. ROUTES
//   rows are loaded before they are added, so that the loads overlap.
// moe_combine_words: a thread owns a 32-bit word of out: any length and any base of any type. Halves of the word that
//   belong to no row keep their value.
//
// Constants: ROWS, OUT, WEIGHTS (dtypes), WEIGHTED, SCALED, RESIDUAL, the sizes of elements, THREADS, UNITS, ROUTES.

struct Params {
    base_0: u32,          // of each window of rows; bases, strides and lengths in units of the variant
    base_1: u32,
    base_2: u32,
    base_3: u32,
    slot: u32,            // word of the plan where the array begins
    top_k: u32,
    num_rows: u32,        // R
    window: u32,          // rows of a window of `rows`
    token_first: u32,
    token_count: u32,
    stride: u32,
    row_len: u32,         // moe_combine_vec: units of a row of `rows`; moe_combine_words: elements
    cols: u32,            // moe_combine_vec: threads of a token, ceil(row_len / UNITS)
    residual_base: u32,
    residual_stride: u32,
    out_base: u32,
    out_stride: u32,
    weights_base: u32,    // bytes
    scales_base: u32,     // words
    scales_stride: u32,   // words
    block: u32,           // elements of a row that share a scale
    words: u32,           // moe_combine_words: words of out that hold the window
    residual_scale: f32,
}

@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
@group(0) @binding(3) var<storage, read> residual: array<Unit>;
@group(0) @binding(4) var<storage, read_write> out: array<Unit>;
@group(0) @binding(5) var<uniform> p: Params;
@group(0) @binding(6) var<storage, read> rows0: array<Unit>;

const NOT_PLACED: u32 = 0xffffffffu;

// The row of a route, or NOT_PLACED.
fn row_of(t: u32, k: u32) -> u32 {
    if (k >= p.top_k) { return NOT_PLACED; }
    let row = plan[p.slot + (p.token_first + t) * p.top_k + k];
    return select(NOT_PLACED, row, row < p.num_rows);
}

// What a row is multiplied with, but for its scale.
fn weight_of(t: u32, k: u32) -> f32 {
    if (!WEIGHTED) { return 1.0; }
    let at = p.weights_base + ((p.token_first + t) * p.top_k + k) * SIZE_OF_WEIGHT;
    return widen1(WEIGHTS, extract(weights[at >> 2u], at, SIZE_OF_WEIGHT));
}

// What it is multiplied with at element h.
fn factor(weight: f32, row: u32, h: u32) -> f32 {
    if (!SCALED) { return weight; }
    return weight * bitcast<f32>(scales[p.scales_base + row * p.scales_stride + h / p.block]);
}
