//! Comparing a layer's answers with recorded ones.

use super::stages::Answers;
use super::trace::Trace;
use crate::Outcome;

/// Which recorded output to compare with.
#[derive(Clone, Copy)]
pub(crate) enum Reference {
    Float64,
    Fp8Dynamic,
}

/// Prints each comparison; fails if one does not hold, or if nothing could be compared.
pub(crate) fn check(trace: &Trace, answers: &Answers, (reference, limit): (Reference, f64)) -> Outcome {
    let mut checks = Checks::default();
    checks.equal("expert ids", &trace.topk_ids, &answers.topk_ids, "recorded");
    checks.close("router weights", &trace.topk_weights, &answers.topk_weights, 1e-5, "recorded");
    checks.equal("plan: row to route", &trace.vllm_source, &answers.source, "vLLM");
    checks.equal("plan: route to row", &trace.vllm_slot, &answers.slot, "vLLM");
    checks.equal("plan: expert offsets", &trace.vllm_offsets, &answers.expert_offsets, "vLLM");
    for (stage, wrong) in &answers.stages {
        checks.note(stage, *wrong == 0, &format!("{wrong} values and scales differ from the host's, on equal inputs"));
    }
    let (output, whose) = match reference {
        Reference::Float64 => (&trace.output, "the float64 reference"),
        Reference::Fp8Dynamic => (&trace.output_fp8, "the fp8-dynamic reference"),
    };
    checks.close("output", output, &answers.output, limit, whose);
    match checks {
        Checks { compared: 0, .. } => Err("the trace has no recorded answers to compare with".into()),
        Checks { failed: 0, compared } => {
            println!("all {compared} comparisons agree");
            Ok(())
        }
        Checks { failed, compared } => Err(format!("{failed} of {compared} comparisons do not agree")),
    }
}

#[derive(Default)]
struct Checks {
    compared: usize,
    failed: usize,
}

impl Checks {
    fn equal(&mut self, what: &str, expected: &Option<Vec<i32>>, got: &[i32], whose: &str) {
        let Some(expected) = expected else {
            println!("  -- {what}: not in the trace");
            return;
        };
        let wrong = expected.iter().zip(got).filter(|(a, b)| a != b).count() + expected.len().abs_diff(got.len());
        let text = match wrong {
            0 => format!("all {} equal to {whose}", expected.len()),
            _ => format!("{wrong} of {} differ from {whose}", expected.len()),
        };
        self.note(what, wrong == 0, &text);
    }

    fn close(&mut self, what: &str, expected: &Option<Vec<f32>>, got: &[f32], limit: f64, whose: &str) {
        let Some(expected) = expected else {
            println!("  -- {what}: not in the trace");
            return;
        };
        let error = relative_error(expected, got);
        // A NaN error fails.
        let text = format!("relative error {error:.2e} against {whose}, at most {limit:.0e}");
        self.note(what, error <= limit, &text);
    }

    fn note(&mut self, what: &str, ok: bool, text: &str) {
        self.compared += 1;
        self.failed += usize::from(!ok);
        println!("  {} {what}: {text}", if ok { "ok" } else { "NO" });
    }
}

/// ‖got − expected‖ / ‖expected‖; infinite if the lengths differ.
fn relative_error(expected: &[f32], got: &[f32]) -> f64 {
    if expected.len() != got.len() {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let difference: f64 = expected.iter().zip(got).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|a| square(f64::from(*a))).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_number_a_nan_and_a_missing_row_are_all_noticed() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((relative_error(&[3.0, 4.0], &[3.0, 4.5]) - 0.1).abs() < 1e-9);
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0]), f64::INFINITY);
        let mut checks = Checks::default();
        checks.close("x", &Some(vec![1.0]), &[f32::NAN], 1.0, "it");
        checks.equal("y", &Some(vec![1, 2]), &[1], "it");
        checks.equal("z", &None, &[1], "it");
        assert_eq!((checks.compared, checks.failed), (2, 2));
    }
}
