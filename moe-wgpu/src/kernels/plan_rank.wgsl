// Routes of the same expert before this thread's, in `seen` and in the tile; then the tile is added to `seen`. Every
// thread calls it.
fn rank(thread: u32, expert: u32, local: bool) -> u32 {
    workgroupBarrier(); // the last tile is no longer read, and is in `seen`
    show_tile(thread, expert);
    var rank = 0u;
    if (local) { rank = atomicLoad(&seen[expert]) + rank_in_tile(thread, expert); }
    workgroupBarrier();
    if (local) { atomicAdd(&seen[expert], 1u); }
    return rank;
}
