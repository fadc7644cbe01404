//! The table of settings: what each is called, what it may be, and what it is for.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::rule::{self, Raw, Rule as _};
use super::{CheckAuth, Config, LogFormat, MessageFormat, Uncertain};
use crate::domain::Restrictions;

/// A setting.
#[derive(Debug)]
pub struct Key {
    /// Its full name, as in `server.grpc_addr`.
    pub name: &'static str,
    /// What it is for.
    pub help: &'static str,
    allowed: fn() -> String,
    set: fn(&mut Config, &Raw<'_>) -> Result<(), String>,
    show: fn(&Config) -> Option<String>,
}

impl Key {
    /// The setting of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Its flag without the dashes: the name without `store.` or `server.`, joined by dashes, as in `grpc-addr` or
    /// `check-auth`.
    #[must_use]
    pub fn flag(&self) -> String {
        let short = self.name.strip_prefix("store.").or_else(|| self.name.strip_prefix("server."));
        short.unwrap_or(self.name).replace(['.', '_'], "-")
    }

    /// Its environment variable: `TOLLGATE_` and the flag in capitals, as in `TOLLGATE_GRPC_ADDR`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("TOLLGATE_{}", self.flag().replace('-', "_").to_uppercase())
    }

    /// What it may be, for people.
    #[must_use]
    pub fn allowed(&self) -> String {
        (self.allowed)()
    }

    /// Its value in `config`, as TOML. Absent where it is not set.
    #[must_use]
    pub fn show(&self, config: &Config) -> Option<String> {
        (self.show)(config)
    }

    pub(super) fn set(&self, config: &mut Config, raw: &Raw<'_>) -> Result<(), String> {
        (self.set)(config, raw)
    }
}

/// A row of the table: the field, its rule, and what it is for. The name is the field's path.
macro_rules! key {
    ($section:ident $(. $field:ident)+, $rule:expr, $help:literal) => {
        Key {
            name: concat!(stringify!($section) $(, ".", stringify!($field))+),
            help: $help,
            allowed: || $rule.allowed(),
            set: |config, raw| {
                let field = &mut config.$section $(. $field)+;
                $rule.apply(field, raw)
            },
            show: |config| $rule.show(&config.$section $(. $field)+),
        }
    };
}

const fn seconds(min: u64, max: u64) -> rule::Length {
    rule::Length { min: Duration::from_secs(min), max: Duration::from_secs(max) }
}

const fn count(range: RangeInclusive<usize>) -> rule::Count {
    rule::Count { min: *range.start(), max: *range.end() }
}

const fn bytes(min: usize, max: usize) -> rule::Size {
    rule::Size { min, max }
}

const CHECK_AUTH: rule::Word<CheckAuth> =
    rule::Word { words: &[("required", CheckAuth::Required), ("off", CheckAuth::Off)] };
const UNCERTAIN: rule::Word<Uncertain> =
    rule::Word { words: &[("charge", Uncertain::Charge), ("refund", Uncertain::Refund)] };
const LOG_FORMAT: rule::Word<LogFormat> =
    rule::Word { words: &[("auto", LogFormat::Auto), ("pretty", LogFormat::Pretty), ("json", LogFormat::Json)] };
const MESSAGE_FORMAT: rule::Word<MessageFormat> =
    rule::Word { words: &[("json", MessageFormat::Json), ("problem", MessageFormat::Problem)] };
const HEADERS: rule::List<String> = rule::List {
    item: |text| is_header(text).then(|| text.to_owned()),
    allowed: "names of headers that mean nothing else, in lower case, such as `x-api-key`",
};
const PARAMETER: rule::MaybeText = rule::MaybeText(rule::Text {
    is_allowed: is_word,
    allowed: "1 to 64 characters of `a-z`, `A-Z`, `0-9`, `-` and `_`, such as `api_key`",
});
const HEADER_PREFIX: rule::Text = rule::Text {
    is_allowed: |text| is_header(text) && text.starts_with("x-") && text.ends_with('-') && text.len() > 2,
    allowed: "the beginning of a header's name in lower case, `x-` and a `-` at its end, such as `x-auth-`",
};
const REALM: rule::Text = rule::Text {
    is_allowed: |text| (1..=64).contains(&text.len()) && text.bytes().all(is_quotable),
    allowed: "1 to 64 printable ASCII characters other than `\"` and `\\`",
};
const NAMES: rule::List<String> = rule::List {
    item: |text| {
        ((1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())).then(|| text.to_owned())
    },
    allowed: "DNS or URI names of client certificates, such as `envoy.internal` or `spiffe://example.org/envoy`",
};
const NETWORKS: rule::List<ipnet::IpNet> = rule::List {
    item: |text| Restrictions::parse_ip(text).ok(),
    allowed: "addresses or networks, such as `10.0.0.0/8` or `2001:db8::7`",
};
const FLUSH_INTERVAL: rule::Length = rule::Length { min: Duration::from_millis(100), max: Duration::from_secs(10) };

