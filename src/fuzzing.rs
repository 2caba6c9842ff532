//! Entrances for the fuzz targets (`fuzz/`): each reads bytes as a hostile peer or caller may
//! send them and panics where a promise is broken. Compiled with `--cfg fuzzing` only; the same
//! properties run as tests of the crate.

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

/// Bytes as a message of the IPC queue.
pub fn ipc_message(data: &[u8]) {
    crate::listen::property(data);
}

/// Bytes as what a C caller passes.
pub fn c_options(data: &[u8]) {
    crate::capi::property::options(data);
}
