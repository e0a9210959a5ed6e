//! What is exposed, in Prometheus's text format (0.0.4). docs/metrics.md lists the same, and a test holds the
//! two together: names and labels are a contract.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::super::status::Queue;
use crate::engine::Stats;
use crate::pinholes::PlaneCounters;

/// The media type of the page.
pub(super) const CONTENT: &str = prometheus::TEXT_FORMAT;

/// What the daemon is like at one moment.
pub(in crate::daemon) struct Sample {
    /// Seconds since the start.
    pub(in crate::daemon) uptime: u64,
    /// Whether rules and pinhole tables are in place, as of the last look.
    pub(in crate::daemon) in_place: bool,
    pub(in crate::daemon) sessions: usize,
    /// Pinholes that are reserved or open.
    pub(in crate::daemon) pinholes: usize,
    pub(in crate::daemon) ranges: usize,
    pub(in crate::daemon) data_connections: usize,
    /// Bytes in the buffers of all sessions.
    pub(in crate::daemon) held: usize,
    /// Bytes that data connections carried.
    pub(in crate::daemon) carried: u64,
    pub(in crate::daemon) queues: Vec<Queue>,
    pub(in crate::daemon) counters: Stats,
    pub(in crate::daemon) nat: PlaneCounters,
    pub(in crate::daemon) lines_lost: u64,
    /// Whether the journal works; `None` without one.
    pub(in crate::daemon) journal: Option<bool>,
    /// Whether the store answers; `None` without one.
    pub(in crate::daemon) store: Option<bool>,
}

