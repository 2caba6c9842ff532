//! A stream through a tunnel behaves as a TCP connection does, whatever happens on the way: it ends
//! in order only where every byte has arrived, and it lasts for as long as both ends want it.
//!
//! All programs are real ones: `gateway`, `agent`, `send`, `access --listen` and `access --stdio`.
//! Where a test needs shorter times than the programs have, gateway and device run in the test. A
//! foreign end is a raw WebSocket that knows the platform's protocol and no extension.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel::gateway::Gateway;
use aiot_tunnel::{EventKind, Limits};
use aiot_tunnel_testkit::certificates::Identity;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::frame;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::path::{Access, Agent, Kind, Line, Path, Program, TUNNEL};
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::sockets::reset_on_close;
use aiot_tunnel_testkit::streams::{
    self, content, limited, round_trip, writing, Door, End, Reader,
};
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait;
use aiot_tunnel_testkit::{gateways, ACCESS_TOKEN};
use serde_json::json;

/// The service that is a [`Door`].
const SERVICE: &str = Line::SERVICE;
/// So much of a stream has arrived when it is cut. More is on its way.
const PART: usize = 300_000;
/// A service answers so long after the request has ended: longer than the programs need to pass
/// that end on.
const ANSWER_DELAY: Duration = Duration::from_millis(500);
/// A session that nothing holds up answers a byte within this time, on a busy machine as well.
const PROMPT: Duration = Duration::from_secs(2);

/// Each promise where both ends speak the extensions or where it does not matter.
macro_rules! plain_and_tls {
    ($($promise:ident)*) => {
        mod plain {
            $(#[test] fn $promise() { super::$promise(super::Kind::PLAIN); })*
        }
        mod tls {
            $(#[test] fn $promise() { super::$promise(super::Kind::TLS); })*
        }
    };
}

/// Each promise over each kind of path.
macro_rules! over_every_path {
    ($($promise:ident)*) => {
        plain_and_tls! { $($promise)* }
        mod without_extensions {
            $(#[test] fn $promise() { super::$promise(super::Kind::WITHOUT_EXTENSIONS); })*
        }
    };
}

mod cuts;
mod extensions;
mod foreign;
mod half_close;
mod queue;
mod refusals;
mod resets;
mod slow;
mod tunnels;
