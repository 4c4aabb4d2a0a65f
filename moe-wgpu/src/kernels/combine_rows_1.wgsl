// All of `rows` in one binding.
fn row_in_window(row: u32) -> u32 {
    return row;
}

fn base_of(row: u32) -> u32 {
    return p.base_0;
}

fn load_at(row: u32, at: u32) -> Unit {
    return rows0[at];
}
