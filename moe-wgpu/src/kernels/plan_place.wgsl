alias Scratch = u32;

// Threads that share the chunks of an expert.
const PARTS: u32 = max(THREADS / EXPERTS, 1u);

fn count_in(chunk: u32, e: u32) -> u32 {
    if (chunk >= p.chunks) { return 0u; }
    return scratch[p.scratch_base + chunk * p.local_experts + e];
}

fn route_at(x: u32) -> u32 {
    if (x >= valid_routes()) { return UNUSED; }
    return loaded_expert_of(x);
}

@compute @workgroup_size(THREADS)
fn moe_plan_place(i: Invocation) {
    let thread = begin_threads(i);
    let chunk = i.group.x + i.group.y * i.groups.x;
    let begin = chunk * p.tiles * THREADS + thread;
    var next = route_at(begin); // on its way while the counts are added up
    clear_experts(thread);
    for (var j = thread; j < EXPERTS * PARTS; j += THREADS) {
        let e = j % EXPERTS;
        if (e >= p.local_experts) { continue; }
        var total = 0u;
        var before = 0u;
        for (var c = j / EXPERTS; c < p.chunks; c += PARTS * 8u) {
            // Eight loads that overlap.
            //@ for C in 0..8
            let n_C = count_in(c + PARTS * Cu, e);
            //@ end
            //@ for C in 0..8
            total += n_C;
            before += select(0u, n_C, c + PARTS * Cu < chunk);
            //@ end
        }
        atomicAdd(&totals[e], total);
        atomicAdd(&seen[e], before);
    }
    if (chunk == 0u) {
        for (var c = thread; c < p.chunks; c += THREADS) {
            let drops = p.scratch_base + p.drops + c * 3u;
            //@ for D in 0..3
            atomicAdd(&dropped[D], scratch[drops + Du]);
            //@ end
        }
    }
    workgroupBarrier();
    lay_out_experts(thread, chunk == 0u);
    for (var tile = 0u; tile < p.tiles; tile++) {
        let x = begin + tile * THREADS;
        let expert = next;
        if (tile + 1u < p.tiles) { next = route_at(x + THREADS); }
        place(thread, x, expert);
    }
}
