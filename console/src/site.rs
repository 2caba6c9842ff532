//! Which request gets which page, and who may see it.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use aiot_tunnel::TunnelId;
use aiot_tunnel_registry::api::{decoded, wrong_seconds};
use aiot_tunnel_registry::http::{Answer, Client, Content, Head, Site, Upgrade};
use aiot_tunnel_registry::{new_token, Api, Door, Error, Registry, Sides, MAX_EXPIRE};
use aiot_tunnel_signal::Device;
use maud::Markup;
use tokio_tungstenite::tungstenite::{self, handshake::server::create_response};

use crate::assets;
use crate::events::Events;
use crate::form::{cookie, is_from_own_page, Fields};
use crate::login::{Login, Logins, LONGEST};
use crate::pages;
use crate::rates::{Rates, PERIOD};
use crate::terminal::{LoginName, Request, Terminals};

/// What a browser may do with a page: load our own parts, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const NOT_OURS: &str =
    "The request does not come from a page of this gateway. A proxy in front of it must \
                        pass the Host header on as it is.";

/// The name of the terminal's protocol. A browser sends it and the key of the login's forms.
const PROTOCOL: &str = "terminal";

/// What the page begins with.
#[derive(Debug)]
pub struct Options {
    /// The tunnels.
    pub registry: Arc<Registry>,
    /// The key that opens API and page.
    pub door: Arc<Door>,
    /// Where the gateway reports what happens.
    pub events: Arc<Events>,
    /// The terminals in the browser, if they are switched on.
    pub terminals: Option<Terminals>,
}

/// The API and the page.
#[derive(Debug)]
pub struct Console {
    api: Api,
    door: Arc<Door>,
    pub(crate) registry: Arc<Registry>,
    logins: Logins,
    pub(crate) events: Arc<Events>,
    pub(crate) rates: Rates,
    terminals: Option<Terminals>,
}

/// What a path stands for.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Home,
    Login,
    Logout,
    Create,
    View(String),
    Rotate(String),
    Remove(String),
    ForgetHostKey(String),
    /// The page with the terminal,
    TerminalPage(String),
    /// and its WebSocket.
    Terminal(String),
    Asset(String),
}

impl Place {
    /// `None`: there is no such path.
    fn of(path: &str) -> Option<Self> {
        let id = |part: &str| decoded(part).filter(|id| !id.is_empty());
        match path.split('/').collect::<Vec<_>>()[..] {
            ["", ""] => Some(Place::Home),
            ["", "login"] => Some(Place::Login),
            ["", "logout"] => Some(Place::Logout),
            ["", "create"] => Some(Place::Create),
            ["", "view", part] => id(part).map(Place::View),
            ["", "view", part, "rotate"] => id(part).map(Place::Rotate),
            ["", "view", part, "remove"] => id(part).map(Place::Remove),
            ["", "view", part, "forget-host-key"] => id(part).map(Place::ForgetHostKey),
            ["", "view", part, "terminal"] => id(part).map(Place::TerminalPage),
            ["", "terminal", part] => id(part).map(Place::Terminal),
            ["", "assets", name] => Some(Place::Asset(name.to_owned())),
            _ => None,
        }
    }

    /// How it is asked for.
    fn method(&self) -> &'static str {
        match self {
            Place::Home | Place::View(_) | Place::Asset(_) => "GET",
            Place::TerminalPage(_) | Place::Terminal(_) => "GET",
            Place::Login | Place::Logout | Place::Create => "POST",
            Place::Rotate(_) | Place::Remove(_) | Place::ForgetHostKey(_) => "POST",
        }
    }

    /// Whether it is there for those who have not logged in.
    fn is_public(&self) -> bool {
        matches!(self, Place::Home | Place::Login | Place::Asset(_))
    }
}

