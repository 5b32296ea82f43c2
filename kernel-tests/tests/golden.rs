//! Golden text: a change of generated code shows in review, as a diff of `ptx/golden/`.
//!
//! A dozen representative kernels are kept in full, all others of the registry as a hash in `golden.lock`.
//! `UPDATE_GOLDEN=1` rewrites both.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use kernel_tests::registry::{self, Registered};
use ptx::image::fnv1a;
use std::{collections::BTreeMap, env, fs, path::PathBuf};

/// Kept in full: one of each kind of text.
const IN_FULL: [&str; 13] = [
    "attention_dense_m128n64_d128_bf16_causal_sm_80",
    "attention_dense_m128n128_d128_bf16_causal_sm_90a",
    "attention_vertical_slash_m128n64_d128_bf16_causal_sm_90a",
    "attention_block_sparse_m128n64_d128_bf16_causal_sm_90a",
    "attention_a_shape_m64n64_d64_bf16_causal_sm_80",
    "attention_tri_shape_m64n64_d64_bf16_causal_sm_80",
    "attention_vertical_slash_m64n64_d64_bf16_causal_sm_80",
    "attention_block_sparse_m64n64_d64_bf16_causal_sm_80",
    "block_sparse_select_m64n64_b2048_d64_bf16_causal_sm80",
    "rms_norm_residual_w256_bf16_sm80",
    "rope_bias_d64_bf16_sm80",
    "selection_w256_sm80",
    "vertical_slash_scores_h1_d64_bf16_sm80",
];

fn folder() -> PathBuf {
    PathBuf::from("../ptx/golden") // Tests run in their package's folder.
}

/// What the folder should hold, by file name.
fn expected(kernels: &[Registered]) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut lock = Vec::new();
    for kernel in kernels {
        if IN_FULL.contains(&kernel.entry()) {
            files.insert(format!("{}.ptx", kernel.entry()), kernel.kernel.text.clone());
        } else {
            lock.push(format!("{} {:016x}\n", kernel.entry(), fnv1a(&[kernel.kernel.text.as_bytes()])));
        }
    }
    assert_eq!(files.len(), IN_FULL.len(), "a kernel that is kept in full is not in the registry: {IN_FULL:?}");
    lock.sort();
    files.insert("golden.lock".into(), lock.concat());
    files
}

fn found() -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(folder()) else { return BTreeMap::new() };
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    paths
        .map(|path| {
            let name = path.file_name().expect("a file of a folder").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("a text file"))
        })
        .collect()
}

fn update(expected: &BTreeMap<String, String>) {
    fs::create_dir_all(folder()).expect("a writable folder");
    for name in found().into_keys().filter(|name| !expected.contains_key(name)) {
        fs::remove_file(folder().join(name)).expect("a stale file can be removed");
    }
    for (name, text) in expected {
        fs::write(folder().join(name), text).expect("a writable folder");
    }
}

/// What differs, one line each: a changed line of the lock names a kernel.
fn differences(expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, text) in expected {
        match found.get(name) {
            None => lines.push(format!("{name} is missing")),
            Some(old) if old == text => {}
            Some(old) if name == "golden.lock" => {
                let old: Vec<_> = old.lines().collect();
                lines.extend(
                    text.lines().filter(|line| !old.contains(line)).map(|line| format!("changed or new: {line}")),
                );
                let new: Vec<_> = text.lines().collect();
                lines.extend(
                    old.iter().filter(|line| !new.contains(line)).map(|line| format!("changed or gone: {line}")),
                );
            }
            Some(old) => {
                let line = old.lines().zip(text.lines()).take_while(|(old, new)| old == new).count() + 1;
                lines.push(format!("{name} differs from line {line} on"));
            }
        }
    }
    lines.extend(found.keys().filter(|name| !expected.contains_key(*name)).map(|name| format!("{name} is stale")));
    lines
}

#[test]
fn generated_text_is_as_reviewed() {
    let expected = expected(&registry::kernels().expect("the registry generates"));
    if env::var("UPDATE_GOLDEN").is_ok_and(|value| value == "1") {
        update(&expected);
    }
    let differences = differences(&expected, &found());
    assert!(
        differences.is_empty(),
        "generated PTX differs from ptx/golden:\n  {}\nIf that is meant, run `UPDATE_GOLDEN=1 cargo test --release -p \
         kernel-tests --test golden` and commit the result.",
        differences.join("\n  ")
    );
}

#[test]
fn a_change_of_text_is_named() {
    let old = BTreeMap::from([
        ("a.ptx".to_string(), "x\ny\n".to_string()),
        ("golden.lock".to_string(), "b 1\nc 2\n".to_string()),
        ("old.ptx".to_string(), String::new()),
    ]);
    let new = BTreeMap::from([
        ("a.ptx".to_string(), "x\nz\n".to_string()),
        ("golden.lock".to_string(), "b 1\nc 3\n".to_string()),
    ]);
    assert_eq!(
        differences(&new, &old),
        ["a.ptx differs from line 2 on", "changed or new: c 3", "changed or gone: c 2", "old.ptx is stale"]
    );
    assert!(differences(&new, &new).is_empty());
}
