//! Remembers the ids of recently ended sessions. Data for them is late, not wrong.

use std::collections::VecDeque;

/// How many ids are remembered.
pub const REMEMBERED: usize = 256;

/// The most recent ids, the oldest first.
#[derive(Debug, Default)]
pub struct RecentIds(VecDeque<String>);

impl RecentIds {
    /// Whether this id is remembered.
    pub fn contains(&self, id: &str) -> bool {
        self.0.iter().any(|recent| recent == id)
    }

    /// Remembers an id. If there are too many, forgets the oldest.
    pub fn push(&mut self, id: &str) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(id.to_owned());
    }

    /// Forgets an id, because a new session uses it.
    pub fn remove(&mut self, id: &str) {
        self.0.retain(|recent| recent != id);
    }

    /// How many ids are remembered now.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no id is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
