fn bits_of(lanes: vec4<u32>) -> u32 {
    let n = countOneBits(lanes);
    return n.x + n.y + n.z + n.w;
}

// The lanes below this one.
fn lanes_below() -> vec4<u32> {
    let n = clamp(vec4<i32>(i32(own_lane)) - vec4(0, 32, 64, 96), vec4(0), vec4(32));
    return select((vec4(1u) << vec4<u32>(n & vec4(31))) - vec4(1u), vec4(NONE), n == vec4(32));
}

fn lowest(lanes: vec4<u32>) -> u32 {
    if (lanes.x != 0u) { return firstTrailingBit(lanes.x); }
    if (lanes.y != 0u) { return 32u + firstTrailingBit(lanes.y); }
    if (lanes.z != 0u) { return 64u + firstTrailingBit(lanes.z); }
    return 96u + firstTrailingBit(lanes.w);
}

// Routes of the same expert before this thread's, in `seen` and in the tile; then the tile is added to `seen`. Every
// thread calls it. Lanes find those of their expert bit by bit; subgroups take turns at `seen`.
fn rank(thread: u32, expert: u32, local: bool) -> u32 {
    var same = subgroupBallot(local);
    for (var bit = 1u; bit < EXPERTS; bit <<= 1u) {
        let is_set = (expert & bit) != 0u;
        let lanes = subgroupBallot(is_set);
        same &= select(~lanes, lanes, is_set);
    }
    let rank = bits_of(same & lanes_below());
    var before = 0u;
    for (var s = 0u; s < subgroups; s++) {
        if (s == own_subgroup && local && rank == 0u) { before = atomicAdd(&seen[expert], bits_of(same)); }
        workgroupBarrier();
    }
    return subgroupShuffle(before, select(own_lane, lowest(same), local)) + rank;
}
