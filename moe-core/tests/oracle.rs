//! The oracle: choices, their reasons, tuning tables, and the enum over several backends.

use moe_core::oracle::{
    Candidate, Capabilities, DeviceClass, Knob, LayoutKind, Op, Opened, OracleError, Quantisation, Report, Sizes,
    Tuned, TuningTable, Verdict, Wish, select,
};
use moe_core::{BackendVisitor, DType, Dev, DeviceInfo, DeviceSpec, DeviceVisitor, Error, Layout, PermuteBackend};
use moe_cpu::Cpu;
use std::time::Duration;

moe_core::any_device! {
    /// One backend that is there, and one whose feature is off.
    enum AnyDevice {
        /// Off: no feature of this crate has the name.
        #[cfg(any())]
        Gpu(no_such_crate::Gpu),
        Cpu(moe_cpu::Cpu),
    }
}

fn spec(text: &str) -> DeviceSpec {
    text.parse().unwrap()
}

/// dsv3's sizes, 4096 tokens.
fn sizes() -> Sizes {
    Sizes::new(4096, 8, 256, 7168)
}

fn wish() -> Wish {
    Wish::new(sizes(), DType::BF16)
}

/// The CPU device of an ordinal, said to have these capabilities.
fn device(ordinal: u32, capabilities: Capabilities) -> Candidate<u32> {
    let dev = Dev::<Cpu>::open(&DeviceSpec::new("cpu", Some(ordinal)).unwrap()).unwrap();
    let info = DeviceInfo { name: format!("pool {ordinal}"), ..DeviceInfo::default() };
    Opened { device: ordinal, id: dev.id().erase(), info, capabilities, paths: Vec::new() }.into()
}

fn fast() -> Capabilities {
    Capabilities::of(DeviceClass::DiscreteGpu).bandwidth(4e12)
}

fn verdicts(report: &Report) -> Vec<(String, Verdict)> {
    report.entries().iter().map(|entry| (entry.name.clone(), entry.verdict)).collect()
}

#[test]
fn the_fastest_that_can_do_the_work_is_taken_and_every_candidate_is_accounted_for_in_order() {
    let candidates = vec![
        device(0, Capabilities::of(DeviceClass::Cpu)),
        device(1, fast()),
        Candidate::unusable("cuda", None, "no driver was found"),
    ];
    let selection = select(&wish(), candidates).unwrap();
    assert_eq!(selection.device, 1);
    let expected = [("cpu:0", Verdict::PassedOver), ("cpu:1", Verdict::Taken), ("cuda", Verdict::Rejected)];
    assert_eq!(verdicts(&selection.report), expected.map(|(name, verdict)| (name.to_owned(), verdict)));
    let text = selection.report.to_string();
    assert!(
        text.contains("no driver was found") && text.contains("cpu:1 is expected to be at least as fast"),
        "{text}"
    );
    assert!(text.contains("as assumed of any processor"), "{text}");
    assert_eq!(selection.report.wish_met(), None);
}

#[test]
fn equals_are_decided_in_favour_of_the_earlier() {
    let selection = select(&wish(), vec![device(1, fast()), device(0, fast())]).unwrap();
    assert_eq!(selection.device, 1);
}

#[test]
fn small_batches_go_to_the_device_with_the_cheaper_start() {
    let slow_start = || device(0, fast().launch(Duration::from_millis(1)));
    let slow_bytes = || device(1, Capabilities::of(DeviceClass::Cpu).bandwidth(2e10).launch(Duration::from_micros(1)));
    let few = Wish::new(sizes().typical_tokens(1), DType::BF16);
    assert_eq!(select(&few, vec![slow_start(), slow_bytes()]).unwrap().device, 1);
    assert_eq!(select(&wish(), vec![slow_start(), slow_bytes()]).unwrap().device, 0);
}

