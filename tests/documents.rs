//! The documents keep up with the source, and the languages with each other.

use std::fs;
use std::path::Path;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names of the state codes that log lines have.
fn log_codes() -> Vec<String> {
    let source = read("src/logging.rs");
    let (_, rest) = source.split_once("pub(crate) enum Code {").unwrap();
    let (body, _) = rest.split_once("\n}").unwrap();
    let names = body.lines().filter_map(|line| line.split_once("= state::"));
    names.map(|(_, name)| name.trim_end_matches(',').to_owned()).collect()
}

#[test]
fn each_log_code_stands_in_the_document_for_operators() {
    let (states, names) = (read("src/state.rs"), log_codes());
    assert!(names.len() > 10, "{names:?}");
    for page in ["docs/operations.md", "docs/operations.zh-CN.md"] {
        let page_text = read(page);
        for name in &names {
            let start = format!("pub const {name}: i32 = -0x");
            let (_, value) = states.split_once(&start).unwrap();
            let code = &value[..4];
            assert!(
                page_text.contains(&format!("| LK-{code} |")),
                "{page} lacks {name}: LK-{code}"
            );
        }
    }
}

/// What two languages of a page have in common.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shape {
    /// The level of each heading.
    headings: Vec<usize>,
    /// The information string of each block of code.
    blocks: Vec<String>,
    /// The code in the blocks, without comments, which have the page's language.
    code: Vec<String>,
    /// The columns of each row of a table.
    rows: Vec<usize>,
}

/// A line of code without its comment.
fn without_comment(line: &str) -> &str {
    let comment = [line.find("# "), line.find("// ")].into_iter().flatten().min();
    line[..comment.unwrap_or(line.len())].trim_end()
}

fn shape(text: &str) -> Shape {
    let mut shape = Shape::default();
    let mut in_block = false;
    for line in text.lines() {
        if let Some(info) = line.strip_prefix("```") {
            if !in_block {
                shape.blocks.push(info.to_owned());
            }
            in_block = !in_block;
        } else if in_block {
            shape.code.push(without_comment(line).to_owned());
        } else if line.starts_with('#') {
            shape.headings.push(line.bytes().take_while(|b| *b == b'#').count());
        } else if line.starts_with('|') {
            shape.rows.push(line.matches('|').count());
        }
    }
    assert!(!in_block);
    shape
}

#[test]
fn the_chinese_pages_have_the_shape_and_the_code_of_the_english_ones() {
    for page in ["README", "docs/self-host", "docs/alibaba-cloud", "docs/operations"] {
        let (english, chinese) = (read(&format!("{page}.md")), read(&format!("{page}.zh-CN.md")));
        assert_eq!(shape(&english), shape(&chinese), "{page}: English left, Chinese right");
        let name = page.rsplit('/').next().unwrap();
        assert!(english.contains(&format!("]({name}.zh-CN.md)")), "{page}.md has no link");
        assert!(chinese.contains(&format!("]({name}.md)")), "{page}.zh-CN.md has no link");
    }
}

/// The documents that the package of the program contains, from the project's folder.
fn pages() -> Vec<String> {
    let mut pages = Vec::new();
    for folder in ["", "docs/"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in fs::read_dir(path).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") && (folder == "docs/" || name.starts_with("README")) {
                pages.push(format!("{folder}{name}"));
            }
        }
    }
    assert!(pages.len() > 20, "{pages:?}");
    pages
}

/// The pictures of a page: the text for those who do not see it, and the file.
fn pictures(page: &str) -> Vec<(String, String)> {
    let text = read(page);
    let mut pictures = Vec::new();
    for part in text.split("![").skip(1) {
        let (alternative, rest) = part.split_once("](").unwrap();
        let (file, _) = rest.split_once(')').unwrap();
        let folder = page.rfind('/').map_or("", |slash| &page[..=slash]);
        pictures.push((alternative.to_owned(), format!("{folder}{file}")));
    }
    pictures
}

#[test]
fn each_picture_is_there_and_in_the_package_and_has_a_text() {
    let assets = read("cli/Cargo.toml");
    assert!(
        assets.contains("[\"../docs/pictures/*\", \"usr/share/doc/aiot-tunnel/docs/pictures/\"")
    );
    let mut count = 0;
    for page in pages() {
        for (alternative, file) in pictures(&page) {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file).is_file(), "{page}: {file}");
            assert!(file.starts_with("docs/pictures/"), "{page}: {file} is not in the package");
            assert!(alternative.chars().count() > 20, "{page}: {file} has no text");
            count += 1;
        }
    }
    assert!(count >= 3, "{count}");
}

/// A drawing without its words.
fn drawing(svg: &str) -> String {
    let mut drawing = String::new();
    for part in svg.split('<').skip(1) {
        let (tag, content) = part.split_once('>').unwrap();
        drawing += tag;
        if tag == "style" {
            drawing += content;
        }
        drawing.push('\n');
    }
    drawing
}

#[test]
fn the_drawing_of_the_architecture_is_the_same_in_both_languages() {
    let [english, chinese] = ["", ".zh-CN"].map(|language| {
        let svg = read(&format!("docs/pictures/architecture{language}.svg"));
        assert!(svg.contains("<title ") && svg.contains("<desc "));
        svg
    });
    assert_ne!(english, chinese);
    assert_eq!(drawing(&english), drawing(&chinese));
}
