//! What becomes of an announced address: [`announce::decide`] says it, and here it is carried out.

use std::net::{IpAddr, SocketAddr};

use super::dialogue::pending;
use super::{Context, Flow};
use crate::engine::Side;
use crate::engine::announce::{self, Declined, How, Prepared};
use crate::engine::endpoints::Endpoints;
use crate::engine::event::Event;
use crate::engine::gateway::PinholeId;
use crate::ftp::Mode;
use crate::ftp::fit::LineSlot;
use crate::ftp::session::{Address, Announcement, Hole, Outcome};

/// Replaces a `227` or `229`, up to the end of its address, if no data connection can be had. The
/// rest of the server's line follows; usually that is a closing bracket. RFC 959 has 425 for
/// transfer commands only, but clients go by the first digit (RFC 1123 §4.1.2.11).
const REFUSAL: &[u8] = b"425 Can't open data connection (no usable port";
/// Replaces the address alone.
const NO_ADDRESS: &[u8] = b"no usable port";

/// An announcement that has gone out with a pinhole.
pub(super) struct Went {
    pub(super) pinhole: PinholeId,
    /// Whether that is open.
    pub(super) open: bool,
    /// Whether its text was changed, and then, whether its length was.
    pub(super) rewritten: Option<bool>,
    /// The address that was announced.
    pub(super) old: SocketAddr,
    /// The address that went out.
    pub(super) new: SocketAddr,
    /// Who may connect.
    pub(super) from: IpAddr,
    /// Where the data connection goes.
    pub(super) land: SocketAddr,
}

impl Flow {
    /// Handles an announcement in `side`'s pending bytes.
    pub(super) fn announce(
        &mut self,
        ends: &Endpoints,
        side: Side,
        address: &Address,
        cx: &mut Context<'_>,
    ) {
        let said = &address.announcement;
        let own = || ends.of_side(side).ip();
        let named = SocketAddr::new(said.addr.unwrap_or_else(own), said.port);
        let open = said.mode == Mode::Passive || self.session.opens_at_once();
        let how = self.how(address, open);
        if let Some(nat64) = self.session.nat64().cloned() {
            return self.announce_translated(nat64, ends, side, address, (how, open), cx);
        }
        let decided = match how {
            Ok(how) => {
                let pending = pending(&self.halves, side);
                let before = pending.get(..address.at).unwrap_or_default();
                let end = address.at.saturating_add(address.len);
                let after = pending.get(end..).unwrap_or_default();
                let slot = LineSlot::new(said, address.len, before, after);
                // Its receiver may have the line already, as the process before this one wrote it. Then
                // one of another length would put what follows out of place.
                let keeps_length = cx.config.keep_length || self.is_unsettled(side);
                let slot = match keeps_length {
                    true => slot,
                    false => slot.of_any_length(),
                };
                announce::decide(cx.config, cx.gateway, self.id, ends, side, &slot, how)
            }
            Err(declined) => Err(declined),
        };
        match decided {
            Ok(Some(prepared)) => self.let_announce(side, address, prepared, open, cx),
            Ok(None) => self.leave(side, address, cx),
            Err(Declined::Leave(why)) => {
                self.leave(side, address, cx);
                self.count_refusal(said.verb, why, Some(named), false, cx);
            }
            Err(Declined::Wait) => _ = self.freeze(),
            Err(Declined::PutOff) => self.put_off(cx),
            Err(Declined::Refuse(why)) => {
                let replaced = self.refuse(side, address, cx);
                self.count_refusal(said.verb, why, Some(named), replaced, cx);
            }
        }
    }

    /// How far to go if the policy allows the announcement. `open`: its pinhole may be open when it
    /// goes out.
    fn how(&self, address: &Address, open: bool) -> Result<How, Declined> {
        if !address.follow {
            return Ok(How::Check);
        }
        if self.is_closed() {
            // Its pinholes were closed when it ended. Nothing but its deadline would close a new
            // one.
            let why = "the control connection is over".to_owned();
            return Err(match address.announcement.mode {
                Mode::Active => Declined::Refuse(why),
                Mode::Passive => Declined::Leave(why),
            });
        }
        if !self.is_admitted() {
            return Ok(How::Check);
        }
        Ok(match self.no_pinholes() {
            Some(why) => How::Leave(why),
            None if open => How::Open,
            None => How::Reserve,
        })
    }

