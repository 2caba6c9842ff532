//! Programs that know nothing of tunnels do their work through one, as over a TCP connection: nc,
//! curl, git, scp, rsync, and a browser. A test whose program is not installed says so and passes;
//! scripts/setup installs them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::path::Path as FilePath;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::path::{Agent, Kind, Path};
use aiot_tunnel_testkit::process::{program, Group};
use aiot_tunnel_testkit::ssh::Ssh;
use aiot_tunnel_testkit::streams::{content, Door};
use aiot_tunnel_testkit::{skip, ACCESS_TOKEN};

/// Nothing here takes this long unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(120);
/// A service answers so long after the request has ended.
const ANSWER_DELAY: Duration = Duration::from_millis(500);
/// How long the service needs for an image, so that a browser asks for many at once.
const IMAGE_DELAY: Duration = Duration::from_millis(100);
const IMAGES: usize = 60;

/// Whether a program is there; if not, says that the test is skipped.
fn has(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    if !found {
        skip(test, format_args!("there is no {program}"));
    }
    found
}

/// Runs a client with this standard input; what it prints. It must succeed in time.
fn run(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let (mut printed, mut said) = (Vec::new(), String::new());
    command.env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut group = Group::spawn(command);
    let child = group.0.child();
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let status = thread::scope(|scope| {
        scope.spawn(move || {
            // A client may end before it has read all.
            let _ = stdin.write_all(input);
        });
        scope.spawn(|| stdout.read_to_end(&mut printed));
        scope.spawn(|| stderr.read_to_string(&mut said));
        let status = group.0.wait_within(TIMEOUT);
        // Processes of a client that hangs would keep the pipes open.
        drop(group);
        status
    });
    let status = status.unwrap_or_else(|| panic!("{command:?} does not end: {said}"));
    assert!(status.success(), "{command:?}: {status}: {said}");
    printed
}

/// A word for a shell.
fn quoted(word: impl AsRef<std::ffi::OsStr>) -> String {
    let word = String::from_utf8_lossy(word.as_ref().as_bytes()).into_owned();
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A gateway and an agent with one service.
struct Line {
    path: Path,
    _agent: Agent,
}

fn line(kind: Kind, service: aiot_tunnel::Service) -> Line {
    let path = Path::new(kind);
    let agent = path.agent(&[service]);
    Line { path, _agent: agent }
}

fn nc_gets_the_answer_to_a_request_that_has_ended(kind: Kind) {
    if !has("nc -N", "nc") {
        return;
    }
    let door = Door::new("s");
    let line = line(kind, door.service());
    door.serve(|mut stream| {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).unwrap();
        thread::sleep(ANSWER_DELAY);
        stream.write_all(&request).unwrap();
        stream.write_all(&content(0, 100_000)).unwrap();
    });
    let access = line.path.listen("s");
    let port = access.address.port().to_string();
    let mut command = Command::new("nc");
    let printed = run(command.args(["-N", "127.0.0.1", &port]), b"question\n");
    assert!(printed == [b"question\n", &content(0, 100_000)[..]].concat(), "{}", printed.len());
}

#[test]
fn nc_gets_the_answer_to_a_request_that_has_ended_plain() {
    nc_gets_the_answer_to_a_request_that_has_ended(Kind::PLAIN);
}

#[test]
fn nc_gets_the_answer_to_a_request_that_has_ended_tls() {
    nc_gets_the_answer_to_a_request_that_has_ended(Kind::TLS);
}

/// A request's path and body, by the rules of HTTP/1.1 as far as the clients here use them.
fn request(stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok()?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first.split(' ').nth(1)?.to_owned(), body))
}

fn answer(mut stream: &TcpStream, kind: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A browser may have closed a connection that it did not need.
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

fn curl_fetches_and_posts(kind: Kind) {
    const LENGTH: usize = 3_000_000;
    if !has("curl", "curl") {
        return;
    }
    let door = Door::new("web");
    let line = line(kind, door.service());
    door.serve(|stream| {
        let Some((path, body)) = request(&stream) else { return };
        let file = content(0, LENGTH);
        match &*path {
            "/file" => answer(&stream, "application/octet-stream", &file),
            _ => answer(&stream, "text/plain", if body == file { b"same" } else { b"other" }),
        }
    });
    let access = line.path.listen("web");
    let url = |path: &str| format!("http://{}/{path}", access.address);
    let curl = || {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--noproxy", "*"]);
        command
    };
    let printed = run(curl().arg(url("file")), b"");
    assert!(printed == content(0, LENGTH), "{} bytes", printed.len());
    let upload = ["--data-binary", "@-", "--header", "Expect:"];
    let printed = run(curl().args(upload).arg(url("upload")), &content(0, LENGTH));
    assert_eq!(printed, b"same");
}

#[test]
fn curl_fetches_and_posts_plain() {
    curl_fetches_and_posts(Kind::PLAIN);
}

#[test]
fn curl_fetches_and_posts_tls() {
    curl_fetches_and_posts(Kind::TLS);
}

/// ssh through a tunnel with TLS.
struct Login {
    line: Line,
    ssh: Ssh,
}

impl Login {
    /// `None`, with a message, where a program is missing.
    fn new(test: &str, client: &str) -> Option<Self> {
        if !has(test, client) || !has(test, "ssh") {
            return None;
        }
        let ssh = Ssh::new().map_err(|why| skip(test, why)).ok()?;
        Some(Login { line: line(Kind::TLS, ssh.service("_SSH")), ssh })
    }

    /// The command that reaches the device as `device`, by a session on standard input and output.
    fn by_proxy_command(&self) -> String {
        let mut words = vec![quoted(program())];
        words.extend(self.line.path.access_arguments("_SSH").iter().map(quoted));
        // In the configuration, a percent sign begins a token.
        let proxy = words.join(" ").replace('%', "%%");
        let more = format!("HostName device.invalid\nProxyCommand {proxy} --stdio");
        format!("ssh -F {}", quoted(self.ssh.client_config(&more)))
    }

    fn write(&self, name: &str, length: usize) -> String {
        self.ssh.folder().write(name, content(0, length))
    }
}

fn same(file: &FilePath, length: usize) {
    let bytes = std::fs::read(file).unwrap();
    assert!(bytes == content(0, length), "{}: {} bytes", file.display(), bytes.len());
}

#[test]
fn git_clones_over_ssh() {
    const LENGTH: usize = 5_000_000;
    let Some(login) = Login::new("git clone", "git") else { return };
    let folder = Folder::new();
    let (origin, clone) = (folder.file("origin"), folder.file("clone"));
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        for (name, value) in [("NAME", "a test"), ("EMAIL", "test@device.invalid")] {
            command.env(format!("GIT_AUTHOR_{name}"), value);
            command.env(format!("GIT_COMMITTER_{name}"), value);
        }
        // Nobody's configuration, and no repository but the one that is named.
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("GIT_SSH_COMMAND", login.by_proxy_command());
        run(command.args(arguments), b"");
    };
    let path = origin.to_str().unwrap();
    git(&["init", "--quiet", path]);
    std::fs::write(origin.join("file"), content(0, LENGTH)).unwrap();
    git(&["-C", path, "add", "file"]);
    git(&["-C", path, "commit", "--quiet", "--message", "one file"]);
    git(&["clone", "--quiet", &format!("device:{path}"), clone.to_str().unwrap()]);
    same(&clone.join("file"), LENGTH);
}

