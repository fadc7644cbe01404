//! `tollgate keys import`: a file of any length, a JSON object a line, sent as it is read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::ClientArgs;
use super::failure::{Exit, Failure, Outcome};
use super::out::{self, Output, Record, Rows};
use crate::proto::v1::{ImportKeysRequest, ImportKeysResponse, ImportedKey, Key};

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The file, a JSON object a line; `-` is standard input. docs/cli.md describes it.
    file: PathBuf,
    /// Check every row, and import none.
    #[arg(long)]
    dry_run: bool,
}

/// Bytes of a line; more than the largest key can have.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Bad lines that are reported one by one, as many as a server reports.
const ERRORS_MAX: usize = 1_000;
/// Rows that are read ahead of the connection.
const ROWS_AHEAD: usize = 1_000;

pub(super) async fn run(client: &ClientArgs, args: &ImportArgs, output: Output) -> Outcome {
    let (source, bar) = open(args)?;
    let key_message = out::descriptor("Key")?;
    let mut keys = client.connect_for_stream().await?.keys();
    let (sender, receiver) = mpsc::channel(ROWS_AHEAD);
    let mut reader =
        Reader { sender, key_message, bar, rows: 0, places: Vec::new(), errors: Vec::new(), unreadable: 0 };
    let dry_run = args.dry_run;
    let reading = tokio::task::spawn_blocking(move || {
        let outcome = reader.read_all(source, dry_run);
        (reader.finish(), outcome)
    });
    let answer = keys.import_keys(ReceiverStream::new(receiver)).await?.into_inner();
    let (read, outcome) = reading.await.map_err(|error| Failure::error(error.to_string()))?;
    let report = Report::new(dry_run, answer, read);
    report.print(output)?;
    outcome?;
    if report.failed > 0 { Err(Failure::silent(Exit::Error)) } else { Ok(()) }
}

fn open(args: &ImportArgs) -> Result<(Box<dyn BufRead + Send>, ProgressBar), Failure> {
    // On what is no terminal, indicatif draws nothing.
    if args.file.as_os_str() == "-" {
        return Ok((Box::new(BufReader::new(std::io::stdin())), ProgressBar::new_spinner()));
    }
    let wrong = |error: std::io::Error| Failure::error(format!("`{}` can't be read: {error}", args.file.display()));
    let file = File::open(&args.file).map_err(wrong)?;
    let metadata = file.metadata().map_err(wrong)?;
    let bar = if metadata.is_file() { ProgressBar::new(metadata.len()) } else { ProgressBar::new_spinner() };
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}, {msg} rows, {eta} left") {
        bar.set_style(style);
    }
    Ok((Box::new(BufReader::with_capacity(1 << 16, file)), bar))
}

/// Turns lines into rows. Holds none of them.
struct Reader {
    sender: mpsc::Sender<ImportKeysRequest>,
    key_message: MessageDescriptor,
    bar: ProgressBar,
    rows: u64,
    /// From which row on the line's number is how much larger, because lines between them were no rows.
    places: Vec<(u64, u64)>,
    errors: Vec<LineError>,
    unreadable: u64,
}