#[test]
fn a_required_device_that_cannot_be_used_is_an_error_that_says_why_and_what_would_work() {
    let candidates = || vec![device(0, fast()), Candidate::unusable("cuda", None, "no driver was found")];
    let error = select(&wish().require(spec("cuda:1")), candidates()).unwrap_err();
    assert!(matches!(&error, OracleError::Unmet { asked, .. } if asked == "cuda:1"), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("cuda:1") && text.contains("no driver was found"), "{text}");
    assert!(text.contains("would work: cpu:0"), "{text}");
    assert_eq!(error.report().unwrap().wish_met(), Some(false));

    // A backend nobody has heard of, and an index that no candidate has.
    let text = select(&wish().require(spec("tpu")), candidates()).unwrap_err().to_string();
    assert!(text.contains("\"tpu\"") && text.contains("would work: cpu:0"), "{text}");
    assert!(select(&wish().require(spec("cpu:5")), candidates()).is_err());
}

#[test]
fn a_device_that_does_not_quantise_is_rejected_with_the_format() {
    let quantised = || wish().quantisation(Quantisation::Mxfp8);
    let able = || fast().quantises(&[Quantisation::PerToken, Quantisation::Mxfp8]);
    let selection = select(&quantised(), vec![device(0, fast()), device(1, able())]).unwrap();
    assert_eq!(selection.device, 1);
    let text = selection.report.to_string();
    assert!(text.contains("does not quantise rows to mxfp8") && text.contains("quantised to mxfp8"), "{text}");
    assert!(select(&wish().quantisation(Quantisation::Nvfp4), vec![device(1, able())]).is_err());
    let error = select(&Wish::new(sizes(), DType::F8E4M3).quantisation(Quantisation::Mxfp8), vec![device(1, able())]);
    assert!(error.unwrap_err().to_string().contains("f8e4m3"));
}

#[test]
fn a_required_device_that_lacks_an_operation_names_the_gap() {
    let gap = || fast().without(Some(Op::CombineGrad), Some(DType::BF16), None, "no 16-bit atomics");
    let training = || wish().training().require(spec("cpu:1"));
    let error = select(&training(), vec![device(0, fast()), device(1, gap())]).unwrap_err().to_string();
    assert!(error.contains("combine_grad") && error.contains("no 16-bit atomics"), "{error}");
    assert!(error.contains("would work: cpu:0"), "{error}");
    // Without training the gap does not matter, nor does it for another type.
    assert_eq!(select(&wish().require(spec("cpu:1")), vec![device(1, gap())]).unwrap().device, 1);
    let f16 = Wish::new(sizes(), DType::F16).training();
    assert_eq!(select(&f16, vec![device(1, gap())]).unwrap().device, 1);
}

#[test]
fn a_preference_wins_over_speed_and_one_that_cannot_be_met_is_said() {
    let candidates = || vec![device(0, fast()), device(1, Capabilities::of(DeviceClass::Cpu))];
    let selection = select(&wish().prefer(spec("cpu:1")), candidates()).unwrap();
    assert_eq!((selection.device, selection.report.wish_met()), (1, Some(true)));
    assert!(selection.report.to_string().contains("cpu:1 was asked for"));

    let selection = select(&wish().prefer(spec("cuda")), candidates()).unwrap();
    assert_eq!((selection.device, selection.report.wish_met()), (0, Some(false)));
    assert!(selection.report.to_string().contains("cuda was preferred but cannot be used"));
}

#[test]
fn an_index_of_two_digits_is_not_taken_for_its_first() {
    let candidates = vec![device(1, fast()), device(10, Capabilities::of(DeviceClass::Cpu))];
    assert_eq!(select(&wish().require(spec("cpu:10")), candidates).unwrap().device, 10);
}

#[test]
fn limits_of_rows_buffers_and_memory_reject_with_both_numbers() {
    let reason = |capabilities: Capabilities| {
        let error = select(&wish(), vec![device(0, capabilities)]).unwrap_err();
        assert!(matches!(error, OracleError::NoDevice { .. }));
        error.report().unwrap().entries()[0].reason.clone()
    };
    let rows = reason(fast().max_rows(32767));
    assert!(rows.contains("32768") && rows.contains("32767"), "{rows}");
    let buffer = reason(fast().max_buffer_bytes(128 << 20));
    assert!(buffer.contains("448.0 MiB") && buffer.contains("128.0 MiB"), "{buffer}");

    let dev = Dev::<Cpu>::open(&spec("cpu")).unwrap();
    let info = DeviceInfo { memory_bytes: Some(1 << 20), ..DeviceInfo::default() };
    let tiny = Opened { device: (), id: dev.id().erase(), info, capabilities: fast(), paths: Vec::new() };
    let error = select(&wish(), vec![tiny.into()]).unwrap_err().to_string();
    assert!(error.contains("it has 1.0 MiB of memory"), "{error}");
    // At the limit itself it works.
    assert!(select(&wish(), vec![device(0, fast().max_rows(32768).max_buffer_bytes(448 << 20))]).is_ok());
}

