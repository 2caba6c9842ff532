//! The device side: the start thread with the table of tunnels ([`manager`]), and a worker for each
//! tunnel ([`worker`]). A worker owns one connection and its sessions.

mod control;
mod log;
pub(crate) mod manager;
mod options;
mod poll;
mod retry;
pub(crate) mod subscribers;
pub(crate) mod worker;
