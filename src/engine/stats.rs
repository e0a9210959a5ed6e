//! Counters, and what the engine tells of a session.

use std::net::SocketAddr;

use serde::Serialize;

use super::gateway::SessionId;
use crate::ftp::nat64::Nat64News;
use crate::ftp::session::Counts;

/// What a worker has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Packets that were looked at.
    pub packets: u64,
    /// Packets that left with a change of any kind.
    pub changed: u64,
    /// Packets that weren't a whole TCP segment; passed.
    pub malformed: u64,
    /// IP fragments; passed.
    pub fragments: u64,
    /// Segments with a wrong checksum; passed, still wrong, and not looked at.
    pub bad_checksum: u64,
    /// Segments of connections whose start wasn't seen, and that can't be joined; passed.
    pub mid_stream: u64,
    /// Segments with numbers that their receiver doesn't accept (RFC 9293 §3.10.7.4, RFC 5961).
    /// Most are forged. They change nothing.
    pub unacceptable: u64,
    /// Segments held back because bytes before them were missing.
    pub out_of_order: u64,
    /// Segments of which nothing could go on yet (the rest of an address is missing).
    pub held: u64,
    /// Retransmissions whose bytes differed from the first transmission, which was sent again
    /// instead.
    pub contradicted: u64,
    /// Segments with data that had to wait at the sender because too much was in flight.
    pub waited: u64,
    /// Control connections seen.
    pub sessions: u64,
    /// Of these, those that were under way already: see [`crate::engine::Config::marks`].
    pub joined: u64,
    /// Packets of connections that nobody can go on with, and that were ended: see
    /// [`crate::engine::Standing::Uneven`].
    pub orphaned: u64,
    /// Connections passed unmodified because the table was full, and SYNs forgotten for others.
    pub table_full: u64,
    /// Connections that aren't followed because a limit on sessions was reached.
    pub not_admitted: u64,
    /// Sessions whose inspection ended at a limit (see [`crate::stream::BufferLimits`]).
    pub limit_reached: u64,
    /// Sessions that went on under TLS.
    pub tls: u64,
    /// Of these, sessions that went back to clear text and are inspected again.
    pub clear_again: u64,
    /// `AUTH` commands that were refused (`--tls deny`).
    pub tls_denied: u64,
    /// Connections that aren't FTP.
    pub not_ftp: u64,
    /// Failures to say in a connection's mark whether it may be joined in its middle.
    pub mark_errors: u64,
    /// SYNs and SYN-ACKs from which data or the Multipath TCP option was removed.
    pub stripped: u64,
    /// Connections with TCP-MD5 or TCP-AO at both ends: inspected, but never changed, and without
    /// pinholes.
    pub untouchable: u64,
    /// Addresses announced and let through.
    pub announced: u64,
    /// Addresses that were rewritten.
    pub rewritten: u64,
    /// Of the rewritten ones, those in a `227`.
    pub rewritten_227: u64,
    /// In a `229`.
    pub rewritten_229: u64,
    /// In a `PORT`.
    pub rewritten_port: u64,
    /// In an `EPRT`.
    pub rewritten_eprt: u64,
    /// Of those in a `227`, those that changed the length of their line.
    pub resized_227: u64,
    /// The same of a `229`.
    pub resized_229: u64,
    /// The same of a `PORT`.
    pub resized_port: u64,
    /// The same of an `EPRT`.
    pub resized_eprt: u64,
    /// Announcements that passed without a pinhole, because one couldn't be made.
    pub not_opened: u64,
    /// Commands or replies that were replaced in place.
    pub refused: u64,
    /// Announced addresses that couldn't be read strictly (an octet over 255, port 0): passed as
    /// they were.
    pub unparsable: u64,
    /// Addresses in a reply that answers no `PASV`/`EPSV`, and in a `PORT`/`EPRT` that may not open
    /// anything yet (before the login): passed as they were.
    pub unasked: u64,
    /// Lines longer than the limit: passed, not acted on.
    pub overlong: u64,
    /// Commands forgotten because too many waited for their reply.
    pub overrun: u64,
    /// Lines that were translated for NAT64 (RFC 6384).
    pub translated: u64,
    /// A `NOOP` in place of a command that the server didn't answer with `200`.
    pub noop_refused: u64,
}

