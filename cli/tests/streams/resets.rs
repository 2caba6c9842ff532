//! What a service or a client cuts itself is cut at the other end, too.

use super::*;

const MIB: usize = 1 << 20;

fn a_service_that_resets_after_a_mebibyte_is_seen_to_reset(kind: Kind) {
    let line = Line::new(kind);
    let (_access, client, service) = line.session();
    streams::write(&service, 0, MIB);
    let mut client = Reader::new(client);
    client.read_up_to(MIB / 2);
    reset_on_close(&service);
    drop(service);
    assert_eq!(client.read_to_end(), End::Reset, "after {}", client.taken);
}

fn a_service_that_resets_fails_stdio(kind: Kind) {
    let line = Line::new(kind);
    let mut access = line.path.stdio(SERVICE);
    let _stdin = access.process.take_stdin();
    let service = line.door.accept();
    streams::write(&service, 0, PART);
    let mut stdout = Reader::new(access.process.take_stdout());
    stdout.read_up_to(PART);
    reset_on_close(&service);
    drop(service);
    stdout.read_to_end();
    access.fails_as(16);
}

fn a_client_that_resets_is_seen_to_reset(kind: Kind) {
    let line = Line::new(kind);
    let (_access, client, service) = line.session();
    streams::write(&client, 0, PART);
    let mut service = Reader::new(service);
    service.read_up_to(PART);
    reset_on_close(&client);
    drop(client);
    assert_eq!(service.read_to_end(), End::Reset);
}

over_every_path! {
    a_service_that_resets_after_a_mebibyte_is_seen_to_reset
    a_service_that_resets_fails_stdio
    a_client_that_resets_is_seen_to_reset
}
