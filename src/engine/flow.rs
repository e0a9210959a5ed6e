//! One control connection: its two edited directions and its dialogue.

mod announcement;
mod dialogue;
mod elsewhere;
mod ending;
mod nat64;
mod numbers;
mod range;
mod render;
mod segment;
mod tls;
mod word;

use std::time::Duration;

use super::Side;
use super::config::{Config, Standing};
use super::endpoints::Endpoints;
use super::event::Event;
use super::gateway::{Gateway, SessionId};
use super::second::Second;
use super::stats::{SessionInfo, Stats};
use crate::ftp::session::{Over, Peer, Session};
use crate::stream::{BufferLimits, Half, Seq};
use crate::wire::Segment;
pub(super) use dialogue::Unread;
use elsewhere::Stray;
use range::Range;
use tls::TlsRecords;

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

/// What a flow begins with besides its handshake.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowOptions {
    pub(super) v6: bool,
    /// Whether the gateway admitted it as a session. If not, no pinhole opens for it. It is
    /// inspected all the same, so that what is always refused is refused in it as well.
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
    /// See [`FlowOptions::admitted`].
    pub(super) admitted: bool,
}

/// How many bytes a flow may buffer for its packets to be put off.
const UNDOABLE: usize = 8 * 1024;

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Same,
    Changed,
    Dropped,
}

/// What the handling of one packet needs besides the flow.
pub(super) struct Context<'a> {
    pub(super) config: &'a Config,
    pub(super) gateway: &'a mut dyn Gateway,
    pub(super) stats: &'a mut Stats,
    pub(super) now: Duration,
    /// Half of what all flows together may buffer is taken.
    pub(super) crowded: bool,
    /// A successor takes over: it is to read further commands.
    pub(super) holding: bool,
    /// The gateway ends: the numbers of no direction may begin to differ.
    pub(super) ending: bool,
    /// The packet waits for a pinhole that opens in a moment: see [`Gateway::may_put_off`].
    pub(super) put_off: bool,
}

impl Context<'_> {
    /// What may be kept of what `peer` sends.
    fn limits(&self, peer: Peer) -> BufferLimits {
        let mut limits = self.config.limits;
        if peer == Peer::Server && !self.crowded {
            limits.unacked = limits.unacked.max(self.config.long_reply);
        }
        limits
    }
}

/// Whether a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum End {
    Open,
    /// A RST came that lies in the receiver's window but isn't exact. The receiver has sent nothing
    /// since.
    Doubted {
        by: Side,
    },
    /// A RST came that may have been exact. If either end sends a packet, it wasn't.
    Reset,
    Closed,
    /// The gateway ends, and this connection with it: its numbers differ on the two sides. Nothing
    /// goes on but a RST. See [`farewell`](super::farewell).
    Dismissed,
    /// The gateway ends. A packet would have changed the numbers, so it didn't go on, and no other
    /// packet does. Its sender sends it again, to whoever is next.
    Frozen,
}

/// How long a silent connection that may be over is kept: as long as a NAT must keep an established
/// one (RFC 5382 REQ-5).
const DOUBT: Duration = Duration::from_secs(2 * 3600 + 4 * 60);

/// How long a closed connection is kept whose numbers are the same on both sides: its last packets need no
/// question to conntrack then.
const EVEN_LINGER: Duration = Duration::from_secs(2);

/// How long it is silent before conntrack is asked whether it still exists: as long as conntrack keeps one
/// in TIME_WAIT (`nf_conntrack_tcp_timeout_time_wait`).
const UNSEEN: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Flow {
    #[serde(skip)]
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
    /// [`FINS`], [`ANSWERED`], [`challenges`], [`SIGNED`], [`NOT_ADMITTED`].
    signs: u8,
    end: End,
    #[serde(skip)]
    opened: Second,
    #[serde(skip)]
    seen: Second,
    /// Since when bytes of either side wait for the rest of an address.
    #[serde(skip)]
    waiting: [Option<Second>; 2],
    /// Both directions' records, while the session is under TLS.
    pub(super) tls: Option<Box<TlsRecords>>,
    announced: u32,
    refused: u32,
    /// Where the client may reach a range of the server's ports.
    pub(super) range: Range,
    /// It was joined in its middle: see [`UNSETTLED`], [`RESUMED`] and [`received`].
    joined: u8,
    /// What its connection mark says.
    #[serde(skip)]
    standing: Standing,
    /// A record of it is kept.
    #[serde(skip)]
    recorded: bool,
    /// The last segment whose numbers don't fit.
    #[serde(skip)]
    stray: Option<Box<Stray>>,
    pub(super) session: Session,
}

