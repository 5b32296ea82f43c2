//! The command line of the harness: what it writes, and that every wrong request is one clear line and status 2.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use kernel_core::{Device, HeadPattern, HeadPatterns};
use kernel_tests::{
    model::{Config, Folder},
    records::{Form, HELD_OUT, Kind, QUESTION_TOKENS, Sample, vocabulary},
};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn harness(arguments: &[&str]) -> Output {
    // Packed for another machine, nextest says where it is there.
    let built = || env!("CARGO_BIN_EXE_harness").into();
    let harness = std::env::var_os("NEXTEST_BIN_EXE_harness").unwrap_or_else(built);
    Command::new(harness).args(arguments).output().expect("the harness was built for this test")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// Asserts status 2, nothing on stdout, and one line on stderr that has each of `parts`.
fn refuses(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    }
}

#[test]
fn kernels_lists_and_writes_every_text() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("new/folder");
    let output = harness(&["kernels", "--emit", text(&target)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    let kernels = kernel_tests::registry::kernels().expect("valid");
    assert_eq!(fs::read_dir(&target).expect("written").count(), kernels.len());
    for kernel in &kernels {
        let written = fs::read_to_string(target.join(format!("{}.ptx", kernel.entry()))).expect("written");
        assert_eq!(written, kernel.kernel.text, "{}", kernel.entry());
        assert!(table.contains(&format!(" {} ", kernel.entry())), "{} is not in the table", kernel.entry());
    }
    assert!(table.contains(&format!("{} kernels", kernels.len())));
}

#[test]
fn a_folder_that_cannot_be_written_is_one_line() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let inside = file.path().join("folder");
    refuses(&harness(&["kernels", "--emit", text(&inside)]), &["cannot write", text(&inside)]);
}

/// Share of the causal pairs of prompt `number` of `samples` that lie in a window of `keys` keys a row.
fn window(number: u64, samples: u64, tokens: usize, keys: usize) -> f64 {
    // Prompts are whole records, and so a little shorter than asked for.
    let depth = ((number * 37 % samples) as f64 + 0.5) / samples as f64;
    let seed = HELD_OUT + tokens as u64 * (1 << 20) + number;
    let prompt = Sample::new(seed, tokens, Kind::ALL[number as usize], Form::ALL[0], depth).expect("a sample").prompt;
    let pairs = |most: usize| (1..=prompt.len()).map(|row| row.min(most)).sum::<usize>() as f64;
    pairs(keys) / pairs(usize::MAX)
}

/// A folder with a random two-layer model, mixed patterns and one example of some 250 tokens.
fn random_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = Config {
        hidden: 64,
        intermediate: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        vocabulary: vocabulary::SIZE,
        context: 512,
        norm_epsilon: 1e-6,
        rope_theta: 1e4,
        mrope_section: None,
        tied: false,
        mask_token: Some(u32::from(vocabulary::MASK)),
    };
    Folder::write_random(folder.path(), &config, 7).expect("a writable folder");
    let layer = r#"{"0": ["stream_llm", 16, 64, 0.5], "1": ["vertical_and_slash", 40, 100, 0.5],
        "2": ["block_sparse", [2], 0, 0.5], "3": ["dense", 0, 0, 1.0]}"#;
    fs::write(folder.path().join("patterns.json"), format!("[{layer}, {layer}]")).expect("a writable folder");
    let sample = Sample::new(HELD_OUT, 250, Kind::Leader, Form::Json, 0.5).expect("a sample of the task");
    let records = sample.prompt.len() - QUESTION_TOKENS;
    let example = serde_json::json!({
        "prompt": vocabulary::decode(&sample.prompt[1..records]),
        "question": vocabulary::decode(&sample.prompt[records..]),
    });
    fs::create_dir(folder.path().join("examples")).expect("a writable folder");
    fs::write(folder.path().join("examples/profile-4000.json"), example.to_string()).expect("a writable folder");
    folder
}

fn json(output: &Output) -> serde_json::Value {
    let result = serde_json::from_slice(&output.stdout);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(result.is_ok(), "stdout is not one JSON object: {out}\n{err}");
    result.unwrap_or_default()
}

