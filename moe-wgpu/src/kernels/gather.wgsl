// moe_gather: out[slot[t, k], :] = rows[t, :], bits or times weights[t, k].
//
// rows [T, H], weights [T, K], out [R, H], plan: the index arrays, of which `slot` [T, K] and `source` [R] are read;
// -1 marks a route that is not placed, or a padding row. Both variants run once for each pair of a window of rows and a
// window of out, where a binding does not hold all; `row_first` and `token_first` say where the windows begin.
//
// moe_gather_tokens: a thread owns UNITS times 16 bytes of a token, `cols` units apart, and stores them once for each of its
//   routes, so that each row is read once. The slots of ROUTES routes are read before the first store, because a store ends
//   what the compiler may move. Bases, strides and row lengths are multiples of 16 bytes. Padding rows are left to
//   moe_zero_rows.
// moe_gather_words: a thread owns a 32-bit word of out and asks of each element in it whose it is, so that any length
//   and any base of any type is right. Bytes of the word that belong to no row keep their value.
//
// Constants: WEIGHTED, WEIGHTS (dtype), ELEMENT (dtype), SIZE (bytes of an element, at most 4), THREADS, UNITS, ROUTES.

struct Params {
    slot: u32,         // word of the plan where the array begins
    source: u32,
    used: u32,         // word of the plan that holds the number of rows in use
    routes: u32,
    top_k: u32,
    row_first: u32,
    row_count: u32,
    token_first: u32,
    token_count: u32,
    in_base: u32,      // bases, strides and lengths in units of the variant: 16 bytes, or bytes
    in_stride: u32,
    out_base: u32,
    out_stride: u32,
    row_len: u32,
    cols: u32,         // moe_gather_tokens: threads of a token, ceil(row_len / UNITS)
    weights_base: u32, // bytes
    words: u32,        // moe_gather_words: words of out that hold the window
    padding: u32,      // moe_gather_words: 1 in the one pass that also writes padding rows
}

@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> rows: array<Unit>;
@group(0) @binding(2) var<storage, read> weights: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<Unit>;
@group(0) @binding(4) var<uniform> p: Params;

fn weight(route: u32) -> f32 {
    let at = p.weights_base + route * SIZE_OF_WEIGHT;
    return widen1(WEIGHTS, extract(weights[at >> 2u], at, SIZE_OF_WEIGHT));
}

const NOT_PLACED: u32 = 0xffffffffu;