impl Console {
    /// The API and the page of a registry. Starts the thread that takes samples while somebody is
    /// logged in.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start(options: Options) -> std::io::Result<Arc<Self>> {
        let Options { registry, door, events, terminals } = options;
        let console = Arc::new(Console {
            api: Api::new(registry.clone(), door.clone()),
            door,
            registry,
            logins: Logins::new(),
            events,
            rates: Rates::default(),
            terminals,
        });
        let sampler = console.clone();
        thread::Builder::new().name("page".into()).spawn(move || loop {
            sampler.logins.wait_for_one();
            sampler.rates.sample(&sampler.registry.activities(), Instant::now());
            thread::sleep(PERIOD);
        })?;
        Ok(console)
    }

    /// The terminals, if they are switched on and a part of the program.
    pub(crate) fn terminals(&self) -> Option<&Terminals> {
        self.terminals.as_ref().filter(|_| assets::terminal().is_some())
    }

    /// The tunnel with this id, and the terminals.
    fn tunnel_and_terminals(&self, id: &str) -> Result<(TunnelId, &Terminals), Error> {
        let tunnel = self.registry.find(id)?.activity.id;
        let off = || Error::Unknown("this gateway has no terminal".to_owned());
        Ok((tunnel, self.terminals().ok_or_else(off)?))
    }

    fn login_of(&self, head: &Head<'_>) -> Option<Arc<Login>> {
        self.logins.find(cookie(head, &cookie_name(head))?)
    }

    /// What somebody sees who has not logged in.
    fn to_strangers(&self, head: &Head<'_>) -> Answer {
        match head.method {
            "GET" if !is_script(head) => to(pages::HOME),
            _ => page(401, &pages::login(Some("Your login has ended."))),
        }
    }

    fn log_in(&self, head: &Head<'_>, fields: &Fields) -> Answer {
        if !self.door.opens(head.from, fields.get("key")) {
            let why = "That is not the API key. It is in the file of the gateway's --api-key-file.";
            return page(401, &pages::login(Some(why)));
        }
        let (word, _) = self.logins.begin();
        self.say(head, "", "Somebody logged in");
        let longest = LONGEST.as_secs();
        to(pages::HOME).with("set-cookie", set_cookie(head, &word, longest))
    }

    fn log_out(&self, head: &Head<'_>) -> Answer {
        if let Some(word) = cookie(head, &cookie_name(head)) {
            self.logins.end(word);
        }
        self.say(head, "", "Somebody logged out");
        to(pages::HOME).with("set-cookie", set_cookie(head, "", 0))
    }

    /// Takes down who has done something by the page, in log and events.
    fn say(&self, head: &Head<'_>, tunnel: &str, what: &str) {
        log(head, tunnel, what);
        self.events.add(tunnel, format!("{what}, from {}", head.from), false);
    }

    fn show(&self, place: &Place, head: &Head<'_>, login: &Arc<Login>) -> Result<Answer, Error> {
        let query = Fields::of(head.query.unwrap_or_default().as_bytes());
        match place {
            Place::View(id) => {
                let tunnel = self.registry.find(id)?;
                Ok(page(200, &pages::tunnel(self, &tunnel, login)))
            }
            Place::TerminalPage(id) => {
                let (request, _) = self.terminal_request(id, &query, head)?;
                let nonce = new_token();
                let policy = POLICY
                    .replace("style-src 'self'", &format!("style-src 'self' 'nonce-{}'", *nonce));
                let markup = pages::terminal(id, &request.login, &nonce, login);
                Ok(html(200, &markup, policy))
            }
            Place::Terminal(id) => self.open_terminal(id, &query, head, login),
            _ => Ok(page(200, &pages::list(self, &query, login))),
        }
    }

    /// Whose terminal is to be opened.
    fn terminal_request(
        &self,
        id: &str,
        query: &Fields,
        head: &Head<'_>,
    ) -> Result<(Request, &Terminals), Error> {
        let (tunnel, terminals) = self.tunnel_and_terminals(id)?;
        let login = LoginName::new(query.get("login"));
        let login = login.map_err(|e| Error::Invalid(e.to_string()))?;
        Ok((Request { tunnel, login, client: head.from.to_string() }, terminals))
    }

    /// Takes the handshake of the terminal's WebSocket.
    fn open_terminal(
        &self,
        id: &str,
        query: &Fields,
        head: &Head<'_>,
        login: &Arc<Login>,
    ) -> Result<Answer, Error> {
        let (request, terminals) = self.terminal_request(id, query, head)?;
        let mut handshake = tungstenite::http::Request::new(());
        handshake.headers_mut().clone_from(head.headers());
        let accepted = create_response(&handshake);
        let accepted =
            accepted.map_err(|e| Error::Invalid(format!("a WebSocket is expected: {e}")))?;
        let mut protocols = head.header("sec-websocket-protocol").unwrap_or_default().split(',');
        let is_ours = protocols.next().is_some_and(|name| name.trim() == PROTOCOL)
            && protocols.next().is_some_and(|form_key| login.has_sent(form_key.trim()));
        if !is_ours || !is_from_own_page(head) {
            return Ok(page(403, &pages::error(NOT_OURS, Some(login))));
        }
        self.say(head, id, &format!("A terminal of {} was opened by the page", request.login));
        let (terminals, login) = (terminals.clone(), login.clone());
        let work = move |connection| async move {
            let used = || login.is_used();
            terminals.run(connection, request, login.ended(), used).await;
        };
        let mut answer = Answer::empty(101).with("sec-websocket-protocol", PROTOCOL);
        for name in ["connection", "upgrade", "sec-websocket-accept"] {
            let value = accepted.headers().get(name).and_then(|value| value.to_str().ok());
            answer = answer.with(name, value.unwrap_or_default());
        }
        answer.upgrade = Some(Upgrade::new(work));
        Ok(answer)
    }

    fn change(
        &self,
        place: &Place,
        head: &Head<'_>,
        login: &Login,
        fields: &Fields,
    ) -> Result<Answer, Error> {
        match place {
            Place::Create => {
                let id = Some(fields.get("id")).filter(|id| !id.is_empty());
                let issued = self.registry.add(id, expire(fields)?, device(fields)?)?;
                log(head, issued.id.as_str(), "The tunnel was made");
                Ok(page(200, &pages::issued(self, &issued, login)))
            }
            Place::Rotate(id) => {
                let sides = match fields.get("side") {
                    "device" => Sides::Device,
                    "access" => Sides::Access,
                    _ => Sides::Both,
                };
                let issued = self.registry.rotate(id, sides, expire(fields)?)?;
                log(head, id, "Tokens were replaced");
                Ok(page(200, &pages::issued(self, &issued, login)))
            }
            Place::Remove(id) => {
                if fields.get("sure") != "yes" {
                    let why = "Tick the box to remove the tunnel.".to_owned();
                    return Err(Error::Invalid(why));
                }
                self.registry.remove(id)?;
                log(head, id, "The tunnel was removed");
                Ok(to(pages::HOME))
            }
            Place::ForgetHostKey(id) => {
                let (tunnel, terminals) = self.tunnel_and_terminals(id)?;
                let failed = |e| Error::Store(format!("the file of the host key: {e}"));
                if terminals.forget_host_key(&tunnel).map_err(failed)? {
                    self.say(head, id, "The device's host key was forgotten");
                }
                Ok(to(pages::address_of(id)))
            }
            _ => Ok(to(pages::HOME)),
        }
    }
}

