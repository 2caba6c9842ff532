//! A client of the gateway's API: one request, one answer.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use aiot_tunnel::Token;
use openssl::ssl::{SslConnector, SslMethod};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::X509;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{input, Result};

/// Time for the connection, and for each read and write. A gateway that is slowing down wrong keys
/// may take so long.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer, in bytes: some hundred thousand tunnels.
const MAX_ANSWER: u64 = 256 * 1024 * 1024;

/// An API that can be asked.
pub(super) struct Client {
    is_secure: bool,
    /// As the URL has it.
    authority: String,
    host: String,
    port: u16,
    key: Token,
    tls: SslConnector,
}

impl Client {
    pub(super) fn new(url: &str, ca: Option<&Path>, key: Token) -> Result<Self> {
        let wrong = || format!("{url:?} is no URL such as http://127.0.0.1:8444");
        let (is_secure, rest) = match url.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(wrong().into()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(wrong().into());
        }
        let as_tunnel = format!("{}://{authority}", if is_secure { "wss" } else { "ws" });
        let parts = input::split_url(&as_tunnel).map_err(|_| wrong())?;
        let mut tls = SslConnector::builder(SslMethod::tls_client())?;
        if let Some(path) = ca {
            let mut store = X509StoreBuilder::new()?;
            let wrong = |e: openssl::error::ErrorStack| format!("{}: {e}", path.display());
            for certificate in X509::stack_from_pem(&input::read(path)?).map_err(wrong)? {
                store.add_cert(certificate)?;
            }
            tls.set_cert_store(store.build());
        }
        Ok(Client {
            is_secure,
            authority: authority.to_owned(),
            host: parts.host.trim_matches(['[', ']']).to_owned(),
            port: parts.port.get(),
            key,
            tls: tls.build(),
        })
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
        let (status, body) = self.exchange(method, path, body).map_err(|e| {
            let scheme = if self.is_secure { "https" } else { "http" };
            format!("the gateway's API at {scheme}://{}: {e}", self.authority)
        })?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let error = serde_json::from_str::<Value>(&body).ok();
        let why = error.as_ref().and_then(|error| error["error"].as_str());
        Err(match why {
            Some(why) => format!("the gateway refuses: {why}"),
            None => format!("the API answers with HTTP status {status}; is the URL a gateway's?"),
        }
        .into())
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Zeroizing<String>)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let (authority, key) = (&self.authority, Zeroizing::new(self.key.expose().to_owned()));
        let request = Zeroizing::new(format!(
            "{method} {path} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            *key,
            body.len()
        ));
        let tcp = self.connect()?;
        let answer = match self.is_secure {
            false => converse(tcp, request.as_bytes())?,
            true => {
                let stream = self.tls.connect(&self.host, tcp).map_err(explain_tls)?;
                converse(stream, request.as_bytes())?
            }
        };
        parse(answer)
    }

    fn connect(&self) -> Result<TcpStream> {
        let addresses = (&*self.host, self.port).to_socket_addrs()?;
        let mut last = io::Error::other("the name has no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, TIMEOUT) {
                Ok(tcp) => {
                    tcp.set_read_timeout(Some(TIMEOUT))?;
                    tcp.set_write_timeout(Some(TIMEOUT))?;
                    return Ok(tcp);
                }
                Err(e) => last = e,
            }
        }
        Err(match last.kind() {
            io::ErrorKind::ConnectionRefused => {
                format!("{last}; does the gateway run, and with --api?").into()
            }
            _ => last.into(),
        })
    }
}

fn explain_tls(e: openssl::ssl::HandshakeError<TcpStream>) -> String {
    use openssl::ssl::HandshakeError::{Failure, SetupFailure, WouldBlock};
    match e {
        Failure(stream) => {
            let verdict = stream.ssl().verify_result();
            match verdict == openssl::x509::X509VerifyResult::OK {
                false => {
                    format!("its certificate is not trusted: {verdict}; name its CA with --ca")
                }
                true => format!("TLS: {}", stream.error()),
            }
        }
        WouldBlock(_) => "the TLS handshake took too long".to_owned(),
        SetupFailure(e) => e.to_string(),
    }
}

fn converse(mut stream: impl Read + Write, request: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
    stream.write_all(request)?;
    let mut answer = Zeroizing::new(Vec::new());
    let until = Instant::now() + 2 * TIMEOUT;
    let mut chunk = Zeroizing::new(vec![0; 16 * 1024]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(&chunk[..length]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // What was received tells whether it is whole.
            Err(_) if is_whole(&answer) => return Ok(answer),
            Err(e) => return Err(e),
        }
        if is_whole(&answer) {
            return Ok(answer);
        }
        if answer.len() as u64 > MAX_ANSWER || Instant::now() > until {
            return Err(io::Error::other("the answer does not end"));
        }
    }
}

/// Where the body begins, and how long it is.
fn body_of(answer: &[u8]) -> Option<(usize, usize)> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&answer[..head]).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    Some((head, length.map_or(Some(0), |(_, value)| value.trim().parse().ok())?))
}

fn is_whole(answer: &[u8]) -> bool {
    body_of(answer).is_some_and(|(head, length)| answer.len().saturating_sub(head) >= length)
}

fn parse(answer: Zeroizing<Vec<u8>>) -> Result<(u16, Zeroizing<String>)> {
    let whole = body_of(&answer).filter(|_| is_whole(&answer));
    let (head, length) = whole.ok_or("the answer is no HTTP, or is cut off")?;
    let status = std::str::from_utf8(&answer[..head])?
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok());
    let body = std::str::from_utf8(&answer[head..head + length])?;
    Ok((status.ok_or("the answer is no HTTP")?, Zeroizing::new(body.to_owned())))
}
