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
