//! One control connection: its two edited directions and its dialogue.

mod announcement;
mod dialogue;
mod numbers;
mod range;
mod render;
mod segment;
mod tls;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use super::config::Config;
use super::event::Event;
use super::gateway::{Gateway, PinholeId, SessionId};
use super::second::Second;
use super::stats::{SessionInfo, Stats};
use super::{Endpoints, Side};
use crate::ftp::session::{Peer, Session};
use crate::stream::{Half, Limits, Seq};
use crate::wire::Segment;
pub(super) use dialogue::Unread;
use range::Range;
use tls::Tls;

/// What the handshake said about one end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hello {
    pub(super) isn: Seq,
    pub(super) mss: Option<u16>,
    pub(super) shift: Option<u8>,
    /// The window that it offers to the other end; never scaled here (RFC 7323 §2.2).
    pub(super) window: u16,
    /// It has an option that signs it (TCP-MD5, TCP-AO).
    pub(super) signed: bool,
}

impl Hello {
    pub(super) fn read(segment: &Segment<'_>) -> Self {
        let options = segment.options();
        Self {
            isn: Seq(segment.seq()),
            mss: options.mss,
            shift: options.window_scale,
            window: segment.window(),
            signed: options.signed,
        }
    }
}

/// What is known of a connection besides its handshake.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) v6: bool,
    /// Whether the gateway counts it as a session. If not, nothing opens for it; it is inspected all
    /// the same, so that what is always refused stays refused.
    pub(super) admitted: bool,
    /// See [`Session::expect_tls`].
    pub(super) implicit: bool,
}

/// A connection that is joined in its middle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joined {
    pub(super) id: SessionId,
    /// The hook that the client's packets come through.
    pub(super) client: Side,
    /// The hook that the first segment came through.
    pub(super) side: Side,
    /// See [`Known::admitted`].
    pub(super) admitted: bool,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Same,
    Changed,
    Dropped,
}

/// The surroundings of one packet.
pub(super) struct Context<'a> {
    pub(super) config: &'a Config,
    pub(super) gateway: &'a mut dyn Gateway,
    pub(super) stats: &'a mut Stats,
    pub(super) now: Duration,
    /// Half of what all flows together may buffer is taken.
    pub(super) crowded: bool,
}

impl Context<'_> {
    /// What may be kept of what `peer` sends.
    fn limits(&self, peer: Peer) -> Limits {
        let mut limits = self.config.limits;
        if peer == Peer::Server && !self.crowded {
            limits.unacked = limits.unacked.max(self.config.long_reply);
        }
        limits
    }
}

/// A pinhole's number plus one, so that there may be none in as many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hole(NonZeroU64);

impl From<PinholeId> for Hole {
    fn from(id: PinholeId) -> Self {
        Self(NonZeroU64::MIN.saturating_add(id.0))
    }
}

impl From<Hole> for PinholeId {
    fn from(hole: Hole) -> Self {
        Self(hole.0.get().saturating_sub(1))
    }
}

/// Whether a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// A RST came that lies in the receiver's window, but isn't exact, and the receiver hasn't shown
    /// since that it is there.
    Doubted {
        by: Side,
    },
    /// A RST came that may have been exact: a packet of either end tells that it wasn't.
    Reset,
    Closed,
}

/// How long a connection that may be over is kept at least: as long as any NAT must keep one of which
/// it doesn't know whether its ends are still there (RFC 5382 REQ-5).
const DOUBT: Duration = Duration::from_secs(2 * 3600 + 4 * 60);

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) id: SessionId,
    pub(super) client: Side,
    /// The initial sequence numbers of client and server: they name this incarnation.
    starts: [Seq; 2],
    /// Indexed by [`Side`]: egress carries what the inside endpoint sends.
    halves: [Half; 2],
    /// The window scale of the endpoint that sends in that direction.
    shifts: [u8; 2],
    /// The largest segment for either end, in bytes, TCP options included (RFC 6691).
    mss: u16,
    /// Bit per side: its FIN passed ([`FINS`]), it asked back at a RST; and [`ANSWERED`], [`SIGNED`],
    /// [`NOT_ADMITTED`], [`RESUMABLE`].
    pub(super) signs: u8,
    end: End,
    opened: Second,
    seen: Second,
    /// Since when bytes of either side wait for the rest of an address.
    waiting: [Option<Second>; 2],
    /// The hole that an accepted `PORT`/`EPRT` reserved.
    active: Option<Hole>,
    /// Both directions' records, while the session is under TLS.
    pub(super) tls: Option<Box<Tls>>,
    announced: u32,
    refused: u32,
    /// Where the client may reach a range of the server's ports.
    pub(super) range: Range,
    /// It was joined in its middle, and no packet of this side's has come since.
    unheard: Option<Side>,
    pub(super) session: Session,
}

