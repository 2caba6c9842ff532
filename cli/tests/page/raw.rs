//! Requests as no browser would send them.

use std::io::{Read, Write};

use super::{connect, Gateway};

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The value of a header; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        let all = self.head.lines().filter_map(|line| line.split_once(": "));
        all.filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .next()
            .unwrap_or("")
    }
}

impl Gateway {
    /// Sends a request without TLS, with these lines of its head.
    pub fn send(&self, method: &str, path: &str, lines: &[&str], body: &str) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\n");
        if !lines.iter().any(|line| line.starts_with("Host:")) {
            request += &format!("Host: {}\r\n", self.page);
        }
        for line in lines {
            request += &format!("{line}\r\n");
        }
        request += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        let mut stream = connect(self.page);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        Answer { status: status.unwrap(), head: head.to_owned(), body: body.to_owned() }
    }

    /// Whether the page of a tunnel has all of these texts.
    pub fn page_says(&self, texts: &[&str]) -> bool {
        self.add("probe");
        let page = self.send("GET", "/view/probe", &[&self.cookie()], "").body;
        texts.iter().all(|text| page.contains(text))
    }

    /// Sends a request, and closes the connection after the first line of the answer; its status.
    pub fn send_head(&self, method: &str, path: &str, lines: &[&str]) -> u16 {
        let mut stream = connect(self.page);
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: {}\r\n{lines}\r\n", self.page).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        std::str::from_utf8(&status[9..]).unwrap().parse().unwrap()
    }

    /// Logs in; the line with the cookie.
    pub fn cookie(&self) -> String {
        let answer = self.post("/login", &[], &format!("key={}", self.key));
        assert_eq!(answer.status, 303, "{}", answer.body);
        let cookie = answer.header("set-cookie").split(';').next().unwrap();
        aiot_tunnel_testkit::logs::note_secret(cookie.split_once('=').unwrap().1.as_bytes());
        format!("Cookie: {cookie}")
    }

    /// Sends a form as our own page does.
    pub fn post(&self, path: &str, lines: &[&str], form: &str) -> Answer {
        let origin = format!("Origin: {}", self.url(""));
        let kind = "Content-Type: application/x-www-form-urlencoded";
        self.send("POST", path, &[&[&*origin, kind], lines].concat(), form)
    }

    /// The key that forms of a login must contain.
    pub fn form_key(&self, cookie: &str) -> String {
        let page = self.send("GET", "/", &[cookie], "");
        let (_, rest) = page.body.split_once("name=\"form_key\" value=\"").expect("a form");
        rest.split('"').next().unwrap().to_owned()
    }
}
