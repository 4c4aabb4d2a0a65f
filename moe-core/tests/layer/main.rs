//! Whole layers of three families, against a plain float64 forward pass.

mod model;

use model::{Model, Rng, Stored};
use moe_core::half::bf16;
use moe_core::layer::{LayerConfig, LayerOptions, LayerState, MoeLayer, Naming, SafeTensors, Stage};
use moe_core::{Dev, Error, Float, Layout, MatmulBackend, MatmulInput, Queue, Result, Workspace};
use moe_cpu::Cpu;

const TOKENS: usize = 50;

fn queue() -> Queue<'static, Cpu> {
    Dev::<Cpu>::open(&"cpu".parse().unwrap()).unwrap().queue().unwrap()
}

/// Loads a model and runs it.
fn run<T: Float + MatmulInput, O: Float>(model: &Model, x: &[f32], options: LayerOptions) -> Result<Vec<f32>> {
    let mut queue = queue();
    let file = model.file();
    let files = [SafeTensors::deserialize(&file).unwrap()];
    let config = LayerConfig::from_json(&model.config())?;
    let layer = MoeLayer::<Cpu, T>::load(&mut queue, config, "model.layers.7", &files, options)?;
    let mut workspace = Workspace::new(&mut queue, layer.limits(TOKENS))?;
    let mut state = LayerState::<_, _, O>::new(&mut queue, &mut workspace, &layer, TOKENS)?;
    let mut matmul = Cpu::matmul(queue.raw())?;
    let x = queue.upload(&x.iter().map(|x| T::from_f32(*x)).collect::<Vec<_>>())?;
    let mut y = queue.upload(&vec![O::from_f32(f32::NAN); TOKENS * model.hidden])?;
    let mut stages = Vec::new();
    // The second pass finds what the first left behind.
    for _ in 0..2 {
        stages.clear();
        let (x, y) = (x.rows(model.hidden)?, y.rows_mut(model.hidden)?);
        layer.forward_observed(&mut queue, &mut workspace, &mut matmul, &mut state, x, y, &mut |_, stage| {
            stages.push(stage);
            Ok(())
        })?;
    }
    assert_eq!((stages[0], *stages.last().unwrap()), (Stage::Router, Stage::Combine));
    state.plan().validate(&mut queue)?;
    Ok(queue.download(y.view())?.into_iter().map(Float::to_f32).collect())
}

fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    (difference / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

#[test]
fn floats_of_three_families() {
    for naming in [Naming::Qwen3Moe, Naming::Mixtral, Naming::DeepSeekV3] {
        let mut rng = Rng(naming as u64);
        let model = Model::new(naming, Stored::Bf16, &mut rng);
        let x = rng.matrix(TOKENS * model.hidden, 1.0);
        let want = model.answer(&x, |_| true, true);
        let f32s = run::<f32, f32>(&model, &x, LayerOptions::default()).unwrap();
        assert!(error(&f32s, &want) < 1e-6, "{naming:?} in f32: {:e}", error(&f32s, &want));
        let padded = run::<f32, f32>(&model, &x, LayerOptions::default().layout(Layout::Aligned(16))).unwrap();
        assert_eq!(f32s, padded, "{naming:?}: padding changes nothing");
        let halves = run::<bf16, bf16>(&model, &x, LayerOptions::default()).unwrap();
        assert!(error(&halves, &want) < 6e-3, "{naming:?} in bf16: {:e}", error(&halves, &want));
        let mixed = run::<bf16, f32>(&model, &x, LayerOptions::default()).unwrap();
        assert!(error(&mixed, &want) < 4e-3, "{naming:?} in bf16, to f32: {:e}", error(&mixed, &want));
    }
}

#[test]
fn quantised_files_of_every_kind() {
    let cases = [
        (Naming::Qwen3Moe, Stored::PerChannel),
        (Naming::Mixtral, Stored::Block),
        (Naming::DeepSeekV3, Stored::BlockInv),
        (Naming::DeepSeekV3, Stored::PerChannel),
    ];
    for (naming, stored) in cases {
        let mut rng = Rng(7 + naming as u64);
        let model = Model::new(naming, stored, &mut rng);
        let x = rng.matrix(TOKENS * model.hidden, 1.0);
        let want = model.answer(&x, |_| true, true);
        for aligned in [1, 128] {
            let options = LayerOptions::default().layout(Layout::Aligned(aligned));
            let got = run::<bf16, f32>(&model, &x, options).unwrap();
            // A rounding to bf16 or e4m3 that falls the other way now and then.
            assert!(error(&got, &want) < 2e-3, "{naming:?} {stored:?}: {:e}", error(&got, &want));
        }
    }
}

#[test]
fn floats_are_quantised_on_loading() {
    let mut rng = Rng(3);
    let model = Model::new(Naming::DeepSeekV3, Stored::Bf16, &mut rng);
    let x = rng.matrix(TOKENS * model.hidden, 1.0);
    let want = model.answer(&x, |_| true, true);
    let got = run::<bf16, f32>(&model, &x, LayerOptions::default().fp8_dynamic()).unwrap();
    let error = error(&got, &want);
    assert!((1e-2..1e-1).contains(&error), "8 bits are 8 bits: {error:e}");
}

/// Two slices of the experts, of which one has the shared ones, add up to the layer.
#[test]
fn expert_parallel_slices_add_up() {
    for stored in [Stored::Bf16, Stored::BlockInv] {
        let mut rng = Rng(11);
        let model = Model::new(Naming::DeepSeekV3, stored, &mut rng);
        let x = rng.matrix(TOKENS * model.hidden, 1.0);
        // Odd experts, in reverse, and even ones.
        let odd: Vec<i32> = (0..8).map(|e| if e % 2 == 1 { 3 - e / 2 } else { -1 }).collect();
        let even: Vec<i32> = (0..8).map(|e| if e % 2 == 0 { e / 2 } else { -1 }).collect();
        let first = run::<f32, f32>(&model, &x, LayerOptions::default().expert_map(odd)).unwrap();
        let options = LayerOptions::default().expert_map(even).without_shared_experts();
        let second = run::<f32, f32>(&model, &x, options).unwrap();
        let limit = if stored == Stored::Bf16 { 1e-6 } else { 2e-3 };
        assert!(error(&first, &model.answer(&x, |e| e % 2 == 1, true)) < limit);
        assert!(error(&second, &model.answer(&x, |e| e % 2 == 0, false)) < limit);
        let sum: Vec<f32> = first.iter().zip(&second).map(|(a, b)| a + b).collect();
        assert!(error(&sum, &model.answer(&x, |_| true, true)) < limit);
    }
}

#[test]
fn what_a_file_lacks_is_named() {
    let mut rng = Rng(5);
    let model = Model::new(Naming::Qwen3Moe, Stored::Bf16, &mut rng);
    let file = model.file();
    let files = [SafeTensors::deserialize(&file).unwrap()];
    let config = LayerConfig::from_json(&model.config()).unwrap();
    let load = |config: &LayerConfig, prefix: &str, options: LayerOptions| {
        let loaded = MoeLayer::<Cpu, f32>::load(&mut queue(), config.clone(), prefix, &files, options);
        loaded.unwrap_err().to_string()
    };
    let none = LayerOptions::default;
    assert_eq!(
        load(&config, "model.layers.8", none()),
        "cannot load the model: model.layers.8.mlp.gate.weight is nothing, expected a tensor of the files"
    );
    let wider = LayerConfig { hidden_size: 161, ..config.clone() };
    assert_eq!(
        load(&wider, "model.layers.7", none()),
        "cannot load the model: model.layers.7.mlp.gate.weight is of shape [8, 160], expected of shape [8, 161]"
    );
    let quantised = LayerConfig { weights: moe_core::layer::WeightFormat::Fp8PerChannel, ..config.clone() };
    assert_eq!(
        load(&quantised, "model.layers.7", none()),
        "cannot load the model: model.layers.7.mlp.experts.0.gate_proj.weight is BF16, expected F8_E4M3"
    );
    let short = none().expert_map(vec![0; 3]);
    assert_eq!(
        load(&config, "model.layers.7", short),
        "cannot load the model: the expert map is of 3, expected of 8 experts"
    );
    let twice = none().expert_map(vec![0, 0, 1, -1, -1, -1, -1, -1]);
    assert_eq!(
        load(&config, "model.layers.7", twice),
        "cannot load the model: the expert map[1] is 0, expected -1 or each of 0..3 once"
    );
}

#[test]
fn rows_of_another_batch_are_refused() {
    let mut rng = Rng(6);
    let model = Model::new(Naming::Qwen3Moe, Stored::Bf16, &mut rng);
    let (mut queue, file) = (queue(), model.file());
    let files = [SafeTensors::deserialize(&file).unwrap()];
    let config = LayerConfig::from_json(&model.config()).unwrap();
    let none = LayerOptions::default();
    let layer = MoeLayer::<Cpu, f32>::load(&mut queue, config, "model.layers.7", &files, none).unwrap();
    let mut workspace = Workspace::new(&mut queue, layer.limits(4)).unwrap();
    let mut state = LayerState::<_, _, f32>::new(&mut queue, &mut workspace, &layer, 4).unwrap();
    let mut matmul = Cpu::matmul(queue.raw()).unwrap();
    let (x, mut y) = (queue.zeros::<f32>(5 * 160).unwrap(), queue.zeros::<f32>(4 * 160).unwrap());
    let (x, y) = (x.rows(160).unwrap(), y.rows_mut(160).unwrap());
    let result = layer.forward(&mut queue, &mut workspace, &mut matmul, &mut state, x, y);
    assert!(matches!(result, Err(Error::Shape { arg: "x", .. })), "{result:?}");
}