impl Reader {
    fn read_all(&mut self, mut source: Box<dyn BufRead + Send>, dry_run: bool) -> Outcome {
        // Where the server is gone, its answer says why.
        if self.sender.blocking_send(ImportKeysRequest { dry_run, key: None }).is_err() {
            return Ok(());
        }
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let bytes = source.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if bytes == 0 {
                break;
            }
            self.bar.inc(u64::try_from(bytes).unwrap_or(0));
            if !line.ends_with(b"\n") && u64::try_from(bytes).is_ok_and(|bytes| bytes == LINE_BYTES_MAX) {
                self.bad(number, format!("is longer than {LINE_BYTES_MAX} bytes"));
                self.bar.inc(skip_line(&mut source)?);
                continue;
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match row(&self.key_message, &line) {
                Err(message) => self.bad(number, message),
                Ok(key) => {
                    if !self.send(number, key, dry_run) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, line: u64, key: ImportedKey, dry_run: bool) -> bool {
        let offset = line - self.rows;
        if self.places.last().is_none_or(|(_, last)| *last != offset) {
            self.places.push((self.rows, offset));
        }
        self.rows += 1;
        if self.rows.is_multiple_of(1_000) {
            self.bar.set_message(self.rows.to_string());
        }
        self.sender.blocking_send(ImportKeysRequest { dry_run, key: Some(key) }).is_ok()
    }

    fn bad(&mut self, line: u64, message: String) {
        self.unreadable += 1;
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(LineError { line, field: String::new(), message });
        }
    }

    /// Ends the stream, which it does by dropping the sender.
    fn finish(self) -> Read {
        self.bar.finish_and_clear();
        Read { places: self.places, errors: self.errors, unreadable: self.unreadable }
    }
}

/// Passes over the rest of a line, without holding it.
fn skip_line(source: &mut impl BufRead) -> std::io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = source.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(buffer.len(), |end| end + 1);
        let done = end.is_some() || buffer.is_empty();
        source.consume(used);
        skipped += u64::try_from(used).unwrap_or(0);
        if done {
            return Ok(skipped);
        }
    }
}

/// What was read.
struct Read {
    places: Vec<(u64, u64)>,
    errors: Vec<LineError>,
    unreadable: u64,
}

impl Read {
    /// The line of a row that was sent.
    fn line(&self, row: i64) -> u64 {
        let row = u64::try_from(row).unwrap_or(0);
        let after = self.places.partition_point(|(from, _)| *from <= row);
        let place = after.checked_sub(1).and_then(|i| self.places.get(i));
        row + place.map_or(1, |(_, offset)| *offset)
    }
}

/// A line as a row. What is wrong is said without the line's contents, which may be a secret in the wrong place.
fn row(key_message: &MessageDescriptor, line: &[u8]) -> Result<ImportedKey, String> {
    // Any value first: what is wrong with the syntax is told without contents, what is wrong with a type is not.
    let value: Value = serde_json::from_slice(line).map_err(|error| {
        format!("is no JSON object: {}", error.to_string().replace(" at line 1 column", " at column"))
    })?;
    let Value::Object(mut object) = value else { return Err("is no JSON object".into()) };
    let hash = match object.remove("hash") {
        Some(Value::String(hash)) => hash,
        Some(_) => return Err("`hash` is no string".into()),
        None => return Err("`hash` is missing".into()),
    };
    complete(&mut object, "environment", "ENVIRONMENT_");
    for limit in object.get_mut("limits").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(limit) = limit.as_object_mut() {
            complete(limit, "period", "PERIOD_");
            complete(limit, "algorithm", "ALGORITHM_");
        }
    }
    let key =
        DynamicMessage::deserialize(key_message.clone(), Value::Object(object)).map_err(|error| error.to_string())?;
    let key: Key = key.transcode_to().map_err(|error| error.to_string())?;
    Ok(ImportedKey { hash, key: Some(key) })
}

/// `live` stands for `ENVIRONMENT_LIVE`.
fn complete(object: &mut Map<String, Value>, field: &str, prefix: &str) {
    if let Some(Value::String(word)) = object.get_mut(field)
        && !word.starts_with(prefix)
    {
        *word = format!("{prefix}{}", word.to_uppercase());
    }
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    imported: i64,
    already_present: i64,
    failed: u64,
    revision: i64,
    errors: Vec<LineError>,
}

#[derive(Serialize)]
struct LineError {
    line: u64,
    field: String,
    message: String,
}

impl Report {
    fn new(dry_run: bool, answer: ImportKeysResponse, read: Read) -> Self {
        let ImportKeysResponse { imported, already_present, failed, errors, revision } = answer;
        let refused = errors.into_iter().map(|error| LineError {
            line: read.line(error.row),
            field: error.field,
            message: error.message,
        });
        let mut all: Vec<LineError> = refused.collect();
        let failed = u64::try_from(failed).unwrap_or(0) + read.unreadable;
        all.extend(read.errors);
        all.sort_by_key(|error| error.line);
        Self { dry_run, imported, already_present, failed, revision, errors: all }
    }

