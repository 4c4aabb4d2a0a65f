// moe_combine_grad_weights: grad_weights[t, k] = Σ_h rows[slot[t, k], h] * grad_out[t, h]; 0 for routes that are not
// placed. (The gradient of the rows is a gather of grad_out, see gather.wgsl.)
//
// rows [R, H] and grad_out [T, H] of one dtype, out [T, K]; plan: the index arrays, of which `slot` [T, K] is read; -1
// is a route that is not placed. LANES threads, at most 256, own a 32-bit word of out, thus one route or two, so that no
// word has two writers. The order of the sum does not depend on the machine: 1,024 lanes, lane h mod 1024 in ascending
// h, then lane[i] += lane[i + s] for s = 512, 256, … 1; for short rows the lanes that stay zero are left out. Any length
// and any base: elements are read one by one.
//
// Runs once for each pair of a window of rows and a window of grad_out, where a binding does not hold all; a route
// whose row or token lies in another window is left to that pass.
//
// Constants: ROWS, OUT (dtypes), the sizes of elements, LANES (a power of 2 up to 1024).

struct Params {
    slot: u32,         // word of the plan where the array begins
    routes: u32,
    top_k: u32,
    num_rows: u32,     // R
    hidden: u32,
    row_first: u32,
    row_count: u32,
    token_first: u32,
    token_count: u32,
    rows_base: u32,    // bytes, as all bases and strides here
    rows_stride: u32,
    grad_base: u32,
    grad_stride: u32,
    out_base: u32,
    words: u32,        // words of out
    unplaced: u32,     // 1 in the one pass that writes the routes that are not placed
}

@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> grad_out: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;
@group(0) @binding(4) var<uniform> p: Params;

// Not assumed to be zero: each element is written before it is read.
var<workgroup> lanes: array<f32, 1024>;

// Threads that own a word, and words that a workgroup owns.
const THREADS: u32 = min(LANES, 256u);
const WORDS: u32 = 256u / THREADS;

fn element(at: u32, from_rows: bool) -> f32 {
    if (from_rows) { return widen1(ROWS, extract(rows[at >> 2u], at, SIZE_OF_ROW)); }
    return widen1(ROWS, extract(grad_out[at >> 2u], at, SIZE_OF_ROW));
}

@compute @workgroup_size(256)
fn moe_combine_grad_weights(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.x + group.y * groups.x) * WORDS + local / THREADS;
    let thread = local % THREADS;
    let first_lane = local / THREADS * LANES;
    let at_word = (p.out_base >> 2u) + i;
    for (var j = 0u; j < 4u; j += SIZE_OF_OUT) {
        let at = at_word * 4u + j;
        let route = (at - p.out_base) / SIZE_OF_OUT;
        var mine = i < p.words && at >= p.out_base && route < p.routes;
        let t = route / p.top_k - p.token_first;
        mine = mine && t < p.token_count;
        var slot = 0xffffffffu;
        if (mine) { slot = plan[p.slot + route]; }
        let placed = slot < p.num_rows;
        let row = slot - p.row_first;
        mine = mine && select(p.unplaced != 0u, row < p.row_count, placed);

        // The barriers are passed by every workgroup, whether it has a sum to make or not.
        for (var l = thread; l < LANES; l += THREADS) {
            var sum = 0.0;
            if (mine && placed) {
                for (var h = l; h < p.hidden; h += 1024u) {
                    let y = element(p.rows_base + row * p.rows_stride + h * SIZE_OF_ROW, true);
                    let g = element(p.grad_base + t * p.grad_stride + h * SIZE_OF_ROW, false);
                    sum = fma(y, g, sum);
                }
            }
            lanes[first_lane + l] = sum;
        }
        for (var s = LANES / 2u; s > 0u; s >>= 1u) {
            workgroupBarrier();
            for (var l = first_lane + thread; l < first_lane + s; l += THREADS) { lanes[l] += lanes[l + s]; }
        }
        workgroupBarrier();
        if (mine && thread == 0u) {
            out[at_word] = insert(out[at_word], at, SIZE_OF_OUT, narrow1(OUT, lanes[first_lane]));
        }
        workgroupBarrier();
    }
}
