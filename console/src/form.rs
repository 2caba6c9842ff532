//! What a browser sends, and whether it comes from our own page.

use aiot_tunnel_registry::http::Head;

/// The fields of a form, or of a query.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    pub(crate) fn of(encoded: &[u8]) -> Self {
        Fields(form_urlencoded::parse(encoded).into_owned().collect())
    }

    /// The value of a field without spaces around it; empty if it is not there, or there twice.
    pub(crate) fn get(&self, name: &str) -> &str {
        let mut all = self.0.iter().filter(|(other, _)| other == name);
        match (all.next(), all.next()) {
            (Some((_, value)), None) => value.trim(),
            _ => "",
        }
    }
}

/// Whether a request that changes something comes from a page of this gateway. A browser says so itself, in
/// headers that a page cannot set.
pub(crate) fn is_from_own_page(head: &Head<'_>) -> bool {
    match head.header("sec-fetch-site") {
        Some(site) => site == "same-origin",
        None => is_own_origin(head),
    }
}

/// Whether the page that sends the request has the address that the request is sent to.
pub(crate) fn is_own_origin(head: &Head<'_>) -> bool {
    let (Some(origin), Some(host)) = (head.header("origin"), head.header("host")) else {
        return false;
    };
    let origin = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host))
}

/// The value of a cookie.
pub(crate) fn cookie<'a>(head: &Head<'a>, name: &str) -> Option<&'a str> {
    let pairs = head.header("cookie")?.split(';');
    pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(other, _)| *other == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_stands_there_twice_is_none() {
        let fields = Fields::of(b"a=1+2&b=%3Cx%3E&a2=+y+&c=1&c=2&d");
        let get = |name| fields.get(name);
        assert_eq!([get("a"), get("b"), get("a2")], ["1 2", "<x>", "y"]);
        assert_eq!([get("c"), get("d"), get("e")], ["", "", ""]);
    }
}
