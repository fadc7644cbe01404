//! What a store is made of, table by table, where it moves from one engine to the other: rows as lines of text, in one form and order
//! on both, so that what arrived can be compared with what was sent.
//!
//! The form is that of PostgreSQL's COPY (<https://www.postgresql.org/docs/current/sql-copy.html>, "Text Format").

use sha2::{Digest as _, Sha256};

/// What moves. Not the log of changes, which begins anew, nor leases, which are settled before.
pub(in crate::store) const TABLES: &[Table] = &[
    Table { name: "plans", key: "id", columns: &[text("id"), integer("revision"), text("body")] },
    Table { name: "accounts", key: "id", columns: &[text("id"), text("plan_id"), integer("revision"), text("body")] },
    Table {
        name: "keys",
        key: "id",
        columns: &[
            bytes("id"),
            text("account_id"),
            text("name"),
            text("environment"),
            text("prefix"),
            text("status"),
            integer("create_time"),
            integer("expire_time"),
            integer("auto_renew_millis"),
            integer("revision"),
            bytes("secret_hash"),
            text("pepper_id"),
            text("policy"),
            text("metadata"),
            text("body"),
        ],
    },
    Table {
        name: "retired_secrets",
        key: "hash",
        columns: &[bytes("hash"), bytes("key_id"), text("pepper_id"), integer("expire_time"), integer("revision")],
    },
    Table {
        name: "audit_events",
        key: "revision, seq",
        columns: &[
            integer("revision"),
            integer("seq"),
            integer("time"),
            text("actor"),
            text("action"),
            text("subject"),
            text("details"),
        ],
    },
    Table {
        name: "usage_hourly",
        key: "key_id, hour, verdict",
        columns: &[bytes("key_id"), integer("hour"), integer("verdict"), integer("requests"), integer("credits")],
    },
    Table {
        name: "key_activity",
        key: "key_id",
        columns: &[bytes("key_id"), integer("last_used_time"), text("last_used_ip")],
    },
    Table { name: "usage_flushes", key: "id", columns: &[bytes("id"), integer("time")] },
    Table { name: "budgets", key: "id", columns: &[text("id"), text("state")] },
    Table {
        name: "uncertain_hourly",
        key: "account, budget, hour, given_back",
        columns: &[
            text("account"),
            text("budget"),
            integer("hour"),
            Column { name: "given_back", kind: Kind::Boolean },
            integer("units"),
        ],
    },
    Table {
        name: "operations",
        key: "account_id, id",
        columns: &[
            text("account_id"),
            bytes("id"),
            bytes("key_id"),
            text("environment"),
            integer("cost"),
            integer("credits"),
            text("charges"),
            integer("time"),
            integer("refund_time"),
        ],
    },
];

pub(in crate::store) struct Table {
    pub(in crate::store) name: &'static str,
    /// What its rows are ordered by. Text is compared byte by byte by both engines.
    pub(in crate::store) key: &'static str,
    pub(in crate::store) columns: &'static [Column],
}

pub(in crate::store) struct Column {
    name: &'static str,
    pub(in crate::store) kind: Kind,
}

#[derive(Clone, Copy)]
pub(in crate::store) enum Kind {
    Integer,
    /// In SQLite 0 or 1.
    Boolean,
    Text,
    Bytes,
}

const fn integer(name: &'static str) -> Column {
    Column { name, kind: Kind::Integer }
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

const fn bytes(name: &'static str) -> Column {
    Column { name, kind: Kind::Bytes }
}

impl Table {
    /// The names of its columns, for a statement.
    pub(in crate::store) fn column_names(&self) -> String {
        self.columns.iter().map(|column| column.name).collect::<Vec<_>>().join(", ")
    }
}

/// Puts a text into a line, as COPY writes it.
pub(in crate::store) fn push_text(line: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        let letter = match byte {
            b'\\' => b'\\',
            0x08 => b'b',
            b'\t' => b't',
            b'\n' => b'n',
            0x0b => b'v',
            0x0c => b'f',
            b'\r' => b'r',
            _ => {
                line.push(byte);
                continue;
            }
        };
        line.extend([b'\\', letter]);
    }
}

/// Puts bytes into a line: hexadecimal digits after a `\x`, of which the backslash is written twice.
pub(in crate::store) fn push_bytes(line: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    line.extend(br"\\x");
    for byte in bytes {
        line.extend([byte >> 4, byte & 15].map(|digit| DIGITS.get(usize::from(digit)).copied().unwrap_or_default()));
    }
}

/// How many rows of a table there are, and what is in them.
#[derive(Default)]
pub(in crate::store) struct Tally {
    rows: u64,
    digest: Sha256,
}

impl Tally {
    /// Adds whole lines.
    pub(in crate::store) fn add(&mut self, lines: &[u8]) {
        self.rows += lines.iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        self.digest.update(lines);
    }

    /// The rows, and the SHA-256 of all lines in hexadecimal digits.
    pub(in crate::store) fn finish(self) -> (u64, String) {
        let mut digits = Vec::new();
        push_bytes(&mut digits, &self.digest.finalize());
        (self.rows, String::from_utf8_lossy(&digits).replace(r"\\x", ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_copy() {
        let mut line = Vec::new();
        push_text(&mut line, "a\tb\\c\nd\r\u{8}\u{b}\u{c}é\u{1f}");
        line.push(b' ');
        push_bytes(&mut line, &[0, 0x5c, 0xff]);
        assert_eq!(String::from_utf8(line).unwrap(), "a\\tb\\\\c\\nd\\r\\b\\v\\fé\u{1f} \\\\x005cff");
    }

    #[test]
    fn a_tally_is_of_all_rows_and_their_order() {
        let tally = |lines: &[&str]| {
            let mut tally = Tally::default();
            for line in lines {
                tally.add(line.as_bytes());
            }
            tally.finish()
        };
        assert_eq!(tally(&["a\n", "b\n"]), tally(&["a\nb\n"]));
        assert_ne!(tally(&["b\na\n"]), tally(&["a\nb\n"]));
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(tally(&[]), (0, empty.to_owned()));
    }
}