/// Both sides' FINs passed.
pub(super) const FINS: u8 = 3;
/// The client has answered the SYN-ACK: its address is its own.
const ANSWERED: u8 = 4;
/// See [`Known::admitted`].
const NOT_ADMITTED: u8 = 64;
/// Its mark says that it may be joined in its middle.
const RESUMABLE: u8 = 128;
/// Both ends sign their segments (TCP-MD5, TCP-AO): a segment goes on as it came, or not at all.
const SIGNED: u8 = 32;
/// The largest window scale that there is (RFC 7323 §2.3): where the handshake wasn't seen.
const MAX_SHIFT: u8 = 14;
/// How long a client has to answer the SYN-ACK, where room is needed for others.
const UNANSWERED: Duration = Duration::from_secs(1);

impl Flow {
    /// A connection whose SYN (`client`, at the hook `side`) and SYN-ACK (`server`) were seen.
    pub(super) fn new(
        id: SessionId,
        side: Side,
        client: Hello,
        server: Hello,
        known: Known,
        cx: &mut Context<'_>,
    ) -> Self {
        let default = if known.v6 { 1220 } else { 536 };
        let mut halves = [Half::new(client.isn), Half::new(server.isn)];
        for (half, receiver) in halves.iter_mut().zip([server, client]) {
            half.offered(receiver.window);
        }
        // RFC 7323 §2.2: scaling holds only if both ends offer it.
        let scaled = client.shift.is_some() && server.shift.is_some();
        let mut shifts = [client.shift, server.shift].map(|s| s.filter(|_| scaled).unwrap_or(0));
        if side == Side::Ingress {
            halves.swap(0, 1);
            shifts.swap(0, 1);
        }
        // Where the server doesn't sign its SYN-ACK, it ignores the signatures, and so may we.
        let signed = client.signed && server.signed;
        if signed {
            cx.stats.untouchable = cx.stats.untouchable.saturating_add(1);
        }
        let signs = if signed { SIGNED } else { 0 } | if known.admitted { 0 } else { NOT_ADMITTED };
        let mut session = Session::new(cx.config.policy.clone());
        if known.implicit {
            session.expect_tls();
        }
        if signed {
            // Its segments go on as they came: none can carry what another brought.
            session.lose_patience();
        }
        Self {
            id,
            client: side,
            starts: [client.isn, server.isn],
            halves,
            shifts,
            mss: client
                .mss
                .unwrap_or(default)
                .min(server.mss.unwrap_or(default))
                .max(64),
            signs,
            end: End::Open,
            opened: Second::of(cx.now),
            seen: Second::of(cx.now),
            waiting: [None; 2],
            active: None,
            tls: None,
            announced: 0,
            refused: 0,
            range: Range::None,
            unheard: None,
            session,
        }
    }

    /// A connection that is under way, of which this is the first segment that is seen. What the
    /// handshake said isn't known: what is assumed instead costs some precision, and no bytes.
    pub(super) fn joined(
        joined: &Joined,
        segment: &Segment<'_>,
        config: &Config,
        now: Duration,
    ) -> Self {
        let Joined {
            id,
            client,
            side,
            admitted,
        } = *joined;
        let seq = [segment.seq(), segment.ack()].map(Seq);
        let mut halves = seq.map(Half::joined);
        if side == Side::Ingress {
            halves.swap(0, 1);
        }
        let signed = segment.options().signed;
        let signs = if signed { SIGNED } else { 0 } | if admitted { 0 } else { NOT_ADMITTED };
        let mut session = Session::joined(config.policy.clone());
        if signed {
            session.lose_patience();
        }
        let default = if segment.layout().v6 { 1220 } else { 536 };
        Self {
            id,
            client,
            starts: seq,
            halves,
            shifts: [MAX_SHIFT; 2],
            mss: default,
            signs: signs | ANSWERED | RESUMABLE,
            end: End::Open,
            opened: Second::of(now),
            seen: Second::of(now),
            waiting: [None; 2],
            active: None,
            tls: None,
            announced: 0,
            refused: 0,
            range: Range::None,
            unheard: Some(side.opposite()),
            session,
        }
    }