/// Writes the page.
///
/// # Errors
/// In words, if a name isn't one for Prometheus: a mistake here.
pub(super) fn page(sample: &Sample, durations: &Histogram) -> Result<String, prometheus::Error> {
    let page = Page(Registry::new());
    page.daemon(sample)?;
    page.sessions(sample)?;
    page.packets(sample)?;
    page.pinholes(sample)?;
    page.queues(&sample.queues)?;
    page.0.register(Box::new(durations.clone()))?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&page.0.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

type Done = Result<(), prometheus::Error>;

struct Page(Registry);

impl Page {
    fn daemon(&self, sample: &Sample) -> Done {
        let build = self.gauges(
            "build_info",
            "Always 1; the label has the version",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        self.gauge("uptime_seconds", "Time since the start", sample.uptime)?;
        let help = "Whether the rules and pinhole tables were in place at the last look, which is made after \
                    a scrape, and at most every 15 s";
        self.gauge("rules_in_place", help, sample.in_place)?;
        let help = "Times that rules which somebody else had removed were put back, or couldn't be";
        let nat = &sample.nat;
        self.counters(
            "rule_repairs_total",
            help,
            "result",
            &[("done", nat.restored), ("failed", nat.restore_failures)],
        )?;
        let help = "Printed lines that nobody read in time";
        self.counter("lines_lost_total", help, sample.lines_lost)?;
        if let Some(works) = sample.journal {
            let help = "Whether what a successor must know can be written";
            self.gauge("journal_up", help, works)?;
        }
        if let Some(works) = sample.store {
            let help =
                "Whether the store that another gateway reads answered when it was asked last";
            self.gauge("store_up", help, works)?;
        }
        Ok(())
    }

    fn sessions(&self, sample: &Sample) -> Done {
        let (stats, nat) = (&sample.counters, &sample.nat);
        self.gauge("sessions", "Control connections now", sample.sessions)?;
        self.counter("sessions_total", "Control connections seen", stats.sessions)?;
        let help = "Control connections that were under way when they were first seen";
        self.counter("sessions_joined_total", help, stats.joined)?;
        let help = "Control connections for which nothing opens, by the limit that was reached";
        self.counters(
            "sessions_limited_total",
            help,
            "limit",
            &[
                ("sessions", nat.limited_sessions),
                ("sessions-per-client", nat.limited_sessions_per_client),
            ],
        )?;
        let help = "Control connections that are no longer read, or never were, by the reason";
        self.counters(
            "sessions_unread_total",
            help,
            "reason",
            &[
                ("tls", stats.tls),
                ("not_ftp", stats.not_ftp),
                ("limit", stats.limit_reached),
                ("table_full", stats.table_full),
            ],
        )?;
        let help = "Addresses that went out with a pinhole, rewritten or not";
        self.counter("announcements_total", help, stats.announced)?;
        let help = "Announcements that passed without a pinhole";
        self.counter("announcements_not_opened_total", help, stats.not_opened)?;
        let help = "Commands and replies that were replaced in place";
        self.counter("refusals_total", help, stats.refused)?;
        let help =
            "Rewritten addresses, by what carried them, and by whether the line kept its length";
        let opts = options("rewrites_total", help);
        let rewrites = self.add(IntCounterVec::new(opts, &["kind", "length"])?)?;
        for (kind, all, resized) in [
            ("227", stats.rewritten_227, stats.resized_227),
            ("229", stats.rewritten_229, stats.resized_229),
            ("PORT", stats.rewritten_port, stats.resized_port),
            ("EPRT", stats.rewritten_eprt, stats.resized_eprt),
        ] {
            let kept = all.saturating_sub(resized);
            rewrites.with_label_values(&[kind, "same"]).inc_by(kept);
            rewrites
                .with_label_values(&[kind, "changed"])
                .inc_by(resized);
        }
        Ok(())
    }

    fn packets(&self, sample: &Sample) -> Done {
        let stats = &sample.counters;
        self.counter("packets_total", "Packets looked at", stats.packets)?;
        let help = "Packets that left with a change of any kind";
        self.counter("packets_changed_total", help, stats.changed)?;
        let help = "Packets that passed unread, by the reason";
        self.counters(
            "packets_unread_total",
            help,
            "reason",
            &[
                ("malformed", stats.malformed),
                ("fragment", stats.fragments),
                ("bad_checksum", stats.bad_checksum),
                ("mid_stream", stats.mid_stream),
            ],
        )?;
        let help = "Packets of which nothing went on at first, by the reason";
        self.counters(
            "packets_held_total",
            help,
            "reason",
            &[
                ("out_of_order", stats.out_of_order),
                ("incomplete", stats.held),
                ("in_flight", stats.waited),
            ],
        )?;
        let help = "Packets with numbers that their receiver doesn't accept; most are forged";
        self.counter("packets_unacceptable_total", help, stats.unacceptable)?;
        let help = "Packets of control connections that nobody can go on with";
        self.counter("packets_orphaned_total", help, stats.orphaned)?;
        self.gauge(
            "held_bytes",
            "Bytes in the buffers of all control connections",
            sample.held,
        )
    }

    fn pinholes(&self, sample: &Sample) -> Done {
        let nat = &sample.nat;
        self.gauge(
            "pinholes",
            "Pinholes that wait for their connection",
            sample.pinholes,
        )?;
        let help = "Sessions under TLS whose range of ports is open";
        self.gauge("ranges", help, sample.ranges)?;
        self.gauge(
            "data_connections",
            "Data connections now",
            sample.data_connections,
        )?;
        for (name, help, count) in [
            (
                "pinholes_opened_total",
                "Pinholes put into the kernel",
                nat.opened,
            ),
            (
                "pinholes_used_total",
                "Pinholes through which a data connection came",
                nat.used,
            ),
            (
                "pinholes_expired_total",
                "Pinholes that nobody used in time",
                nat.expired,
            ),
            (
                "pinholes_superseded_total",
                "Pinholes that made room for others",
                nat.superseded,
            ),
            (
                "pinholes_adopted_total",
                "Pinholes taken over from an earlier ftpalg",
                nat.adopted,
            ),
            (
                "ranges_opened_total",
                "Ranges opened for sessions under TLS",
                nat.ranges_opened,
            ),
            (
                "ranges_idle_total",
                "Ranges closed because the client was idle",
                nat.ranges_idle,
            ),
            (
                "range_connections_total",
                "Data connections through ranges",
                nat.range_connections,
            ),
            (
                "conntrack_events_missed_total",
                "Times that conntrack's events were lost, and its list was read instead",
                nat.missed_events,
            ),
            (
                "kernel_errors_total",
                "Changes of pinholes that the kernel refused",
                nat.kernel_errors,
            ),
            (
                "data_bytes_total",
                "Bytes that data connections carried, both directions, IP headers included; 0 where \
                 conntrack doesn't count them",
                sample.carried,
            ),
        ] {
            self.counter(name, help, count)?;
        }
        let help = "Pinholes and ranges that weren't opened, by the reason";
        self.counters(
            "pinholes_refused_total",
            help,
            "reason",
            &[
                ("pinholes", nat.limited_total),
                ("pinholes-per-client", nat.limited_per_client),
                ("pinholes-per-minute", nat.limited_rate),
                (
                    "pinholes-per-client-per-minute",
                    nat.limited_rate_per_client,
                ),
                ("no_port", nat.no_port),
                ("range_taken", nat.ranges_taken),
            ],
        )
    }

    fn queues(&self, queues: &[Queue]) -> Done {
        let help = "Packets that wait for an answer";
        let length = self.gauges("queue_length", help, &["queue"])?;
        let packets = self.vec(
            "queue_packets_total",
            "Packets queued by the kernel",
            &["queue"],
        )?;
        let help =
            "Packets dropped by the kernel because the queue, or its socket's buffer, was full";
        let dropped = self.vec("queue_dropped_packets_total", help, &["queue", "reason"])?;
        let help = "Failures to receive packets, or to answer";
        let errors = self.vec("queue_errors_total", help, &["queue", "what"])?;
        for queue in queues {
            let number = queue.queue.to_string();
            let number = number.as_str();
            // What only root sees is left out for others.
            if let Some(waiting) = queue.waiting {
                length.with_label_values(&[number]).set(signed(waiting));
            }
            if let Some(queued) = queue.queued {
                packets.with_label_values(&[number]).inc_by(queued);
            }
            for (reason, count) in [
                ("full", queue.dropped_full),
                ("buffer", queue.dropped_buffer),
            ] {
                if let Some(count) = count {
                    dropped.with_label_values(&[number, reason]).inc_by(count);
                }
            }
            for (what, count) in [
                ("receive", queue.receive_errors),
                ("verdict", queue.verdict_errors),
            ] {
                errors.with_label_values(&[number, what]).inc_by(count);
            }
        }
        Ok(())
    }

    fn gauge(&self, name: &str, help: &str, value: impl TryInto<i64>) -> Done {
        let gauge = self.add(IntGauge::with_opts(options(name, help))?)?;
        gauge.set(value.try_into().unwrap_or(i64::MAX));
        Ok(())
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(IntGaugeVec::new(options(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str, value: u64) -> Done {
        let counter = self.add(IntCounter::with_opts(options(name, help))?)?;
        counter.inc_by(value);
        Ok(())
    }

    fn vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(options(name, help), labels)?)
    }

    /// A counter for each value of one label.
    fn counters(&self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) -> Done {
        let vec = self.vec(name, help, &[label])?;
        for (value, count) in values {
            vec.with_label_values(&[*value]).inc_by(*count);
        }
        Ok(())
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }
}

fn signed(value: u64) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// The name with ours in front, and what it means.
pub(super) fn options(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("ftpalg")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::daemon::metrics::Durations;

    fn sample() -> Sample {
        Sample {
            uptime: 7,
            in_place: true,
            sessions: 3,
            pinholes: 1,
            ranges: 0,
            data_connections: 2,
            held: 100,
            carried: 1_000_000,
            queues: vec![Queue {
                queue: 2121,
                waiting: Some(5),
                queued: Some(50),
                dropped_full: Some(1),
                dropped_buffer: Some(0),
                receive_errors: 0,
                verdict_errors: 0,
                unknown_hook: 0,
            }],
            counters: Stats {
                rewritten_227: 10,
                resized_227: 4,
                ..Stats::default()
            },
            nat: PlaneCounters {
                no_port: 9,
                ..PlaneCounters::default()
            },
            lines_lost: 0,
            journal: Some(true),
            store: Some(false),
        }
    }

    fn text(sample: &Sample) -> String {
        let durations = Durations::new().unwrap();
        durations.observe(std::time::Duration::from_micros(30));
        page(sample, &durations.0).unwrap()
    }

    /// Name, type and labels of each metric.
    type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

    fn exposed(text: &str) -> Metrics {
        let mut all = Metrics::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                all.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
            } else if let Some((name, labels)) = line.split_once('{') {
                let labels = labels.split_once('}').unwrap().0.split(',');
                let labels = labels.map(|label| label.split_once('=').unwrap().0);
                let labels = labels.filter(|label| *label != "le").map(str::to_owned);
                if let Some((_, found)) = all.get_mut(name) {
                    found.extend(labels);
                }
            }
        }
        all
    }

    fn documented() -> Metrics {
        let rows = include_str!("../../../docs/metrics.md").lines();
        let rows = rows.filter(|line| line.starts_with("| `ftpalg_"));
        let words = |cell: &str| {
            let words = cell.split('`').skip(1).step_by(2);
            words.map(str::to_owned).collect::<BTreeSet<_>>()
        };
        rows.map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let name = words(cells[1]).pop_first().unwrap();
            (name, (cells[2].to_owned(), words(cells[3])))
        })
        .collect()
    }

    /// They are a contract: whoever renames one is told here.
    #[test]
    fn all_metrics_are_documented_with_type_and_labels() {
        let exposed = exposed(&text(&sample()));
        assert!(exposed.len() > 40);
        assert_eq!(exposed, documented());
    }

    #[test]
    fn names_in_alerts_and_dashboard_exist() {
        let known = documented();
        for file in [
            include_str!("../../../packaging/prometheus/ftpalg.rules.yml"),
            include_str!("../../../packaging/grafana/ftpalg.json"),
        ] {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let words = file.split(|c| !is_part(c));
            let names: BTreeSet<_> = words.filter(|word| word.starts_with("ftpalg_")).collect();
            assert!(names.len() > 10, "{names:?}");
            for name in names {
                let name = name.strip_suffix("_bucket").unwrap_or(name);
                assert!(known.contains_key(name), "{name}");
            }
        }
    }

    #[test]
    fn samples_have_their_values() {
        let text = text(&sample());
        for line in [
            "ftpalg_rules_in_place 1",
            "ftpalg_store_up 0",
            "ftpalg_rewrites_total{kind=\"227\",length=\"changed\"} 4",
            "ftpalg_rewrites_total{kind=\"227\",length=\"same\"} 6",
            "ftpalg_pinholes_refused_total{reason=\"no_port\"} 9",
            "ftpalg_queue_dropped_packets_total{queue=\"2121\",reason=\"full\"} 1",
            "ftpalg_data_bytes_total 1000000",
            "ftpalg_packet_duration_seconds_bucket{le=\"0.000025\"} 0",
            "ftpalg_packet_duration_seconds_bucket{le=\"0.00005\"} 1",
            "ftpalg_packet_duration_seconds_count 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} in {text}");
        }
        // What only root sees, and what isn't there, has no sample.
        let mut other = sample();
        other.queues[0].waiting = None;
        other.store = None;
        let text = self::text(&other);
        assert!(
            !text.contains("ftpalg_queue_length{") && !text.contains("store_up"),
            "{text}"
        );
    }
}
