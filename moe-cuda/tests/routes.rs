//! Masks, chunks, block tables, split sizes and scaled residuals: equal to the CPU, bit for bit, alone and in a graph
//! that is replayed with other contents.

mod common;

use common::routes::{Case, MaskValue, Work, equal};
use common::{Rng, cpu, device, sanitized};
use half::{bf16, f16};
use moe_core::Float;
use moe_cpu::Cpu;
use moe_cuda::{Capture, Cuda};

const CASE: Case = Case {
    tokens: 33,
    experts: 24,
    max_routes: 24,
    one_in: 5,
    capacity: None,
    chunks: 7,
    block: 4,
    ranks: 3,
    hidden: 8,
    shift: 0,
    gap: 0,
};

fn cases() -> Vec<Case> {
    let mut cases = vec![
        CASE,
        Case { max_routes: 2, shift: 1, gap: 3, ..CASE },
        Case { experts: 129, ranks: 43, max_routes: 200, one_in: 9, capacity: Some(3), block: 1, ..CASE },
        Case { tokens: 5, experts: 1, ranks: 1, max_routes: 1, chunks: 1, one_in: 1, block: 13, ..CASE },
    ];
    if !sanitized() {
        cases.extend([
            Case { tokens: 0, ..CASE },
            Case { tokens: 1_001, experts: 256, max_routes: 8, one_in: 32, ranks: 8, chunks: 300, block: 64, ..CASE },
            Case { tokens: 700, experts: 4_096, max_routes: 9, one_in: 500, chunks: 4_096, ranks: 1, gap: 4, ..CASE },
            Case { tokens: 20_011, experts: 64, max_routes: 64, one_in: 8, chunks: 1_500, shift: 4, ranks: 16, ..CASE },
            Case { tokens: 70_001, experts: 8, max_routes: 3, one_in: 3, ranks: 8, capacity: Some(999), ..CASE },
            Case {
                tokens: 9_001,
                experts: 1_025,
                max_routes: 2,
                one_in: 99,
                chunks: 1_025,
                ranks: 5,
                shift: 3,
                ..CASE
            },
        ]);
    }
    cases
}

fn same<M: MaskValue, P: Float>(case: Case) {
    let Some(device) = device("cuda") else { return };
    let (mut queue, mut reference) = (device.queue().unwrap(), cpu());
    let contents = case.contents(&mut Rng(case.tokens as u64 + 7 * case.experts as u64));
    let mut ours = Work::<Cuda, M, P>::new(&mut queue, case);
    ours.write(&mut queue, &contents).unwrap();
    ours.enqueue(&mut queue).unwrap();
    let mut theirs = Work::<Cpu, M, P>::new(&mut reference, case);
    theirs.write(&mut reference, &contents).unwrap();
    theirs.enqueue(&mut reference).unwrap();
    equal(&ours.read(&mut queue).unwrap(), &theirs.read(&mut reference).unwrap(), &(M::DTYPE, P::DTYPE, case));
}

#[test]
fn masks_chunks_and_tables_equal_the_cpu() {
    for case in cases() {
        same::<u8, f32>(case);
        same::<i32, bf16>(case);
        same::<u8, f16>(Case { shift: case.shift + 1, ..case });
    }
}

#[test]
fn a_graph_of_masks_chunks_and_tables_replays_with_other_contents() {
    let Some(device) = device("cuda") else { return };
    let (mut queue, mut reference) = (device.queue().unwrap(), cpu());
    for case in [Case { capacity: Some(9), ..CASE }, Case { tokens: 4_001, chunks: 99, max_routes: 6, ..CASE }] {
        if sanitized() && case.tokens > 64 {
            continue;
        }
        let mut ours = Work::<Cuda, u8, bf16>::new(&mut queue, case);
        let mut theirs = Work::<Cpu, u8, bf16>::new(&mut reference, case);
        let mut graph = queue.capture(|queue, _| ours.enqueue(queue)).unwrap();
        for seed in 1..4 {
            let contents = case.contents(&mut Rng(seed));
            ours.write(&mut queue, &contents).unwrap();
            graph.replay().unwrap();
            theirs.write(&mut reference, &contents).unwrap();
            theirs.enqueue(&mut reference).unwrap();
            equal(&ours.read(&mut queue).unwrap(), &theirs.read(&mut reference).unwrap(), &(seed, case));
        }
    }
}
