//! The API is the one that docs/openapi.json describes, and what it answers is what that document
//! promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use aiot_tunnel_testkit::gateways;
use serde_json::{json, Value};

use super::{Gateway, Tokens};

fn document() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Follows `$ref`.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(path) => {
            document.pointer(path.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{path}"))
        }
        None => value,
    }
}

/// What is wrong with a value, for the keywords that the document uses.
fn fault(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    let schema = resolved(document, schema);
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = choices.iter().filter(|one| fault(document, one, value, at).is_none()).count();
        return (fits != 1).then(|| format!("{at}: fits {fits} of {schema}: {value}"));
    }
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{at}: type {other}"),
    };
    let types = &schema["type"];
    let fits = match types {
        Value::Array(types) => types.iter().any(|kind| is(kind.as_str().unwrap())),
        kind => is(kind.as_str().unwrap_or_else(|| panic!("{at}: a type: {schema}"))),
    };
    if !fits {
        return Some(format!("{at}: not {types}: {value}"));
    }
    if let Some(values) = schema["enum"].as_array() {
        if !values.contains(value) {
            return Some(format!("{at}: none of {values:?}: {value}"));
        }
    }
    if let (Some("date-time"), Some(text)) = (schema["format"].as_str(), value.as_str()) {
        if !(text.len() == 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T') {
            return Some(format!("{at}: no time: {text}"));
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        let wrong = fault(document, &schema["items"], item, &format!("{at}[{index}]"));
        if wrong.is_some() {
            return wrong;
        }
    }
    let fields = value.as_object()?;
    assert_eq!(schema["additionalProperties"], false, "{at}");
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Some(format!("{at}: {name} is missing"));
        }
    }
    fields.iter().find_map(|(name, value)| match &schema["properties"][name] {
        Value::Null => Some(format!("{at}.{name}: not in the document")),
        schema => fault(document, schema, value, &format!("{at}.{name}")),
    })
}

/// A gateway whose answers are compared with the document.
struct Checked {
    gateway: Gateway,
    document: Value,
    /// What was answered: method, path of the document, status.
    seen: BTreeSet<(String, String, u16)>,
}

impl Checked {
    fn ask(&mut self, method: &str, path: &str, of: &str, body: Option<Value>) -> (u16, Value) {
        let key = self.gateway.key.clone();
        self.ask_with(Some(&key), method, path, of, body)
    }

    /// `of` is the path in the document.
    fn ask_with(
        &mut self,
        key: Option<&str>,
        method: &str,
        path: &str,
        of: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let answer = self.gateway.request(method, path, key, body.map(|body| body.to_string()));
        let operation = &self.document["paths"][of][method.to_lowercase()];
        let status = answer.status.to_string();
        let response = resolved(&self.document, &operation["responses"][&status]);
        assert!(
            response.is_object(),
            "{method} {path}: {status} is not in the document: {}",
            answer.body
        );
        self.seen.insert((method.to_owned(), of.to_owned(), answer.status));
        for name in response["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
            let line = format!("\r\n{}: ", name.to_lowercase());
            assert!(answer.head.to_lowercase().contains(&line), "{name}: {}", answer.head);
        }
        let Some(content) = response["content"].as_object() else {
            assert_eq!(answer.body, "");
            return (answer.status, Value::Null);
        };
        let (kind, media) = content.iter().next().unwrap();
        let head = answer.head.to_lowercase();
        assert!(head.contains(&format!("\r\ncontent-type: {kind}\r\n")), "{head}");
        if kind != "application/json" {
            return (answer.status, json!(answer.body));
        }
        let value: Value = serde_json::from_str(&answer.body).unwrap();
        let wrong = fault(&self.document, &media["schema"], &value, "body");
        assert_eq!(wrong, None, "{method} {path}: {value}");
        (answer.status, value)
    }
}

