//! The store of one gateway: an SQLite file.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use aiot_tunnel::gateway::{StoredTunnel, TokenKey};
use aiot_tunnel_signal::Device;
use rusqlite::{params, Connection, ErrorCode, OptionalExtension, Row};

use super::{digest, proof_of, Stored};
use crate::key::{self, KeyFile};
use crate::names::{self, of_millis, to_millis};
use crate::{Error, Result};

/// Tells SQLite's files apart: "aioT".
const APPLICATION: i32 = 0x6169_6f54;
/// What makes the schema, one step for each version. Steps are never changed, only added.
const STEPS: [&str; 3] = [
    // `proof` is the digest of a fixed text: it tells whether a key belongs to the store. Times are in
    // milliseconds since 1970.
    "CREATE TABLE key (proof BLOB NOT NULL);
     CREATE TABLE tunnels (
         id TEXT PRIMARY KEY NOT NULL,
         device BLOB NOT NULL,
         access BLOB NOT NULL,
         created INTEGER NOT NULL,
         expires INTEGER
     ) WITHOUT ROWID;",
    // When the tokens were last replaced.
    "ALTER TABLE tunnels ADD COLUMN rotated INTEGER;",
    // The device that is told of the tunnel: both or neither.
    "ALTER TABLE tunnels ADD COLUMN product_key TEXT;
     ALTER TABLE tunnels ADD COLUMN device_name TEXT;",
];
/// How long to wait for a program that reads the file, such as a backup.
const BUSY: Duration = Duration::from_secs(5);

/// The open file. No other gateway can open it.
pub(crate) struct Sqlite {
    database: Connection,
    key: KeyFile,
}

impl Sqlite {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let at = |why: &dyn std::fmt::Display| Error::Store(format!("{}: {why}", path.display()));
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match made {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                return Err(at(&format_args!(
                "{e}; its folder must exist, and the user that runs the gateway must be able to \
                     write there"
            )))
            }
        }
        let broken = |e: rusqlite::Error| match e.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => at(&"not a store of tunnels"),
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen) => at(&format_args!(
                "{}; the user that runs the gateway must be able to write this file and its folder",
                reason(&e)
            )),
            _ => at(&reason(&e)),
        };
        let mut database = Connection::open(path).map_err(broken)?;
        let application = |database: &Connection, name: &str| -> rusqlite::Result<i32> {
            database.pragma_query_value(None, name, |row| row.get(0))
        };
        let version = application(&database, "user_version").map_err(broken)?;
        let is_empty = version == 0 && is_blank(&database).map_err(broken)?;
        if !is_empty && application(&database, "application_id").map_err(broken)? != APPLICATION {
            return Err(at(&"not a store of tunnels"));
        }
        if version as usize > STEPS.len() {
            let newest = STEPS.len();
            return Err(at(&format_args!(
                "it has version {version}, and this program knows versions up to {newest}; use the \
                 program that wrote it, or a newer one"
            )));
        }
        let key = KeyFile::open(&key::path_beside(path), is_empty)?;
        configure(&database).map_err(broken)?;
        migrate(&mut database, version as usize, &key.key).map_err(broken)?;
        let proof: Vec<u8> =
            database.query_row("SELECT proof FROM key", [], |row| row.get(0)).map_err(broken)?;
        if digest(&proof).ok() != Some(proof_of(&key.key)) {
            return Err(at(&"FILE.key is the key of another store; restore the right one"));
        }
        Ok(Sqlite { database, key })
    }

    /// The key of the digests.
    pub(crate) fn key(&self) -> &TokenKey {
        &self.key.key
    }

    pub(crate) fn all(&self) -> Result<Vec<Stored>> {
        let mut select = self.database.prepare(SELECT).map_err(failed)?;
        let rows = select.query_map([], stored).map_err(failed)?;
        rows.map(|row| row.map_err(failed)).collect()
    }

    pub(crate) fn find(&self, id: &str) -> Result<Option<Stored>> {
        let select = format!("{SELECT} WHERE id = ?1");
        self.database.query_row(&select, [id], stored).optional().map_err(failed)
    }

    /// Adds a tunnel, unless the id exists. Returns whether it has.
    pub(crate) fn add(&self, one: &Stored) -> Result<bool> {
        let changed = self.database.execute(
            "INSERT OR IGNORE INTO tunnels
                 (id, device, access, created, expires, rotated, product_key, device_name)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                one.tunnel.id.as_str(),
                one.tunnel.device_token.as_bytes(),
                one.tunnel.access_token.as_bytes(),
                to_millis(one.created),
                one.tunnel.expires.map(to_millis),
                one.rotated.map(to_millis),
                one.device.as_ref().map(Device::product_key),
                one.device.as_ref().map(Device::device_name),
            ],
        );
        Ok(changed.map_err(failed)? == 1)
    }

    pub(crate) fn change(
        &self,
        id: &str,
        change: &mut dyn FnMut(&mut Stored) -> Result<()>,
    ) -> Result<Option<Stored>> {
        let Some(mut one) = self.find(id)? else { return Ok(None) };
        change(&mut one)?;
        self.update(&one)?;
        Ok(Some(one))
    }

    fn update(&self, one: &Stored) -> Result<()> {
        let changed = self.database.execute(
            "UPDATE tunnels SET device = ?2, access = ?3, expires = ?4, rotated = ?5 WHERE id = ?1",
            params![
                one.tunnel.id.as_str(),
                one.tunnel.device_token.as_bytes(),
                one.tunnel.access_token.as_bytes(),
                one.tunnel.expires.map(to_millis),
                one.rotated.map(to_millis),
            ],
        );
        changed.map(drop).map_err(failed)
    }

    /// Returns whether there was such a tunnel.
    pub(crate) fn remove(&self, id: &str) -> Result<bool> {
        let changed = self.database.execute("DELETE FROM tunnels WHERE id = ?1", [id]);
        Ok(changed.map_err(failed)? == 1)
    }
}

