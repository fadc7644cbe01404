//! The log: events of `tracing`, on standard error.

use std::io::IsTerminal as _;

use serde::Deserialize;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// A line for people.
    Pretty,
    /// A JSON object a line, with the event's fields beside its time, level and message.
    Json,
}

/// Why the log can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter can't be read.
    #[error(
        "the log filter `{filter}` cannot be read: {source}; a level such as `info`, or `info,tollgate=debug`, is expected"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// It was set up before.
    #[error("the log is set up already")]
    Again,
}

/// Sets up the log of the process, for panics too, so that these are lines of the log like all else. `filter` is a level, or directives such as `info,tollgate=debug,sqlx=warn`.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let terminal = std::io::stderr().is_terminal();
    // https://no-color.org
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Pretty => false,
        LogFormat::Json => true,
    };
    subscriber(json, terminal && !plain, filter, std::io::stderr)?.try_init().map_err(|_| LogError::Again)?;
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a thread panicked: {message}");
    }));
    Ok(())
}

fn subscriber<W>(json: bool, ansi: bool, filter: &str, writer: W) -> Result<Box<dyn Subscriber + Send + Sync>, LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|source| LogError::Filter { filter: filter.escape_debug().to_string(), source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(ansi);
    Ok(if json { Box::new(builder.json().flatten_event(true).finish()) } else { Box::new(builder.finish()) })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(json: bool, filter: &str) -> String {
        let page = Page::default();
        let writer = page.clone();
        let subscriber = subscriber(json, false, filter, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "tollgate", revision = 7, "applied");
            tracing::debug!(target: "tollgate", "details");
        });
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_has_the_fields_beside_the_message() {
        let text = written(true, "info");
        assert_eq!(text.lines().count(), 1, "{text}");
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&event["message"], &event["revision"], &event["level"]),
            (&"applied".into(), &7.into(), &"INFO".into())
        );
        assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn lines_for_people_have_no_escapes_off_a_terminal() {
        let text = written(false, "warn,tollgate=debug");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("INFO tollgate: applied revision=7") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_named() {
        let Err(error) = subscriber(true, false, "tollgate=loud", io::sink) else { panic!("accepted") };
        assert!(error.to_string().contains("`tollgate=loud`"), "{error}");
    }
}
