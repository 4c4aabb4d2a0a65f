// The experts of a tile. Not assumed to be zero: each element is written before it is read.
var<workgroup> tile: array<u32, THREADS>;

fn ones(equal: vec4<bool>) -> u32 {
    let v = select(vec4(0u), vec4(1u), equal);
    return v.x + v.y + v.z + v.w;
}

fn tile4(i: u32) -> vec4<u32> {
    return vec4(tile[4u * i], tile[4u * i + 1u], tile[4u * i + 2u], tile[4u * i + 3u]);
}

fn show_tile(thread: u32, expert: u32) {
    tile[thread] = expert;
    workgroupBarrier();
}

// Routes of the same expert in the tile before this thread's.
fn rank_in_tile(thread: u32, expert: u32) -> u32 {
    var rank = 0u;
    for (var j = 0u; j < thread / 4u; j++) { rank += ones(tile4(j) == vec4(expert)); }
    let own = vec4(thread & ~3u) + vec4(0u, 1u, 2u, 3u);
    return rank + ones((tile4(thread / 4u) == vec4(expert)) & (own < vec4(thread)));
}