#[test]
fn demo_json_is_one_object_and_a_wrong_answer_fails() {
    let model = random_model();
    let output =
        harness(&["demo", "--json", "--device", "emulator", "--arch", "sm_90a", "--model", text(model.path())]);
    let json = json(&output);
    // A random model answers nothing right, and its kernels are right all the same.
    assert_eq!(output.status.code(), Some(1), "{json}");
    let passed: Vec<_> = json["checks"].as_array().expect("checks").iter().map(|check| &check["passed"]).collect();
    assert_eq!(passed, [false, false, true, true, true], "{}", json["checks"]);
    assert_eq!((&json["device"], &json["arch"]), (&"emulator".into(), &"sm_90a".into()));
    let layers = json["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 2);
    for layer in layers {
        let densities: Vec<f64> =
            layer["heads"].as_array().expect("heads").iter().map(|h| h["density"].as_f64().expect("a share")).collect();
        assert!(densities.iter().all(|share| *share > 0.2 && *share <= 1.0), "{densities:?}");
        assert!(densities[0] < 0.6 && densities[2] < 0.9 && densities[3] == 1.0, "{densities:?}");
    }
    let steps = json["sparse"]["steps"].as_array().expect("steps");
    assert_eq!(Some(steps.len() as u64), json["sparse"]["forward_passes"].as_u64());
    assert!(steps[0].as_str().expect("text").contains('▒'), "{}", steps[0]);
    assert_eq!(json["expected"].as_str().map(|answer| answer.starts_with("{\"name\"")), Some(true));
}

#[test]
fn search_writes_patterns_that_demo_reads() {
    let model = random_model();
    let out = model.path().join("patterns.json");
    let arguments = ["search", "--device", "emulator", "--model", text(model.path()), "--tokens", "250"];
    let search =
        |floor| harness(&[&arguments[..], &["--samples", "1", "--density", "0.6", "--recall-floor", floor]].concat());
    let output = search("0");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let patterns = HeadPatterns::from_json(&fs::read_to_string(&out).expect("written")).expect("the published schema");
    assert_eq!((patterns.layers(), patterns.layer(0).expect("a layer").head_count()), (2, 4));
    let output = harness(&["demo", "--json", "--device", "emulator", "--model", text(model.path())]);
    for layer in json(&output)["layers"].as_array().expect("layers") {
        for head in layer["heads"].as_array().expect("heads") {
            let density = head["density"].as_f64().expect("a share");
            assert!(density > 0.3 && density < 0.65, "fitted to 0.6, visits {density}");
        }
    }
    // Nothing but all pairs keeps all of a random model's attention.
    assert!(search("1").status.success());
    let patterns = HeadPatterns::from_json(&fs::read_to_string(&out).expect("written")).expect("the published schema");
    let heads = (0..2).flat_map(|layer| (0..4).map(move |head| (layer, head)));
    for (layer, head) in heads {
        assert_eq!(patterns.layer(layer).expect("a layer").head(head), HeadPattern::Dense, "layer {layer} head {head}");
    }
    refuses(&search("1.5"), &["--recall-floor is 1.5", "from 0 to 1"]);
}

#[test]
fn recall_has_a_row_for_every_head() {
    let model = random_model();
    let recall = |more: &[&str]| {
        let here = ["recall", "--device", "emulator", "--model", text(model.path())];
        harness(&[&here[..], more].concat())
    };
    let heads = |output: &Output| -> Vec<Vec<(f64, f64)>> {
        let json = json(output);
        let share = |head: &serde_json::Value, key: &str| head[key].as_f64().expect("a share");
        let layers = json["layers"].as_array().expect("layers").iter();
        let layers = layers.map(|layer| layer.as_array().expect("heads").iter());
        layers.map(|heads| heads.map(|head| (share(head, "density"), share(head, "recall"))).collect()).collect()
    };
    let layers = heads(&recall(&["--tokens", "250", "--json"]));
    assert_eq!(layers.len(), 2);
    for shares in layers {
        // 16 + 64 keys of every row that has so many.
        assert!((shares[0].0 - window(0, 1, 250, 80)).abs() < 1e-9, "{shares:?}");
        assert!(shares[3].0 == 1.0 && (shares[3].1 - 1.0).abs() < 1e-6, "dense keeps all: {shares:?}");
        for (density, recall) in &shares[..3] {
            // Attention of a random model is spread, and every row keeps its nearest keys.
            assert!(*density < 1.0 && *recall < 1.0 && recall > density, "{shares:?}");
        }
    }
    // A policy instead of the file: layer 0 dense, layer 1 the last 10 keys and no sink.
    let layers =
        heads(&recall(&["--tokens", "250", "--json", "--samples", "2", "--patterns", "triangle_mix:1,0,10,0"]));
    assert!(layers[0].iter().all(|(density, _)| *density == 1.0), "{layers:?}");
    let expected = (window(0, 2, 250, 10) + window(1, 2, 250, 10)) / 2.0;
    for (density, recall) in &layers[1] {
        assert!((density - expected).abs() < 1e-9 && *recall < 0.9, "{layers:?}");
    }

    let table = String::from_utf8(recall(&["--tokens", "250"]).stdout).expect("UTF-8");
    let row = table.lines().find(|line| line.starts_with("    1     1  ")).expect("layer 1 head 1");
    assert!(row.contains("vertical-slash  40|100"), "{row}");
    let rows = table.lines().filter(|line| line.ends_with('%')).count();
    assert_eq!(rows, 9, "eight heads and their mean: {table}");

    refuses(&recall(&["--tokens", "600"]), &["512"]);
    refuses(&recall(&["--tokens", "10"]), &["10 tokens", "give 83 to 4096"]);
    refuses(&recall(&["--samples", "0"]), &["--samples"]);
    refuses(&recall(&["--patterns", "no.json"]), &["cannot read no.json", "triangle_mix:STARTING_LAYER"]);
    refuses(&recall(&["--patterns", "triangle_mix:3"]), &["starting_layer", "from 0 to 2"]);
    refuses(&recall(&["--patterns", "triangle_mix"]), &["--patterns", "STARTING_LAYER"]);
    let file = model.path().join("other.json");
    fs::write(&file, r#"[{}, {"4": ["stream_llm", 1, 1, 1]}]"#).expect("a writable folder");
    refuses(&recall(&["--patterns", text(&file)]), &["other.json", "layer 1, head 4", "4 query heads"]);
    fs::write(&file, "[{}]").expect("a writable folder");
    refuses(&recall(&["--patterns", text(&file)]), &["other.json", "1 layers are given, the model has 2"]);
}

#[test]
fn plots_are_pictures() {
    let model = random_model();
    let out = model.path().join("picture.png");
    let (here, to) = (["--device", "emulator", "--model", text(model.path())], ["--out", text(&out)]);
    let mask = ["plot", "mask", "--layer", "1", "--head", "2"];
    let given = [&mask[..], &["--pattern", "vertical_slash:20,10"]].concat();
    for picture in [&mask[..], &given, &["plot", "order"]] {
        let output = harness(&[picture, &here, &to].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bytes = fs::read(&out).expect("written");
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 2000, "{} bytes", bytes.len());
        fs::remove_file(&out).expect("it is there");
    }
}

#[test]
fn eval_counts_every_prompt() {
    let model = random_model();
    let arguments = ["eval", "--json", "--device", "emulator", "--model", text(model.path())];
    let output = harness(&[&arguments[..], &["--tokens", "100", "--samples", "1"]].concat());
    let json = json(&output);
    assert!(output.status.success(), "{json}");
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 6);
    for row in rows {
        assert_eq!(row["samples"], 1, "{row}");
        let density = row["density"].as_f64().expect("a share");
        assert!(density <= 1.0 && (density == 1.0) | (row["prefill"] != "dense"), "{row}");
        let deciles = row["deciles"].as_array().expect("deciles");
        assert_eq!(deciles.iter().map(|d| d["samples"].as_u64().expect("a count")).sum::<u64>(), 1);
    }
}

#[test]
fn eval_takes_policies() {
    let model = random_model();
    let file = model.path().join("patterns.json");
    let arguments = ["eval", "--json", "--device", "emulator", "--model", text(model.path()), "--tokens", "100"];
    let policies = ["--samples", "1", "--patterns", text(&file), "--patterns", "a_shape:0,1"];
    let json = json(&harness(&[&arguments[..], &policies].concat()));
    let rows = json["rows"].as_array().expect("rows").iter();
    let rows: Vec<_> = rows.map(|row| (row["prefill"].as_str(), row["density"].as_f64().expect("a share"))).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0], (Some("dense"), 1.0));
    assert!(rows[1].0 == Some("patterns") && rows[1].1 < 1.0, "{rows:?}");
    // The diagonal alone.
    assert!(rows[2].0 == Some("A-shape 0+1") && (rows[2].1 - window(0, 1, 100, 1)).abs() < 1e-9, "{rows:?}");
}

