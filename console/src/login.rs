//! Who is logged in. A login is a random word in a cookie; only its digest is kept here, in memory: when
//! the gateway starts again, everybody logs in again.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aiot_tunnel::gateway::TokenKey;
use aiot_tunnel::Token;
use aiot_tunnel_registry::new_token;
use tokio::sync::watch;
use zeroize::Zeroizing;

/// A login ends after this time in any case,
pub const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);
/// and after this time without a click or a key. A page that is merely open is not use.
pub const IDLE: Duration = Duration::from_secs(60 * 60);
/// Logins at once. One more ends the one that was not used for the longest time.
const MOST: usize = 64;

/// All logins.
pub(crate) struct Logins {
    digester: TokenKey,
    all: Mutex<HashMap<[u8; 32], Arc<Login>>>,
    /// There is one more.
    more: Condvar,
}

/// A login.
pub(crate) struct Login {
    /// What each form of this login must contain.
    form_key: Zeroizing<String>,
    began: Instant,
    used: Mutex<Instant>,
    ended: watch::Sender<bool>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
}

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logins(..)")
    }
}

impl Login {
    /// What each form of this login must contain.
    pub(crate) fn form_key(&self) -> &str {
        &self.form_key
    }

    /// Whether a form of this login has been sent.
    pub(crate) fn has_sent(&self, form_key: &str) -> bool {
        let (own, sent) = (self.form_key.as_bytes(), form_key.as_bytes());
        own.len() == sent.len() && openssl::memcmp::eq(own, sent)
    }

    /// Its user has done something.
    pub(crate) fn is_used(&self) {
        *lock(&self.used) = Instant::now();
    }

    /// Becomes true when the login ends.
    pub(crate) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    fn is_over(&self, now: Instant) -> bool {
        let since = |then: Instant| now.saturating_duration_since(then);
        since(self.began) >= LONGEST || since(*lock(&self.used)) >= IDLE
    }
}

impl Logins {
    pub(crate) fn new() -> Self {
        Logins { digester: TokenKey::random(), all: Mutex::default(), more: Condvar::new() }
    }

    /// A new login, and the word for its cookie.
    pub(crate) fn begin(&self) -> (Zeroizing<String>, Arc<Login>) {
        let (word, now) = (new_token(), Instant::now());
        let login = Arc::new(Login {
            form_key: new_token(),
            began: now,
            used: Mutex::new(now),
            ended: watch::Sender::new(false),
        });
        let mut all = lock(&self.all);
        if all.len() >= MOST {
            let idlest = all.iter().min_by_key(|(_, login)| *lock(&login.used));
            if let Some(idlest) = idlest.map(|(digest, _)| *digest) {
                remove(&mut all, &idlest);
            }
        }
        if let Some(digest) = self.digest(&word) {
            all.insert(digest, login.clone());
        }
        self.more.notify_all();
        (word, login)
    }

    /// The login with this word, if it goes on.
    pub(crate) fn find(&self, word: &str) -> Option<Arc<Login>> {
        let digest = self.digest(word)?;
        let mut all = lock(&self.all);
        let login = all.get(&digest)?.clone();
        if login.is_over(Instant::now()) {
            remove(&mut all, &digest);
            return None;
        }
        Some(login)
    }

    /// Ends the login with this word.
    pub(crate) fn end(&self, word: &str) {
        if let Some(digest) = self.digest(word) {
            remove(&mut lock(&self.all), &digest);
        }
    }

    /// Ends the logins whose time is over. Waits until there is one that goes on.
    pub(crate) fn wait_for_one(&self) {
        let mut all = lock(&self.all);
        loop {
            let now = Instant::now();
            let over = all.iter().filter(|(_, login)| login.is_over(now));
            for digest in over.map(|(digest, _)| *digest).collect::<Vec<_>>() {
                remove(&mut all, &digest);
            }
            if !all.is_empty() {
                return;
            }
            all = self.more.wait(all).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn digest(&self, word: &str) -> Option<[u8; 32]> {
        let token = Token::new(word).ok()?;
        Some(*self.digester.digest(&token).as_bytes())
    }
}

fn remove(all: &mut HashMap<[u8; 32], Arc<Login>>, digest: &[u8; 32]) {
    if let Some(login) = all.remove(digest) {
        login.ended.send_replace(true);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_found_by_its_word_until_it_ends() {
        let logins = Logins::new();
        let (word, login) = logins.begin();
        let (other, _) = logins.begin();
        assert!(Arc::ptr_eq(&logins.find(&word).unwrap(), &login));
        let ended = login.ended();
        for wrong in ["", "x", &word[1..], &format!("{}0", *word)] {
            assert!(logins.find(wrong).is_none());
            logins.end(wrong);
        }
        assert!(!*ended.borrow());
        logins.end(&word);
        assert!(*ended.borrow());
        assert!(logins.find(&word).is_none() && logins.find(&other).is_some());
    }

    #[test]
    fn a_form_belongs_to_one_login() {
        let logins = Logins::new();
        let ((_, one), (_, other)) = (logins.begin(), logins.begin());
        assert!(one.has_sent(one.form_key()));
        assert!(!one.has_sent(other.form_key()) && !one.has_sent(""));
    }

    #[test]
    fn a_login_ends_when_it_is_idle_and_when_it_is_old() {
        let (_, login) = Logins::new().begin();
        let began = login.began;
        assert!(!login.is_over(began + IDLE - Duration::from_secs(1)));
        assert!(login.is_over(began + IDLE));
        *lock(&login.used) = began + LONGEST - Duration::from_secs(1);
        assert!(!login.is_over(began + LONGEST - Duration::from_secs(1)));
        assert!(login.is_over(began + LONGEST));
    }

    #[test]
    fn one_login_too_many_ends_the_idlest() {
        let logins = Logins::new();
        let (first, login) = logins.begin();
        let (second, _) = logins.begin();
        login.is_used();
        for _ in 2..MOST + 1 {
            logins.begin();
        }
        assert!(logins.find(&first).is_some());
        assert!(logins.find(&second).is_none());
    }
}