impl Site for Console {
    fn turn(&self, head: &Head<'_>) -> Result<Instant, Answer> {
        match Place::of(head.path) {
            Some(Place::Login) => self
                .door
                .turn(head.from)
                .map_err(|why| page(429, &pages::login(Some(why))).with("retry-after", "5")),
            Some(_) => Ok(Instant::now()),
            None => self.api.turn(head),
        }
    }

    fn admit(&self, head: &Head<'_>) -> Result<Client, Answer> {
        let Some(place) = Place::of(head.path) else {
            let is_browser = head.header("accept").is_some_and(|kinds| kinds.contains("text/html"));
            if is_browser && !Api::has(head.path) {
                return Err(page(404, &pages::error("There is no such page.", None)));
            }
            return self.api.admit(head);
        };
        let login = self.login_of(head);
        if login.is_none() && !place.is_public() {
            return Err(self.to_strangers(head));
        }
        if head.method != place.method() {
            // Somebody has typed the address of a form.
            return Err(match head.method {
                "GET" => to(pages::HOME),
                _ => page(405, &pages::error("This address takes no such request.", None))
                    .with("allow", place.method()),
            });
        }
        // A page of another site must not open ssh by leading the browser here.
        let comes = head.header("sec-fetch-site").unwrap_or("none");
        if let (Place::TerminalPage(id), "same-site" | "cross-site") = (&place, comes) {
            return Err(to(pages::address_of(id)));
        }
        if head.method == "POST" && !is_from_own_page(head) {
            return Err(page(403, &pages::error(NOT_OURS, None)));
        }
        match login {
            Some(login) => {
                if !is_script(head) && !matches!(place, Place::Asset(_)) {
                    login.is_used();
                }
                Ok(Client::Known)
            }
            None => Ok(Client::Stranger),
        }
    }