#[test]
fn generate_fills_every_position_under_every_cache() {
    let model = random_model();
    let arguments = ["generate", "--json", "--device", "emulator", "--model", text(model.path()), "--tokens", "100"];
    for cache in ["prompt", "prefix", "dual", "window", "block"] {
        let output = harness(&[&arguments[..], &["--batch", "2", "--block", "16", "--cache", cache]].concat());
        let json = json(&output);
        assert!(output.status.success(), "{cache}: {json}");
        let responses = json["responses"].as_array().expect("responses");
        assert_eq!(responses.len(), 2, "{cache}");
        for response in responses {
            let tokens = response["tokens"].as_array().expect("tokens");
            assert_eq!(tokens.len(), 32, "{cache}");
            assert!((1..=32).contains(&response["passes"].as_u64().expect("a count")), "{cache}: {response}");
        }
    }
}

#[test]
fn generate_prefers_and_bans_tokens() {
    let model = random_model();
    let arguments = ["generate", "--json", "--device", "emulator", "--model", text(model.path()), "--tokens", "100"];
    let tokens = |more: &[&str]| -> Vec<u64> {
        let output = harness(&[&arguments[..], &["--template", "{8}", "--credits"], more].concat());
        let json = json(&output);
        assert!(output.status.success(), "{more:?}: {json}");
        let tokens = json["responses"][0]["tokens"].as_array().expect("tokens");
        tokens.iter().map(|token| token.as_u64().expect("an id")).collect()
    };
    assert_eq!(tokens(&["--bias", "65=1000", "--bias", "66=900"]), [65; 8]);
    assert_eq!(tokens(&["--bias", "65=1000", "--bias", "66=900", "--ban", "65"]), [66; 8]);
}

