//! moe-cuda
