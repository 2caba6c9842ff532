//! The IPC message, whatever its bytes are.

mod property;

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use property::{property, FIELD};

proptest! {
    #[test]
    fn any_message_is_read_or_refused(
        operation in 0u8..4,
        data in proptest::collection::vec(any::<u8>(), 640),
        texts in proptest::collection::vec("[!-~]{0,127}", 5),
    ) {
        let mut body = vec![operation, 0, 0, 0];
        body.extend(&data);
        property(&body);
        body.truncate(4);
        for text in texts {
            let mut field = text.into_bytes();
            field.resize(FIELD, 0);
            body.extend(field);
        }
        property(&body);
        body[4 + 2 * FIELD..][..6].copy_from_slice(b"65535\0");
        property(&body);
    }
}

#[test]
fn every_seed_of_the_fuzz_target_holds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/ipc_message");
    let files: Vec<_> = fs::read_dir(seeds).unwrap().flatten().collect();
    assert!(!files.is_empty());
    for file in files {
        property(&fs::read(file.path()).unwrap());
    }
}
