//! Loading the kernels on a device, once.

use crate::error::{CudaError, driver};
use crate::probe::unavailable;
use crate::ptx::{Kernel, SOURCES};
use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute, CUresult};
use cudarc::driver::{CudaContext, DriverError, result};
use moe_core::{Error, Result};
use std::ffi::CString;

/// Shared memory that a block has without asking for more.
const SHARED_MEMORY: usize = 48 * 1024;

/// The kernels of one device, ready to launch, and what it takes to shape a launch. The modules are never unloaded: a
/// device lives as long as the process.
#[derive(Debug)]
pub(crate) struct Kernels {
    functions: Vec<sys::CUfunction>,
    pub(crate) multiprocessors: u32,
    /// Bytes of dynamic shared memory that a block of a plan kernel can have.
    pub(crate) shared_memory: usize,
}

// SAFETY: a function handle belongs to its context, not to a thread; the driver takes launches of it from any thread.
unsafe impl Send for Kernels {}
// SAFETY: likewise; nothing is changed after loading.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Loads everything, so that nothing is left to be loaded while a stream is capturing. The driver keeps what it
    /// compiles from PTX in its cache on disk, so only the first process on a machine waits for the compiler.
    pub(crate) fn load(context: &CudaContext) -> Result<Self> {
        let op = "load kernels";
        let fail = |error| load_error(op, error);
        context.bind_to_thread().map_err(fail)?;
        let multiprocessors = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let opt_in = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let opt_in = context.attribute(opt_in).map_err(fail)?.max(0) as usize;
        let major =
            context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR).map_err(fail)?;
        let mut modules = Vec::new();
        for source in SOURCES {
            let load = |text: &str| {
                let text = CString::new(text).expect("PTX has no zero byte");
                // SAFETY: `text` is a PTX text that ends with a zero byte and lives through the call.
                unsafe { result::module::load_data(text.as_ptr().cast()) }
            };
            // A driver that is too old for the newer code takes the other, which gives the same bits.
            let module = match source.sm90.filter(|_| major >= 9).map(load) {
                Some(Ok(module)) => module,
                _ => load(source.sm80).map_err(fail)?,
            };
            modules.push((source.name, module));
        }
        let mut shared_memory = opt_in.max(SHARED_MEMORY);
        let mut functions = Vec::new();
        for kernel in Kernel::ALL {
            let (_, module) = modules.iter().find(|(name, _)| *name == kernel.source().name).expect("all are loaded");
            let name = CString::new(kernel.name()).expect("a name has no zero byte");
            // SAFETY: the module was loaded above and is never unloaded.
            let function = unsafe { result::module::get_function(*module, name) }.map_err(fail)?;
            if kernel.wants_shared_memory() {
                let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
                // SAFETY: the function is of the module above. Asking also makes a lazily loaded function load now.
                let own = unsafe { result::function::get_function_attribute(function, attribute) }.map_err(fail)?;
                shared_memory = shared_memory.min(opt_in.max(SHARED_MEMORY) - own.max(0) as usize);
            } else {
                let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
                // SAFETY: as above; the answer is not needed.
                unsafe { result::function::get_function_attribute(function, attribute) }.map_err(fail)?;
            }
            functions.push(function);
        }
        for (kernel, function) in Kernel::ALL.iter().zip(&functions) {
            if kernel.wants_shared_memory() {
                let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function is of a module above; the size is within what the device offers.
                unsafe { result::function::set_function_attribute(*function, attribute, shared_memory as i32) }
                    .map_err(fail)?;
            }
        }
        let multiprocessors = multiprocessors.map_err(fail)?.max(1) as u32;
        Ok(Self { functions, multiprocessors, shared_memory })
    }

    pub(crate) fn function(&self, kernel: Kernel) -> sys::CUfunction {
        self.functions[kernel as usize]
    }
}

fn load_error(op: &'static str, error: DriverError) -> Error {
    match error.0 {
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_INVALID_PTX
        | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED => unavailable(format!(
            "the driver does not take the kernels: {}; they are PTX for compute capability 8.0 and up",
            CudaError::new(error)
        )),
        _ => driver(op, error),
    }
}
