//! What holds for any bytes that reach the library from outside the network. A test feeds each function
//! random bytes and the seeds of the fuzz target of the same name, which feeds it what a fuzzer finds.
//! (The models of `proto/tests/models` do the same for bytes from the network.)

pub mod c_options;
pub mod ipc_message;

use std::fs;
use std::path::Path;

/// The seeds of a fuzz target: file names and bytes.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let files = fs::read_dir(folder).unwrap().flatten();
    let seeds: Vec<_> = files
        .map(|file| (file.file_name().to_string_lossy().into(), fs::read(file.path()).unwrap()))
        .collect();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds
}
