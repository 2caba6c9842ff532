//! The documents name tests that exist.

use std::fs;
use std::path::Path;

/// Every row of the table of failures names a test, and that test exists.
#[test]
fn every_row_of_the_reliability_table_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let table = text.split("| what fails |").nth(1).expect("the table of failures");
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let (headings, rows): (Vec<&str>, Vec<&str>) = lines.partition(|row| row.starts_with("| **"));
    assert!(headings.len() >= 5 && rows.len() >= 40, "{} rows", rows.len());
    for row in rows {
        let proof = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let names: Vec<_> = proof.split('`').filter_map(|part| part.split_once("::")).collect();
        assert!(!names.is_empty(), "no test in: {row}");
        for (file, name) in names {
            let file = if file.contains('/') { file.to_owned() } else { format!("tests/{file}") };
            let code = fs::read_to_string(root.join(&file)).unwrap_or_default();
            let is_there = code.contains(&format!("fn {name}("))
                || code.contains(&format!("RUN({name})"))
                || code.contains(&format!("void {name}(void)"));
            assert!(is_there, "{file} has no test {name}");
        }
    }
}
