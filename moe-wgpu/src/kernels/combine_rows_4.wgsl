// `rows` in four bindings, `window` rows in each.
@group(0) @binding(7) var<storage, read> rows1: array<Unit>;
@group(0) @binding(8) var<storage, read> rows2: array<Unit>;
@group(0) @binding(9) var<storage, read> rows3: array<Unit>;

fn row_in_window(row: u32) -> u32 {
    return row % p.window;
}

fn base_of(row: u32) -> u32 {
    switch (row / p.window) {
        case 0u: { return p.base_0; }
        case 1u: { return p.base_1; }
        case 2u: { return p.base_2; }
        default: { return p.base_3; }
    }
}

fn load_at(row: u32, at: u32) -> Unit {
    switch (row / p.window) {
        case 0u: { return rows0[at]; }
        case 1u: { return rows1[at]; }
        case 2u: { return rows2[at]; }
        default: { return rows3[at]; }
    }
}
