//! moe-cpu