#[test]
fn a_wish_that_no_machine_can_grant_is_refused_with_its_argument() {
    let refuse = |wish: Wish, arg: &str| match select(&wish, vec![device(0, fast())]) {
        Err(OracleError::InvalidWish(Error::InvalidArgument { arg: named, .. })) => assert_eq!(named, arg),
        other => panic!("{arg}: {other:?}"),
    };
    refuse(Wish::new(sizes(), DType::F8E4M3).training(), "dtype");
    refuse(Wish::new(sizes(), DType::F4x2), "dtype");
    refuse(wish().ops(&[]), "ops");
    refuse(Wish::new(Sizes::new(8, 0, 4, 16), DType::F32), "top_k");
    refuse(Wish::new(Sizes::new(8, 2, 4, 0), DType::F32), "hidden_size");
    refuse(Wish::new(sizes().typical_tokens(5000), DType::F32), "typical_tokens");
    refuse(Wish::new(sizes().local_experts(257), DType::F32), "num_local_experts");
    refuse(wish().layout(Layout::Aligned(0)), "alignment");
    refuse(Wish::new(Sizes::new(usize::MAX / 2, 8, 256, 1), DType::U8).ops(&[Op::Gather]), "num_tokens");
    // What the library has for these rows is granted.
    let gather = Wish::new(sizes(), DType::F4x2).ops(&[Op::Plan, Op::Gather, Op::Gather]);
    assert_eq!(gather.wanted_ops(), [Op::Plan, Op::Gather]);
    assert!(select(&gather, vec![device(0, fast())]).is_ok());
}

#[test]
fn a_gap_without_op_dtype_or_layout_means_all_of_them() {
    let all = Capabilities::default().without(None, Some(DType::F16), None, "no 16-bit floats");
    for op in Op::ALL {
        assert!(all.lacks(*op, DType::F16, LayoutKind::Padded).is_some());
        assert!(all.lacks(*op, DType::F32, LayoutKind::Padded).is_none());
    }
    let padded = Capabilities::default().without(None, None, Some(LayoutKind::Padded), "not written");
    assert!(padded.lacks(Op::Plan, DType::F32, LayoutKind::Padded).is_some());
    assert!(padded.lacks(Op::Plan, DType::F32, LayoutKind::Packed).is_none());
}

#[test]
fn the_enum_opens_selects_and_visits_and_knows_what_is_not_compiled_in() {
    struct Id;
    impl DeviceVisitor for Id {
        type Output = String;
        fn visit<B: PermuteBackend>(self, device: &Dev<B>) -> String {
            device.id().to_string()
        }
    }
    struct Name;
    impl BackendVisitor for Name {
        type Output = &'static str;
        fn visit<B: PermuteBackend>(self) -> &'static str {
            B::NAME
        }
    }
    assert_eq!(AnyDevice::COMPILED_IN, ["cpu"]);
    let device = AnyDevice::open(&spec("cpu:2")).unwrap();
    assert_eq!((device.id().to_string(), device.visit(Id)), ("cpu:2".into(), "cpu:2".into()));
    assert!(!device.info().name.is_empty());
    assert!(device.capabilities().gaps.is_empty());
    assert_eq!(AnyDevice::visit_backend("cpu", Name).unwrap(), "cpu");
    let same: AnyDevice = Dev::<Cpu>::open(&spec("cpu:2")).unwrap().into();
    assert_eq!(same.id(), device.id());

    for error in [AnyDevice::open(&spec("gpu")).unwrap_err(), AnyDevice::visit_backend("gpu", Name).unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("compiled in: cpu") && text.contains("gpu needs any()"), "{text}");
    }
    assert!(!AnyDevice::open(&spec("tpu")).unwrap_err().to_string().contains("needs"));

    let selection = AnyDevice::select(&wish()).unwrap();
    assert_eq!(selection.device.id().to_string(), "cpu:0");
    assert!(selection.report.to_string().contains("not compiled in: it needs any()"), "{}", selection.report);
    // An ordinal past those that are counted is opened where it is asked for, and only there.
    assert_eq!(AnyDevice::select(&wish().require(spec("cpu:3"))).unwrap().device.id().to_string(), "cpu:3");
    assert!(AnyDevice::select(&wish().require(spec("cpu:9999"))).unwrap_err().to_string().contains("no such device"));
}

