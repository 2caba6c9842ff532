//! The business process's half of a secure tunnel. The platform tells a device over MQTT which tunnels
//! to open and close. This library receives these messages, checks them, and hands them to the
//! remote-login process (the agent).
//!
//! [`Signal`] is the place to begin:
//!
//! ```no_run
//! use aiot_tunnel_signal::{Broker, Credentials, Device, Options, Queue, Signal};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::new("a1pk", "device-1")?;
//! let broker = Broker::region(&device, "cn-shanghai")?;
//! let secret = std::fs::read_to_string("/etc/aiot-tunnel/device.secret")?;
//! let credentials = Credentials::from_device_secret(&device, secret.trim(), broker.is_tls())?;
//! let options = Options::new(device, broker, credentials);
//! let signal = Signal::start(options, Queue::default())?;
//! // Two threads do the work from now on.
//! signal.handle().ask();
//! # signal.stop();
//! # Ok(())
//! # }
//! ```
//!
//! # Threads
//!
//! The interface blocks nowhere and has no `async`. The MQTT client needs an asynchronous runtime; it
//! runs on one thread of this library and is not visible outside.
//!
//! | thread | what it does |
//! | --- | --- |
//! | `aiot-signal-mqtt` | connects to the broker, again and again; checks messages |
//! | `aiot-signal-agent` | hands commands to the agent; waits for it when it is away |
//!
//! [`Platform`] is the other end, for a gateway that stands in for the platform. It has one thread,
//! `aiot-notify`.
//!
//! Nothing is written to disk. A token is in memory only.
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations, missing_docs)]

mod asking;
mod broker;
mod client;
mod device;
mod error;
mod explain;
mod hand_over;
mod ledger;
mod message;
mod platform;
mod retry;
mod sign_in;
mod signal;
mod text;

pub use broker::{Broker, Tls};
pub use device::Device;
pub use error::{Error, Result};
pub use hand_over::{HandOver, NotHandedOver, Queue};
pub use message::{Message, Rejected, Reply};
pub use platform::{ConnectionData, Notice, Platform, Sent};
pub use sign_in::Credentials;
pub use signal::{Handle, Options, Signal, Times};