#[test]
fn wrong_requests_to_generate_are_one_line() {
    let model = random_model();
    let arguments = ["generate", "--device", "emulator", "--model", text(model.path()), "--tokens", "100"];
    let broken = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(broken.path(), "{").expect("written");
    for (more, parts) in [
        (&["--template", "{40}", "--length", "8"][..], &["template", "has 40 tokens, the response 8"][..]),
        (&["--template", "{x}"], &["{x}"]),
        (&["--schema", "/no/such/file"], &["cannot read /no/such/file"]),
        (&["--schema", text(broken.path())], &[text(broken.path())]),
        (&["--stop", "<nothing>"], &["--stop <nothing>"]),
        (&["--threshold", "1.5"], &["threshold is 1.5"]),
        (&["--bias", "65"], &["is not ID=VALUE"]),
        (&["--bias", "A=1"], &["\"A\" is not a token id"]),
        (&["--bias", "65=inf"], &["its bias for token 65 is inf"]),
        (&["--ban", "70000"], &["has a bias for token 70000"]),
        (&["--block", "0"], &["--block"]),
        (&["--cache", "none", "--batch", "2"], &["one sequence"]),
    ] {
        refuses(&harness(&[&arguments[..], more].concat()), parts);
    }
}

#[test]
fn eval_compares_caches_with_passes_over_everything() {
    let model = random_model();
    let arguments = ["eval", "--caches", "--json", "--device", "emulator", "--model", text(model.path())];
    let json = json(&harness(&[&arguments[..], &["--tokens", "100", "--samples", "1"]].concat()));
    let rows = json["caches"].as_array().expect("rows");
    assert_eq!(rows.len(), 14);
    for row in rows.iter().filter(|row| row["prompt_mask"] == "causal") {
        let exact = ["none", "prompt", "none, blocks"].iter().any(|name| row["cache"] == *name);
        assert!(!exact || row["largest_drift"] == 0.0 && row["same_tokens"] == row["positions"], "{row}");
    }
}