impl Stats {
    /// Counts an address that was rewritten in `verb` (`227`, `229`, `PORT`, `EPRT`). `resized`: the length
    /// of its line has changed.
    pub(super) fn count_rewrite(&mut self, verb: &str, resized: bool) {
        let (of_verb, resized_of_verb) = match verb {
            "227" => (&mut self.rewritten_227, &mut self.resized_227),
            "229" => (&mut self.rewritten_229, &mut self.resized_229),
            "PORT" => (&mut self.rewritten_port, &mut self.resized_port),
            _ => (&mut self.rewritten_eprt, &mut self.resized_eprt),
        };
        *of_verb = of_verb.saturating_add(1);
        *resized_of_verb = resized_of_verb.saturating_add(resized.into());
        self.rewritten = self.rewritten.saturating_add(1);
    }

    /// Adds what a session counted between two looks at it.
    pub(super) fn count_lines(&mut self, before: Counts, after: Counts) {
        let pairs = [
            (&mut self.unparsable, before.unparsable, after.unparsable),
            (&mut self.unasked, before.unasked, after.unasked),
            (&mut self.overlong, before.overlong, after.overlong),
            (&mut self.overrun, before.overrun, after.overrun),
        ];
        for (sum, before, after) in pairs {
            *sum = sum.saturating_add(u64::from(after.saturating_sub(before)));
        }
    }

    /// Adds what happened in a session that is translated.
    pub(super) fn count_nat64(&mut self, news: Nat64News) {
        let pairs = [
            (&mut self.translated, news.translated),
            (&mut self.noop_refused, news.noop_refused),
        ];
        for (sum, more) in pairs {
            *sum = sum.saturating_add(more.into());
        }
    }

    /// Adds another worker's counts.
    pub fn add(&mut self, other: &Self) {
        let pairs: [(&mut u64, u64); 42] = [
            (&mut self.packets, other.packets),
            (&mut self.changed, other.changed),
            (&mut self.malformed, other.malformed),
            (&mut self.fragments, other.fragments),
            (&mut self.bad_checksum, other.bad_checksum),
            (&mut self.mid_stream, other.mid_stream),
            (&mut self.joined, other.joined),
            (&mut self.orphaned, other.orphaned),
            (&mut self.unacceptable, other.unacceptable),
            (&mut self.out_of_order, other.out_of_order),
            (&mut self.held, other.held),
            (&mut self.contradicted, other.contradicted),
            (&mut self.waited, other.waited),
            (&mut self.sessions, other.sessions),
            (&mut self.table_full, other.table_full),
            (&mut self.not_admitted, other.not_admitted),
            (&mut self.limit_reached, other.limit_reached),
            (&mut self.tls, other.tls),
            (&mut self.clear_again, other.clear_again),
            (&mut self.tls_denied, other.tls_denied),
            (&mut self.not_ftp, other.not_ftp),
            (&mut self.mark_errors, other.mark_errors),
            (&mut self.stripped, other.stripped),
            (&mut self.untouchable, other.untouchable),
            (&mut self.announced, other.announced),
            (&mut self.rewritten, other.rewritten),
            (&mut self.rewritten_227, other.rewritten_227),
            (&mut self.rewritten_229, other.rewritten_229),
            (&mut self.rewritten_port, other.rewritten_port),
            (&mut self.rewritten_eprt, other.rewritten_eprt),
            (&mut self.resized_227, other.resized_227),
            (&mut self.resized_229, other.resized_229),
            (&mut self.resized_port, other.resized_port),
            (&mut self.resized_eprt, other.resized_eprt),
            (&mut self.not_opened, other.not_opened),
            (&mut self.refused, other.refused),
            (&mut self.unparsable, other.unparsable),
            (&mut self.unasked, other.unasked),
            (&mut self.overlong, other.overlong),
            (&mut self.overrun, other.overrun),
            (&mut self.translated, other.translated),
            (&mut self.noop_refused, other.noop_refused),
        ];
        for (mine, theirs) in pairs {
            *mine = mine.saturating_add(theirs);
        }
    }
}

/// A control connection, as `ftpalg sessions` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct SessionInfo {
    /// Its number.
    pub id: SessionId,
    /// The client, as the inside of the gateway sees it.
    pub client: SocketAddr,
    /// The server, as the inside of the gateway sees it.
    pub server: SocketAddr,
    /// Where the dialogue stands.
    pub state: &'static str,
    /// Seconds since its handshake.
    pub age: u64,
    /// Seconds since its last packet.
    pub idle: u64,
    /// Addresses announced and let through.
    pub announced: u32,
    /// Announcements refused or left without a pinhole.
    pub refused: u32,
    /// Bytes in its buffers.
    pub buffered: usize,
    /// How many more bytes the server has got than the client has sent: the sequence delta of that direction.
    pub delta_to_server: i32,
    /// The same of the other direction.
    pub delta_to_client: i32,
    /// Why nothing opens for what it announces; none while it is followed.
    pub not_followed: Option<&'static str>,
}