const SELECT: &str =
    "SELECT id, device, access, created, expires, rotated, product_key, device_name
    FROM tunnels";

fn is_blank(database: &Connection) -> rusqlite::Result<bool> {
    let tables: i64 =
        database.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(tables == 0)
}

fn configure(database: &Connection) -> rusqlite::Result<()> {
    database.busy_timeout(BUSY)?;
    // Whoever reads the file, a backup for example, does not hold up the gateway.
    database.pragma_update(None, "journal_mode", "WAL")?;
    // A token that was handed out must be known after a power cut.
    database.pragma_update(None, "synchronous", "FULL")?;
    // What was removed is gone from the file, too.
    database.pragma_update(None, "secure_delete", "ON")
}

fn migrate(database: &mut Connection, from: usize, key: &TokenKey) -> rusqlite::Result<()> {
    if from == STEPS.len() {
        return Ok(());
    }
    let all = database.transaction()?;
    for step in &STEPS[from..] {
        all.execute_batch(step)?;
    }
    if from == 0 {
        all.pragma_update(None, "application_id", APPLICATION)?;
        all.execute("INSERT INTO key (proof) VALUES (?1)", [proof_of(key).as_bytes()])?;
    }
    all.pragma_update(None, "user_version", STEPS.len() as i64)?;
    all.commit()
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let wrong = |column: usize, why: String| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, why.into())
    };
    let id = names::id(&row.get::<_, String>(0)?).map_err(|e| wrong(0, e.to_string()))?;
    let token = |column| digest(&row.get::<_, Vec<u8>>(column)?).map_err(|why| wrong(column, why));
    let tunnel = StoredTunnel::new(id, token(1)?, token(2)?)
        .with_expires(row.get::<_, Option<i64>>(4)?.map(of_millis));
    let rotated = row.get::<_, Option<i64>>(5)?.map(of_millis);
    let device = match (row.get::<_, Option<String>>(6)?, row.get::<_, Option<String>>(7)?) {
        (Some(key), Some(name)) => {
            Some(Device::new(&key, &name).map_err(|e| wrong(6, e.to_string()))?)
        }
        _ => None,
    };
    Ok(Stored { tunnel, created: of_millis(row.get(3)?), rotated, device })
}

fn failed(e: rusqlite::Error) -> Error {
    Error::Store(format!("the store: {}", reason(&e)))
}

