//! Entrances for the fuzz targets (`fuzz/`): each reads bytes as a hostile peer or caller may
//! send them and panics where a promise is broken. Compiled for tests and with `--cfg fuzzing` only.

/// Bytes as one tunnel frame.
pub fn frame(data: &[u8]) {
    crate::cloud::property::frame(data);
}

/// Bytes as WebSocket messages, however they are cut.
pub fn websocket(data: &[u8]) {
    crate::cloud::property::websocket(data);
}

/// Bytes as the cloud's answer to the opening handshake.
pub fn answer(data: &[u8]) {
    crate::cloud::property::answer(data);
}

/// Bytes as a sequence of events at a relay.
pub fn relay(data: &[u8]) {
    crate::worker::property::relay(data);
}

/// Bytes as what a C caller passes.
pub fn c_options(data: &[u8]) {
    crate::capi::property::options(data);
}

/// Bytes as an upgrade request at the gateway.
#[cfg(feature = "gateway")]
pub fn gateway_handshake(data: &[u8]) {
    crate::gateway::property::handshake(data);
}

/// Bytes as the life of one of the gateway's tunnels.
#[cfg(feature = "gateway")]
pub fn gateway_frames(data: &[u8]) {
    crate::gateway::property::frames(data);
}

#[cfg(all(test, feature = "gateway"))]
mod tests {
    use std::fs;
    use std::path::Path;

    #[test]
    fn every_seed_of_the_fuzz_targets_holds() {
        type Property = fn(&[u8]);
        let targets: [(&str, Property); 7] = [
            ("frame", super::frame),
            ("websocket", super::websocket),
            ("answer", super::answer),
            ("relay", super::relay),
            ("c_options", super::c_options),
            ("gateway_handshake", super::gateway_handshake),
            ("gateway_frames", super::gateway_frames),
        ];
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        // The seeds of `ipc_message` are those of tests/ipc_message.
        let folders = fs::read_dir(&seeds).unwrap().count();
        assert_eq!(folders, targets.len() + 1, "a target for each folder");
        for (name, property) in targets {
            let files: Vec<_> = fs::read_dir(seeds.join(name)).unwrap().flatten().collect();
            assert!(!files.is_empty(), "{name} has no seeds");
            for file in files {
                println!("{}", file.path().display());
                property(&fs::read(file.path()).unwrap());
            }
        }
    }
}
