//! What the kernel knows of this process, under the names that every Prometheus client uses. Where there is no
//! `/proc`, these are absent.

use std::fmt;
use std::fs;
use std::sync::OnceLock;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

/// The kernel counts in ticks of `USER_HZ`, which is 100 on every architecture that Linux shows to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Read anew at each scrape.
#[derive(Debug, Default)]
pub(super) struct Process {
    start_seconds: OnceLock<Option<f64>>,
}

/// Fields of `/proc/self/stat` that are told, in its own units.
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
}

impl Process {
    /// When the process began, in seconds since 1970.
    fn start_seconds(&self, stat: &Stat) -> Option<f64> {
        *self.start_seconds.get_or_init(|| {
            let boot = fs::read_to_string("/proc/stat").ok()?;
            let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
            Some(boot.trim().parse::<f64>().ok()? + seconds(stat.start_ticks))
        })
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| match value {
            Some(value) => encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value),
            None => Ok(()),
        };
        let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| parse_stat(&text));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();

        gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            stat.as_ref().and_then(|stat| self.start_seconds(stat)),
        )?;
        gauge(
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            parse_rss_kib(&status).map(|kib| f64_from(kib * 1024)),
        )?;
        gauge(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            stat.as_ref().map(|stat| f64_from(stat.virtual_bytes)),
        )?;
        gauge("process_open_fds", "Number of open file descriptors.", open_files())?;
        gauge("process_max_fds", "Maximum number of open file descriptors.", parse_files_max(&limits).map(f64_from))?;
        if let Some(stat) = stat {
            encoder
                .encode_descriptor(
                    "process_cpu_seconds",
                    "Total user and system CPU time spent in seconds.",
                    None,
                    MetricType::Counter,
                )?
                .encode_counter::<[(&str, &str); 0], _, f64>(&seconds(stat.cpu_ticks), None)?;
        }
        Ok(())
    }
}

/// proc(5), `/proc/pid/stat`: the fields after the command, which stands in brackets and may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    // The first of these is field 3.
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
    Some(Stat { cpu_ticks: field(14)? + field(15)?, start_ticks: field(22)?, virtual_bytes: field(23)? })
}

fn parse_rss_kib(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

fn parse_files_max(limits: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

fn open_files() -> Option<f64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the listing's own.
    u64::try_from(open.saturating_sub(1)).ok().map(f64_from)
}

fn seconds(ticks: u64) -> f64 {
    f64_from(ticks) / TICKS_PER_SECOND
}

#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "metrics are floats; exact up to 2^53")]
fn f64_from(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_command() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 12345 8192 300 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.cpu_ticks, stat.start_ticks, stat.virtual_bytes), (200, 12_345, 8_192));
        assert!(parse_stat("7 (a) S 1").is_none());
        assert_eq!(parse_rss_kib("VmPeak: 9 kB\nVmRSS:\t  123 kB\n"), Some(123));
        assert_eq!(parse_files_max("Max open files            1024                 4096   files\n"), Some(1_024));
    }
}
