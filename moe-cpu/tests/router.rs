//! The router's suite of moe-core, on the CPU backend.

use moe_core::conformance::Options;
use moe_cpu::Cpu;

moe_core::router_suite!(Cpu, "cpu", Options::from_env());
