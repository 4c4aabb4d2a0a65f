//! moe-core