/// Through a local port, to the device and back.
fn scp(length: usize) {
    let Some(login) = Login::new("scp", "scp") else { return };
    let access = login.line.path.listen("_SSH");
    let address = access.address;
    let more = format!("HostName {}\nPort {}", address.ip(), address.port());
    let config = login.ssh.client_config(&more);
    let file = login.write("file", length);
    let there = login.ssh.folder().file("there");
    let back = login.ssh.folder().file("back");
    let scp = |from: &str, to: &str| {
        run(Command::new("scp").args(["-q", "-F", &config, from, to]), b"");
    };
    let remote = format!("device:{}", there.display());
    scp(&file, &remote);
    same(&there, length);
    scp(&remote, back.to_str().unwrap());
    same(&back, length);
}

#[test]
fn scp_copies_20_megabytes_both_ways() {
    scp(20_000_000);
}

#[test]
#[ignore = "takes a minute without optimisation"]
fn scp_copies_100_megabytes_both_ways() {
    scp(100_000_000);
}

#[test]
fn rsync_copies_a_directory() {
    const FILES: usize = 200;
    let Some(login) = Login::new("rsync", "rsync") else { return };
    let from = login.ssh.folder().file("from");
    std::fs::create_dir(&from).unwrap();
    for number in 0..FILES {
        std::fs::write(from.join(number.to_string()), content(number, number * 500)).unwrap();
    }
    let to = login.ssh.folder().file("to");
    let mut command = Command::new("rsync");
    command.args(["--archive", "--rsh", &login.by_proxy_command()]);
    command.arg(format!("{}/", from.display())).arg(format!("device:{}/", to.display()));
    run(&mut command, b"");
    for number in 0..FILES {
        let bytes = std::fs::read(to.join(number.to_string())).unwrap();
        assert!(bytes == content(number, number * 500), "file {number}");
    }
}

/// The smallest GIF there is, padded: decoders stop at its end.
fn image() -> Vec<u8> {
    let mut bytes = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff\x2c\0\0\0\0\x01\0\x01\0\0\
        \x02\x02\x44\x01\0\x3b"
        .to_vec();
    bytes.extend(content(0, 20_000));
    bytes
}

/// A browser opens six connections for each host name. With ten names for one port, it opens 60, and
/// a tunnel has ten sessions.
#[test]
fn a_browser_shows_a_page_with_60_images() {
    let test = "a browser";
    if !has(test, "chromium") {
        return;
    }
    let door = Door::new("web");
    let line = line(Kind::TLS, door.service());
    let access = line.path.listen("web");
    let port = access.address.port();
    let images: String = (0..IMAGES)
        .map(|number| {
            format!("<img src='http://h{}.localhost:{port}/image/{number}'>", number % 10)
        })
        .collect();
    let page = format!(
        "<!DOCTYPE html><html><body><p id=result>not loaded</p>{images}<script>\
         window.onload = () => {{ const all = Array.from(document.images);\
         result.textContent = 'shown: ' + all.filter(i => i.naturalWidth > 0).length; }};\
         </script></body></html>"
    );
    door.serve(move |stream| {
        let Some((path, _)) = request(&stream) else { return };
        if path.starts_with("/image/") {
            thread::sleep(IMAGE_DELAY);
            answer(&stream, "image/gif", &image());
        } else if path == "/page" {
            answer(&stream, "text/html", page.as_bytes());
        } else {
            answer(&stream, "text/plain", b"");
        }
    });
    let profile = Folder::new();
    let mut command = Command::new("chromium");
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--no-first-run", "--no-proxy-server", "--disable-background-networking"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--dump-dom", &format!("http://h0.localhost:{port}/page")]);
    let printed = run(&mut command, b"");
    let printed = String::from_utf8_lossy(&printed);
    assert!(printed.contains(&format!("shown: {IMAGES}")), "{printed}");
}
