//! What each package may use: the rules of CONTRIBUTING.md, "Where things are".

use std::fs;
use std::path::{Path, PathBuf};

/// What the package in `proto/` may depend on. None of these does I/O for it.
const PROTO_DEPENDENCIES: [&str; 8] =
    ["httparse", "itoa", "rand", "serde", "serde_json", "thiserror", "tungstenite", "zeroize"];
/// What its sources may not name: sockets, files, clocks, threads.
const PROTO_FORBIDDEN: [&str; 8] = [
    "std::net",
    "std::os",
    "std::fs",
    "std::thread",
    "std::sync::Mutex",
    "Instant::now",
    "SystemTime",
    "log::",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The part of a source file before its unit tests.
fn without_tests(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

#[test]
fn proto_does_no_io() {
    let manifest = fs::read_to_string(root().join("proto/Cargo.toml")).unwrap();
    let section = manifest.split("[dependencies]").nth(1).expect("dependencies");
    let section = section.split("\n[").next().unwrap();
    let names = section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
    assert_eq!(names.collect::<Vec<_>>(), PROTO_DEPENDENCIES);
    let files = sources(&root().join("proto/src"));
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        let text = without_tests(&file);
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            let found = PROTO_FORBIDDEN.iter().find(|forbidden| line.contains(*forbidden));
            assert!(found.is_none(), "{}: {line}", file.display());
        }
    }
}

#[test]
fn unsafe_code_stands_in_sys_and_capi_only_and_each_block_says_why_it_is_sound() {
    for file in sources(&root().join("src")).into_iter().chain(sources(&root().join("cli"))) {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe {") {
                continue;
            }
            let path = file.strip_prefix(root()).unwrap();
            let allowed = path.starts_with("src/sys") || path.starts_with("src/capi");
            assert!(allowed, "{}:{}: unsafe", path.display(), number + 1);
            let before = &lines[number.saturating_sub(6)..number];
            let why = before.iter().any(|line| line.contains("SAFETY:"));
            assert!(why, "{}:{}: no SAFETY line", path.display(), number + 1);
        }
    }
}
