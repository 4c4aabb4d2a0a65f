//! What a person asks for, what it resolves to, and what happens where two devices meet at run time.

#[path = "support/toy.rs"]
mod toy;

use moe_core::{Dev, DeviceSpec, Error, Limits, PlanSpec, Result, RoutePlan, Routing, Workspace};
use moe_cpu::Cpu;
use toy::Toy;

moe_core::device_tag!(First);
moe_core::device_tag!(Second);
moe_core::device_tag!(
    /// Claimed by the test of claims alone.
    Contested
);

#[test]
fn specifications_are_read_exactly() {
    let good = [
        ("cpu", "cpu", None),
        ("cuda", "cuda", None),
        ("cuda:0", "cuda", Some(0)),
        ("cuda:1", "cuda", Some(1)),
        ("wgpu:07", "wgpu", Some(7)),
        ("my_npu2:4294967295", "my_npu2", Some(u32::MAX)),
    ];
    for (text, backend, index) in good {
        let spec: DeviceSpec = text.parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((spec.backend(), spec.index()), (backend, index), "{text}");
        let again: DeviceSpec = spec.to_string().parse().expect("what is printed can be read");
        assert_eq!((again.backend(), again.index()), (backend, index), "{text}");
    }
    let bad = [
        "",
        ":",
        ":0",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "cuda:+1",
        "cuda: 1",
        "cuda:1 ",
        " cuda",
        "CUDA",
        "cuda:0:1",
        "cuda:4294967296",
        "cuda#1",
        "1cuda",
        "_cuda",
        "cüda",
        "cuda:١",
    ];
    for text in bad {
        let error = text.parse::<DeviceSpec>().expect_err(text);
        assert!(matches!(error, Error::InvalidSpec { .. }), "{text:?}: {error:?}");
        assert!(error.to_string().contains(&format!("{text:?}")), "{text:?} is not in: {error}");
    }
}

#[test]
fn identities_print_their_index() -> Result<()> {
    assert_eq!(Dev::<Cpu>::open(&"cpu".parse()?)?.id().to_string(), "cpu:0");
    assert_eq!(Dev::<Cpu>::open(&"cpu:1".parse()?)?.id().to_string(), "cpu:1");
    assert_eq!(format!("{:?}", Dev::<Toy>::open(&"toy".parse()?)?.id()), "toy:0");
    Ok(())
}

#[test]
fn opening_twice_is_one_device_whose_buffers_mix() -> Result<()> {
    let (asked, named) = (Dev::<Cpu>::open(&"cpu".parse()?)?, Dev::<Cpu>::open(&"cpu:0".parse()?)?);
    assert_eq!(asked.id(), named.id());
    let mut queue = asked.queue()?;
    let ids = named.queue()?.upload(&[1i32, 0])?;
    let x = named.queue()?.upload(&[1f32, 2.0])?;
    let mut workspace = Workspace::new(&mut queue, Limits::new(2, 1, 2))?;
    let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::new(2, 1, 2), Routing::top_k(ids.view()))?;
    let rows = plan.gather(x.rows(1)?).run(&mut queue)?;
    assert_eq!(queue.download(rows.view())?, [2.0, 1.0]);
    Ok(())
}

#[test]
fn equal_ordinals_of_two_backends_are_not_one_device() -> Result<()> {
    let (cpu, toy) = (Dev::<Cpu>::open(&"cpu".parse()?)?, Dev::<Toy>::open(&"toy".parse()?)?);
    assert_ne!(cpu.id().erase(), toy.id().erase());
    assert_eq!(cpu.id().erase(), Dev::<Cpu>::open(&"cpu:0".parse()?)?.id().erase());
    Ok(())
}

#[test]
fn a_specification_of_another_backend_or_device_is_refused() -> Result<()> {
    let error = Dev::<Cpu>::open(&"toy:0".parse()?).expect_err("another backend");
    assert_eq!(error.to_string(), "device specification toy:0 names another backend than cpu");
    let error = Dev::<Toy>::open(&"toy:2".parse()?).expect_err("no such device");
    assert_eq!(error.to_string(), "toy:2: no such device, toy has 2");
    Ok(())
}

