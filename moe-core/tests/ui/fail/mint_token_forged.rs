//! Only the backend's crate can make the proof that an identity needs.
use moe_core::DeviceId;
use moe_cpu::Cpu;

fn main() {
    let _forged: DeviceId<Cpu> = DeviceId::mint(moe_cpu::CpuMint(()), 0, 1, 0);
}
