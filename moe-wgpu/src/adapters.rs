//! The adapters of this machine, in an order that stays the same.

use crate::error::ready;
use std::sync::OnceLock;

/// The process's instance: Vulkan, Metal and DX12. GL is left out, its compute shaders lack too much.
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        wgpu::Instance::new(descriptor)
    })
}

/// All adapters: discrete GPUs first, then integrated, virtual and others, processors last; among equals by graphics
/// API, bus address, maker, model and name, so that an ordinal means the same adapter in every run.
pub(crate) fn all() -> &'static [wgpu::Adapter] {
    static ADAPTERS: OnceLock<Vec<wgpu::Adapter>> = OnceLock::new();
    ADAPTERS.get_or_init(|| {
        let mut adapters = ready(instance().enumerate_adapters(wgpu::Backends::all()));
        adapters.sort_by_key(|adapter| {
            let info = adapter.get_info();
            let kind = match info.device_type {
                wgpu::DeviceType::DiscreteGpu => 0,
                wgpu::DeviceType::IntegratedGpu => 1,
                wgpu::DeviceType::VirtualGpu => 2,
                wgpu::DeviceType::Other => 3,
                wgpu::DeviceType::Cpu => 4,
            };
            (kind, info.backend as u8, info.device_pci_bus_id.clone(), info.vendor, info.device, info.name)
        });
        adapters
    })
}

/// The ordinal of the adapter that this describes. The first one where none fits, which can only be for a device that
/// was made through another instance with other graphics APIs.
pub(crate) fn ordinal_of(info: &wgpu::AdapterInfo) -> u32 {
    let fits = |adapter: &wgpu::Adapter| {
        let other = adapter.get_info();
        (other.backend, &other.device_pci_bus_id, other.vendor, other.device, &other.name)
            == (info.backend, &info.device_pci_bus_id, info.vendor, info.device, &info.name)
    };
    all().iter().position(fits).unwrap_or(0) as u32
}

/// Where the driver's side of a logical device lies: two handles of one device have one address for as long as it
/// lives. wgpu's own comparison will not do, it takes devices of two instances for one. `None` for a graphics API that
/// is not known here.
pub(crate) fn address(device: &wgpu::Device) -> Option<usize> {
    #[cfg(not(target_vendor = "apple"))]
    {
        // SAFETY: the driver's device is looked up for its address; nothing is done with it.
        if let Some(hal) = unsafe { device.as_hal::<wgpu::hal::api::Vulkan>() } {
            return Some(&raw const *hal as usize);
        }
    }
    #[cfg(windows)]
    {
        // SAFETY: as above.
        if let Some(hal) = unsafe { device.as_hal::<wgpu::hal::api::Dx12>() } {
            return Some(&raw const *hal as usize);
        }
    }
    #[cfg(target_vendor = "apple")]
    {
        // SAFETY: as above.
        if let Some(hal) = unsafe { device.as_hal::<wgpu::hal::api::Metal>() } {
            return Some(&raw const *hal as usize);
        }
    }
    None
}