/// What went wrong, without the statement.
fn reason(e: &rusqlite::Error) -> String {
    match e {
        rusqlite::Error::SqliteFailure(_, Some(text)) => text.clone(),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        e => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use aiot_tunnel_testkit::folder::Folder;

    use aiot_tunnel::Token;

    use super::*;

    fn tunnel(store: &Sqlite, id: &str, tokens: [&str; 2]) -> Stored {
        let [device, access] = tokens.map(|token| store.key().digest(&Token::new(token).unwrap()));
        let tunnel = StoredTunnel::new(names::id(id).unwrap(), device, access);
        let device = Some(Device::new("pk", id).unwrap());
        Stored { tunnel, created: of_millis(1_700_000_000_000), rotated: None, device }
    }

    #[test]
    fn what_was_added_is_there_after_a_restart() {
        let folder = Folder::new();
        let path = folder.file("tunnels.db");
        let store = Sqlite::open(&path).unwrap();
        let mut one = tunnel(&store, "t1", ["hush-device", "hush-access"]);
        one.tunnel.expires = Some(of_millis(1_800_000_000_000));
        assert!(store.add(&one).unwrap());
        assert!(!store.add(&one).unwrap(), "an id exists once");
        drop(store);
        let store = Sqlite::open(&path).unwrap();
        let again = store.find("t1").unwrap().unwrap();
        assert_eq!(again.tunnel.device_token, one.tunnel.device_token);
        assert_eq!(again.tunnel.access_token, one.tunnel.access_token);
        assert_eq!((again.tunnel.expires, again.created), (one.tunnel.expires, one.created));
        assert!(store.remove("t1").unwrap() && !store.remove("t1").unwrap());
        assert!(store.all().unwrap().is_empty());
    }

    #[test]
    fn the_files_hold_no_token_and_are_their_owners() {
        let folder = Folder::new();
        let store = Sqlite::open(&folder.file("tunnels.db")).unwrap();
        store.add(&tunnel(&store, "t1", ["hush-device", "hush-access"])).unwrap();
        let mut files = 0;
        for file in fs::read_dir(folder.path()).unwrap() {
            let path = file.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(5).any(|part| part == b"hush-"), "{}", path.display());
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
            files += 1;
        }
        assert!(files >= 2);
    }

    #[test]
    fn a_store_file_from_the_version_before_opens() {
        for version in 1..STEPS.len() {
            let folder = Folder::new();
            let path = folder.file("tunnels.db");
            // The key of an empty store, and a file as that version made it.
            drop(Sqlite::open(&path).unwrap());
            let key = KeyFile::open(&key::path_beside(&path), false).unwrap();
            for end in ["", "-wal", "-shm"] {
                let _ = fs::remove_file(folder.file(&format!("tunnels.db{end}")));
            }
            let old = Connection::open(&path).unwrap();
            STEPS[..version].iter().for_each(|step| old.execute_batch(step).unwrap());
            old.pragma_update(None, "application_id", APPLICATION).unwrap();
            old.pragma_update(None, "user_version", version as i64).unwrap();
            let proof = proof_of(&key.key);
            old.execute("INSERT INTO key (proof) VALUES (?1)", [proof.as_bytes()]).unwrap();
            let (device, access) = ([1_u8; 32], [2_u8; 32]);
            old.execute(
                "INSERT INTO tunnels (id, device, access, created, expires)
                 VALUES ('t1', ?1, ?2, 1700000000000, NULL)",
                params![device, access],
            )
            .unwrap();
            drop((old, key));
            let store = Sqlite::open(&path).unwrap();
            let one = store.find("t1").unwrap().unwrap();
            assert_eq!(*one.tunnel.device_token.as_bytes(), device);
            assert_eq!((one.created, one.rotated), (of_millis(1_700_000_000_000), None));
            store.update(&Stored { rotated: Some(of_millis(5)), ..one }).unwrap();
            assert_eq!(store.find("t1").unwrap().unwrap().rotated, Some(of_millis(5)));
        }
    }

    /// Why a store does not open.
    fn refusal(path: &Path) -> String {
        Sqlite::open(path).err().expect("a refusal").to_string()
    }

    #[test]
    fn what_is_no_store_is_refused_and_left_alone() {
        let folder = Folder::new();
        let path = folder.file("tunnels.db");
        fs::write(&path, "[{\"id\": \"t1\"}]").unwrap();
        assert!(refusal(&path).ends_with("not a store of tunnels"));
        assert_eq!(fs::read(&path).unwrap(), b"[{\"id\": \"t1\"}]");

        let path = folder.file("other.db");
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE songs (title TEXT)").unwrap();
        assert!(refusal(&path).ends_with("not a store of tunnels"));

        let path = folder.file("newer.db");
        drop(Sqlite::open(&path).unwrap());
        let newer = Connection::open(&path).unwrap();
        newer.pragma_update(None, "user_version", 1 + STEPS.len() as i64).unwrap();
        assert!(refusal(&path).contains("use the program that wrote it"));
        assert!(refusal(&folder.file("none/tunnels.db")).contains("No such file"));
    }

    #[test]
    fn a_store_needs_its_own_key_and_one_gateway() {
        let folder = Folder::new();
        let path = folder.file("tunnels.db");
        let store = Sqlite::open(&path).unwrap();
        assert!(refusal(&path).contains("another gateway uses the store"));
        drop(store);
        let key = key::path_beside(&path);
        fs::rename(&key, folder.file("away")).unwrap();
        assert!(refusal(&path).contains("the key of the store is missing"));
        fs::write(&key, "0".repeat(64)).unwrap();
        assert!(refusal(&path).contains("the key of another store"));
        fs::write(&key, "hush").unwrap();
        let text = refusal(&path);
        assert!(text.contains("64 hexadecimal digits") && !text.contains("hush"), "{text}");
        fs::rename(folder.file("away"), &key).unwrap();
        Sqlite::open(&path).unwrap();
    }
}