// ---- the bits of `Flow::signs` -------------------------------------------------------------

/// Both sides' FINs passed: a bit for each [`Side`].
const FINS: u8 = 1 | 2;
/// The client has answered the SYN-ACK, so its address isn't forged.
const ANSWERED: u8 = 4;
/// The end at that hook has sent a challenge ACK: it answered a RST that wasn't exact
/// (RFC 5961 §3).
const fn challenges(side: Side) -> u8 {
    8 << side.index()
}
/// Both ends sign their segments (TCP-MD5, TCP-AO). A segment goes on as it came, or not at all.
const SIGNED: u8 = 32;
/// See [`FlowOptions::admitted`].
const NOT_ADMITTED: u8 = 64;
/// It passes unread: see [`Config::bypass`].
const BYPASSED: u8 = 128;

// ---- the bits of `Flow::joined` ------------------------------------------------------------

/// A bit for each [`Side`]: bytes of this direction may be under way that nobody saw here. The same,
/// shifted by two: data of this direction has come since.
const UNSETTLED: u8 = 1 | 2;
/// What is known of it is from a record.
const RESUMED: u8 = 16;
/// This direction is followed from a byte on that its receiver has acknowledged. So what comes before has
/// been received, and isn't read if it is sent again.
const fn received(side: Side) -> u8 {
    32 << side.index()
}

// ---- sizes ---------------------------------------------------------------------------------

/// What any path or host takes, in bytes of IP: RFC 8200 §5, and for IPv4 RFC 9293 §3.7.1.
const fn least_mtu(v6: bool) -> u16 {
    if v6 { 1280 } else { 576 }
}

/// The headers of IP and TCP without options, in bytes.
const fn headers(v6: bool) -> u16 {
    if v6 { 60 } else { 40 }
}

/// The largest window scale that exists (RFC 7323 §2.3): it is assumed if the handshake wasn't seen.
const MAX_SHIFT: u8 = 14;

/// How long a client has to answer the SYN-ACK when the table is full.
const UNANSWERED: Duration = Duration::from_secs(1);

