//! What must hold on a machine without a driver too.

mod common;

use moe_core::{Dev, Device, Error};
use moe_cuda::{Cuda, CudaDevice};

#[test]
fn a_machine_without_cuda_is_told_why_and_nothing_panics() {
    let tried = [Dev::<Cuda>::open(&"cuda".parse().unwrap()).map(|_| ()), CudaDevice::count().map(|_| ())];
    for result in tried {
        match result {
            Ok(()) => println!("skipped: there is a CUDA device here"),
            Err(Error::BackendUnavailable { backend, reason }) => {
                assert!(!common::required(), "{reason}");
                assert_eq!(backend, "cuda");
                assert!(reason.len() > 20, "a reason a person can act on: {reason}");
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_specification_of_another_backend_is_refused_before_the_driver_is_looked_for() {
    let error = Dev::<Cuda>::open(&"wgpu".parse().unwrap()).unwrap_err();
    assert!(matches!(error, Error::WrongBackend { backend: "cuda", .. }), "{error}");
}