#[test]
fn benchmarks_without_a_gpu_are_one_line() {
    if let Ok(device) = Device::cuda(0) {
        eprintln!("NOT RUN: this machine has {}", device.name());
        return;
    }
    for subject in ["attention", "decode", "index", "layer", "linear", "load", "sampling", "step"] {
        refuses(&harness(&["bench", subject]), &["run on the embedded backend"]);
    }
}

#[test]
fn wrong_arguments_are_one_line() {
    refuses(&harness(&["demo", "--device", "abacus"]), &["abacus", "auto, cuda, emulator"]);
    refuses(&harness(&["demo", "--model", "no/such/folder"]), &["no/such/folder", "--model"]);
    refuses(&harness(&["demo", "--question", "who?"]), &["--prompt-file"]);
    refuses(&harness(&["dance"]), &["dance"]);
    let model = random_model();
    let here = ["--device", "emulator", "--model", text(model.path())];
    refuses(&harness(&[&["demo", "--example", "none"], &here[..]].concat()), &["examples/none.json"]);
    let plot =
        |more: &[&str]| harness(&[&["plot", "mask", "--out", "no.png", "--head", "0"], more, &here[..]].concat());
    refuses(&plot(&["--layer", "2"]), &["no layer 2", "2 layers of 4 heads"]);
    refuses(&plot(&["--layer", "0", "--pattern", "a_shape:3"]), &["a_shape:SINK,LOCAL"]);
}

#[test]
fn broken_models_are_one_line() {
    let demo = |model: &tempfile::TempDir, more: &[&str]| {
        harness(&[&["demo", "--device", "emulator", "--model", text(model.path())], more].concat())
    };
    let model = random_model();
    let prompt = model.path().join("prompt.txt");
    fs::write(&prompt, "Ada Abbott lives in Lima; Ada Abbott owns red kite; Ada Abbott follows Ben Boyd;")
        .expect("a writable folder");
    refuses(&demo(&model, &["--prompt-file", text(&prompt)]), &["prompt.txt", "question"]);
    let asks = ["--prompt-file", text(&prompt), "--question"];
    let question = |text| [&asks[..], &[text]].concat();
    refuses(&demo(&model, &question("question: where is Ada?")), &["'is'"]);
    refuses(&demo(&model, &question("question: where does Ben Boyd live? json:")), &["no record of Ben Boyd"]);
    let list = Sample::new(HELD_OUT, 600, Kind::City, Form::Json, 0.0).expect("a sample of the task");
    fs::write(&prompt, vocabulary::decode(&list.prompt[1..])).expect("a writable folder");
    refuses(&demo(&model, &["--prompt-file", text(&prompt)]), &["512"]);

    fs::write(model.path().join("patterns.json"), r#"[{"0": ["zigzag", 1, 1, 1]}, {}]"#).expect("a writable folder");
    refuses(&demo(&model, &[]), &["patterns.json", "zigzag"]);
    fs::remove_file(model.path().join("patterns.json")).expect("it is there");
    refuses(&demo(&model, &[]), &["patterns.json", "harness search"]);
    fs::write(model.path().join("config.json"), r#"{"hidden_size": "wide"}"#).expect("a writable folder");
    refuses(&demo(&model, &[]), &["config.json", "hidden_size"]);
    fs::remove_file(model.path().join("model.safetensors")).expect("it is there");
    fs::write(model.path().join("config.json"), "{").expect("a writable folder");
    refuses(&demo(&model, &[]), &["config.json"]);
}