    /// The announcement goes out with its data connection prepared.
    fn let_announce(
        &mut self,
        side: Side,
        address: &Address,
        prepared: Prepared,
        open: bool,
        cx: &mut Context<'_>,
    ) {
        let Prepared {
            rewrite,
            old,
            new,
            from,
            land,
            hole,
        } = prepared;
        let forward = self.forward(side);
        let replaced = (rewrite.before)
            .saturating_add(address.len)
            .saturating_add(rewrite.after);
        forward.pass(address.at.saturating_sub(rewrite.before));
        forward.replace(replaced, &rewrite.text);
        let resized = replaced != rewrite.text.len();
        let went = Went {
            pinhole: hole,
            open,
            rewritten: (old != new).then_some(resized),
            old,
            new,
            from,
            land,
        };
        self.is_announced(side, &address.announcement, went, cx);
    }

    /// An announcement has gone out with a pinhole: the session machine is told, and it is counted and
    /// reported.
    pub(super) fn is_announced(
        &mut self,
        side: Side,
        said: &Announcement,
        went: Went,
        cx: &mut Context<'_>,
    ) {
        let (hole, open) = (Hole(went.pinhole.0), went.open);
        self.tell_session(side, Outcome::Accepted { hole, open }, cx);
        self.announced = self.announced.saturating_add(1);
        cx.stats.announced = cx.stats.announced.saturating_add(1);
        if let Some(resized) = went.rewritten {
            cx.stats.count_rewrite(said.verb, resized);
        }
        cx.gateway.event(Event::Announced {
            session: self.id,
            pinhole: went.pinhole,
            verb: said.verb,
            mode: said.mode,
            old: went.old,
            new: went.new,
            from: went.from,
            land: went.land,
        });
    }

    /// The announcement goes out as it is, without a pinhole.
    pub(super) fn leave(&mut self, side: Side, address: &Address, cx: &mut Context<'_>) {
        let end = address.at.saturating_add(address.len);
        self.forward(side).pass(end);
        self.tell_session(side, Outcome::PassedUnmodified, cx);
    }

    /// Tells the session machine what became of its [`Address`], and closes the pinhole that this
    /// supersedes.
    pub(super) fn tell_session(&mut self, side: Side, outcome: Outcome, cx: &mut Context<'_>) {
        let peer = self.peer(side);
        if let Some(Hole(superseded)) = self.session.announced(peer, outcome) {
            cx.gateway.release(PinholeId(superseded));
        }
    }

    /// The announcement is refused in place; false if it can't be, and goes out as it is.
    pub(super) fn refuse(&mut self, side: Side, address: &Address, cx: &mut Context<'_>) -> bool {
        let (at, len, text) = match (address.announcement.mode, &address.refusal) {
            (Mode::Passive, _) => self.refused_reply(side, address),
            (Mode::Active, Some(refusal)) => (
                refusal.at,
                refusal.with.len().max(1),
                refusal.with.as_slice(),
            ),
            // Only commands are refused.
            (Mode::Active, None) => {
                self.leave(side, address, cx);
                return false;
            }
        };
        let forward = self.forward(side);
        forward.pass(at);
        forward.replace(len, text);
        self.tell_session(side, Outcome::Refused, cx);
        true
    }

    /// How a `227` or `229` is refused: where the replaced text begins, its length, and what
    /// replaces it.
    fn refused_reply(&mut self, side: Side, address: &Address) -> (usize, usize, &'static [u8]) {
        let (at, len) = (address.at, address.len);
        let head = self.forward(side).pending().get(..at).unwrap_or_default();
        // The end of a reply of several lines must keep its code (RFC 959 §4.2).
        let is_whole = head.starts_with(address.announcement.verb.as_bytes());
        if is_whole && self.session.begins_reply() {
            (0, at.saturating_add(len), REFUSAL)
        } else {
            (at, len, NO_ADDRESS)
        }
    }
}
