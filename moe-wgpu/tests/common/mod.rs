//! The adapter that tests run on: the first whose name contains MOE_WGPU_ADAPTER, or the first of all. Where
//! MOE_REQUIRE_WGPU is set, an adapter whose name contains it must be there; without it, tests that find no adapter say
//! why they skip.
#![allow(dead_code)] // each test binary uses a part

use moe_core::{Dev, Device, DeviceSpec};
use moe_wgpu::{Wgpu, WgpuDevice, WgpuOptions};

/// The specification of the adapter to test, if there is one.
pub(crate) fn spec() -> Option<DeviceSpec> {
    let required = std::env::var("MOE_REQUIRE_WGPU").ok();
    let wanted = std::env::var("MOE_WGPU_ADAPTER").ok().or_else(|| required.clone());
    let adapters = WgpuDevice::adapters();
    let fits = |name: &str| wanted.as_deref().is_none_or(|wanted| name.contains(wanted));
    let found = adapters.iter().position(|info| fits(&info.name));
    let names: Vec<_> = adapters.iter().map(|info| info.name.as_str()).collect();
    if let Some(required) = required {
        let ok = found.is_some_and(|i| names[i].contains(&required));
        assert!(ok, "MOE_REQUIRE_WGPU={required:?}, found {names:?}");
    }
    if found.is_none() {
        println!("skipped: no adapter for {wanted:?} among {names:?}");
    }
    Some(DeviceSpec::new("wgpu", Some(found? as u32)).unwrap())
}

/// The device to test, if there is an adapter.
pub(crate) fn device(options: WgpuOptions) -> Option<Dev<Wgpu>> {
    Some(Dev::from_raw(WgpuDevice::open_with(&spec()?, options).unwrap()))
}

/// A device of the caller's own on the adapter to test, made through an instance of its own.
pub(crate) fn foreign() -> Option<(wgpu::Device, wgpu::Queue)> {
    let name = WgpuDevice::open(&spec()?).unwrap().info().name;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters =
        ready(instance.enumerate_adapters(wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12));
    let adapter = adapters.into_iter().find(|adapter| adapter.get_info().name == name).unwrap();
    Some(ready(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap())
}

pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    loop {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
