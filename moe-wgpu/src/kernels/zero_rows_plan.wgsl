@group(0) @binding(2) var<storage, read> plan: array<u32>;

fn zeroed(row: u32) -> bool {
    let used = plan[p.used];
    if (TAIL) { return row >= used; }
    return row < used && plan[p.source + row] >= p.routes;
}
