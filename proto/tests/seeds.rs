//! Every seed of the fuzz targets that enter here holds. The library's own targets, `ipc_message` and
//! `c_options`, have theirs in the tests of these names.

use std::fs;
use std::path::{Path, PathBuf};

use aiot_tunnel_models::{
    access, frame, gateway, handshake, of_bytes, proxies, relay, simulator, websocket, Sequence,
};

fn relay_life(bytes: &[u8]) {
    let Sequence(operations) = Sequence::from(bytes);
    relay::World::run(&operations);
}

fn gateway_life(bytes: &[u8]) {
    let Sequence(steps) = Sequence::from(bytes);
    gateway::World::run(&steps);
}

fn access_life(bytes: &[u8]) {
    access::run(&of_bytes(bytes));
}

fn streams(bytes: &[u8]) {
    simulator::World::run_plan(of_bytes(bytes));
}

fn gateway_handshake(bytes: &[u8]) {
    handshake::request(&handshake::request_head(bytes));
}

type Property = fn(&[u8]);
const TARGETS: [(&str, Property); 9] = [
    ("frame", frame::check),
    ("websocket", websocket::check),
    ("answer", handshake::answer),
    ("relay", relay_life),
    ("gateway_handshake", gateway_handshake),
    ("gateway_frames", gateway_life),
    ("access", access_life),
    ("streams", streams),
    ("proxies", proxies::check),
];
const OF_THE_LIBRARY: [&str; 2] = ["ipc_message", "c_options"];

fn names(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> =
        files.map(|file| file.path().file_stem().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

#[test]
fn every_seed_of_the_fuzz_targets_holds() {
    for (target, property) in TARGETS {
        let folder = fuzz().join("seeds").join(target);
        assert!(!names(&folder).is_empty(), "{target} has no seeds");
        for file in fs::read_dir(folder).unwrap().flatten() {
            println!("{}", file.path().display());
            property(&fs::read(file.path()).unwrap());
        }
    }
}

#[test]
fn every_fuzz_target_has_a_folder_of_seeds_and_a_test_that_reads_it() {
    let mut known: Vec<_> = TARGETS.iter().map(|(name, _)| *name).chain(OF_THE_LIBRARY).collect();
    known.sort();
    assert_eq!(names(&fuzz().join("seeds")), known);
    assert_eq!(names(&fuzz().join("fuzz_targets")), known);
}
