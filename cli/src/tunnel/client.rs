//! A client of the gateway's API: one request, one answer.

use std::io;
use std::path::Path;
use std::time::Duration;

use aiot_tunnel::Token;
use serde_json::Value;
use ureq::http::{HeaderValue, Request};
use ureq::tls::{parse_pem, PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::Agent;
use zeroize::Zeroizing;

use crate::exit_codes::{self, Failure};
use crate::{input, Result, Usage};

/// Time for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a request and its answer. A gateway that slows down wrong keys takes some seconds.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer, in bytes: some hundred thousand tunnels.
const MAX_ANSWER: u64 = 256 * 1024 * 1024;

/// An API that can be asked.
pub(super) struct Client {
    agent: Agent,
    /// Without a slash at the end.
    url: String,
    key: Token,
}

impl Client {
    pub(super) fn new(url: &str, ca: Option<&Path>, key: Token) -> Result<Self> {
        let wrong =
            || Usage::of(format_args!("--api: {url:?} is no URL such as http://127.0.0.1:8444"));
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let as_tunnel = match scheme {
            "http" => format!("ws://{authority}"),
            "https" => format!("wss://{authority}"),
            _ => return Err(wrong().into()),
        };
        if authority.contains(['/', '?', '#', '@']) {
            return Err(wrong().into());
        }
        let parts = input::split_url(&as_tunnel).map_err(|_| wrong())?;
        let roots = match ca {
            None => RootCerts::PlatformVerifier,
            Some(path) => certificates(path).map_err(|e| Usage::of(format_args!("--ca: {e}")))?,
        };
        let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(roots).build();
        let agent = Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            // The key is for this gateway only, and its API is rarely behind a proxy.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .tls_config(tls)
            .build();
        let url = format!("{scheme}://{}:{}", parts.host, parts.port.get());
        Ok(Client { agent: agent.into(), url, key })
    }

    /// Asks, and returns the answer's body.
    ///
    /// # Errors
    /// One sentence: no answer, or the API's own error.
    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Zeroizing<String>> {
        let key = Zeroizing::new(format!("Bearer {}", self.key.expose()));
        let mut key = HeaderValue::from_str(&key)?;
        key.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("Authorization", key)
            .header("Content-Type", "application/json")
            .body(body.map(Value::to_string).unwrap_or_default())?;
        let mut answer = self.agent.run(request).map_err(|e| self.failure(&e))?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_string();
        let body = Zeroizing::new(body.map_err(|e| self.failure(&e))?);
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let error = serde_json::from_str::<Value>(&body).ok();
        let why = error.as_ref().and_then(|error| error["error"].as_str());
        let text = match why {
            Some(why) => format!("the gateway refuses: {why}"),
            None => format!("the API answers with HTTP status {status}; is the URL a gateway's?"),
        };
        Err(Failure::new(exit_codes::of_api_status(status), text).into())
    }

    /// No answer came.
    fn failure(&self, e: &ureq::Error) -> Failure {
        let text = e.to_string();
        let (status, why) = match e {
            ureq::Error::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                (exit_codes::UNREACHABLE, format!("{e}; does the gateway run, and with --api?"))
            }
            ureq::Error::HostNotFound => {
                (exit_codes::UNREACHABLE, "the name has no address; check it".to_owned())
            }
            ureq::Error::Timeout(_) => {
                (exit_codes::UNREACHABLE, "it does not answer in time".to_owned())
            }
            // A server with TLS takes a plain request for a broken handshake.
            ureq::Error::Io(e) if self.is_plain() && is_loss(e) => {
                (exit_codes::UNREACHABLE, self.expects_tls(&text))
            }
            ureq::Error::Protocol(_) if self.is_plain() => {
                (exit_codes::UNREACHABLE, self.expects_tls(&text))
            }
            _ if text.contains("certificate verify failed") => (
                exit_codes::UNTRUSTED,
                format!("its certificate is not trusted; name its CA with --ca [{text}]"),
            ),
            // OpenSSL takes the first bytes of an HTTP answer for the version of TLS.
            _ if text.contains("wrong version number") => {
                let plain = self.url.replacen("https://", "http://", 1);
                let why = format!(
                    "it is without TLS; write {plain}, or start the gateway with --api-tls [{text}]"
                );
                (exit_codes::UNTRUSTED, why)
            }
            _ if text.contains("SSL") || text.contains("TLS") => (
                exit_codes::UNTRUSTED,
                format!("TLS fails; check that the API of a gateway is there [{text}]"),
            ),
            _ => (exit_codes::UNREACHABLE, text),
        };
        Failure::new(status, format_args!("the gateway's API at {}: {why}", self.url))
    }

    fn is_plain(&self) -> bool {
        self.url.starts_with("http://")
    }

    fn expects_tls(&self, text: &str) -> String {
        let secure = self.url.replacen("http://", "https://", 1);
        format!("it gives no HTTP answer; if it has TLS (--api-tls), write {secure} [{text}]")
    }
}

/// Whether the other end has closed the connection.
fn is_loss(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// The certificates of a PEM file.
fn certificates(path: &Path) -> Result<RootCerts> {
    let wrong = |why: &dyn std::fmt::Display| {
        format!("{}: {why}; {}", path.display(), input::NO_CERTIFICATE)
    };
    let text = input::read(path)?;
    let mut roots = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| wrong(&e))? {
            roots.push(certificate);
        }
    }
    if roots.is_empty() {
        return Err(wrong(&"there is no certificate in it").into());
    }
    Ok(RootCerts::from(roots))
}
