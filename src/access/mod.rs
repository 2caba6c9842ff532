//! ac
