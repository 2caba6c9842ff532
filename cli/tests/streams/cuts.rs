//! A stream is cut: it is a reset at both ends.

use super::*;

/// The ways in which a stream is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    GatewayKilled,
    GatewayStopped,
    AgentKilled,
    AgentStopped,
    AccessKilled,
    AccessStopped,
    Deleted,
    Updated,
}

impl Way {
    fn cut(self, line: &mut Line, access: &mut Program) {
        match self {
            Way::GatewayKilled => line.path.gateway.process.kill(),
            Way::GatewayStopped => line.path.gateway.process.terminate(),
            Way::AgentKilled => line.agent.program.process.kill(),
            Way::AgentStopped => line.agent.program.process.terminate(),
            Way::AccessKilled => access.process.kill(),
            Way::AccessStopped => access.process.terminate(),
            Way::Deleted => line.agent.send("delete", None),
            Way::Updated => line.path.update(&line.agent),
        }
    }

    /// The exit status of `access --stdio` after it.
    fn status(self) -> i32 {
        match self {
            Way::GatewayKilled => 16,
            Way::AgentKilled | Way::AgentStopped | Way::Deleted | Way::Updated => 17,
            Way::GatewayStopped => 18,
            Way::AccessKilled | Way::AccessStopped => 1,
        }
    }
}

fn an_upload_is_reset_at_both_ends(way: Way, kind: Kind) {
    let mut line = Line::new(kind);
    let (mut access, client, service) = line.session();
    let uploading = writing(client);
    let mut service = Reader::new(service);
    service.read_up_to(PART);
    way.cut(&mut line, &mut access.program);
    assert_eq!(service.read_to_end(), End::Reset, "at the service, after {}", service.taken);
    assert_eq!(uploading.join().unwrap(), End::Reset, "at the client");
}

fn a_download_is_reset_at_both_ends(way: Way, kind: Kind) {
    let mut line = Line::new(kind);
    let (mut access, client, service) = line.session();
    let downloading = writing(service);
    let mut client = Reader::new(client);
    client.read_up_to(PART);
    way.cut(&mut line, &mut access.program);
    assert_eq!(client.read_to_end(), End::Reset, "at the client, after {}", client.taken);
    assert_eq!(downloading.join().unwrap(), End::Reset, "at the service");
}

fn a_quiet_session_is_reset_at_both_ends(way: Way, kind: Kind) {
    let mut line = Line::new(kind);
    let (mut access, mut client, service) = line.session();
    streams::write(&mut client, 0, 5);
    let (mut client, mut service) = (Reader::new(client), Reader::new(service));
    service.read_up_to(5);
    way.cut(&mut line, &mut access.program);
    assert_eq!(service.read_to_end(), End::Reset, "at the service");
    assert_eq!(client.read_to_end(), End::Reset, "at the client");
}

fn stdio_fails_and_its_service_is_reset(way: Way, kind: Kind) {
    let mut line = Line::new(kind);
    let mut access = line.path.stdio(SERVICE);
    let stdin = access.process.take_stdin();
    let mut stdout = Reader::new(access.process.take_stdout());
    let service = line.door.accept();
    let downloading = writing(service.try_clone().unwrap());
    stdout.read_up_to(PART);
    streams::write(&stdin, 0, PART);
    let mut service = Reader::new(service);
    service.read_up_to(PART);
    way.cut(&mut line, &mut access);
    stdout.read_to_end();
    if way == Way::AccessKilled {
        access.finish();
    } else {
        access.fails_as(way.status());
    }
    // The error is for the first of the two that asks for it.
    let ends = [downloading.join().unwrap(), service.read_to_end()];
    assert!(ends.contains(&End::Reset), "at the service: {ends:?}");
}

macro_rules! cut_in_every_way {
    ($($way:ident: $value:ident,)*) => {
        $(mod $way {
            use super::{Kind, Way};
            cut_in_every_way!(@promises $value:
                an_upload_is_reset_at_both_ends
                a_download_is_reset_at_both_ends
                a_quiet_session_is_reset_at_both_ends
                stdio_fails_and_its_service_is_reset
            );
            over_every_path! {
                an_upload_is_reset_at_both_ends
                a_download_is_reset_at_both_ends
                a_quiet_session_is_reset_at_both_ends
                stdio_fails_and_its_service_is_reset
            }
        })*
    };
    (@promises $value:ident: $($promise:ident)*) => {
        $(fn $promise(kind: Kind) { super::$promise(Way::$value, kind); })*
    };
}

cut_in_every_way! {
    the_gateway_is_killed: GatewayKilled,
    the_gateway_is_stopped: GatewayStopped,
    the_agent_is_killed: AgentKilled,
    the_agent_is_stopped: AgentStopped,
    the_access_side_is_killed: AccessKilled,
    the_access_side_is_stopped: AccessStopped,
    the_tunnel_is_deleted: Deleted,
    the_tunnel_is_updated: Updated,
}
