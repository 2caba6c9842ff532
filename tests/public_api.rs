//! The public Rust API, with the features `access` and `gateway`, is the one that
//! `docs/public-api.txt` lists, and every item of it is documented. A change of the list shows
//! what a release breaks. After a change of the API: `UPDATE_PUBLIC_API=1 cargo test --test
//! public_api`.
//!
//! rustdoc tells what is public, as JSON, whose format changes with the compiler.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// The format that this test reads: rustdoc 1.95's.
const FORMAT: u64 = 57;
const LIST: &str = "docs/public-api.txt";

/// What rustdoc tells of the library.
fn rustdoc_json() -> Value {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // Only rustdoc is to be in bootstrap mode: what the dependencies' build scripts see stays the
    // same, or cargo would build them all again.
    let wrapper = temporary.join("rustdoc-json");
    let script = "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec \"${REAL_RUSTDOC:-rustdoc}\" \"$@\"\n";
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let target = temporary.parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    if let Some(rustdoc) = env::var_os("RUSTDOC") {
        cargo.env("REAL_RUSTDOC", rustdoc);
    }
    let output = cargo
        .args(["rustdoc", "--package", "aiot-tunnel", "--lib", "--features", "access,gateway"])
        .arg("--target-dir")
        .arg(target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTDOC", &wrapper)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&fs::read(target.join("doc/aiot_tunnel.json")).unwrap()).unwrap()
}

/// The library's items, as lines of text.
struct Api<'a> {
    index: &'a Value,
    /// Where other crates' items come from.
    origins: &'a Value,
    /// Public paths of the library's own items, without the crate's name.
    paths: HashMap<u64, String>,
    lines: BTreeSet<String>,
    undocumented: Vec<String>,
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The only field of an object: rustdoc's way to write an enum.
fn variant(value: &Value) -> (&str, &Value) {
    match value.as_object().and_then(|object| object.iter().next()) {
        Some((kind, inner)) => (kind, inner),
        None => (value.as_str().unwrap_or_default(), &Value::Null),
    }
}

fn list<T>(items: impl IntoIterator<Item = T>, text: impl Fn(T) -> String) -> String {
    items.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

impl<'a> Api<'a> {
    fn new(json: &'a Value) -> Self {
        let mut api = Api {
            index: &json["index"],
            origins: &json["paths"],
            paths: HashMap::new(),
            lines: BTreeSet::new(),
            undocumented: Vec::new(),
        };
        // Paths first: a signature may name what is listed later.
        for visit in [Api::name, Api::describe] {
            api.module(&json["root"], "", visit);
        }
        api
    }

    fn item(&self, id: &Value) -> Option<&'a Value> {
        self.index.get(id.to_string())
    }

    /// Visits the items of a module, and of the modules within.
    fn module(&mut self, id: &Value, path: &str, visit: fn(&mut Self, &Value, &str)) {
        let Some(module) = self.item(id) else { return };
        for id in array(&module["inner"]["module"]["items"]) {
            let Some(item) = self.item(id) else { continue };
            let (kind, inner) = variant(&item["inner"]);
            // What is re-exported from a private module is listed where it is public.
            let (id, name) = match kind {
                "use" => (&inner["id"], &inner["name"]),
                _ => (id, &item["name"]),
            };
            let name = format!("{path}{}", name.as_str().unwrap());
            visit(self, id, &name);
            if kind == "module" {
                self.module(id, &format!("{name}::"), visit);
            }
        }
    }

    fn name(&mut self, id: &Value, path: &str) {
        self.paths.insert(id.as_u64().unwrap(), path.to_owned());
    }

    fn describe(&mut self, id: &Value, path: &str) {
        let Some(item) = self.item(id) else { return };
        let (kind, inner) = variant(&item["inner"]);
        match kind {
            "module" => self.add(item, path, "mod".into()),
            "struct" => {
                self.add(item, path, "struct".into());
                self.fields(&inner["kind"], path);
            }
            "enum" => {
                self.add(item, path, "enum".into());
                for id in array(&inner["variants"]) {
                    let Some(item) = self.item(id) else { continue };
                    let path = format!("{path}::{}", item["name"].as_str().unwrap());
                    self.add(item, &path, "variant".into());
                    self.fields(&item["inner"]["variant"]["kind"], &path);
                }
            }
            "function" => self.add(item, path, self.signature(inner)),
            "constant" => {
                let (type_, value) = (self.type_(&inner["type"]), &inner["const"]["expr"]);
                self.add(item, path, format!("const {type_} = {}", value.as_str().unwrap()));
            }
            "type_alias" => {
                let generics = self.generics(&inner["generics"]);
                self.add(item, path, format!("type{generics} = {}", self.type_(&inner["type"])));
            }
            other => panic!("{path}: a {other}, which this test does not know"),
        }
        for id in array(&inner["impls"]) {
            self.implementation(id, path);
        }
    }

    fn add(&mut self, item: &Value, path: &str, text: String) {
        let has = |name: &str| array(&item["attrs"]).iter().any(|attr| variant(attr).0 == name);
        let mut line = format!("{path}: {text}");
        for attribute in ["non_exhaustive", "must_use"] {
            if has(attribute) {
                line += &format!(" #[{attribute}]");
            }
        }
        self.lines.insert(line);
        let is_field = path.rsplit("::").next().is_some_and(|name| name.parse::<u32>().is_ok());
        if item["docs"].as_str().is_none_or(str::is_empty) && !is_field {
            self.undocumented.push(path.to_owned());
        }
    }

    /// The public fields of a struct or a variant.
    fn fields(&mut self, kind: &Value, path: &str) {
        let (kind, inner) = variant(kind);
        let fields = if kind == "tuple" { array(inner) } else { array(&inner["fields"]) };
        for id in fields {
            let Some(field) = self.item(id) else { continue };
            let path = format!("{path}::{}", field["name"].as_str().unwrap());
            self.add(field, &path, self.type_(&field["inner"]["struct_field"]));
        }
    }

    fn implementation(&mut self, id: &Value, path: &str) {
        let Some(item) = self.item(id) else { return };
        let inner = &item["inner"]["impl"];
        if !inner["blanket_impl"].is_null() {
            return;
        }
        let of = &inner["trait"];
        if !of.is_null() {
            let name = self.path(of);
            // Of the automatic ones, those by which threads share a type; of the derived ones, those
            // that a caller can name.
            let is_automatic = inner["is_synthetic"] == true;
            let is_listed = if is_automatic {
                ["Send", "Sync"].contains(&name.as_str())
            } else {
                !["Drop", "StructuralPartialEq"].contains(&name.as_str())
            };
            if is_listed {
                let not = if inner["is_negative"] == true { "!" } else { "" };
                let generics = self.generics(&inner["generics"]);
                let for_ = self.type_(&inner["for"]);
                let for_ = if for_ == path { String::new() } else { format!(" for {for_}") };
                self.lines.insert(format!("{path}: impl{generics} {not}{name}{for_}"));
            }
            return;
        }
        for id in array(&inner["items"]) {
            let Some(item) = self.item(id) else { continue };
            let (kind, inner) = variant(&item["inner"]);
            let path = format!("{path}::{}", item["name"].as_str().unwrap());
            match kind {
                "function" => self.add(item, &path, self.signature(inner)),
                other => panic!("{path}: a {other}, which this test does not know"),
            }
        }
    }

    fn signature(&self, function: &Value) -> String {
        let (sig, header) = (&function["sig"], &function["header"]);
        let inputs = list(array(&sig["inputs"]), |input| {
            let (name, type_) = (input[0].as_str().unwrap(), self.type_(&input[1]));
            match (name, type_.as_str()) {
                ("self", "Self") => "self".into(),
                ("self", "&Self") => "&self".into(),
                ("self", "&mut Self") => "&mut self".into(),
                _ => format!("{name}: {type_}"),
            }
        });
        let mut text = String::new();
        for word in ["const", "unsafe", "async"] {
            if header[format!("is_{word}")] == true {
                text += &format!("{word} ");
            }
        }
        text += &format!("fn{}({inputs})", self.generics(&function["generics"]));
        if !sig["output"].is_null() {
            text += &format!(" -> {}", self.type_(&sig["output"]));
        }
        text
    }

    fn generics(&self, generics: &Value) -> String {
        let named = array(&generics["params"]).iter().filter(|param| {
            // `impl Trait` stands where it is used; a lifetime says little.
            let (kind, inner) = variant(&param["kind"]);
            kind != "lifetime" && inner["is_synthetic"] != true
        });
        let params = list(named, |param| {
            let inner = variant(&param["kind"]).1;
            let bounds = self.bounds(&inner["bounds"]);
            let separator = if bounds.is_empty() { "" } else { ": " };
            let default = match &inner["default"] {
                Value::Null => String::new(),
                default => format!(" = {}", self.type_(default)),
            };
            format!("{}{separator}{bounds}{default}", param["name"].as_str().unwrap())
        });
        let predicates = list(array(&generics["where_predicates"]), |predicate| {
            let predicate = &predicate["bound_predicate"];
            format!("{}: {}", self.type_(&predicate["type"]), self.bounds(&predicate["bounds"]))
        });
        let params = if params.is_empty() { params } else { format!("<{params}>") };
        if predicates.is_empty() {
            return params;
        }
        format!("{params} where {predicates}")
    }

    fn bounds(&self, bounds: &Value) -> String {
        let bound = |bound: &Value| match variant(bound) {
            ("trait_bound", inner) => {
                let maybe = if inner["modifier"] == "maybe" { "?" } else { "" };
                format!("{maybe}{}", self.path(&inner["trait"]))
            }
            (_, lifetime) => lifetime.as_str().unwrap_or_default().to_owned(),
        };
        array(bounds).iter().map(bound).collect::<Vec<_>>().join(" + ")
    }

    /// A path with its arguments.
    fn path(&self, path: &Value) -> String {
        let name = self.path_name(path);
        let arguments = match variant(&path["args"]) {
            ("angle_bracketed", inner) => {
                let arguments =
                    array(&inner["args"]).iter().map(|argument| match variant(argument) {
                        ("type", inner) => self.type_(inner),
                        (_, other) => other.as_str().unwrap_or_default().to_owned(),
                    });
                let constraints = array(&inner["constraints"]).iter().map(|constraint| {
                    let (kind, binding) = variant(&constraint["binding"]);
                    let name = constraint["name"].as_str().unwrap();
                    match kind {
                        "equality" => format!("{name} = {}", self.type_(variant(binding).1)),
                        _ => format!("{name}: {}", self.bounds(binding)),
                    }
                });
                let all = list(arguments.chain(constraints), |argument| argument);
                if all.is_empty() {
                    all
                } else {
                    format!("<{all}>")
                }
            }
            ("parenthesized", inner) => {
                let inputs = list(array(&inner["inputs"]), |input| self.type_(input));
                match &inner["output"] {
                    Value::Null => format!("({inputs})"),
                    output => format!("({inputs}) -> {}", self.type_(output)),
                }
            }
            _ => String::new(),
        };
        format!("{name}{arguments}")
    }

    /// The public path of an item of ours; the name of another, with its origin where an item of
    /// ours has the same name.
    fn path_name(&self, path: &Value) -> String {
        if let Some(own) = path["id"].as_u64().and_then(|id| self.paths.get(&id)) {
            return own.clone();
        }
        let written = path["path"].as_str().unwrap();
        let name = written.rsplit("::").next().unwrap_or(written);
        if !self.paths.values().any(|own| own == name) {
            return name.to_owned();
        }
        let origin = array(&self.origins[path["id"].to_string()]["path"]);
        let origin: Vec<_> = origin.iter().take(2).filter_map(Value::as_str).collect();
        format!("{}::{name}", origin.join("::"))
    }

    fn type_(&self, type_: &Value) -> String {
        let (kind, inner) = variant(type_);
        match kind {
            "primitive" | "generic" => inner.as_str().unwrap().to_owned(),
            "resolved_path" => self.path(inner),
            "borrowed_ref" => {
                let lifetime = inner["lifetime"].as_str().map(|name| format!("{name} "));
                let lifetime = lifetime.unwrap_or_default();
                let mutable = if inner["is_mutable"] == true { "mut " } else { "" };
                format!("&{lifetime}{mutable}{}", self.type_(&inner["type"]))
            }
            "tuple" => format!("({})", list(array(inner), |type_| self.type_(type_))),
            "slice" => format!("[{}]", self.type_(inner)),
            "array" => {
                format!("[{}; {}]", self.type_(&inner["type"]), inner["len"].as_str().unwrap())
            }
            "impl_trait" => format!("impl {}", self.bounds(inner)),
            "dyn_trait" => {
                let traits = array(&inner["traits"]).iter();
                let traits: Vec<_> = traits.map(|of| self.path(&of["trait"])).collect();
                format!("dyn {}", traits.join(" + "))
            }
            other => panic!("a type of kind {other}, which this test does not know"),
        }
    }
}

#[test]
fn the_public_api_is_the_listed_one_and_documented() {
    let json = rustdoc_json();
    if json["format_version"] != FORMAT {
        let format = &json["format_version"];
        return aiot_tunnel_testkit::skip(
            "the list of the public API",
            format!("this rustdoc writes JSON of format {format}, and the test reads {FORMAT}"),
        );
    }
    let api = Api::new(&json);
    assert!(api.undocumented.is_empty(), "without documentation: {:#?}", api.undocumented);
    let mut fresh = String::from(
        "# The public Rust API of aiot-tunnel with the features access and gateway.\n\
         # Made by UPDATE_PUBLIC_API=1 cargo test --test public_api; do not edit.\n\n",
    );
    for line in &api.lines {
        fresh += &format!("{line}\n");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(LIST);
    if env::var_os("UPDATE_PUBLIC_API").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (was, is) = (lines(&committed), lines(&fresh));
    assert!(
        committed == fresh,
        "the public API is not that of {LIST}.\nMissing: {:#?}\nNew: {:#?}\n\
         If the change is wanted: UPDATE_PUBLIC_API=1 cargo test --test public_api",
        was.difference(&is).collect::<Vec<_>>(),
        is.difference(&was).collect::<Vec<_>>()
    );
}