#[test]
fn without_tags_two_devices_are_told_apart_before_any_launch() -> Result<()> {
    let (a, b) = (Dev::<Toy>::open(&"toy:0".parse()?)?, Dev::<Toy>::open(&"toy:1".parse()?)?);
    let (mut qa, mut qb) = (a.queue()?, b.queue()?);
    let (ids_a, ids_b) = (qa.zeros::<i32>(2)?, qb.zeros::<i32>(2)?);
    let mut workspace = Workspace::new(&mut qa, Limits::new(2, 1, 2))?;
    let spec = PlanSpec::new(2, 1, 2);
    let before = toy::launches();
    let result = RoutePlan::new(&mut qa, &mut workspace, spec, Routing::top_k(ids_b.view()));
    assert_eq!(result.unwrap_err().to_string(), "build_into: ids is on toy:1, expected toy:0");
    let result = RoutePlan::new(&mut qb, &mut workspace, spec, Routing::top_k(ids_b.view()));
    assert_eq!(result.unwrap_err().to_string(), "build_into: workspace is on toy:0, expected toy:1");
    assert_eq!(toy::launches(), before, "something was launched");

    let plan = RoutePlan::new(&mut qa, &mut workspace, spec, Routing::top_k(ids_a.view()))?;
    let before = toy::launches();
    let x = qb.zeros::<f32>(2)?;
    let error = plan.gather(x.rows(1)?).run(&mut qa).unwrap_err();
    assert_eq!(error.to_string(), "gather: rows is on toy:1, expected toy:0");
    let error = plan.gather(x.rows(1)?).run(&mut qb).unwrap_err();
    assert_eq!(error.to_string(), "gather: plan is on toy:0, expected toy:1");
    assert_eq!(toy::launches(), before, "something was launched");
    Ok(())
}

#[test]
fn two_cpu_pools_are_two_devices() -> Result<()> {
    let (a, b) = (Dev::<Cpu>::open(&"cpu:0".parse()?)?, Dev::<Cpu>::open(&"cpu:1".parse()?)?);
    let x = b.queue()?.upload(&[1f32])?;
    let error = a.queue()?.download(x.view()).unwrap_err();
    assert_eq!(error.to_string(), "read: src is on cpu:1, expected cpu:0");
    Ok(())
}

#[test]
fn a_static_tag_belongs_to_the_device_that_claims_it_first() -> Result<()> {
    let (a, b) = (Dev::<Cpu>::open(&"cpu:0".parse()?)?, Dev::<Cpu>::open(&"cpu:1".parse()?)?);
    a.claim::<Contested>()?;
    a.claim::<Contested>()?; // again, by the same device
    Dev::<Cpu>::open(&"cpu".parse()?)?.claim::<Contested>()?;
    let error = b.claim::<Contested>().unwrap_err().to_string();
    assert!(error.ends_with("Contested was claimed for cpu:0 and cannot be claimed for cpu:1"), "{error}");
    let error = Dev::<Toy>::open(&"toy".parse()?)?.claim::<Contested>().unwrap_err().to_string();
    assert!(error.contains("cannot be claimed for toy:0"), "{error}");
    Ok(())
}

#[test]
fn tags_check_at_the_door() -> Result<()> {
    let (a, b) = (Dev::<Cpu>::open(&"cpu:0".parse()?)?, Dev::<Cpu>::open(&"cpu:1".parse()?)?);
    let (first, second) = (a.claim::<First>()?, b.claim::<Second>()?);
    let buf = a.queue()?.upload(&[1u8])?;
    let error = second.adopt(buf).unwrap_err().to_string();
    assert_eq!(error, "adopt: buffer is on cpu:0, expected cpu:1");
    let buf = first.adopt(a.queue()?.upload(&[1u8])?)?;
    assert_eq!(first.queue()?.download(buf.view())?, [1]);
    let back = buf.unbrand();
    assert_eq!(a.queue()?.download(back.view())?, [1]);
    let error = b.branded(|dev| dev.adopt(back).map(drop)).unwrap_err().to_string();
    assert_eq!(error, "adopt: buffer is on cpu:0, expected cpu:1");
    Ok(())
}