#[test]
fn every_answer_is_one_of_the_document() {
    let gateway = Gateway::start();
    let mut api = Checked { gateway, document: document(), seen: BTreeSet::new() };
    let (list, one, rotate) = ("/tunnels", "/tunnels/{id}", "/tunnels/{id}/rotate");
    let (status, issued) = api.ask("POST", list, list, Some(json!({"id": "a%b", "expire": 60})));
    assert_eq!(status, 201);
    let tokens = Tokens::of(&issued);
    let path = "/tunnel/a%b/dest";
    let _device = gateways::connect(api.gateway.address, path, Some(&tokens.device)).unwrap();
    let access = issued["access_url"].as_str().unwrap().split_once("/tunnel").unwrap().1.to_owned();
    let access = format!("/tunnel{access}");
    let _access = gateways::connect(api.gateway.address, &access, Some(&tokens.access)).unwrap();
    assert_eq!(api.ask("POST", list, list, None).0, 201);
    assert_eq!(api.ask("POST", list, list, Some(json!({"id": null, "expire": 1.0}))).0, 201);
    assert_eq!(api.ask("GET", list, list, None).0, 200);
    let with_device = json!({"product_key": "pk", "device_name": "d@1.x", "id": "with"});
    let (status, issued) = api.ask("POST", list, list, Some(with_device));
    assert_eq!((status, &issued["notified"]), (201, &json!(null)));
    assert_eq!(api.ask("GET", "/tunnels/with", one, None).1["device_name"], json!("d@1.x"));
    let (_, shown) = api.ask("GET", "/tunnels/a%25b", one, None);
    assert_eq!((&shown["state"], &shown["id"]), (&json!("online"), &json!("a%b")));
    assert_eq!(api.ask("GET", "/healthz", "/healthz", None).0, 200);
    assert_eq!(api.ask("GET", "/metrics", "/metrics", None).0, 200);
    for side in [json!(null), json!("device"), json!("access"), json!("both")] {
        let body = json!({"side": side, "expire": 60});
        assert_eq!(api.ask("POST", "/tunnels/a%25b/rotate", rotate, Some(body)).0, 200);
    }
    // What cannot be done.
    for body in [
        json!({"id": 1}),
        json!({"id": "a/b"}),
        json!({"id": ""}),
        json!({"expire": 0}),
        json!({"expire": -1}),
        json!({"expire": 1.5}),
        json!({"expire": 1e300}),
        json!({"expire": "60"}),
        json!({"expires": 60}),
        json!({"product_key": "pk"}),
        json!({"device_name": "d"}),
        json!({"product_key": "pk", "device_name": "a/b"}),
        json!({"product_key": "", "device_name": "d"}),
        json!({"product_key": 1, "device_name": "d"}),
        json!([]),
        json!("text"),
        json!(null),
    ] {
        assert_eq!(api.ask("POST", list, list, Some(body.clone())).0, 400, "{body}");
    }
    assert_eq!(api.ask("POST", list, list, Some(json!({"id": "a%b"}))).0, 409);
    let rotated = api.ask("POST", "/tunnels/a%25b/rotate", rotate, Some(json!({"side": "x"})));
    assert_eq!(rotated.0, 400);
    for id in ["none", "%00", "%E2%82%AC", "a%2Fb", &"x".repeat(5000)] {
        assert_eq!(api.ask("GET", &format!("/tunnels/{id}"), one, None).0, 404, "{id}");
        assert_eq!(api.ask("DELETE", &format!("/tunnels/{id}"), one, None).0, 404, "{id}");
        assert_eq!(api.ask("POST", &format!("/tunnels/{id}/rotate"), rotate, None).0, 404, "{id}");
    }
    assert_eq!(api.ask("DELETE", "/tunnels/a%25b", one, None).0, 204);
    // Each operation of the document has been carried out, and none without the key.
    let mut operations = BTreeMap::new();
    for (path, item) in api.document["paths"].as_object().unwrap().clone() {
        for (method, operation) in item.as_object().unwrap() {
            if method == "parameters" {
                continue;
            }
            let method = method.to_uppercase();
            operations.entry(path.clone()).or_insert_with(Vec::new).push(method.clone());
            let done =
                api.seen.iter().any(|(m, p, status)| *m == method && *p == path && *status < 300);
            assert!(done, "{method} {path}");
            let is_open = operation["security"] == json!([]);
            assert_eq!(is_open, path == "/healthz");
            if !is_open {
                let real = path.replace("{id}", "none");
                for key in [None, Some("hush-not-the-key-of-it")] {
                    assert_eq!(api.ask_with(key, &method, &real, &path, None).0, 401);
                }
            }
        }
    }
    // And no other method is there.
    for (path, methods) in operations {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"] {
            if methods.iter().any(|known| known == method) {
                continue;
            }
            let key = api.gateway.key.clone();
            let real = path.replace("{id}", "none");
            let answer = api.gateway.request(method, &real, Some(&key), None);
            assert_eq!(answer.status, 405, "{method} {path}");
            let line = format!("\r\nallow: {}\r\n", sorted(&methods));
            assert!(answer.head.contains(&line), "{}", answer.head);
        }
    }
    for path in
        ["/", "/tunnel", "/tunnels/", "/tunnels/a/b", "/tunnels//rotate", "/healthz/", "*", "/%zz"]
    {
        let key = api.gateway.key.clone();
        assert_eq!(api.gateway.request("GET", path, Some(&key), None).status, 404, "{path}");
    }
}