const FENCE: rule::Length = rule::Length { min: Duration::from_millis(500), max: Duration::from_mins(5) };
const POLL_INTERVAL: rule::Length = rule::Length { min: Duration::from_millis(10), max: Duration::from_secs(10) };

const HOUR: u64 = 3_600;
const DAY: u64 = 86_400;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn is_word(text: &str) -> bool {
    let word = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    word && (1..=64).contains(&text.len())
}

/// A header of the operator's choice: in lower case, and none that says something else already. In most of these a proxy says
/// who it is, or whom it speaks for.
fn is_header(text: &str) -> bool {
    let taken = [
        "authorization",
        "connection",
        "content-type",
        "cookie",
        "forwarded",
        "host",
        "referer",
        "x-client-ip",
        "x-request-id",
    ];
    let families = ["x-tollgate-", "x-forwarded-", "x-ratelimit-", "x-envoy-", "proxy-"];
    is_word(text)
        && !text.bytes().any(|b| b.is_ascii_uppercase() || b == b'_')
        && !taken.contains(&text)
        && !families.iter().any(|family| text.starts_with(family))
}

/// What may stand between the quotes of a header's parameter as it is (RFC 9110, section 5.6.4).
fn is_quotable(byte: u8) -> bool {
    (byte.is_ascii_graphic() || byte == b' ') && !matches!(byte, b'"' | b'\\')
}

