fn zeroed(row: u32) -> bool {
    return true;
}
