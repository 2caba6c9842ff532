//! The messages to devices: the broker of `--notify`.

use aiot_tunnel_registry::new_token;
use aiot_tunnel_signal::{Broker, Credentials, Platform, Times, Tls};

use crate::cli::GatewayArgs;
use crate::input;
use crate::settings::Settings;
use crate::{warnings, Result, Usage};

/// Where the broker is, and how to sign in.
pub(super) struct Notify(Broker, Credentials);

impl Notify {
    /// Reads the settings and their files.
    pub(super) fn of(args: &GatewayArgs, settings: &Settings) -> Result<Option<Self>> {
        let Some(url) = &args.notify else { return Ok(None) };
        let broker: Broker = url.as_str().parse().map_err(|e| {
            let hint = match url.as_str().contains('@') {
                true => "; user and password have options of their own",
                false => "",
            };
            settings.wrong("notify", format_args!("{e}{hint}"))
        })?;
        // A device cannot connect to any address.
        if args.public_url.is_none() && args.listen.ip().is_unspecified() {
            return Err(Usage::of(
                "--notify needs --public-url URL: devices are told to connect there",
            )
            .into());
        }
        let broker = with_tls(args, settings, broker)?;
        // The broker ends the older of two connections with one client id.
        let id = format!("aiot-tunnel-gateway-{}", &new_token()[..12]);
        let credentials = match (&args.notify_user, &args.notify_password_file) {
            (Some(user), Some(path)) => {
                let wrong = |e| settings.wrong("notify-password-file", e);
                Credentials::password(&id, user, &input::secret_line(path).map_err(wrong)?)
            }
            _ => Credentials::anonymous(&id),
        };
        Ok(Some(Notify(broker, credentials.map_err(Usage::of)?)))
    }

    /// Begins to connect.
    pub(super) fn start(self) -> Result<Platform> {
        Ok(Platform::start(self.0, self.1, Times::default())?)
    }
}

fn with_tls(args: &GatewayArgs, settings: &Settings, broker: Broker) -> Result<Broker> {
    if !broker.is_tls() {
        if args.notify_ca.is_some() {
            return Err(settings.wrong("notify-ca", "needs a broker with mqtts://").into());
        }
        warnings::about_plain_text(broker.host(), "--notify");
        return Ok(broker);
    }
    let Some(path) = &args.notify_ca else { return Ok(broker) };
    let pem = input::read(path).map_err(|e| settings.wrong("notify-ca", e))?;
    let tls = Tls::new().with_ca_pem(&pem);
    let wrong = |e| settings.wrong("notify-ca", format_args!("{}: {e}", path.display()));
    Ok(broker.with_tls(tls.map_err(wrong)?)?)
}
