//! A headless Chromium, driven by the [DevTools protocol](https://chromedevtools.github.io/devtools-protocol/)
//! over a pair of pipes, so that no port is open. The browser ends with its pipes, even if the test is
//! killed. It reaches this machine only.
//!
//! Events of a page are noticed while the test calls one of its functions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::folder::Folder;
use crate::process::Group;

/// Starting a browser on a busy machine takes seconds.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two looks at a page.
const INTERVAL: Duration = Duration::from_millis(20);
/// No further than this machine.
const HOSTS: &str = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost";
/// The pipes of the DevTools protocol are file descriptors 3 and 4.
const WITH_PIPES: &str = "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>&2";

/// What a page is shown on.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
}

/// A browser with a profile of its own. Every certificate is good for it.
pub struct Browser {
    link: Rc<RefCell<Link>>,
    group: Group,
    _profile: Folder,
}

impl Browser {
    /// # Errors
    /// There is no Chromium.
    pub fn start() -> Result<Self, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let found = std::env::split_paths(&path)
            .flat_map(|folder| names.map(|name| folder.join(name)))
            .find(|program| program.exists());
        let program = found.ok_or("there is no chromium")?;
        let profile = Folder::new();
        let mut command = Command::new("sh");
        command.args(["-c", WITH_PIPES]).arg(program);
        command.args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"]);
        command.args(["--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server"]);
        command.args(["--disable-background-networking", "--disable-component-update"]);
        command.args(["--disable-breakpad", "--ignore-certificate-errors", HOSTS]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.env("HOME", profile.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let said = fs::File::create(profile.file("said")).unwrap();
        let mut group = Group::spawn(command.stderr(said));
        let (input, output) = (group.0.take_stdin(), BufReader::new(group.0.take_stdout()));
        let (sender, messages) = mpsc::channel();
        thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                let _ = sender.send(serde_json::from_slice(&message).unwrap());
            }
        });
        let link = Link { input, messages, last_id: 0, troubles: HashMap::new() };
        Ok(Browser { link: Rc::new(RefCell::new(link)), group, _profile: profile })
    }

    /// An empty page without the cookies of others.
    pub fn page(&self, screen: Screen) -> BrowserPage {
        let context = self.call("Target.createBrowserContext", json!({}));
        self.page_in(context["browserContextId"].as_str().unwrap(), screen)
    }

    fn page_in(&self, context: &str, screen: Screen) -> BrowserPage {
        let target = json!({"url": "about:blank", "browserContextId": context});
        let target = self.call("Target.createTarget", target);
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.call("Target.attachToTarget", attach);
        let page = BrowserPage {
            link: self.link.clone(),
            session: session["sessionId"].as_str().unwrap().to_owned(),
            context: context.to_owned(),
        };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        page.show_on(screen);
        page
    }

    /// Another page beside one, with the same cookies.
    pub fn page_beside(&self, page: &BrowserPage, screen: Screen) -> BrowserPage {
        self.page_in(&page.context, screen)
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let answer = self.link.borrow_mut().call(None, method, params);
        answer.unwrap_or_else(|e| panic!("{method}: {e}"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It removes what it keeps outside its profile. If it does not answer, it is killed.
        if self.link.borrow_mut().send(None, "Browser.close", json!({})).is_ok() {
            let _ = self.group.0.wait_within(TIMEOUT / 6);
        }
    }
}

struct Link {
    input: ChildStdin,
    messages: Receiver<Value>,
    last_id: u64,
    /// What went wrong in each page, by its session.
    troubles: HashMap<String, Vec<String>>,
}

impl Link {
    fn send(&mut self, session: Option<&str>, method: &str, params: Value) -> Result<u64, String> {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.input.write_all(&bytes).map_err(|e| format!("the browser is gone: {e}"))?;
        Ok(self.last_id)
    }

    fn call(
        &mut self,
        session: Option<&str>,
        method: &str,
        params: Value,
    ) -> Result<Value, String> {
        let id = self.send(session, method, params)?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.messages.recv_timeout(left);
            let mut message = message.map_err(|e| format!("the browser does not answer: {e}"))?;
            if message["id"] != id {
                self.note(&message);
            } else if message["error"].is_object() {
                return Err(message["error"]["message"].to_string());
            } else {
                return Ok(message["result"].take());
            }
        }
    }

    /// Notes what went wrong in a page.
    fn note(&mut self, event: &Value) {
        let Some(session) = event["sessionId"].as_str() else { return };
        let params = &event["params"];
        let trouble = match event["method"].as_str() {
            // Of a Content-Security-Policy, too.
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                let entry = &params["entry"];
                format!("{} ({})", entry["text"], entry["url"])
            }
            Some("Runtime.consoleAPICalled") if is_error(&params["type"]) => {
                format!("console: {}", params["args"])
            }
            Some("Runtime.exceptionThrown") => {
                let details = &params["exceptionDetails"];
                format!("{} {}", details["text"], details["exception"]["description"])
            }
            Some("Page.javascriptDialogOpening") => {
                let _ = self.send(
                    Some(session),
                    "Page.handleJavaScriptDialog",
                    json!({"accept": true}),
                );
                format!("a dialogue: {}", params["message"])
            }
            _ => return,
        };
        self.troubles.entry(session.to_owned()).or_default().push(trouble);
    }
}