    fn answer(&self, head: &Head<'_>, body: &[u8]) -> Answer {
        let Some(place) = Place::of(head.path) else { return self.api.answer(head, body) };
        let fields = || Fields::of(body);
        let login = self.login_of(head);
        let login = match (&place, login) {
            (Place::Asset(name), _) => return asset(name),
            (Place::Login, _) => return self.log_in(head, &fields()),
            (Place::Home, None) if is_script(head) => return self.to_strangers(head),
            (Place::Home, None) => return page(200, &pages::login(None)),
            (_, None) => return self.to_strangers(head),
            (_, Some(login)) => login,
        };
        if place.method() == "GET" {
            return self.show(&place, head, &login).unwrap_or_else(|e| refusal(&e, &login));
        }
        let fields = fields();
        if !login.has_sent(fields.get("form_key")) {
            let why = "The form is not one of your present login. Open the page again.";
            return page(403, &pages::error(why, Some(&login)));
        }
        if place == Place::Logout {
            return self.log_out(head);
        }
        self.change(&place, head, &login, &fields).unwrap_or_else(|e| refusal(&e, &login))
    }
}

/// Logs who has done something by the page. The events have the changes of tunnels from the registry.
fn log(head: &Head<'_>, tunnel: &str, what: &str) {
    let from = head.from;
    match tunnel {
        "" => log::info!("page: {from}: {what}"),
        _ => log::info!("page: {from}: tunnel {tunnel:?}: {what}"),
    }
}

/// The page for what the registry refuses.
fn refusal(e: &Error, login: &Login) -> Answer {
    let status = e.status();
    if status == 503 {
        log::error!("page: {e}");
    }
    page(status, &pages::error(&pages::sentence(&e.to_string()), Some(login)))
}

/// The device of a form that is told of its tunnel.
fn device(fields: &Fields) -> Result<Option<Device>, Error> {
    match (fields.get("product_key"), fields.get("device_name")) {
        ("", "") => Ok(None),
        (key, name) => {
            let device = Device::new(key, name);
            Ok(Some(device.map_err(|e| Error::Invalid(e.to_string()))?))
        }
    }
}

/// The seconds of a form after which a tunnel expires.
fn expire(fields: &Fields) -> Result<Option<u64>, Error> {
    let text = match fields.get("expire") {
        "other" => fields.get("seconds"),
        text => text,
    };
    if text.is_empty() {
        return Ok(None);
    }
    let seconds = text.parse().ok().filter(|seconds| (1..=MAX_EXPIRE).contains(seconds));
    seconds.map(Some).ok_or_else(|| wrong_seconds("expiry"))
}

/// Whether our script asks, and not somebody who clicks.
fn is_script(head: &Head<'_>) -> bool {
    head.header("x-live").is_some()
}

fn asset(name: &str) -> Answer {
    let unknown = || page(404, &pages::error("There is no such page.", None));
    assets::find(name).map_or_else(unknown, |asset| {
        let mut answer = Answer::empty(200)
            .with("x-content-type-options", "nosniff")
            .with("cross-origin-resource-policy", "same-origin")
            // Its address changes with its content.
            .with("cache-control", "public, max-age=31536000, immutable");
        (answer.content_type, answer.body) = (asset.content_type, Content::Embedded(asset.bytes));
        answer
    })
}

fn page(status: u16, markup: &Markup) -> Answer {
    html(status, markup, POLICY.to_owned())
}

fn html(status: u16, markup: &Markup, policy: String) -> Answer {
    Answer::text(status, "text/html; charset=utf-8", markup.0.clone())
        .with("content-security-policy", policy)
        .with("x-content-type-options", "nosniff")
        .with("x-frame-options", "DENY")
        // Not no-referrer: with that, a form is sent without the origin that is checked here.
        .with("referrer-policy", "same-origin")
        .with("cross-origin-opener-policy", "same-origin")
        .with("cross-origin-resource-policy", "same-origin")
}

/// Sends the browser to another page.
fn to(path: impl Into<String>) -> Answer {
    Answer::empty(303).with("location", path)
}

/// The cookie has the port in its name: browsers keep the cookies of all ports of a host together.
fn cookie_name(head: &Head<'_>) -> String {
    let host = head.header("host").unwrap_or_default();
    let port = host.rsplit_once(':').map_or("", |(_, port)| port);
    let port: String = port.chars().filter(char::is_ascii_digit).take(5).collect();
    // Browsers take this beginning only from the host itself, and with TLS.
    let prefix = if head.is_secure { "__Host-" } else { "" };
    format!("{prefix}aiot-tunnel{port}")
}

fn set_cookie(head: &Head<'_>, word: &str, seconds: u64) -> String {
    let name = cookie_name(head);
    let secure = if head.is_secure { "; Secure" } else { "" };
    format!("{name}={word}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}")
}
