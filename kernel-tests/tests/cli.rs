//! The command line of the harness: what it writes, and that every wrong request is one clear line and status 2.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn harness(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_harness")).args(arguments).output().expect("the harness was built for this test")
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