fn is_error(kind: &Value) -> bool {
    ["error", "assert"].iter().any(|name| kind == name)
}

/// A tab.
pub struct BrowserPage {
    link: Rc<RefCell<Link>>,
    session: String,
    context: String,
}

impl BrowserPage {
    /// Any method of the DevTools protocol; its result.
    pub fn call(&self, method: &str, params: Value) -> Value {
        self.try_call(method, params).unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    fn try_call(&self, method: &str, params: Value) -> Result<Value, String> {
        self.link.borrow_mut().call(Some(&self.session), method, params)
    }

    /// Changes the size and the colours that the user prefers.
    pub fn show_on(&self, screen: Screen) {
        let metrics = json!({
            "width": screen.width, "height": screen.height, "deviceScaleFactor": 1,
            "mobile": screen.width < 600,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let scheme = if screen.dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Opens an address, and waits until it is loaded.
    pub fn open(&self, url: &str) {
        let result = self.call("Page.navigate", json!({"url": url}));
        assert!(result["errorText"].is_null(), "{url}: {}", result["errorText"]);
        self.until("document.readyState == 'complete'");
    }

    /// The value of an expression in the page. A promise is waited for.
    pub fn evaluate(&self, expression: &str) -> Value {
        self.try_evaluate(expression).unwrap_or_else(|e| panic!("{expression}: {e}"))
    }

    fn try_evaluate(&self, expression: &str) -> Result<Value, String> {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut result = self.try_call("Runtime.evaluate", params)?;
        match result.get("exceptionDetails") {
            Some(details) => Err(details["exception"]["description"].to_string()),
            None => Ok(result["result"]["value"].take()),
        }
    }

    /// Waits until an expression is true, also in the page that comes next.
    pub fn until(&self, expression: &str) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let value = self.try_evaluate(&format!("Boolean({expression})"));
            if value == Ok(Value::Bool(true)) {
                return;
            }
            if Instant::now() >= deadline {
                let (text, troubles) = (self.text("body"), self.troubles());
                panic!("not in time: {expression} ({value:?}); {troubles:?}; the page:\n{text}");
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Waits until the page has an element, and the element a text.
    pub fn until_text(&self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        self.until(&format!("document.querySelector({selector})?.innerText.includes({text})"));
    }

    /// The text that a user sees in the first such element; empty if there is none.
    pub fn text(&self, selector: &str) -> String {
        let expression = format!("document.querySelector({})?.innerText ?? ''", json!(selector));
        self.evaluate(&expression).as_str().unwrap_or_default().to_owned()
    }

    /// Clicks on the middle of an element, which must be visible there.
    pub fn click(&self, selector: &str) {
        let selector = json!(selector);
        self.until(&format!("document.querySelector({selector})"));
        let place = self.evaluate(&format!(
            "(() => {{ const element = document.querySelector({selector});\
             element.scrollIntoView({{block: 'center', behavior: 'instant'}});\
             const box = element.getBoundingClientRect();\
             const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];\
             const top = document.elementFromPoint(x, y);\
             return element.contains(top) || top?.contains(element) ? {{x, y}} : null; }})()"
        ));
        assert!(place.is_object(), "{selector} is not visible");
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let event = json!({
                "type": kind, "x": place["x"], "y": place["y"], "button": "left",
                "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Types a text where the focus is, one key after the other.
    pub fn type_text(&self, text: &str) {
        for character in text.chars() {
            self.key(&character.to_string(), 0);
        }
    }

    /// Presses a key by its name in the DOM, such as `Tab`, `Shift+Tab`, `Control+c`.
    pub fn press(&self, key: &str) {
        let (mut modifiers, mut name) = (0, key);
        while let Some((modifier, rest)) = name.split_once('+') {
            modifiers |= match modifier {
                "Alt" => 1,
                "Control" => 2,
                "Shift" => 8,
                _ => panic!("no key: {key}"),
            };
            name = rest;
        }
        self.key(name, modifiers);
    }

    fn key(&self, name: &str, modifiers: u32) {
        let name = match name {
            "\n" => "Enter",
            "\t" => "Tab",
            name => name,
        };
        let code = match name {
            "Backspace" => 8,
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "F6" => 117,
            "End" => 35,
            "Home" => 36,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            "Delete" => 46,
            _ => match name.chars().next().unwrap().to_ascii_uppercase() {
                letter @ ('A'..='Z' | '0'..='9' | ' ') => letter as u32,
                _ => 0,
            },
        };
        let text = match name {
            "Enter" => "\r",
            _ if name.chars().count() == 1 && modifiers & 3 == 0 => name,
            _ => "",
        };
        let mut event = json!({
            "type": "keyDown", "key": name, "windowsVirtualKeyCode": code, "modifiers": modifiers,
            "text": text,
        });
        self.call("Input.dispatchKeyEvent", event.clone());
        event["type"] = "keyUp".into();
        event["text"] = "".into();
        self.call("Input.dispatchKeyEvent", event);
    }

    /// Pastes a text where the focus is, from the browser's clipboard, with Control+Shift+V.
    pub fn paste(&self, text: &str) {
        let permissions = json!({
            "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"],
            "browserContextId": self.context,
        });
        let mut link = self.link.borrow_mut();
        link.call(None, "Browser.grantPermissions", permissions).unwrap();
        drop(link);
        self.call("Page.bringToFront", json!({}));
        self.evaluate(&format!("navigator.clipboard.writeText({})", json!(text)));
        let event = json!({
            "type": "keyDown", "key": "V", "windowsVirtualKeyCode": 86, "modifiers": 2 | 8,
            "commands": ["pasteAndMatchStyle"],
        });
        self.call("Input.dispatchKeyEvent", event);
    }

    /// What went wrong since the last call: errors of scripts and of loading, what a
    /// Content-Security-Policy has refused, dialogues.
    pub fn troubles(&self) -> Vec<String> {
        // Events come before the answer to a later call.
        let _ = self.try_evaluate("0");
        self.link.borrow_mut().troubles.remove(&self.session).unwrap_or_default()
    }

    /// What axe-core finds that is serious or critical.
    ///
    /// # Errors
    /// axe-core is not there.
    pub fn barriers(&self) -> Result<Vec<String>, String> {
        let path = root().join("console/web/node_modules/axe-core/axe.min.js");
        let axe = fs::read_to_string(&path).map_err(|_| "there is no axe-core (scripts/web)")?;
        self.evaluate(&format!("{axe}; 0"));
        let found = self.evaluate(
            "axe.run().then(found => found.violations\
             .filter(violation => ['serious', 'critical'].includes(violation.impact))\
             .map(violation => violation.id + ': ' + violation.help + ': ' +\
             violation.nodes.map(node => node.html + ' ' + node.failureSummary).join('; ')))",
        );
        Ok(found.as_array().unwrap().iter().map(Value::to_string).collect())
    }

    /// What the screen shows, as PNG.
    pub fn png(&self) -> Vec<u8> {
        let result = self.call("Page.captureScreenshot", json!({"format": "png"}));
        openssl::base64::decode_block(result["data"].as_str().unwrap()).unwrap()
    }

    /// Writes what the screen shows to `target/screenshots/NAME.png`.
    pub fn screenshot(&self, name: &str) -> PathBuf {
        let folder = root().join("target/screenshots");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join(format!("{name}.png"));
        fs::write(&file, self.png()).unwrap();
        file
    }
}

/// The directory of the source.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
