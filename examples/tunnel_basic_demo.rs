//! The remote-login process in Rust, with the five steps of the Link SDK's demo.
//!
//! ```text
//! tunnel_basic_demo [SERVICE_PORT [CA_FILE [QUEUE_KEY]]]
//! ```
//! Defaults: port 22 and queue key 1234, as in the SDK's demo. Without a CA file, the cloud is
//! verified against the system's root certificates. SIGINT and SIGTERM stop the process.

use std::error::Error;
use std::process::ExitCode;

use aiot_tunnel::ipc::{ListenOptions, Listener, DEFAULT_KEY};
use aiot_tunnel::{Manager, Port, Security, Service, TlsConfig};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.len() > 3 || arguments.iter().any(|a| a.starts_with('-')) {
        eprintln!("usage: tunnel_basic_demo [SERVICE_PORT [CA_FILE [QUEUE_KEY]]]");
        return ExitCode::from(2);
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tunnel_basic_demo: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let filter = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(filter).init();
    let port: Port = arguments.first().map_or("22", String::as_str).parse()?;
    let mut tls = TlsConfig::new();
    if let Some(file) = arguments.get(1) {
        let pem = std::fs::read(file).map_err(|e| format!("CA file {file}: {e}"))?;
        tls = tls.with_ca_pem(&pem)?;
    }
    let key = arguments.get(2).map_or(Ok(DEFAULT_KEY), |key| key.parse())?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;

    // Steps 1 and 2: create and configure a manager.
    let manager = Manager::builder()
        .security(Security::Tls(tls))
        .service(Service::new("_SSH", "127.0.0.1", port)?)
        .on_event(|_, event| println!("event {event}"))
        .build()?;
    let handle = manager.handle();

    // Step 3: run the start thread.
    let start_thread = std::thread::spawn(move || manager.run());

    // Steps 4 and 5: the listen thread receives the business process's messages and calls add,
    // delete and update.
    let listener = Listener::start(handle.clone(), ListenOptions::new().with_key(key));
    if listener.is_ok() {
        println!("listening on message queue {key}");
        signals.forever().next();
    }

    handle.stop();
    start_thread.join().map_err(|_| "the start thread panicked")??;
    listener?.stop();
    Ok(())
}