const SIZE: Knob = Knob::number("size", "bytes", (1, 4096), 64, &[16, 64, 256]);
const KIND: Knob = Knob::choice("kind", "which kernel", &["plain", "wide"], 0, &[0, 1]);
const KNOBS: &[Knob] = &[SIZE, KIND];

fn message(result: Result<Tuned, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_table_gives_its_values_and_the_built_in_ones_of_what_it_lacks() {
    let table: TuningTable = "# made by hand\n\n[cpu: a: b]\n kind wide  # 1.5 us; plain: 2 us\n".parse().unwrap();
    let tuned = table.tuned("cpu", "a: b", KNOBS).unwrap();
    assert_eq!((tuned.get(&SIZE), tuned.get(&KIND)), (64, 1));
    assert_eq!((tuned.is_measured(&SIZE), tuned.is_measured(&KIND)), (false, true));
    assert_eq!(table.tuned("cpu", "another", KNOBS).unwrap(), Tuned::built_in(KNOBS));
    assert_eq!(table.tuned("cuda", "a: b", KNOBS).unwrap(), Tuned::built_in(KNOBS));
    assert_eq!(table.entry("cpu", "a: b", "kind").unwrap().measurement, "1.5 us; plain: 2 us");
}

#[test]
fn keys_and_values_that_do_not_exist_are_errors_that_name_them() {
    let read = |lines: &str| format!("[cpu: x]\n{lines}").parse::<TuningTable>().unwrap();
    let text = message(read("sise 3").tuned("cpu", "x", KNOBS));
    assert!(text.contains("sise") && text.contains("size, kind"), "{text}");
    let text = message(read("size 0").tuned("cpu", "x", KNOBS));
    assert!(text.contains("size is 0") && text.contains("1 to 4096"), "{text}");
    let text = message(read("kind narrow").tuned("cpu", "x", KNOBS));
    assert!(text.contains("kind is narrow") && text.contains("plain or wide"), "{text}");
    assert!(message(read("size 3").tuned("cpu", "x", &[])).contains("nothing to tune"));
}

#[test]
fn lines_that_cannot_be_read_are_errors_with_their_number() {
    for (text, line) in [
        ("size 3", "line 1"),
        ("[cpu x]", "line 1"),
        ("[cpu: x]\nsize", "line 2"),
        ("[cpu: x]\n\nsize 3 4", "line 3"),
        ("[cpu: x]\nsize 3\nsize 3", "line 3"),
        ("[cpu: x]\n[cpu: y", "line 2"),
    ] {
        let error = text.parse::<TuningTable>().unwrap_err().to_string();
        assert!(error.contains(line), "{text:?}: {error}");
    }
}

#[test]
fn a_written_table_reads_back_equal_and_merging_prefers_the_newer() {
    let mut table = TuningTable::new();
    assert!(table.is_empty());
    table.set("cpu", "2 threads\n[odd] # name", &SIZE, 256, "1 ms\nof 2").unwrap();
    table.set("cuda", "NVIDIA H200", &KIND, 1, "").unwrap();
    assert!(table.set("cuda", "NVIDIA H200", &KIND, 2, "").is_err());
    assert!(table.set("cuda", "NVIDIA H200", &SIZE, 0, "").is_err());
    assert_eq!(table.to_string().parse::<TuningTable>().unwrap(), table);

    let mut newer = TuningTable::new();
    newer.set("cuda", "NVIDIA H200", &KIND, 0, "again").unwrap();
    newer.set("cuda", "NVIDIA H200", &SIZE, 16, "").unwrap();
    table.merge(newer);
    let tuned = table.tuned("cuda", "NVIDIA H200", KNOBS).unwrap();
    assert_eq!((tuned.get(&KIND), tuned.get(&SIZE)), (0, 16));
    assert_eq!(table.tuned("cpu", "2 threads\n[odd] # name", KNOBS).unwrap().get(&SIZE), 256);
}