    fn print(&self, output: Output) -> Outcome {
        if output == Output::Json {
            return out::json(self);
        }
        let mut record = Record::default();
        record.add(if self.dry_run { "would be imported" } else { "imported" }, self.imported.to_string());
        record.add("already present", self.already_present.to_string()).add("failed", self.failed.to_string());
        record.print()?;
        if self.errors.is_empty() {
            return Ok(());
        }
        let mut rows = Rows::new(&["line", "field", "error"]);
        for error in &self.errors {
            rows.add([error.line.to_string(), error.field.clone(), error.message.clone()]);
        }
        out::say("")?;
        rows.print()?;
        let shown = u64::try_from(self.errors.len()).unwrap_or(u64::MAX);
        if self.failed > shown {
            out::note(&format!("note: {} more rows failed", self.failed - shown));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{Algorithm, Environment, Period};

    #[test]
    fn a_line_is_a_key_with_its_hash() {
        let message = out::descriptor("Key").unwrap();
        let line = br#"{"hash":"ab","account_id":"acct_a","name":"n","environment":"live","scopes":["a:b"],
            "limits":[{"name":"m","capacity":5,"period":"minute","algorithm":"sliding_window"}],
            "expire_time":"2030-01-01T00:00:00Z","metadata":{"a":"b"},"prefix":"old_"}"#;
        let imported = row(&message, line).unwrap();
        let key = imported.key.unwrap();
        assert_eq!((imported.hash.as_str(), key.account_id.as_str(), key.prefix.as_str()), ("ab", "acct_a", "old_"));
        assert_eq!(key.environment(), Environment::Live);
        assert_eq!(key.limits[0].period(), Period::Minute);
        assert_eq!(key.limits[0].algorithm(), Algorithm::SlidingWindow);
        assert_eq!(key.expire_time.unwrap().seconds, 1_893_456_000);
    }

    #[test]
    fn a_wrong_line_says_what_is_wrong_and_not_what_it_holds() {
        let message = out::descriptor("Key").unwrap();
        let rows: [(&[u8], &str); 8] = [
            (b"hunter2", "is no JSON object: expected value at column 1"),
            (b"[\"hunter2\"]", "is no JSON object"),
            (b"\"hunter2\"", "is no JSON object"),
            (b"{\"name\":\"hunter2\"", "is no JSON object"),
            (b"{\"name\":\"hunter2\"}", "`hash` is missing"),
            (b"{\"hash\":[\"hunter2\"]}", "`hash` is no string"),
            (b"{\"hash\":\"ab\",\"secret\":\"hunter2\"}", "secret"),
            (b"{\"hash\":\"\xff\"}", "is no JSON object"),
        ];
        for (line, expected) in rows {
            let said = row(&message, line).unwrap_err();
            assert!(said.contains(expected) && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn rows_are_found_again_by_their_line() {
        let read = Read { places: vec![(0, 1), (2, 4), (5, 5)], errors: Vec::new(), unreadable: 0 };
        let lines: Vec<u64> = (0..7).map(|row| read.line(row)).collect();
        assert_eq!(lines, [1, 2, 6, 7, 8, 10, 11]);
    }

    #[test]
    fn long_lines_are_skipped_and_counted() {
        let mut text = vec![b'x'; 3 << 20];
        text.extend(b"\n{\"hash\":\"ab\"}\n\n{\"hash\":\"cd\"}");
        let (sender, mut receiver) = mpsc::channel(16);
        let key_message = out::descriptor("Key").unwrap();
        let bar = ProgressBar::hidden();
        let mut reader =
            Reader { sender, key_message, bar, rows: 0, places: Vec::new(), errors: Vec::new(), unreadable: 0 };
        reader.read_all(Box::new(std::io::Cursor::new(text)), true).unwrap();
        let read = reader.finish();
        assert_eq!((read.unreadable, read.errors[0].line), (1, 1));
        assert_eq!((read.line(0), read.line(1)), (2, 4));
        assert!(receiver.blocking_recv().unwrap().key.is_none());
        assert_eq!(receiver.blocking_recv().unwrap().key.unwrap().hash, "ab");
    }
}
