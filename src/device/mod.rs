//! The device side: the start thread ([`manager`]) with its table of tunnels, and a worker for each
//! ([`worker`]), which owns one connection and its sessions.

mod control;
mod log;
pub(crate) mod manager;
mod poll;
mod retry;
pub(crate) mod worker;
