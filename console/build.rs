//! Embeds the terminal's packages from `web/node_modules`, where `scripts/web` has put them. Without
//! them, or with other versions than `web/package.json` names, the page has no terminal. Nothing is
//! downloaded here.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// What a browser gets: package, file.
const FILES: [(&str, &str); 3] = [
    ("@xterm/xterm", "lib/xterm.js"),
    ("@xterm/xterm", "css/xterm.css"),
    ("@xterm/addon-fit", "lib/addon-fit.js"),
];

fn main() {
    let web = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("web");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    println!("cargo:rerun-if-changed=build.rs");
    let packages = web.join("node_modules");
    let value = match read(&web, &packages) {
        Ok(files) => {
            // npm writes this file with each installation. The files of a package have the times
            // of its release.
            println!("cargo:rerun-if-changed={}", packages.join(".package-lock.json").display());
            println!("cargo:rerun-if-changed={}", web.join("package.json").display());
            embed(&out, &files)
        }
        Err(why) => {
            // A path that does not exist would count as changed in each build, so this is the
            // folder in which it may appear.
            println!("cargo:rerun-if-changed={}", web.display());
            println!("cargo:warning=the page will have no terminal: {why}; scripts/web fetches it");
            "None".to_owned()
        }
    };
    fs::write(out.join("terminal.rs"), value).unwrap();
}

/// The content of [`FILES`], each with the notice of its licence, if all are there in the right
/// version.
fn read(web: &Path, packages: &Path) -> Result<Vec<String>, String> {
    let text = |path: &Path| fs::read_to_string(path).map_err(|e| explain(path, &e));
    let wanted = text(&web.join("package.json"))?;
    // Without it, this is no installation of npm's, and changes would not be noticed.
    text(&packages.join(".package-lock.json"))?;
    let mut files = Vec::new();
    for (package, file) in FILES {
        let folder = packages.join(package);
        let version = field(&wanted, package).ok_or(format!("package.json lacks {package}"))?;
        let manifest = text(&folder.join("package.json"))?;
        let found = field(&manifest, "version").unwrap_or_default();
        if found != version {
            return Err(format!("{package} has version {found}, not {version}"));
        }
        let content = text(&folder.join(file))?;
        let notice =
            format!("/*!\n{} {version}\n\n{}*/\n", package, text(&folder.join("LICENSE"))?);
        files.push(notice + &without_source_map(&content));
    }
    Ok(files)
}

fn explain(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("there is no {}", path.display()),
        _ => format!("{}: {error}", path.display()),
    }
}

/// The first field of this name in a JSON text, one field a line, whose value is a string.
fn field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let start = format!("\"{name}\":");
    let value = json.lines().find_map(|line| line.trim().strip_prefix(&start))?;
    value.trim().trim_end_matches(',').strip_prefix('"')?.strip_suffix('"')
}

/// Without the comment that makes a browser's tools ask for a file which is not there.
fn without_source_map(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("//# sourceMappingURL="));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Writes the files for `include_str!`; the value of `assets::terminal()` as source text.
fn embed(out: &Path, files: &[String]) -> String {
    let fields = ["xterm_js", "xterm_css", "fit_js"].iter().zip(files).map(|(name, content)| {
        fs::write(out.join(name), content).unwrap();
        format!("{name}: include_str!(concat!(env!(\"OUT_DIR\"), \"/{name}\")),")
    });
    format!("Some(&TerminalAssets {{ {} }})", fields.collect::<String>())
}