/// Every setting, in the order in which they are documented.
pub const KEYS: &[Key] = &[
    key!(
        store.database,
        rule::DatabaseUrl,
        "The database: a SQLite file, made on first use, or a PostgreSQL database that several processes share."
    ),
    key!(
        store.password_file,
        rule::File,
        "The password for PostgreSQL, in the first line of a file that not everybody reads. One in the URL goes before it."
    ),
    key!(store.pool_max, count(3..=1_000), "Connections to PostgreSQL that one process opens."),
    key!(store.connect_timeout, seconds(1, 60), "How long connecting to PostgreSQL may take."),
    key!(store.statement_timeout, seconds(1, HOUR), "How long PostgreSQL may work on one statement."),
    key!(
        replicas.fence,
        FENCE,
        "For how long a process answers without word from PostgreSQL; so long a revocation waits for one that is cut off."
    ),
    key!(replicas.poll_interval, POLL_INTERVAL, "How often a process asks PostgreSQL what has changed."),
    key!(
        replicas.log_kept,
        seconds(1, 365 * DAY),
        "For how long the log of changes is kept: a process that was away for longer loads all anew."
    ),
    key!(server.grpc_addr, rule::Addr, "Where gRPC is served. Port 0 picks a free one."),
    key!(
        server.http_addr,
        rule::Addr,
        "Where `/v1/check`, metrics and health are served over HTTP. Port 0 picks a free one."
    ),
    key!(server.workers, count(0..=1_024), "Worker threads. 0: one a core."),
    key!(server.connections_max, count(1..=1_000_000), "Open connections; further ones are closed at once."),
    key!(server.streams_per_connection_max, count(1..=1_000_000), "Concurrent calls on one connection."),
    key!(
        server.in_flight_max,
        count(1..=1_000_000),
        "Calls in progress on all connections; further ones are refused as RESOURCE_EXHAUSTED."
    ),
    key!(server.request_timeout, seconds(1, HOUR), "How long a call may take, ImportKeys left out."),
    key!(server.import_timeout, seconds(1, DAY), "How long ImportKeys may take."),
    key!(server.first_byte_timeout, seconds(1, HOUR), "How long a new connection may stay silent."),
    key!(server.tls_handshake_timeout, seconds(1, HOUR), "How long a TLS handshake may take."),
    key!(server.keepalive_interval, seconds(1, HOUR), "After how much silence a connection is pinged."),
    key!(
        server.keepalive_timeout,
        seconds(1, HOUR),
        "How long the answer to a ping may take before the connection is closed."
    ),
    key!(
        server.connection_age_max,
        seconds(1, 365 * DAY),
        "After how long a connection is asked to go away, so that clients spread over new servers."
    ),
    key!(server.connection_age_grace, seconds(1, DAY), "How long the calls of such a connection have to finish."),
    key!(server.drain_timeout, seconds(0, HOUR), "How long calls have to finish on shutdown."),
    key!(server.message_bytes_max, bytes(KIB, 16 * MIB), "Size of a request message."),
    key!(server.import_message_bytes_max, bytes(KIB, 64 * MIB), "Size of one message of ImportKeys."),
    key!(server.reflection, rule::Switch, "Whether server reflection is served, which tells grpcurl the contract."),
    key!(server.tls.cert_file, rule::File, "The server's certificate chain (PEM). TLS is on where it is set."),
    key!(server.tls.key_file, rule::File, "The private key of the certificate (PEM)."),
    key!(
        server.tls.client_ca_file,
        rule::File,
        "Authorities of client certificates (PEM). Where it is set, clients must show a certificate of theirs."
    ),
    key!(
        check.auth,
        CHECK_AUTH,
        "Whether a check needs a caller with `tollgate:check`: CheckKey, and those of proxies. `off` is for a sidecar on a loopback address."
    ),
    key!(
        check.key_checks_per_second,
        count(0..=1_000_000),
        "Checks a second that one key may have before it is THROTTLED. 0: no ceiling."
    ),
    key!(
        check.http_status,
        rule::Statuses,
        "HTTP status by verdict, where it is not to be the verdict's own, such as 403 for UNKNOWN."
    ),
    key!(
        edge.credential_headers,
        HEADERS,
        "Headers, beside `Authorization: Bearer`, in which clients of an edge may send their key. nginx and Caddy must take them out."
    ),
    key!(
        edge.credential_query,
        PARAMETER,
        "Query parameter in which they may. It is removed before the upstream; access logs of others still see it."
    ),
    key!(edge.strip_credential, rule::Switch, "Whether the upstream gets the request without the key."),
    key!(
        edge.identity_prefix,
        HEADER_PREFIX,
        "What the headers begin with that tell the upstream whose request it is. The proxy must not let clients send such."
    ),
    key!(edge.realm, REALM, "The realm of `WWW-Authenticate`."),
    key!(edge.message_format, MESSAGE_FORMAT, "How denials are written: `json`, or `problem` for RFC 9457."),
    key!(
        edge.client_names,
        NAMES,
        "Client certificates that may check without a key, by a DNS or URI name in them: Envoys under mutual TLS."
    ),
    key!(
        edge.trusted_proxies,
        NETWORKS,
        "Proxies that may call `/v1/check` without a key, and whose `X-Forwarded-*` headers are believed."
    ),
    key!(keys.prefix, rule::KeyPrefix, "What the secrets of new keys begin with, as in `sk_live_…`."),
    key!(keys.pepper_file, rule::File, "The peppers under which secrets are hashed; a secret of its own."),
    key!(
        limits.journal,
        rule::JournalPlace,
        "Where a process keeps what it spends, so that nothing is lost if it is killed. On a disk of this machine."
    ),
    key!(
        limits.uncertain,
        UNCERTAIN,
        "What becomes of units leased by a process that was killed, where no journal tells: `charge` keeps every limit, `refund` may exceed it by them."
    ),
    key!(usage.flush_interval, FLUSH_INTERVAL, "How often usage is written to the store."),
    key!(log.format, LOG_FORMAT, "`auto` is pretty on a terminal and JSON otherwise."),
    key!(log.filter, rule::LogFilter, "Which lines are written: a level, or `target=level` separated by commas."),
];