    /// Whether it began with these two initial sequence numbers.
    pub(super) fn began_with(&self, client: Seq, server: Seq) -> bool {
        self.starts == [client, server]
    }

    /// How long it has been without a packet.
    pub(super) fn quiet(&self, now: Duration) -> Duration {
        self.seen.until(now)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.end == End::Closed
    }

    /// Whether the gateway counts it as a session.
    pub(super) fn is_admitted(&self) -> bool {
        self.signs & NOT_ADMITTED == 0
    }

    /// How long it may be without a packet before it is forgotten.
    pub(super) fn patience(&self, idle: Duration, linger: Duration) -> Duration {
        match self.end {
            End::Open => idle,
            End::Doubted { .. } => idle.min(DOUBT),
            End::Reset | End::Closed => linger,
        }
    }

    /// Why nothing opens for this connection, whatever is announced in it, and nothing is rewritten:
    /// only what is refused is.
    pub(super) fn no_pinholes(&self) -> Option<&'static str> {
        if self.is_signed() {
            Some("its segments are signed")
        } else if !self.is_admitted() {
            Some("a limit on sessions is reached")
        } else if self.session.is_unfollowed() {
            Some("not FTP")
        } else {
            None
        }
    }

    fn is_signed(&self) -> bool {
        self.signs & SIGNED != 0
    }

    /// Whether it may go where room is needed: nobody has logged in, or it isn't FTP; it was silent for
    /// so long (not at all long, if its client may be a forged address); and its packets need no change.
    pub(super) fn is_idle_guest(&self, now: Duration, patience: Duration) -> bool {
        self.session.is_guest()
            && self.quiet(now)
                >= if self.signs & ANSWERED != 0 {
                    patience
                } else {
                    UNANSWERED
                }
            && self.halves.iter().all(Half::is_plain)
    }

    pub(super) fn buffered(&self) -> usize {
        self.halves
            .iter()
            .map(Half::buffered)
            .chain(self.tls.as_ref().map(|tls| tls.buffered()))
            .fold(0, usize::saturating_add)
    }

    pub(super) fn info(&self, ends: &Endpoints, now: Duration) -> SessionInfo {
        let (client, server) = self.client_and_server(ends);
        SessionInfo {
            id: self.id,
            client,
            server,
            state: if self.is_closed() {
                "closed"
            } else {
                self.session.state()
            },
            age: self.opened.until(now).as_secs(),
            idle: self.quiet(now).as_secs(),
            announced: self.announced,
            refused: self.refused,
            buffered: self.buffered(),
        }
    }

    pub(super) fn client_and_server(&self, ends: &Endpoints) -> (SocketAddr, SocketAddr) {
        match self.client {
            Side::Egress => (ends.inside, ends.outside),
            Side::Ingress => (ends.outside, ends.inside),
        }
    }

    /// Says that the control connection ended, once.
    pub(super) fn close(&mut self, how: &'static str, gateway: &mut dyn Gateway) {
        if !self.is_closed() {
            self.end = End::Closed;
            self.tls = None;
            self.active = None;
            if self.is_admitted() {
                gateway.session_ended(self.id);
                gateway.event(Event::SessionClosed {
                    session: self.id,
                    how,
                });
            }
        }
    }

    /// The direction of `side`'s packets, and the opposite one.
    pub(super) fn both(&mut self, side: Side) -> [&mut Half; 2] {
        let [egress, ingress] = &mut self.halves;
        match side {
            Side::Egress => [egress, ingress],
            Side::Ingress => [ingress, egress],
        }
    }

    /// The direction of `side`'s packets.
    fn forward(&mut self, side: Side) -> &mut Half {
        let [forward, _] = self.both(side);
        forward
    }

    /// The direction that `side`'s packets acknowledge.
    fn reverse(&mut self, side: Side) -> &mut Half {
        let [_, reverse] = self.both(side);
        reverse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_flow_is_small() {
        let (flow, half, session) = (size_of::<Flow>(), size_of::<Half>(), size_of::<Session>());
        assert!(
            flow <= 264 && half <= 56 && session <= 80,
            "flow {flow}, of it half {half} twice and session {session} bytes"
        );
    }
}