impl Flow {
    /// A connection whose SYN (`client`, at the hook `side`) and SYN-ACK (`server`) were seen.
    pub(super) fn new(
        id: SessionId,
        side: Side,
        client: Hello,
        server: Hello,
        options: FlowOptions,
        cx: &mut Context<'_>,
    ) -> Self {
        // RFC 9293 §3.7.1: what is sent to an end that doesn't say what it takes.
        let default = least_mtu(options.v6).saturating_sub(headers(options.v6));
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
        // A server that doesn't sign its SYN-ACK ignores the client's signatures, and so may we.
        let signed = client.signed && server.signed;
        if signed {
            cx.stats.untouchable = cx.stats.untouchable.saturating_add(1);
        }
        let signs =
            if signed { SIGNED } else { 0 } | if options.admitted { 0 } else { NOT_ADMITTED };
        let mut session = Session::new(cx.config.policy.clone());
        if options.implicit {
            session.expect_tls();
        }
        if signed {
            // A segment can't carry bytes that an earlier one brought, so no whole line may be
            // held.
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
            tls: None,
            announced: 0,
            refused: 0,
            range: Range::None,
            joined: 0,
            standing: Standing::Unfollowed,
            recorded: false,
            stray: None,
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
        let v6 = segment.layout().v6;
        Self {
            id,
            client,
            starts: seq,
            halves,
            shifts: [MAX_SHIFT; 2],
            mss: least_mtu(v6).saturating_sub(headers(v6)),
            signs: signs | ANSWERED,
            end: End::Open,
            opened: Second::of(now),
            seen: Second::of(now),
            waiting: [None; 2],
            tls: None,
            announced: 0,
            refused: 0,
            range: Range::None,
            joined: UNSETTLED | received(side.opposite()),
            standing: Standing::Even,
            recorded: false,
            stray: None,
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

    /// Whether it may have ended unseen: see [`Engine::doubtful`](super::Engine::doubtful).
    pub(super) fn is_doubtful(&self, now: Duration) -> bool {
        let missed = self.joined != 0 || self.signs & FINS != 0 || self.end != End::Open;
        missed && !self.is_closed() && self.quiet(now) >= UNSEEN
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.end, End::Closed | End::Dismissed)
    }

    /// Whether the gateway admitted it as a session.
    pub(super) fn is_admitted(&self) -> bool {
        self.signs & NOT_ADMITTED == 0
    }

    /// How long it may be without a packet before it is forgotten.
    pub(super) fn patience(&self, idle: Duration, linger: Duration) -> Duration {
        match self.end {
            End::Open | End::Frozen => idle,
            End::Doubted { .. } => idle.min(DOUBT),
            // Its packets may pass unread, and its mark says so. But a RST may have died on its way.
            End::Closed if self.signs & FINS == FINS && self.is_even() && !self.recorded => {
                linger.min(EVEN_LINGER)
            }
            End::Reset | End::Closed | End::Dismissed => linger,
        }
    }

    /// Why no pinhole opens for this connection and no address is rewritten, if that is so.
    /// Refusals are made all the same.
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

    fn set_admitted(&mut self, admitted: bool) {
        match admitted {
            true => self.signs &= !NOT_ADMITTED,
            false => self.signs |= NOT_ADMITTED,
        }
    }

    /// Whether what was read from a record can be a flow.
    pub(super) fn is_sound(&self) -> bool {
        self.halves.iter().all(Half::is_sound)
    }

    fn is_signed(&self) -> bool {
        self.signs & SIGNED != 0
    }

    /// Whether its dialogue is followed.
    fn is_read(&self) -> bool {
        self.signs & BYPASSED == 0 && self.session.is_followed()
    }

    /// It passes unread, from its beginning on.
    pub(super) fn pass_unread(&mut self) {
        self.signs |= BYPASSED;
        self.halves.iter_mut().for_each(Half::end_inspection);
    }

    /// See [`Half::ack_of_receiver`]; `sender`: whose stream is acknowledged.
    pub(super) fn as_received(&self, sender: Side, ack: Seq) -> Seq {
        let [egress, ingress] = &self.halves;
        match sender {
            Side::Egress => egress.ack_of_receiver(ack),
            Side::Ingress => ingress.ack_of_receiver(ack),
        }
    }

    /// Whether it may be evicted from a full table. That needs three things: nobody has logged in
    /// (or it isn't FTP), its packets need no change, and it was silent for `patience`. One second
    /// is enough if its client may be a forged address.
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
        let (client, server) = ends.client_and_server(self.client);
        SessionInfo {
            id: self.id,
            client,
            server,
            state: if self.is_closed() {
                "closed"
            } else if self.signs & BYPASSED != 0 {
                "bypassed"
            } else {
                self.session.state()
            },
            age: self.opened.until(now).as_secs(),
            idle: self.quiet(now).as_secs(),
            announced: self.announced,
            refused: self.refused,
            buffered: self.buffered(),
            delta_to_server: self.delta(self.client),
            delta_to_client: self.delta(self.client.opposite()),
            not_followed: self.not_followed(),
        }
    }

    fn delta(&self, side: Side) -> i32 {
        let [egress, ingress] = &self.halves;
        match side {
            Side::Egress => egress.delta(),
            Side::Ingress => ingress.delta(),
        }
    }

    /// Why nothing opens for what it announces, if that is so.
    fn not_followed(&self) -> Option<&'static str> {
        let over = self.session.over().map(Over::why);
        let limit = self.halves.iter().any(Half::is_opaque);
        self.no_pinholes()
            .or(over)
            .or(limit.then_some("a limit on its buffers was reached"))
    }

    /// Ends the control connection, and reports it the first time.
    pub(super) fn close(&mut self, how: &'static str, gateway: &mut dyn Gateway) {
        if !self.is_closed() {
            self.end = End::Closed;
            self.tls = None;
            self.session.connection_ended();
            if self.is_admitted() {
                gateway.session_ended(self.id);
                gateway.event(Event::SessionClosed {
                    session: self.id,
                    how,
                });
            }
        }
    }

    /// Whether what a segment changes can be undone, so that it may be put off: not where nothing in it can ask
    /// for a pinhole, and not where so much is buffered that a copy for each packet would cost more than
    /// it brings.
    pub(super) fn is_undoable(&mut self, side: Side, segment: &Segment<'_>) -> bool {
        let few = self.buffered().saturating_add(segment.payload().len()) <= UNDOABLE;
        let forward = self.forward(side);
        let asks = !segment.payload().is_empty() || !forward.pending().is_empty();
        asks && few && !forward.is_opaque()
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
            flow <= 248 && half <= 48 && session <= 80,
            "flow {flow}, of it half {half} twice and session {session} bytes"
        );
    }
}
