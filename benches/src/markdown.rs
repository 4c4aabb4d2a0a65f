//! A report as a table for a README: what a reader asks first.

use crate::report::{Kind, Record, Report};
use crate::table::time;
use std::fmt::Write;

/// bf16, uniform routing, hot caches: for each backend, model and T, permute and combine with their ratios to the copy
/// of the same bytes and to the fastest peer.
pub fn markdown(report: &Report) -> String {
    let shown = |r: &&Record| r.kind == Kind::Ours && (&*r.dtype, &*r.routing, &*r.cache) == ("bf16", "uniform", "hot");
    let permutes = report.records.iter().filter(shown).filter(|r| r.op == "permute");
    let mut text = String::from(
        "| backend | model | T | permute | / copy | fastest peer | combine | / copy | fastest peer |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for permute in permutes {
        let same = |r: &&Record| {
            r.op == "combine"
                && r.contender == permute.contender
                && r.model == permute.model
                && r.tokens == permute.tokens
        };
        let combine = report.records.iter().filter(shown).find(same);
        let cells = |record: Option<&Record>| match record {
            None => "| | |".to_owned(),
            Some(record) => {
                let ratio = record.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
                let peer = report.best_peer(record);
                let peer = peer.map_or(String::new(), |(peer, times)| format!("{}: {times:.1}×", peer.contender));
                format!("{} | {ratio} | {peer}", time(record.us))
            }
        };
        let Record { contender, model, tokens, .. } = permute;
        let _ = writeln!(text, "| {contender} | {model} | {tokens} | {} | {} |", cells(Some(permute)), cells(combine));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::record;

    #[test]
    fn a_row_shows_both_operations_beside_the_fastest_peer() {
        let of = |contender: &str, kind, op: &str, us| Record { op: op.into(), ..record(contender, kind, 8, us) };
        let records = vec![
            of("moe-cuda", Kind::Ours, "permute", 2.0),
            of("moe-cuda", Kind::Ours, "combine", 1.0),
            of("vllm", Kind::Peer, "permute", 9.0),
            of("torch", Kind::Peer, "permute", 20.0),
        ];
        let report = Report { records, ..Report::default() };
        let text = markdown(&report);
        let row = text.lines().last().unwrap();
        assert!(row.contains("moe-cuda") && row.contains("vllm: 4.5×") && !row.contains("torch"), "{text}");
        assert_eq!(row.matches('|').count(), 10, "{text}");
    }
}