/// In the order of the header.
fn sorted(methods: &[String]) -> String {
    let order =
        |method: &&String| ["GET", "POST", "DELETE"].iter().position(|known| known == *method);
    let mut methods: Vec<&String> = methods.iter().collect();
    methods.sort_by_key(order);
    methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ")
}

#[test]
fn curl_gets_what_it_asks_for() {
    let gateway = Gateway::start();
    let url = gateway.url();
    let key = format!("Authorization: Bearer {}", gateway.key);
    let header = gateway.folder.write_secret("header", &key);
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"]);
        command.args(["-H", &format!("@{header}"), "-w", " %{http_code}"]).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let tunnels = format!("{url}/tunnels");
    let json = ["-H", "Content-Type: application/json"];
    let made = curl(&[&json[..], &["-d", r#"{"id": "t1"}"#, &tunnels]].concat());
    assert!(made.ends_with(" 201"), "{made}");
    Tokens::of(&serde_json::from_str(made.rsplit_once(' ').unwrap().0).unwrap());
    assert!(curl(&[&tunnels]).contains(r#""id":"t1""#));
    // curl declares a form by default.
    assert!(curl(&["-d", "{}", &tunnels]).ends_with(" 415"));
    // curl waits for 100 Continue before a long body.
    let long = gateway.folder.write("long", vec![b' '; 60_000]);
    let expect = ["-H", "Expect: 100-continue", "-d"];
    let data = format!("@{long}");
    assert!(curl(&[&json[..], &expect, &[&data, &tunnels]].concat()).ends_with(" 400"));
    let too_long = gateway.folder.write("long", vec![b' '; 2_000_000]);
    let data = format!("@{too_long}");
    assert!(curl(&[&json[..], &["--data-binary", &data, &tunnels]].concat()).ends_with(" 413"));
    assert!(curl(&["-I", &format!("{url}/healthz")]).ends_with(" 405"));
    assert!(curl(&["-X", "DELETE", &format!("{tunnels}/t1")]).ends_with(" 204"));
    let chunked = ["-H", "Transfer-Encoding: chunked", "-d", "{}", &tunnels];
    assert!(curl(&[&json[..], &chunked].concat()).ends_with(" 201"));
}

/// A gateway without a store has a list only.
#[test]
fn without_a_store_the_api_shows_and_changes_nothing() {
    use aiot_tunnel_testkit::folder::Folder;
    use aiot_tunnel_testkit::path::Program;
    let folder = Folder::new();
    let key = "hush-key-of-this-gateway";
    let file = folder.write_secret("api.key", key);
    let arguments = ["gateway", "--plain", "--listen", "127.0.0.1:0", "--tunnel", "t1"];
    let api = ["--api", "127.0.0.1:0", "--api-key-file", &file];
    let mut program = Program::start(&[&arguments[..], &api].concat());
    let address = program.address();
    program.expect_log("the API listens on ");
    let log = program.log();
    let api = log.split("the API listens on ").nth(1).unwrap().lines().next().unwrap();
    let gateway = Gateway {
        program,
        address,
        api: api.parse().unwrap(),
        key: key.to_owned(),
        folder,
        more: Vec::new(),
    };
    assert_eq!(gateway.show("t1")["source"], "list");
    let (status, answer) = gateway.ask("POST", "/tunnels", None);
    assert_eq!(status, 409);
    assert!(answer["error"].as_str().unwrap().contains("--store FILE"), "{answer}");
    assert_eq!(gateway.ask("DELETE", "/tunnels/t2", None).0, 404);
    assert!(!gateway.program.log().contains("hush-"));
}
